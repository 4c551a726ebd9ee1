"""Signatures of Standard Webhooks 1.0: HMAC-SHA256 over `id.timestamp.body`, one for each secret in use."""

import base64
import binascii
import hmac
from collections.abc import Sequence

_PREFIX = "whsec_"


def parse_secrets(text: str) -> list[bytes]:
    """The keys in `text`, separated by spaces: each is `whsec_` and the base64 of 24 to 64 bytes.

    During a rotation these are the new and the old secret, and receivers accept either. Raises ValueError for an
    invalid secret, without repeating it.
    """
    return [_read_secret(number, word) for number, word in enumerate(text.split(), 1)]


def sign(secrets: Sequence[bytes], message_id: str, timestamp_s: int, body: bytes) -> str:
    """The `webhook-signature` header: `v1,` and base64 for each secret, separated by spaces.

    `timestamp_s` is the time of this attempt, not of the message, so that receivers can refuse old copies.
    """
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    digests = (hmac.digest(secret, signed, "sha256") for secret in secrets)
    return " ".join("v1," + base64.b64encode(digest).decode() for digest in digests)


def _read_secret(number: int, word: str) -> bytes:
    if not word.startswith(_PREFIX):
        raise ValueError(f"webhook secret {number} does not begin with {_PREFIX}")
    encoded = word.removeprefix(_PREFIX)
    try:
        secret = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        raise ValueError(f"webhook secret {number} is not base64") from None
    if not 24 <= len(secret) <= 64:
        raise ValueError(f"webhook secret {number} has {len(secret)} bytes, not 24 to 64")
    return secret
