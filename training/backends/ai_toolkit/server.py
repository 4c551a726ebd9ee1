"""One ai-toolkit server through the HTTP API of its web UI: one method, one endpoint (docs/ai-toolkit-api.md).

Errors are ours: BackendUnreachable (nobody answered, or a proxy did, or a 5xx: may be retried) and BackendFailed (the
password is wrong, the request is refused, the answer is nonsense: final). What a server answers is never quoted.
Retried inside, with backoff and jitter, is only what changes nothing or changes the same thing twice.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from training.backends.ai_toolkit.answers import Folders, Gpu, LogPart, LossPoint, RemoteFile, RemoteJob, Sample


def open_client(max_connections: int = 64, timeout_s: float = 30) -> httpx2.Client:
    """A client for any number of servers and threads: one pool of connections, no proxy, no redirects."""
    raise NotImplementedError


class Server:
    """One ai-toolkit server. `http` may be shared between servers and threads."""

    def __init__(self, url: str, token: str | None, http: httpx2.Client) -> None:
        """url: `http(s)://host[:port]`, without a path. token: its AI_TOOLKIT_AUTH, None where it has none."""
        raise NotImplementedError

    # ---- the server ----

    def ready(self) -> bool:
        """Whether the service answers and lets us in; one request. False while it starts; BackendFailed for a 401."""
        raise NotImplementedError

    def folders(self) -> Folders:
        raise NotImplementedError

    def gpus(self) -> list[Gpu]:
        """Its GPUs; none for a server without."""
        raise NotImplementedError

    def queue_length(self) -> int:
        """How many jobs are queued or running, whoever's."""
        raise NotImplementedError

    # ---- jobs ----

    def jobs(self) -> dict[str, RemoteJob]:
        """All jobs of the server by name, in one request. Where a name is missing there is no such job."""
        raise NotImplementedError

    def job(self, remote_id: str) -> RemoteJob | None:
        """One job by the server's id; None if there is none."""
        raise NotImplementedError

    def create_job(self, name: str, config: Mapping[str, Any], gpu_ids: str = "0") -> RemoteJob:
        """Never retried: after a BackendUnreachable look for `name` in `jobs()`."""
        raise NotImplementedError

    def start(self, remote_id: str) -> None:
        """Put a job into its queue, which does not run for that. Never for a running job: it would run twice."""
        raise NotImplementedError

    def queues(self) -> dict[str, bool] | None:
        """Which queues there are, by gpu_ids, and whether they run; None for a server from before queues."""
        raise NotImplementedError

    def start_queue(self, gpu_ids: str = "0") -> None:
        """Let a queue run. A server stops a queue whenever it has drained."""
        raise NotImplementedError

    def stop(self, remote_id: str) -> None:
        """End a *running* job. A queued one is not ended by it: see `mark_stopped`."""
        raise NotImplementedError

    def mark_stopped(self, remote_id: str) -> None:
        """Write `stopped` into a job's row, whatever runs."""
        raise NotImplementedError

    def delete_job(self, remote_id: str) -> None:
        """Remove a job's row and its output folder. Absent is fine."""
        raise NotImplementedError

    # ---- what a job has made ----

    def log(self, remote_id: str, offset: int = 0) -> LogPart:
        raise NotImplementedError

    def loss(self, remote_id: str, since: int = 0) -> list[LossPoint]:
        """The loss after each step beyond `since`, thinned out by the server; [] where it keeps none."""
        raise NotImplementedError

    def samples(self, remote_id: str) -> list[Sample]:
        """The pictures drawn so far, by step and prompt."""
        raise NotImplementedError

    def sample_bytes(self, path: str, max_bytes: int) -> bytes:
        """One sample's file. BackendFailed above `max_bytes`."""
        raise NotImplementedError

    def files(self, remote_id: str) -> list[RemoteFile]:
        """The files in a job's output folder."""
        raise NotImplementedError

    def download(self, path: str, to: Path, size: int) -> None:
        """Fetch a file of `size` bytes; goes on where an earlier download of it into `to` broke off."""
        raise NotImplementedError

    # ---- datasets ----

    def datasets(self) -> list[str]:
        raise NotImplementedError

    def create_dataset(self, name: str) -> str:
        """Make a dataset, or find it; gives the name that the server made of `name`."""
        raise NotImplementedError

    def upload(self, dataset: str, files: Sequence[tuple[str, bytes]]) -> None:
        """Send files, in one request; a file of the same name is overwritten."""
        raise NotImplementedError

    def pictures(self, dataset: str) -> list[str]:
        """Absolute paths of the pictures in a dataset; [] if there is none."""
        raise NotImplementedError

    def captions(self, paths: Sequence[str]) -> dict[str, str]:
        """The captions of pictures, by their absolute paths."""
        raise NotImplementedError

    def delete_dataset(self, name: str) -> None:
        """Absent is fine. Refused here unless the name is a plain one: the server would delete any folder."""
        raise NotImplementedError
