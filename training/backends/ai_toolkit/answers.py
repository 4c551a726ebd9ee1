"""The responses of an ai-toolkit server as dataclasses."""

import json
from dataclasses import dataclass
from typing import Any

from core import wire

# The statuses of a job on the server.
QUEUED, RUNNING, STOPPED, COMPLETED, ERROR = "queued", "running", "stopped", "completed", "error"


@dataclass(frozen=True)
class ServerFolders:
    """The folders of the server: absolute paths on its machine."""

    training: str
    datasets: str


@dataclass(frozen=True)
class Gpu:
    index: int
    name: str
    memory_bytes: int


@dataclass(frozen=True)
class RemoteJob:
    """A job on the server. `status` is one of the server's: stopped, queued, running, completed, error."""

    id: str
    name: str
    gpu_ids: str
    status: str
    info: str
    step: int
    stop: bool
    speed: str  # "1.23 iter/sec" or "2.10 sec/iter"
    config: str  # JSON, as submitted

    @property
    def total(self) -> int | None:
        """The number of steps, from the config: the row does not have it."""
        try:
            process = json.loads(self.config)["config"]["process"][0]
            return wire.whole(process["train"]["steps"], least=1, most=wire.MOST_STEPS)
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            return None

    @classmethod
    def of(cls, row: Any) -> "RemoteJob":
        """Parse the server's JSON. Raises KeyError, TypeError or ValueError."""
        config = row.get("job_config") or ""
        return cls(
            id=wire.name(row["id"]),
            name=str(row["name"]),
            gpu_ids=wire.text(row.get("gpu_ids") or "0", 100),
            status=wire.text(row["status"], 100),
            info=wire.text(row.get("info") or "", 500),
            step=wire.whole(row.get("step"), most=wire.MOST_STEPS) or 0,
            stop=bool(row.get("stop")),
            speed=wire.text(row.get("speed_string") or "", 100),
            config=config if isinstance(config, str) else json.dumps(config),
        )


@dataclass(frozen=True)
class LogPart:
    """The log of a job since an offset in bytes. `reset`: the log was restarted, and `text` is its end."""

    text: str
    offset: int
    reset: bool


@dataclass(frozen=True)
class LossPoint:
    step: int
    value: float


@dataclass(frozen=True)
class SampleImage:
    """A picture drawn during training: prompt number `prompt` after `step` steps."""

    path: str
    step: int
    prompt: int


@dataclass(frozen=True)
class RemoteFile:
    path: str
    size: int
