"""A client for the HTTP API of one ai-toolkit server, with one method per endpoint (docs/rented-gpus.md).

Methods raise BackendUnreachable (no response, one from a proxy, or a 5xx: may be retried) or BackendFailed (wrong
password, rejected request, unexpected response: final). Messages never quote the server. Only idempotent requests are
retried here, with backoff and jitter.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2

from core.errors import BackendFailed, BackendUnreachable
from training.backends.ai_toolkit.answers import (
    QUEUED,
    RUNNING,
    Gpu,
    LogPart,
    LossPoint,
    RemoteFile,
    RemoteJob,
    SampleImage,
    ServerFolders,
    checked_path,
    file_size,
    listed_paths,
)
from training.backends.ai_toolkit.connection import ToolkitConnection, ToolkitResponse
from training.backends.ai_toolkit.download import download_file

T = TypeVar("T")

LOSS_KEY = "loss/loss"
MAX_POINTS = 2000
_PLAIN_NAME = re.compile(r"[a-z0-9_]{1,200}")


class ToolkitServer:
    """An ai-toolkit server. `http` may be shared between servers and threads."""

    def __init__(self, url: str, token: str | None, http: httpx2.Client) -> None:
        """url: `http(s)://host[:port]`, without a path. token: its AI_TOOLKIT_AUTH; None if it has none.

        Raises BackendFailed for an invalid address or password.
        """
        self.connection = ToolkitConnection(url, token, http)

    # ---- the server ----

    def ready(self) -> bool:
        """Whether the server accepts requests; False while it starts. Raises BackendFailed for a wrong password."""
        try:
            data = self.connection.send("GET", "/api/auth").json()
        except BackendUnreachable:
            return False
        if not isinstance(data, dict) or "isAuthenticated" not in data:
            raise self.connection.unexpected_answer()
        return bool(data["isAuthenticated"])

    def folders(self) -> ServerFolders:
        """The folders for outputs and datasets."""
        data = self.connection.send_with_retries("GET", "/api/settings").json()
        return self._parse(lambda: ServerFolders.of(data))

    def gpus(self) -> list[Gpu]:
        """The GPUs of the server."""
        data = self.connection.send_with_retries("GET", "/api/gpu").json()
        return self._parse(lambda: [Gpu.of(gpu) for gpu in data["gpus"]])

    def queue_length(self) -> int:
        """The number of queued and running jobs, including other clients' jobs."""
        return sum(job.status in (QUEUED, RUNNING) for job in self.jobs().values())

    # ---- jobs ----

    def jobs(self) -> dict[str, RemoteJob]:
        """All jobs by name, in one request."""
        data = self.connection.send_with_retries("GET", "/api/jobs").json()
        rows = self._parse(lambda: [RemoteJob.of(row) for row in data["jobs"]])
        return {row.name: row for row in rows}

    def job(self, remote_id: str) -> RemoteJob | None:
        """A job by the server's id; None if it does not exist (the server sends 200 and null)."""
        answer = self.connection.send_with_retries("GET", "/api/jobs", params={"id": remote_id})
        if answer.body.strip() == b"null":
            return None
        data = answer.json()
        return self._parse(lambda: RemoteJob.of(data))

    def create_job(self, name: str, config: Mapping[str, Any], gpu_ids: str = "0") -> RemoteJob | None:
        """Create a job; None if the name is taken. Not retried: after BackendUnreachable, check `jobs()`."""
        body = {"name": name, "gpu_ids": gpu_ids, "job_config": config}
        answer = self.connection.send("POST", "/api/jobs", json=body, accept=(200, 409))
        if answer.status == 409:
            return None
        data = answer.json()
        return self._parse(lambda: RemoteJob.of(data))

    def start(self, remote_id: str) -> None:
        """Queue a job; this does not start the queue. Never call it for a running job, which would run twice."""
        self.connection.send("GET", f"/api/jobs/{_id(remote_id)}/start")

    def queues(self) -> dict[str, bool] | None:
        """Whether each queue runs, by gpu_ids; None if the server is too old to have queues."""
        answer = self.connection.send_with_retries("GET", "/api/queue", accept=(200, 404))
        if answer.status == 404:
            return None
        data = answer.json()
        return self._parse(lambda: {str(row["gpu_ids"]): bool(row["is_running"]) for row in data["queues"]})

    def start_queue(self, gpu_ids: str = "0") -> None:
        """Start a queue. The server stops a queue when it is empty. Has no effect on a server without queues."""
        self.connection.send_with_retries("GET", f"/api/queue/{quote(gpu_ids, safe='')}/start", accept=(200, 404))

    def stop(self, remote_id: str) -> None:
        """Stop a *running* job, if it exists. Has no effect on a queued one: see `mark_stopped`."""
        self._found(self.connection.send("GET", f"/api/jobs/{_id(remote_id)}/stop", accept=(200, 404)))

    def mark_stopped(self, remote_id: str) -> None:
        """Set a job's status to `stopped`, even while it runs."""
        self.connection.send("GET", f"/api/jobs/{_id(remote_id)}/mark_stopped")

    def delete_job(self, remote_id: str) -> None:
        """Delete a job and its output folder, if it exists."""
        self._found(self.connection.send("GET", f"/api/jobs/{_id(remote_id)}/delete", accept=(200, 404)))

    # ---- the output of a job ----

    def log(self, remote_id: str, offset: int = 0) -> LogPart:
        """The log since `offset`; servers before 2026-07 always send the whole log."""
        answer = self.connection.send_with_retries("GET", f"/api/jobs/{_id(remote_id)}/log", params={"offset": offset})
        data = answer.json()
        return self._parse(lambda: LogPart.of(data))

    def loss(self, remote_id: str, since: int = -1) -> list[LossPoint]:
        """The loss of each step after number `since`, 2,000 at most; [] if the server has none yet. The first is 0."""
        data = self._loss(remote_id, LOSS_KEY, since)
        keys = self._parse(lambda: [str(key) for key in data.get("keys") or []])
        other = next((key for key in sorted(keys) if key.startswith("loss")), None)
        if other is not None and LOSS_KEY not in keys:
            data = self._loss(remote_id, other, since)
        points = self._parse(lambda: [LossPoint.of(point) for point in data.get("points") or []])
        return [point for point in points if point is not None]

    def _loss(self, remote_id: str, key: str, since: int) -> Any:
        asked = {"key": key, "since_step": since, "limit": MAX_POINTS}
        # A server without this endpoint sends a 404 page: a missing loss is not a failure.
        answer = self.connection.send_with_retries(
            "GET", f"/api/jobs/{_id(remote_id)}/loss", params=asked, accept=(200, 404)
        )
        return answer.json() if answer.status == 200 else {}

    def samples(self, remote_id: str) -> list[SampleImage]:
        """The sample pictures so far, sorted by step and prompt."""
        data = self.connection.send_with_retries("GET", f"/api/jobs/{_id(remote_id)}/samples").json()
        found = self._parse(lambda: [SampleImage.of(checked_path(path)) for path in data["samples"]])
        return sorted(filter(None, found), key=lambda sample: (sample.step, sample.prompt, sample.path))

    def sample_bytes(self, path: str, max_bytes: int) -> bytes:
        """Download a sample picture. Raises BackendFailed above `max_bytes`."""
        return self.connection.send_with_retries("GET", _file(path), max_bytes=max_bytes).body

    def files(self, remote_id: str) -> list[RemoteFile]:
        """The files in the output folder of a job."""
        data = self.connection.send_with_retries("GET", f"/api/jobs/{_id(remote_id)}/files").json()
        return self._parse(lambda: [RemoteFile.of(file) for file in data["files"]])

    def size_of(self, path: str) -> int | None:
        """The size of a file on the server; None if it does not exist."""
        with self.connection.stream("HEAD", _file(path)) as response:
            length = response.headers.get("content-length") if response.status_code == 200 else None
            return file_size(length)

    def download(self, path: str, to: Path, size: int) -> None:
        """Download a file of `size` bytes; resumes an earlier download to `to`.

        Raises StoreUnavailable if `to` cannot be written.
        """
        download_file(self.connection, _file(path), to, size)

    # ---- datasets ----

    def datasets(self) -> list[str]:
        """The names of all datasets. A new server creates its datasets folder in this call."""
        data = self.connection.send_with_retries("GET", "/api/datasets/list").json()
        return self._parse(lambda: [str(name + "") for name in data])

    def create_dataset(self, name: str) -> str:
        """Create a dataset, if it does not exist; returns the server's version of the name."""
        data = self.connection.send_with_retries("POST", "/api/datasets/create", json={"name": name}).json()
        return self._parse(lambda: str(data["name"] + ""))

    def upload(self, dataset: str, files: Sequence[tuple[str, bytes]]) -> None:
        """Upload files in one request, replacing existing ones. Not retried: check first what has arrived."""
        parts = [("files", (name, data, "application/octet-stream")) for name, data in files]
        form = {"datasetName": _checked_name(dataset)}
        data = self.connection.send("POST", "/api/datasets/upload", data=form, files=parts, patience=10).json()
        if self._parse(lambda: sorted(data["files"])) != sorted(name for name, _ in files):
            raise BackendFailed(f"{self.connection.place} did not store the uploaded files")

    def pictures(self, dataset: str) -> list[str]:
        """Absolute paths of the pictures in a dataset; [] if it does not exist."""
        body = {"datasetName": _checked_name(dataset)}
        answer = self.connection.send_with_retries("POST", "/api/datasets/listImages", json=body, accept=(200, 404))
        data = answer.json()
        return self._parse(lambda: listed_paths(data)) if self._found(answer) else []

    def captions(self, paths: Sequence[str]) -> dict[str, str]:
        """The captions of pictures by absolute path; "" for a picture without caption."""
        if not paths:
            return {}
        answer = self.connection.send_with_retries(
            "POST", "/api/caption/getBatch", json={"imgPaths": list(paths)}, accept=(200, 404)
        )
        if answer.status == 404:  # an older server without this endpoint
            return {path: self._caption(path) for path in paths}
        data = answer.json()
        return self._parse(lambda: {str(path): str(text or "") for path, text in data["captions"].items()})

    def _caption(self, path: str) -> str:
        answer = self.connection.send_with_retries("POST", "/api/caption/get", json={"imgPath": path})
        return answer.body.decode("utf-8", "replace")

    def delete_dataset(self, name: str) -> None:
        """Delete a dataset, if it exists. Checks the name first, because the server would delete any folder."""
        self.connection.send("POST", "/api/datasets/delete", json={"name": _checked_name(name)})

    def _found(self, answer: ToolkitResponse) -> bool:
        """False for a 404 of the server. Raises BackendUnreachable for a 404 of a proxy."""
        if answer.status == 404 and not answer.is_error:
            raise self.connection.error_of(answer)
        return answer.status == 200

    def _parse(self, reader: Callable[[], T]) -> T:
        """Call `reader`. Raises BackendFailed if the response has another structure."""
        try:
            return reader()
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
            raise self.connection.unexpected_answer() from None


def _file(path: str) -> str:
    # As one segment: with plain slashes the server drops the leading one.
    return "/api/files/" + quote(checked_path(path), safe="")


def _id(remote_id: str) -> str:
    return quote(remote_id, safe="")


def _checked_name(name: str) -> str:
    if not _PLAIN_NAME.fullmatch(name):
        raise BackendFailed(f"{name[:60]!r} is not a name of an Imprint dataset")
    return name
