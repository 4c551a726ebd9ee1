"""Signed addresses that are valid for a short time and need no token, for browsers and download tools."""

import hashlib
import hmac
import os
import secrets
import time
from urllib.parse import urlencode, urlsplit

from core.settings import Settings

MAX_AGE_S = 15 * 60


def secret(settings: Settings) -> bytes:
    """The key for signatures: from the settings, else generated once and stored in the home folder."""
    if settings.web_secret is not None:
        return settings.web_secret.get_secret_value().encode()
    path = settings.home.resolve() / "web.key"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".web.key.{secrets.token_hex(6)}")
    if not path.exists():
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as out:  # noqa: PTH123 - a descriptor, created with mode 0600
            out.write(secrets.token_hex(32).encode())
        try:
            path.hardlink_to(fresh)  # atomic: of two processes that start together, one wins
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_bytes()


def sign(key: bytes, what: str, seconds: int = MAX_AGE_S) -> dict[str, str]:
    """The query parameters that sign `what`."""
    expires = int(time.time()) + min(seconds, MAX_AGE_S)
    return {"expires": str(expires), "signature": _signature(key, what, expires)}


def is_signed(key: bytes, what: str, expires: int, signature: str) -> bool:
    """Whether `signature` is valid for `what` and has not expired."""
    fits = hmac.compare_digest(_signature(key, what, expires).encode(), signature.encode())
    return fits and time.time() < expires <= time.time() + MAX_AGE_S + 1


def file_address(key: bytes, job_id: str, stored_at: str) -> str:
    """An address of a LoRA file that needs no token: `stored_at`, or for a local file one of this service."""
    if urlsplit(stored_at).scheme != "file":
        return stored_at
    return own_address(key, job_id)


def own_address(key: bytes, job_id: str) -> str:
    """An address of a LoRA file in this service that needs no token."""
    return f"/api/trainings/{job_id}/file?{urlencode(sign(key, job_id))}"


def _signature(key: bytes, what: str, expires: int) -> str:
    return hmac.new(key, f"{what} {expires}".encode(), hashlib.sha256).hexdigest()
