"""Which HTTP answers are worth another attempt."""

RETRYABLE_CLIENT_ERRORS = frozenset({408, 425, 429})  # request timeout, too early, too many requests


def is_retryable(status: int) -> bool:
    """Whether the same request may succeed later: after any server error, and after a few client errors."""
    return status >= 500 or status in RETRYABLE_CLIENT_ERRORS
