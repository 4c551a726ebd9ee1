"""One job of the fake server: its config, folder and row, and the output that both trainers write."""

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFilter

from fakes.ai_toolkit.lora import step_in
from fakes.ai_toolkit.rows import JobRows, Row

_SHOWN = 256  # maximum of a sample's longer side, in pixels
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class ProcessFailed(Exception):
    """The training failed; the message is stored in the job."""


@dataclass(frozen=True)
class DatasetItem:
    """One picture of a dataset."""

    path: Path
    caption: str


class TrainerJob:
    """A job. Raises KeyError, TypeError, ValueError or IndexError for a config that would crash a real worker."""

    def __init__(self, rows: JobRows, row: Row) -> None:
        self.rows, self.id, self.name = rows, str(row["id"]), str(row["name"])
        config = json.loads(row["job_config"])["config"]
        self.process: Mapping[str, Any] = config["process"][0]
        self.total = int(self.process["train"]["steps"])
        if config["name"] != self.name or self.process["type"] not in ("diffusion_trainer", "ui_trainer"):
            raise ValueError("such a job would never write its status")
        # The trainer uses its config, the API uses row and settings: the client must make them agree.
        self.folder = Path(self.process["training_folder"]) / config["name"]
        self.step = self.saved_step = step_in(self.folder)

    def begin(self) -> None:
        """Create the folder, and move an earlier log aside."""
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        (self.folder / ".job_config.json").write_text(json.dumps({"process": [dict(self.process)]}))
        log = self.folder / "log.txt"
        if log.exists():
            (self.folder / "logs").mkdir(exist_ok=True)
            log.rename(self.folder / "logs" / f"{len(list((self.folder / 'logs').iterdir()))}_log.txt")
        self.log(f"Running job {self.name}")

    def items(self) -> list[DatasetItem]:
        """The pictures of the dataset. Raises ProcessFailed if there are none."""
        folder = Path(self.process["datasets"][0]["folder_path"])
        paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)
        if not paths:
            raise ProcessFailed("Dataset is empty")
        return [DatasetItem(path, self._caption(path)) for path in paths]

    def _caption(self, path: Path) -> str:
        beside = path.with_suffix(".txt")
        caption = (
            beside.read_text(encoding="utf-8")
            if beside.is_file()
            else str(self.process["datasets"][0]["default_caption"])
        )
        caption = ", ".join(caption.split(","))  # as a real one joins its tokens
        return caption.replace("[name]", "").replace("[trigger]", "")

    def set_info(self, info: str) -> None:
        """Set the status to `running`, with `info`."""
        self.rows.change(self.id, status="running", info=info)

    def log(self, line: str) -> None:
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def advance(self, step: int, losses: list[tuple[int, float]], seconds_per_step: float) -> None:
        """Record `step` and the losses since the last call."""
        self.step = step
        speed = f"{1 / seconds_per_step:.2f} iter/sec" if seconds_per_step < 1 else f"{seconds_per_step:.2f} sec/iter"
        with self.rows.together():
            self.rows.add_losses(self.id, losses)
            self.rows.change(self.id, step=step, speed_string=speed)
        if losses:
            self.log(f"{self.name}: {step}/{self.total} [{speed}, loss: {losses[-1][1]:.3e}]")

    def draw(self) -> None:
        """Write samples of all prompts: pictures of the dataset with less noise at later steps."""
        items = self.items()
        prompts = [str(sample["prompt"]) for sample in self.process["sample"]["samples"]]
        share = self.step / self.total if self.total else 1.0
        for number, prompt in enumerate(prompts):
            self.set_info(f"Generating images - {number + 1}/{len(prompts)}")
            path = items[number % len(items)].path
            name = f"{time.time_ns() // 1_000_000}__{self.step:09d}_{number}.jpg"
            _picture(path, prompt, share).save(self.folder / "samples" / name, "JPEG", quality=85)

    def draws_at(self, step: int) -> bool:
        every = int(self.process["sample"]["sample_every"])
        return 0 < step < self.total and step % every == 0

    def saves_at(self, step: int) -> bool:
        every = int(self.process["save"]["save_every"])
        return 0 < step < self.total and step % every == 0

    def keep(self, data: bytes, step: int) -> None:
        """Write a checkpoint, and delete older ones beyond the limit of the job."""
        (self.folder / f"{self.name}_{step:09d}.safetensors").write_bytes(data)
        self.saved_step = step
        kept = sorted(self.folder.glob(f"{self.name}_*.safetensors"))
        for old in kept[: -int(self.process["save"]["max_step_saves_to_keep"])]:
            old.unlink()

    @property
    def final(self) -> Path:
        return Path(self.folder / f"{self.name}.safetensors")

    def complete(self) -> None:
        self.rows.change(self.id, status="completed", info="Training completed")
        self.log("Training completed")

    def end(self, status: str, info: str) -> None:
        """End without a file. The step goes back to the last checkpoint."""
        self.rows.change(self.id, status=status, info=info[:500], step=self.saved_step, return_to_queue=0)
        self.log(info)


def _picture(path: Path, prompt: str, share: float) -> Image.Image:
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((_SHOWN, _SHOWN))
    picture = picture.filter(ImageFilter.GaussianBlur(8 * (1 - share)))
    noise = Image.frombytes("RGB", picture.size, random.Random(prompt).randbytes(3 * picture.width * picture.height))  # noqa: S311
    picture = Image.blend(picture, noise, 0.9 * (1 - share))
    ImageDraw.Draw(picture).text((4, 4), prompt.encode("latin-1", "replace").decode("latin-1")[:40], fill="white")
    return picture
