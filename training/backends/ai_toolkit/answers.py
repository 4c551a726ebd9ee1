"""What an ai-toolkit server tells, as our types."""

import json
from dataclasses import dataclass
from typing import Any

# What a server writes into a job's row.
QUEUED, RUNNING, STOPPED, COMPLETED, ERROR = "queued", "running", "stopped", "completed", "error"


@dataclass(frozen=True)
class ServerFolders:
    """Where the server keeps things: absolute paths on its machine."""

    training: str
    datasets: str


@dataclass(frozen=True)
class Gpu:
    index: int
    name: str
    memory_bytes: int


@dataclass(frozen=True)
class RemoteJob:
    """A job's row, as the server has it. `status` is its own word: stopped, queued, running, completed, error."""

    id: str
    name: str
    gpu_ids: str
    status: str
    info: str
    step: int
    stop: bool
    speed: str  # "1.23 iter/sec" or "2.10 sec/iter"
    config: str  # JSON, as it was sent

    @property
    def total(self) -> int | None:
        """How many steps it has; the row does not say, its config does."""
        try:
            process = json.loads(self.config)["config"]["process"][0]
            return int(process["train"]["steps"])
        except (ValueError, KeyError, IndexError, TypeError):
            return None

    @classmethod
    def of(cls, row: Any) -> "RemoteJob":
        """From the server's JSON. Raises KeyError, TypeError or ValueError for something else."""
        config = row.get("job_config") or ""
        return cls(
            id=str(row["id"]),
            name=str(row["name"]),
            gpu_ids=str(row.get("gpu_ids") or "0"),
            status=str(row["status"]),
            info=str(row.get("info") or "")[:500],
            step=int(row.get("step") or 0),
            stop=bool(row.get("stop")),
            speed=str(row.get("speed_string") or "")[:100],
            config=config if isinstance(config, str) else json.dumps(config),
        )


@dataclass(frozen=True)
class LogPart:
    """What came to a job's log since an offset (bytes). `reset`: the log begins anew, `text` is its tail."""

    text: str
    offset: int
    reset: bool


@dataclass(frozen=True)
class LossPoint:
    step: int
    value: float


@dataclass(frozen=True)
class SampleImage:
    """A picture drawn while training, of prompt number `prompt` after `step` steps."""

    path: str
    step: int
    prompt: int


@dataclass(frozen=True)
class RemoteFile:
    path: str
    size: int
