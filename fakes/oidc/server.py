"""The provider's server. The person who signs in is the one that `person` names; there is no form."""

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

CLIENT_ID, CLIENT_SECRET = "imprint", "a secret of the client"


@dataclass(frozen=True)
class Person:
    """Who signs in, and further claims."""

    sub: str
    claims: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Code:
    nonce: str
    challenge: str
    redirect_uri: str
    person: Person


class FakeOidc:
    """A provider on a free loopback port; `with FakeOidc() as provider` runs it.

    `changed` are claims that the next ID tokens have instead of the right ones, None leaves one out. `signed_by` is a
    fault of their signature: `stranger` (a key of another), `secret` (HMAC with the public key), or `nobody`.
    """

    def __init__(self) -> None:
        self.person: Person | None = None
        self.changed: dict[str, Any] = {}
        self.signed_by: str = ""
        self.key: RSAKey | ECKey = RSAKey.generate_key(2048, {"kid": "first", "use": "sig"})
        self._codes: dict[str, _Code] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider._get(self)

            def do_POST(self) -> None:
                provider._post(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self._server.server_port}/realm"
        self.published = self.issuer  # its name in metadata and ID tokens; with some providers it ends with a slash

    def __enter__(self) -> "FakeOidc":
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def new_key(self, name: str) -> None:
        """Sign with another key from now on, of another kind; the first one is published no longer."""
        self.key = ECKey.generate_key("P-256", {"kid": name, "use": "sig"})

    # ---- its routes -------------------------------------------------------------------------------------------

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        if parts.path == "/realm/.well-known/openid-configuration":
            _answer(request, 200, {
                "issuer": self.published, "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token", "jwks_uri": f"{self.issuer}/keys",
                "response_types_supported": ["code"], "code_challenge_methods_supported": ["S256"],
                "token_endpoint_auth_methods_supported": ["client_secret_basic"],
            })  # fmt: skip
        elif parts.path == "/realm/keys":
            _answer(request, 200, dict(KeySet([self.key]).as_dict(private=False)))
        elif parts.path == "/realm/authorize":
            self._authorize(request, {name: values[0] for name, values in parse_qs(parts.query).items()})
        else:
            _answer(request, 404, {})

    def _authorize(self, request: BaseHTTPRequestHandler, asked: dict[str, str]) -> None:
        wanted = {"response_type": "code", "client_id": CLIENT_ID, "code_challenge_method": "S256"}
        if any(asked.get(name) != value for name, value in wanted.items()) or "openid" not in asked["scope"].split():
            _answer(request, 400, {"error": "invalid_request"})
            return
        answer = {"state": asked["state"]}
        if self.person is None:
            answer["error"] = "access_denied"
        else:
            answer["code"] = secrets.token_urlsafe(16)
            self._codes[answer["code"]] = _Code(
                asked["nonce"], asked["code_challenge"], asked["redirect_uri"], self.person
            )
        request.send_response(302)
        request.send_header("Location", f"{asked['redirect_uri']}?{urlencode(answer)}")
        request.end_headers()

    def _post(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length", "0"))).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        known = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {known}":
            _answer(request, 401, {"error": "invalid_client"})
            return
        code = self._codes.pop(form.get("code", ""), None)  # it works once
        challenge = _base64(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if code is None or (code.challenge, code.redirect_uri) != (challenge, form.get("redirect_uri")):
            _answer(request, 400, {"error": "invalid_grant"})
            return
        _answer(request, 200, {"token_type": "Bearer", "access_token": "x", "id_token": self._id_token(code)})

    def _id_token(self, code: _Code) -> str:
        now = int(time.time())
        right = {
            "iss": self.published, "aud": CLIENT_ID, "sub": code.person.sub, "nonce": code.nonce, "iat": now,
            "exp": now + 300, **code.person.claims,
        }  # fmt: skip
        claims = {name: value for name, value in (right | self.changed).items() if value is not None}
        algorithm = "ES256" if isinstance(self.key, ECKey) else "RS256"
        header = {"alg": algorithm, "kid": self.key.kid}
        if self.signed_by == "stranger":
            return jwt.encode(header, claims, RSAKey.generate_key(2048), algorithms=["RS256"])
        if self.signed_by == "secret":  # by hand: no library signs with a public key
            parts = f"{_part(header | {'alg': 'HS256'})}.{_part(claims)}"
            return f"{parts}.{_base64(hmac.digest(self.key.as_pem(private=False), parts.encode(), 'sha256'))}"
        if self.signed_by == "nobody":
            return f"{_part({'alg': 'none'})}.{_part(claims)}."
        return jwt.encode(header, claims, self.key, algorithms=[algorithm])


def _part(content: dict[str, Any]) -> str:
    return _base64(json.dumps(content).encode())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _answer(request: BaseHTTPRequestHandler, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
