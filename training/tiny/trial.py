"""Tiny trainings of one family on one device, to compare two ways of computing the same result."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from PIL import Image
from torch import Tensor

from training import families
from training.backends.local_training import LocalTraining
from training.checkpoint_folder import FolderCheckpoints
from training.engine.cohorts.cohort import Cohort
from training.engine.cohorts.job_batch import JobBatch, draw
from training.engine.cohorts.slot_job import SlotJob
from training.engine.engine import Engine
from training.engine.layout import Layout
from training.engine.objective import errors
from training.engine.recorder import Record
from training.engine.state import State
from training.families.family import Base, Where
from training.lora.safetensor import Array
from training.options import Ranks
from training.ports import Example, Progress, TrainRun
from training.spec import TrainSpec
from training.tiny import base as tiny_base

_STEPS, _CUT = 6, 3  # three steps warm up, the rest are recorded; the resumed training is interrupted after three
_RANK, _ALPHA = 4, 8.0
_PIXELS = 64
_LOSS_SCALE = 1024.0  # keeps gradients of a tiny base within float16


class Trial:
    """A tiny base model of one family on the device, and ways to train it."""

    def __init__(self, name: str, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.family, self.device, self.dtype = families.find(name), device, dtype
        self.folder = folder
        self.base_folder = tiny_base.make(folder / f"tiny-{name}", name)
        self.engine = Engine(self.family, self._base(dtype))
        self._alone: tuple[list[float], Tensor] | None = None

    def comparisons(self, record: Record | None) -> list[tuple[str, Callable[[], float]]]:
        """The comparisons that apply to this family, in order."""
        found: list[tuple[str, Callable[[], float]]] = [("peft", self.peft)]
        if self.dtype != torch.float32:
            found.append(("precision", self.lower_precision))
        if self.family.shares_steps:
            found.append(("slots", self.two_slots))
        found.append(("resume", self.resumed))
        if record is not None and self.family.shares_steps:  # others never record steps
            found.append(("recorded", lambda: self.recorded(record)))
        return found

    # ---- one step: gradients --------------------------------------------------------------------------------

    def peft(self) -> float:
        """The engine against peft, both in float32 and without TF32."""
        with _plain_float32():
            engine = Engine(self.family, self._base(torch.float32))
            batch, vector, layout = self._sample(engine)
            loss, gradient = self._gradient(engine, batch, vector, layout)
            oracle = self._base(torch.float32)
            loss_there, gradient_there = self._peft_gradient(oracle, batch, layout.read(vector, Ranks(_RANK)))
        return _worst(_off(loss, loss_there), _off(_flat(gradient), _flat(gradient_there)))

    def lower_precision(self) -> float:
        """The engine in the precision of jobs against itself in float32, on the same numbers."""
        with _plain_float32():
            exact = Engine(self.family, self._base(torch.float32))
            batch, vector, layout = self._sample(exact)
            loss_there, gradient_there = self._gradient(exact, batch, vector, layout)
        loss, gradient = self._gradient(self.engine, batch, vector, self._layout(self.engine))
        return _worst(_off(loss, loss_there), _off(_flat(gradient), _flat(gradient_there)))

    def _sample(self, engine: Engine) -> tuple[JobBatch, Tensor, Layout]:
        """A batch, and a LoRA that is not zero."""
        layout = self._layout(engine)
        chance = torch.Generator().manual_seed(5)
        vector = layout.begin(7, Ranks(_RANK)) + 0.02 * torch.randn(layout.size, generator=chance)
        return draw(self.family, engine.base, self._job(engine), 0), vector, layout

    @staticmethod
    def _layout(engine: Engine) -> Layout:
        return engine.layers.layout("all", Ranks(_RANK))

    def _gradient(
        self, engine: Engine, batch: JobBatch, vector: Tensor, layout: Layout
    ) -> tuple[Tensor, dict[str, Array]]:
        base = engine.base
        masters = vector.to(self.device)[None].requires_grad_()
        scales = torch.full((1, 1), _ALPHA / _RANK, device=self.device)
        with engine.layers.applying(layout.loras(masters, scales, base.dtype)):
            loss = self._loss(base, batch)
            (loss * _LOSS_SCALE).backward()  # type: ignore[no-untyped-call]
        assert masters.grad is not None  # noqa: S101 - backward has just made it
        return loss, layout.read(masters.grad[0] / _LOSS_SCALE, Ranks(_RANK))

    def _peft_gradient(
        self, oracle: Base, batch: JobBatch, weights: dict[str, Array]
    ) -> tuple[Tensor, dict[str, Array]]:
        config = LoraConfig(r=_RANK, lora_alpha=_ALPHA, target_modules=self.family.targets["all"])  # type: ignore[arg-type]
        oracle.denoiser.add_adapter(config)
        layers = {name: layer for name, layer in oracle.denoiser.named_modules() if hasattr(layer, "lora_A")}
        ends = {"down": "lora_A", "up": "lora_B"}
        held = {
            f"{name}.{end}": getattr(layer, matrix)["default"].weight
            for name, layer in layers.items()
            for end, matrix in ends.items()
        }
        for name, weight in held.items():
            weight.data.copy_(torch.from_numpy(weights[name]))
        loss = self._loss(oracle, batch)
        (loss * _LOSS_SCALE).backward()  # type: ignore[no-untyped-call]
        # A layer whose output goes nowhere has no gradient, such as the text stream of Qwen-Image's last block.
        gradients = {name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in held.items()}
        return loss, {name: (gradient / _LOSS_SCALE).cpu().numpy() for name, gradient in gradients.items()}

    def _loss(self, base: Base, batch: JobBatch) -> Tensor:
        conditions = [
            {name: value if name == "sizes" else value.to(base.dtype) for name, value in one.items()}
            for one in batch.conditions
        ]
        return errors(self.family, base, batch.made.to(self.device), conditions).mean()

    # ---- several steps --------------------------------------------------------------------------------------

    def recorded(self, record: Record) -> float:
        """Steps replayed from a CUDA graph, compared with eager steps."""
        cohort = self._cohort(job := self._job(self.engine), record=record)
        difference = self._from_alone(*_walk(cohort, job))
        if not cohort.is_recording:
            raise RuntimeError("no step was recorded")
        return difference

    def two_slots(self) -> float:
        """A job that shares its steps with another, compared with the job alone."""
        job = self._job(self.engine)
        cohort = self._cohort(job, slots=2)
        cohort.seat(self._job(self.engine, seed=8))
        return self._from_alone(*_walk(cohort, job))

    def resumed(self) -> float:
        """A training resumed from a checkpoint, compared with an uninterrupted one."""
        first = self._job(self.engine)
        cohort = self._cohort(first)
        losses, _ = _walk(cohort, first, _CUT)
        second = self._job(self.engine, state=cohort.snapshot(first))
        rest, weights = _walk(self._cohort(second), second, _STEPS - _CUT)
        return self._from_alone([*losses, *rest], weights)

    def _from_alone(self, losses: list[float], weights: Tensor) -> float:
        """The difference from the job alone with eager steps: of its losses and of its change of the weights."""
        if self._alone is None:
            job = self._job(self.engine)
            self._alone = _walk(self._cohort(job), job)
        wanted_losses, wanted = self._alone
        start = self._layout(self.engine).begin(7, Ranks(_RANK)).double()
        return _worst(_off(torch.tensor(losses), torch.tensor(wanted_losses)), _off(weights - start, wanted - start))

    def _cohort(self, job: SlotJob, *, slots: int = 1, record: Record | None = None) -> Cohort:
        cohort = Cohort(self.family, self.engine.base, self.engine.layers, job.shape, slots)
        cohort.record_with(record)
        cohort.seat(job)
        return cohort

    # ---- what is trained ------------------------------------------------------------------------------------

    def _base(self, dtype: torch.dtype) -> Base:
        return self.family.load(Where(self.base_folder, self.device, dtype))

    def _job(self, engine: Engine, *, seed: int = 7, state: State | None = None) -> SlotJob:
        spec = TrainSpec(
            base_model="tiny", family=self.family.name, trigger_word="sks", resolution=_PIXELS, rank=_RANK,
            alpha=_ALPHA, learning_rate=1e-3, max_steps=_STEPS, seed=seed, adapter={"targets": "all"},
        )  # type: ignore[call-arg]  # fmt: skip
        nowhere = self.folder / "none"
        run = TrainRun(
            f"check-{seed}",
            spec,
            _pictures(self.folder),
            "d" * 64,
            "tiny",
            nowhere,
            FolderCheckpoints(nowhere),
            _Alone(),
        )
        return LocalTraining(run, engine, {"base": ""}, _STEPS, state).job


class _Alone:
    """A control that does nothing."""

    def check(self) -> None: ...

    def report(self, progress: Progress) -> None: ...


def _walk(cohort: Cohort, job: SlotJob, count: int = _STEPS) -> tuple[list[float], Tensor]:
    """The losses of a job over some steps, and its LoRA after them."""
    for _ in range(count):
        cohort.step()
    cohort.read_losses()
    return [loss for _, loss in job.losses], cohort.weights_of(job).double().cpu()


def _pictures(folder: Path) -> list[Example]:
    """Two small pictures of coarse colours."""
    found = []
    for number in range(2):
        path = folder / f"picture-{number}.png"
        values = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(values).resize((_PIXELS, _PIXELS)).save(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        found.append(Example(path, "a photo of sks dog", sha256, _PIXELS, _PIXELS))
    return found


@contextmanager
def _plain_float32() -> Iterator[None]:
    """Disable TF32, which keeps only 10 bits of each factor."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = False
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def _flat(gradient: dict[str, Array]) -> Tensor:
    return torch.cat([torch.from_numpy(np.asarray(gradient[name])).flatten() for name in sorted(gradient)])


def _worst(*differences: float) -> float:
    """The maximum, or NaN if any is NaN, which Python's max would ignore."""
    return float(np.max(differences))


def _off(here: Tensor, there: Tensor) -> float:
    """|here - there| / |there|."""
    here, there = here.detach().double().cpu(), there.detach().double().cpu()
    return float((here - there).norm() / there.norm().clamp(min=1e-30))
