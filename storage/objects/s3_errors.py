"""Errors of boto3 as our own. None has the text of boto3, which may hold an address with its signature."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, ClientError

from core.errors import ImprintError, NotFound, ObjectExists, StoreUnavailable
from core.outbound.http_status import is_retryable
from storage.objects.s3_deadline import Deadline

_CODE = re.compile(r"[A-Za-z][A-Za-z0-9.]{0,60}")


def too_slow(key: str, deadline: Deadline) -> StoreUnavailable:
    return StoreUnavailable(
        f"the object store is too slow: it took more than {deadline.seconds:.0f} s (IMPRINT_S3_MIN_BYTES_PER_S)",
        {"key": key},
    )


@contextmanager
def our_errors(key: str, *, final: bool = False) -> Iterator[None]:
    """Translate boto3's errors, with `from None`: their messages contain addresses with signatures.

    final: report a 4xx as NotFound too, for objects of other buckets.
    """
    try:
        yield
    except ClientError as error:
        raise _of_status(error, key, final) from None
    except BotoCoreError as error:
        raise StoreUnavailable(f"the object store did not answer ({type(error).__name__})", {"key": key}) from None
    except OSError as error:
        raise StoreUnavailable(f"the object cannot be copied: {error.strerror}", {"key": key}) from None


def _of_status(error: ClientError, key: str, final: bool) -> ImprintError:
    status = status_of(error)
    named = _CODE.match(str(error.response.get("Error", {}).get("Code", "")))
    answer = f"{status} {named.group() if named else ''}".strip()
    if status == 404 or (final and 400 <= status < 500 and not is_retryable(status)):
        return NotFound(f"there is no object {key}, or it may not be read ({answer})")
    if status in (409, 412):
        return ObjectExists(f"there is an object {key} already")
    return StoreUnavailable(f"the object store answered {answer}", {"key": key})


def status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
