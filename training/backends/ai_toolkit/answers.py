"""The responses of an ai-toolkit server as dataclasses.

Their `of` parses the server's JSON and raises KeyError, TypeError, ValueError or AttributeError for another structure.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from core.outbound import wire

# The statuses of a job on the server.
QUEUED, RUNNING, STOPPED, COMPLETED, ERROR = "queued", "running", "stopped", "completed", "error"

_MOST_LOSS = 1e6
_MOST_BYTES = 2**34  # of a file or log; a LoRA file has less than a hundredth
_SAMPLE = re.compile(r"\d+__(\d{1,9})_(\d{1,4})\.(?:jpe?g|png|webp)")


@dataclass(frozen=True)
class ServerFolders:
    """The folders of the server: absolute paths on its machine."""

    training: str
    datasets: str

    @classmethod
    def of(cls, data: Any) -> "ServerFolders":
        return cls(checked_path(data["TRAINING_FOLDER"]), checked_path(data["DATASETS_FOLDER"]))


@dataclass(frozen=True)
class Gpu:
    index: int
    name: str
    memory_bytes: int

    @classmethod
    def of(cls, data: Any) -> "Gpu":
        return cls(_count(data["index"]), wire.text(data["name"], 100), _count(data["memory"]["total"]) * 2**20)


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

    @classmethod
    def of(cls, data: Any) -> "LogPart":
        text = str(data["log"])
        if "offset" not in data:  # before 2026-07
            return cls(text, min(len(text.encode(errors="replace")), wire.MOST_INT32), reset=True)
        offset = _count(data["offset"], _MOST_BYTES)
        return cls(text, min(offset, wire.MOST_INT32), bool(data["reset"]))


@dataclass(frozen=True)
class LossPoint:
    step: int
    value: float

    @classmethod
    def of(cls, data: Any) -> "LossPoint | None":
        """None for a point that is no number, or an impossible one."""
        step = wire.whole(data["step"], most=wire.MOST_STEPS)
        value = wire.real(data["value"], least=-_MOST_LOSS, most=_MOST_LOSS)
        return None if step is None or value is None else cls(step, value)


@dataclass(frozen=True)
class SampleImage:
    """A picture drawn during training: prompt number `prompt` after `step` steps."""

    path: str
    step: int
    prompt: int

    @classmethod
    def of(cls, path: str) -> "SampleImage | None":
        """None for a path that does not have the name of a sample picture."""
        match = _SAMPLE.fullmatch(re.split(r"[/\\]", path)[-1])
        return cls(path, int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True)
class RemoteFile:
    path: str
    size: int

    @classmethod
    def of(cls, data: Any) -> "RemoteFile":
        return cls(checked_path(data["path"]), _count(data["size"], _MOST_BYTES))


def file_size(length: Any) -> int | None:
    """The size of a file from a header; None if there is none, or an impossible one."""
    return wire.whole(length, most=_MOST_BYTES)


def listed_paths(data: Any) -> list[str]:
    """The paths of listImages, in the formats before and after 2026-07-01."""
    images = data["images"]
    if "root" not in data:
        return [checked_path(image["img_path"]) for image in images]
    root = checked_path(data["root"])
    return [checked_path(root.rstrip("/") + "/" + image) for image in images]


def checked_path(path: Any) -> str:
    """Check a path from the server: no null bytes, no `..`. Raises ValueError."""
    if not isinstance(path, str) or not path or "\x00" in path or ".." in re.split(r"[/\\]", path):
        raise ValueError("the path is empty, or has a null byte or `..`")
    return path


def _count(value: Any, most: int = wire.MOST_INT32) -> int:
    """A whole number of the server. Raises ValueError for one out of its bounds."""
    found = wire.whole(value, most=most)
    if found is None:
        raise ValueError("the number is missing or out of bounds")
    return found
