"""Download a file from an ai-toolkit server over a connection that may break."""

import re
import time
from pathlib import Path

from core.errors import BackendFailed, BackendUnreachable, StoreUnavailable
from core.files import replace_file
from training.backends.ai_toolkit.connection import ToolkitConnection, ToolkitResponse, backoff_s

TRIES_WITHOUT_PROGRESS = 5
SLOWEST_BYTES_PER_S = 50_000
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


def download_file(connection: ToolkitConnection, address: str, to: Path, size: int) -> None:
    """Download the file of `size` bytes at `address` to `to`, atomically. Resumes after a broken connection.

    Raises BackendUnreachable if repeated attempts make no progress or the download is too slow; BackendFailed if the
    file does not exist or has another size; StoreUnavailable if `to` cannot be written.
    """
    part = to.with_name(f"{to.name}.part")
    deadline = time.monotonic() + 120 + size / SLOWEST_BYTES_PER_S
    failures = 0
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        while True:
            if part.stat().st_size > size:
                part.write_bytes(b"")
            have = part.stat().st_size
            try:
                done = have == size or _fetch(connection, address, part, have, size, deadline)
            except BackendUnreachable:
                failures = 1 if part.stat().st_size > have else failures + 1
                if failures >= TRIES_WITHOUT_PROGRESS or time.monotonic() > deadline:
                    raise
                time.sleep(backoff_s(failures))
                continue
            if done:
                break
        replace_file(part, to)
    except OSError as error:
        raise StoreUnavailable(f"the downloaded file cannot be written: {error.strerror}") from error


def _fetch(connection: ToolkitConnection, address: str, part: Path, have: int, size: int, deadline: float) -> bool:
    """Download the rest; returns whether the file is complete. Restarts if the server cannot resume at `have`."""
    headers = {"Range": f"bytes={have}-"} if have else {}
    with connection.stream("GET", address, headers=headers) as response:
        if response.status_code == 416:  # the file on the server has changed
            part.write_bytes(b"")
            return False
        if response.status_code not in (200, 206):
            body = next(response.iter_raw(4096), b"")[:4096]
            raise connection.error_of(ToolkitResponse(response.status_code, body))
        part_sent = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if response.status_code == 206 and (not part_sent or (int(part_sent[1]), int(part_sent[2])) != (have, size)):
            part.write_bytes(b"")
            raise BackendFailed(f"{connection.place} sent another part of the file than requested")
        with part.open("r+b") as file:
            file.seek(have if response.status_code == 206 else 0)
            file.truncate()
            for chunk in response.iter_raw():
                file.write(chunk)
                if file.tell() > size:
                    raise BackendFailed(f"{connection.place} sent more than the {size} bytes that it announced")
                if time.monotonic() > deadline:
                    raise BackendUnreachable(f"{connection.place} sends the file too slowly")
    if part.stat().st_size != size:
        raise BackendUnreachable(f"the connection to {connection.place} broke")
    return True
