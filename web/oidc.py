"""OpenID Connect: the authorization code flow with PKCE, and the check of the ID token.

The provider is the operator's, so its addresses are not foreign. joserfc checks signatures; nothing of a token is
believed before that.
"""

import base64
import hashlib
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx2
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from core.errors import Unreachable

_TIMEOUT_S = 10.0
_METADATA_S, _KEYS_S = 3600.0, 60.0  # how long metadata is kept, and the least time between two fetches of the keys
# Signatures with keys that only the provider has: never `none`, and never one with a shared secret.
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
_LEEWAY_S = 60


class SignInRefused(Exception):
    """The provider refused, or what it sent does not hold. The message is for the person."""


@dataclass(frozen=True)
class Attempt:
    """What one sign-in is bound to: `state` ties the answer to the browser, `nonce` the token to the attempt, and
    `verifier` the code to this client.
    """

    state: str
    nonce: str
    verifier: str


class OidcProvider:
    """One provider. Threads can share it."""

    def __init__(self, issuer: str, client_id: str, secret: str | None, scopes: str, redirect_uri: str) -> None:
        self._issuer, self._client_id, self._secret = issuer, client_id, secret
        self._scopes, self._redirect_uri = scopes, redirect_uri
        self._lock = threading.Lock()
        self._metadata: tuple[float, dict[str, Any]] | None = None
        self._keys: tuple[float, KeySet] | None = None

    def authorization_address(self, attempt: Attempt) -> str:
        """Where the browser goes to sign in. Raises Unreachable."""
        digest = hashlib.sha256(attempt.verifier.encode()).digest()
        asked = {
            "response_type": "code", "client_id": self._client_id, "redirect_uri": self._redirect_uri,
            "scope": self._scopes, "state": attempt.state, "nonce": attempt.nonce,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(), "code_challenge_method": "S256",
        }  # fmt: skip
        endpoint = self._endpoint("authorization_endpoint")
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(asked)}"

    def claims(self, code: str, attempt: Attempt) -> dict[str, Any]:
        """The claims of the person who signed in. Raises SignInRefused, and Unreachable."""
        id_token = self._exchange(code, attempt.verifier)
        try:
            token = self._decode(id_token)
            registry = jwt.JWTClaimsRegistry(
                leeway=_LEEWAY_S,
                iss={"essential": True, "value": self._known()["issuer"]},  # some end with a slash
                aud={"essential": True, "value": self._client_id},
                sub={"essential": True},
                exp={"essential": True},
                iat={"essential": True},
                nonce={"essential": True, "value": attempt.nonce},
            )
            registry.validate(token.claims)
        except (JoseError, ValueError, TypeError) as error:
            raise SignInRefused(f"the provider's ID token does not hold ({type(error).__name__})") from None
        claims = dict(token.claims)
        audience = claims["aud"]
        if isinstance(audience, list) and len(audience) > 1 and claims.get("azp") != self._client_id:
            raise SignInRefused("the provider's ID token was issued to another application")
        return claims

    def _decode(self, id_token: str) -> jwt.Token:
        try:
            return jwt.decode(id_token, self._key_set(), algorithms=_ALGORITHMS)
        except (JoseError, ValueError):
            if not self._fetched_long_ago():
                raise
        # The provider may sign with a new key.
        return jwt.decode(id_token, self._key_set(renew=True), algorithms=_ALGORITHMS)

    def _exchange(self, code: str, verifier: str) -> str:
        form = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": self._redirect_uri,
            "client_id": self._client_id, "code_verifier": verifier,
        }  # fmt: skip
        auth = None
        if self._secret is not None:
            methods = self._known().get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
            if "client_secret_basic" in methods:
                auth = httpx2.BasicAuth(self._client_id, self._secret)
            else:
                form["client_secret"] = self._secret
        answer = self._call("POST", self._endpoint("token_endpoint"), data=form, auth=auth)
        id_token = answer.get("id_token")
        if not isinstance(id_token, str):
            raise SignInRefused("the provider sent no ID token")
        return id_token

    # ---- what the provider publishes --------------------------------------------------------------------------

    def _known(self) -> dict[str, Any]:
        with self._lock:
            if self._metadata is None or time.monotonic() - self._metadata[0] > _METADATA_S:
                found = self._call("GET", f"{self._issuer}/.well-known/openid-configuration")
                if str(found.get("issuer", "")).rstrip("/") != self._issuer:
                    raise Unreachable("the provider's metadata names another issuer than IMPRINT_OIDC_ISSUER")
                self._metadata = time.monotonic(), found
            return self._metadata[1]

    def _endpoint(self, name: str) -> str:
        address = str(self._known().get(name, ""))
        own = urlsplit(self._issuer)
        if not address.startswith("https://") and urlsplit(address).hostname != own.hostname:
            raise Unreachable(f"the provider's {name} is not an https address")
        return address

    def _key_set(self, renew: bool = False) -> KeySet:
        address = self._endpoint("jwks_uri")
        with self._lock:
            if self._keys is None or renew:
                self._keys = time.monotonic(), KeySet.import_key_set(self._call("GET", address))  # type: ignore[arg-type]
            return self._keys[1]

    def _fetched_long_ago(self) -> bool:
        return self._keys is not None and time.monotonic() - self._keys[0] > _KEYS_S

    def _call(self, method: str, address: str, **options: Any) -> dict[str, Any]:
        try:
            answer = httpx2.request(method, address, timeout=_TIMEOUT_S, follow_redirects=False, **options)
            content = answer.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise Unreachable(f"the sign-in provider does not answer ({type(error).__name__})") from None
        if answer.status_code == 400 and method == "POST":
            raise SignInRefused("the provider refused the code; sign in again")
        if answer.status_code != 200 or not isinstance(content, dict):
            raise Unreachable(f"the sign-in provider answered {answer.status_code}")
        return content
