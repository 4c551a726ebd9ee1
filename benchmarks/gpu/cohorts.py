"""Base models of full size with random weights, and jobs on random latents in the slots of a step."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from benchmarks import training_recipes as recipes
from benchmarks.gpu.bench import setup
from training import families
from training.checkpoint_folder import FolderCheckpoints
from training.engine.cohorts.cohort import Cohort
from training.engine.cohorts.slot_job import Shape, SlotJob
from training.engine.engine import Engine
from training.engine.randomness import SampleOrder
from training.engine.recorder import cuda_recorder, is_allowed
from training.families.diffusion import DiscreteSchedule
from training.families.encoders import Encoders
from training.families.family import Base, Condition, Where
from training.families.z_image import FlowSchedule
from training.memory_plan import padded_ranks
from training.ports import Example, TrainRun
from training.spec import TrainSpec
from training.tiny import base as tiny_base

lib: Any = diffusers  # its classes are untyped to the checker

# https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0: unet/config.json.
_SDXL: dict[str, Any] = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
_PIXELS = {"sd15": 512, "sdxl": 1024, "z-image": 1024}
_LOG_VARIANCE = -12.0  # of latents: drawn ones hardly differ from their mean
_ENDLESS = 10**6  # steps


# ---- base models -------------------------------------------------------------------------------------------------


def base_of(family: str, device: torch.device | None = None, dtype: torch.dtype | None = None, size: str = "") -> Base:
    """A denoiser with the family's exact shapes, random weights and no encoders; or the tiny base."""
    here = setup()
    device, dtype, size = device or here.device, dtype or here.dtype, size or here.size
    if size == "tiny":
        return families.find(family).load(Where(tiny(family), device, dtype))
    torch.manual_seed(0)
    if family == "z-image":
        make, schedule, prediction = _z_image, FlowSchedule(3.0, 0.3611, 0.1159), "flow"
    else:
        config, scaling = (recipes.UNET, 0.18215) if family == "sd15" else (_SDXL, 0.13025)
        make, prediction = partial(_unet, config), "epsilon"
        alphas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).pow(2).neg().add(1).cumprod(0).to(device)
        schedule = DiscreteSchedule(alphas, scaling, prediction)  # type: ignore[assignment]
    return Base(partial(make, device, dtype), Encoders({}), schedule, device, dtype, prediction)


def tiny(family: str) -> Path:
    """The folder of the family's tiny base model."""
    return tiny_base.make(setup().work / f"tiny-{family}", family)


def _unet(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    return recipes.random(lambda: lib.UNet2DConditionModel(**config), device, dtype)


def _z_image(device: torch.device, dtype: torch.dtype) -> Any:
    made = recipes.random(lambda: lib.ZImageTransformer2DModel(), device, dtype)
    with torch.no_grad():
        for name, weights in made.named_parameters():
            if weights.ndim == 1 and name.endswith("weight"):
                weights.fill_(1.0)  # norms
    return made


# ---- jobs without pictures or encoders -----------------------------------------------------------------------------


def engine_of(family: str, base: Base | None = None) -> Engine:
    """An engine on the family's base."""
    return Engine(families.find(family), base or base_of(family))


def job_of(family: str, base: Base, seed: int, *, slots: int = 1, size: str = "", **recipe: Any) -> SlotJob:
    """A job on two random latents and captions, which depend only on the seed."""
    pixels = _PIXELS[family] if (size or setup().size) == "full" else 64
    spec = TrainSpec(base_model="random", family=family, trigger_word="sks", resolution=pixels, seed=seed, **recipe)
    examples = [Example(Path(f"{number}.png"), "sks", f"{number:064d}", pixels, pixels) for number in range(2)]
    nowhere = setup().work / "none"
    run = TrainRun(
        f"bench-{seed}", spec, examples, "d" * 64, "random", nowhere, FolderCheckpoints(nowhere), recipes.NoControl()
    )
    chance = torch.Generator().manual_seed(1000 + seed)
    record = families.find(family).record
    channels, side = record.latent_channels, pixels // record.latent_pixels
    moments = [torch.randn(2 * channels, side, side, generator=chance) for _ in examples]
    for one in moments:
        one[channels:] = _LOG_VARIANCE
    conditions = [_condition(family, base, chance, pixels) for _ in examples]
    shape = Shape(
        tuple(moments[0].shape) if families.find(family).shares_steps else (seed,), spec.batch_size,
        padded_ranks(spec.ranks), targets=spec.adapter.targets, dora=spec.adapter.dora, optimizer=spec.optimizer,
    )  # fmt: skip
    order = SampleOrder(examples, spec.batch_size, seed)
    return SlotJob(
        run, _ENDLESS, order, moments, conditions, shape, None, checkpoint_every=_ENDLESS, slots=slots, is_fixed=False
    )


def _condition(family: str, base: Base, chance: torch.Generator, pixels: int) -> Condition:
    """A random condition with the shapes of the family's encoders."""

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance).to(base.device, base.dtype)

    tokens = 48  # of a caption, where the family's captions differ in length
    found = families.find(family).stand_in(base.denoiser, tokens)[1]
    made = {name: drawn(*value.shape) for name, value in found.items() if name != "sizes"}
    if "sizes" in found:
        sizes = [[pixels, pixels, 0, 0, pixels, pixels]]
        made["sizes"] = torch.tensor(sizes, dtype=torch.float32, device=base.device)
    return made


def cohort_of(
    engine: Engine, jobs: int, slots: int | None = None, *, is_recorded: bool = True, seeds: Sequence[int] | None = None
) -> Cohort:
    """A cohort with `jobs` jobs in `slots` slots, at least as many."""
    family, base, slots = engine.family, engine.base, slots or jobs
    held = [job_of(family.name, base, seed, slots=slots) for seed in (seeds or range(jobs))]
    # Its own recorder, not the engine's, so that the recordings are freed with the cohort.
    recorder = cuda_recorder(base.device) if is_recorded and setup().is_cuda and is_allowed() else None
    cohort = Cohort(family, base, engine.layers, held[0].shape, slots, recorder)
    for job in held:
        cohort.seat(job)
    return cohort


def walk(cohort: Cohort, count: int) -> tuple[list[float], Tensor]:
    """The losses of all jobs over `count` steps, and their LoRAs [N, P] after them."""
    for _ in range(count):
        cohort.step()
    cohort.read_losses()
    jobs = [job for job in cohort.jobs if job is not None]
    return [loss for job in jobs for _, loss in job.losses], torch.stack([cohort.weights_of(job) for job in jobs]).cpu()
