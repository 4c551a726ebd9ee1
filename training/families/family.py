"""What a family of base models is: data and functions. One module per family fills this in."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from training.families.encoders import Encoders
from training.families.quantised import parked
from training.options import Quantisation
from training.ports import Example

# What the denoiser is told about one picture, in the family's own words; float32 on the training device.
Condition = dict[str, Tensor]


def vae_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the VAE of a base in `dtype` encodes and decodes in: bfloat16 beside bfloat16, else float32.

    Never float16, in which the VAE of sdxl overflows.
    """
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


@dataclass
class Base:
    """A base model, frozen. Its denoiser and its encoders are loaded apart, each when it is first needed.

    So a device never holds both at once, and a job whose pictures and captions are encoded already loads no encoder.
    """

    load_denoiser: Callable[[], Any]  # UNet2DConditionModel or ZImageTransformer2DModel: diffusers' own module
    encoders: Encoders  # vae, text encoders and tokenizers, by their folder's name
    schedule: Any  # what `draw` and `target` reckon noise with: DiscreteSchedule or FlowSchedule
    device: torch.device
    dtype: torch.dtype  # of the frozen weights, and of autocast
    prediction: str  # epsilon, v_prediction or flow
    warnings: list[str] = field(default_factory=list)  # said once, by the loop
    drawing: tuple[int, float] = (20, 5.0)  # steps and guidance of a preview; guidance 1 is none
    # z-image: the training adapter that is merged into the weights and not in what users draw with.
    training_adapter: Path | None = None
    adapter: list[tuple[Any, Tensor, Tensor]] | None = None  # its layers with A and B, once they are needed
    quantisation: Quantisation = "none"
    is_gradient_checkpointing: bool = False
    is_parked: bool = False  # the denoiser is in the host's memory for now
    _denoiser: Any = field(default=None, init=False, repr=False)
    _loading: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def denoiser(self) -> Any:
        """The denoiser on the device, loaded if it is not there yet. Raises BaseModelUnavailable."""
        with self._loading:
            if self._denoiser is None:
                self._denoiser = self.load_denoiser()
            return self._denoiser

    @contextmanager
    def parked(self) -> Iterator[None]:
        """Inside, the device has the memory of the denoiser, which nobody may use meanwhile."""
        if self._denoiser is None:
            yield
            return
        self.is_parked = True
        try:
            with parked(self._denoiser, self.device):
                yield
        finally:
            self.is_parked = False

    def checkpoint_gradients(self, on: bool) -> None:
        """Whether activations are given up in the forward pass and computed again in the backward pass."""
        if on:
            # There is no dropout, so no random state to keep; a CUDA graph could not read it.
            self.denoiser.enable_gradient_checkpointing(
                partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
            )
        else:
            self.denoiser.disable_gradient_checkpointing()
        self.is_gradient_checkpointing = on

    @property
    def vae_dtype(self) -> torch.dtype:
        """What the VAE works in."""
        return vae_dtype(self.dtype)


@dataclass(frozen=True)
class Where:
    """Where and how a base model is loaded."""

    folder: Path  # in diffusers' layout, or a single file: what `locate` gave
    device: torch.device
    dtype: torch.dtype
    training_adapter: Path | None = None  # z-image: merged into the base while training, never in the file
    distilled: bool = False  # a few-step model, such as z-image-turbo
    quantisation: Quantisation = "none"  # of the denoiser's large layers

    @property
    def vae_dtype(self) -> torch.dtype:
        """What the VAE works in."""
        return vae_dtype(self.dtype)


@dataclass(frozen=True)
class Draw:
    """What chance and the recipe decide in one step; all of them have B samples.

    What a recipe decides is tensors too, so that jobs with other objectives share a step: weights of 1, priors of 0 and
    nothing recalled change no bit of a loss.
    """

    latents: Tensor  # [B, C, h, w] float32
    noise: Tensor  # [B, C, h, w] float32
    times: Tensor  # [B], the family's own
    weights: Tensor  # [B, 1, h, w] float32: of the squared error at every place
    # Of staying what the base is, see training/engine/objective.py.
    priors: Tensor  # [B] float32: how much it counts beside the picture
    recalled: Tensor  # [B] bool: whether it is asked instead of the picture

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All of its tensors, in order."""
        return self.latents, self.noise, self.times, self.weights, self.priors, self.recalled

    @classmethod
    def plain(cls, latents: Tensor, noise: Tensor, times: Tensor) -> "Draw":
        """One in which all that is drawn counts alike."""
        none = torch.zeros(len(latents), device=latents.device)
        return cls(latents, noise, times, torch.ones_like(latents[:, :1]), priors=none, recalled=none.bool())

    def to(self, device: torch.device) -> "Draw":
        """The same numbers on `device`."""
        return Draw(*(part.to(device, non_blocking=True) for part in self.parts))


@dataclass(frozen=True)
class Family:
    """One kind of base model."""

    name: str
    parts: tuple[str, ...]  # subfolders of its diffusers layout that training reads
    # Which layers get a LoRA, by the names of options.Targets: regular expressions over the denoiser's module names.
    targets: Mapping[str, str]
    quantised: str  # the linears that a quantised base keeps in fewer bits: a regular expression over full names
    load: Callable[[Where], Base]
    denoiser: Any  # diffusers' class
    # For counting memory: a schedule, and what a denoiser is told of a caption of so many tokens, in shapes alone.
    stand_in: Callable[[Any, int], tuple[Any, Condition]]
    # Moments of the VAE's latent distribution, [2C, h, w] float32: mean, then log-variance. Constant per picture:
    # cached. Pictures of one size; the VAE is awake.
    encode_pictures: Callable[[Base, Sequence[Example]], list[Tensor]]
    # Wakes the text encoders itself.
    encode_captions: Callable[[Base, Sequence[Example]], list[Condition]]
    # Draws latents, noise and times of a step, on the CPU from `generator`, so that every device sees the same numbers.
    draw: Callable[[Base, Tensor, torch.Generator], Draw]
    # Latents with their noise mixed in, [B, C, h, w] float32.
    mix: Callable[[Base, Draw], Tensor]
    # What the denoiser says about noisy latents [B, C, h, w] at times [B]: [B, C, h, w].
    predict: Callable[[Base, Tensor, Tensor, Sequence[Condition]], Tensor]
    # What the denoiser should say of them, [B, C, h, w].
    target: Callable[[Base, Draw], Tensor]
    # How much samples at these times [B] count under a weighting of training/options.py, [B] float32 on the CPU.
    weigh: Callable[[Base, Tensor, str], Tensor]
    # So many times from all noise to little, evenly spread, [n] on the CPU.
    levels: Callable[[Base, int], Tensor]
    # One step of drawing: noisy latents [B, C, h, w], what `predict` says of them, the time they are at and the next
    # (None: none, the picture itself), to less noisy latents.
    denoise: Callable[[Base, Tensor, Tensor, Tensor, Tensor | None], Tensor]
    # Latents as they are trained on, [B, C, h, w], to what the VAE decodes.
    unscale: Callable[[Base, Tensor], Tensor]
    # Inside, the base draws as it does for users: without what is merged into it for training only.
    as_used: Callable[[Base], AbstractContextManager[None]] = lambda _: nullcontext()
    # Whether several jobs share a step: not where a lone one fills the device, or where captions change the shape.
    shares_steps: bool = True
