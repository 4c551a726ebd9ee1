"""What a family's module provides for training, and the types that it uses. Data without torch is in its record."""

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
from training.families.record import Family
from training.families.weights.quantised import move
from training.options import Quantisation
from training.ports import Example

# The conditioning inputs of the denoiser for one picture, by names that the family chooses; on the training device.
Condition = dict[str, Tensor]


def vae_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of the VAE of a base in `dtype`: bfloat16 for bfloat16, else float32.

    Never float16, in which the VAE of sdxl overflows.
    """
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


@dataclass
class Base:
    """A frozen base model. Its denoiser and its encoders are loaded separately, each when it is first needed.

    So the device never holds both while a job encodes, and a job whose encodings are cached loads no encoder.
    """

    load_denoiser: Callable[[], Any]  # returns diffusers' UNet2DConditionModel or ZImageTransformer2DModel
    encoders: Encoders  # VAE, text encoders and tokenizers, by their folder's name
    schedule: Any  # the noise schedule of the family's functions: DiscreteSchedule or FlowSchedule
    device: torch.device
    dtype: torch.dtype  # of the frozen weights
    prediction: str  # epsilon, v_prediction or flow
    warnings: list[str] = field(default_factory=list)  # logged for each job
    drawing: tuple[int, float] = (20, 5.0)  # steps and guidance scale of previews; a scale of 1 disables guidance
    # z-image: the training adapter that is merged into the weights, and that users do not draw with.
    training_adapter: Path | None = None
    adapter: list[tuple[Any, Tensor, Tensor]] | None = None  # its layers with A and B; None until needed
    quantisation: Quantisation = "none"
    is_gradient_checkpointing: bool = False
    is_parked: bool = False  # the denoiser is not usable: some or all of its weights are in the host's memory
    # Returns the text encoders that are trained, by their folder's name, on the device. They are loaded with the
    # denoiser, beside `encoders`, whose frozen ones encode captions in other threads. None: they are not trained.
    load_text_encoders: Callable[[], dict[str, Any]] | None = None
    _text_encoders: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _denoiser: Any = field(default=None, init=False, repr=False)
    _loading: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def denoiser(self) -> Any:
        """The denoiser. The first call loads it onto the device. Raises BaseModelUnavailable."""
        with self._loading:
            if self._denoiser is None:
                self._text_encoders = self.load_text_encoders() if self.load_text_encoders is not None else {}
                self._denoiser = self.load_denoiser()
            return self._denoiser

    @property
    def text_encoders(self) -> dict[str, Any]:
        """The text encoders that are trained, by their folder's name. The first call loads them and the denoiser."""
        _ = self.denoiser
        return self._text_encoders

    @contextmanager
    def parked(self) -> Iterator[None]:
        """Inside, the denoiser and trained text encoders are in the host's memory. They must not be used.

        If moving it back raises, because memory runs out, `is_parked` stays true, and the base must not be used again.
        """
        if self._denoiser is None:
            yield
            return
        self.is_parked = True
        try:
            self._move(torch.device("cpu"))
            yield
        finally:
            self._move(self.device)
            self.is_parked = False

    def _move(self, device: torch.device) -> None:
        for network in (self._denoiser, *self._text_encoders.values()):
            move(network, device)

    def checkpoint_gradients(self, on: bool) -> None:
        """Turn gradient checkpointing on or off. With it, the backward pass recomputes activations to save memory."""
        if on:
            # No layer is random, so no random state has to be preserved, which a CUDA graph could not read.
            self.denoiser.enable_gradient_checkpointing(
                partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
            )
        else:
            self.denoiser.disable_gradient_checkpointing()
        self.is_gradient_checkpointing = on

    @property
    def vae_dtype(self) -> torch.dtype:
        """The precision of the VAE."""
        return vae_dtype(self.dtype)


@dataclass(frozen=True)
class Where:
    """Where to load a base model from, and how."""

    folder: Path  # in diffusers' layout, or a single file: the result of `parts.locate`
    device: torch.device
    dtype: torch.dtype
    training_adapter: Path | None = None  # merged into the base while training, never in the LoRA file
    distilled: bool = False  # a few-step model, such as z-image-turbo
    quantisation: Quantisation = "none"  # of the denoiser's large layers
    trains_text_encoders: bool = False

    @property
    def vae_dtype(self) -> torch.dtype:
        """The precision of the VAE."""
        return vae_dtype(self.dtype)


@dataclass(frozen=True)
class Draw:
    """The random draws and the loss weights of one step, for B samples.

    The loss weights are tensors, so that jobs with different objectives share a step: weights of 1, priors of 0 and no
    recalled sample change no bit of a loss.
    """

    latents: Tensor  # [B, C, h, w] float32
    noise: Tensor  # [B, C, h, w] float32
    times: Tensor  # [B], in the family's own unit
    weights: Tensor  # [B, 1, h, w] float32: of the squared error at each place
    # Prior preservation, see training/engine/objective.py.
    priors: Tensor  # [B] float32: the weight of the prior loss beside the picture's loss
    recalled: Tensor  # [B] bool: whether the sample trains the prior instead of its picture

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All tensors, in order."""
        return self.latents, self.noise, self.times, self.weights, self.priors, self.recalled

    @classmethod
    def plain(cls, latents: Tensor, noise: Tensor, times: Tensor) -> "Draw":
        """A draw with the same weight everywhere and without prior preservation."""
        none = torch.zeros(len(latents), device=latents.device)
        return cls(latents, noise, times, torch.ones_like(latents[:, :1]), priors=none, recalled=none.bool())

    def to(self, device: torch.device) -> "Draw":
        """A copy on `device`. Does not wait for it."""
        return Draw(*(part.to(device, non_blocking=True) for part in self.parts))


@dataclass(frozen=True)
class FamilyCode:
    """What a training calls of a family, beside its record."""

    record: Family
    load: Callable[[Where], Base]
    denoiser: Any  # diffusers' class
    # For counting memory: a schedule, and the condition for a caption of so many tokens. Only the shapes are right.
    stand_in: Callable[[Any, int], tuple[Any, Condition]]
    # diffusers' pipeline with the real classes, a few channels and random weights, for the workers' check of themselves
    # and for tests. Given epsilon or v_prediction, which a family may ignore.
    tiny: Callable[[str], Any]
    # The moments of each picture's latent distribution, [2C, h, w] float32: mean, then log-variance. All pictures have
    # one size. The caller wakes the VAE.
    encode_pictures: Callable[[Base, Sequence[Example]], list[Tensor]]
    # The condition for each picture. Wakes the text encoders.
    encode_captions: Callable[[Base, Sequence[Example]], list[Condition]]
    # Whether the text encoders read a caption to its end, by the family's own tokenizers.
    reads_whole: Callable[[Base, str], bool]
    # Draws latents, noise and times of a step from moments [B, 2C, h, w], on the CPU, so that all devices get the same.
    draw: Callable[[Base, Tensor, torch.Generator], Draw]
    # The noisy latents of a draw, [B, C, h, w] float32.
    mix: Callable[[Base, Draw], Tensor]
    # The denoiser's prediction for noisy latents [B, C, h, w] at times [B]: [B, C, h, w].
    predict: Callable[[Base, Tensor, Tensor, Sequence[Condition]], Tensor]
    # The target of that prediction, [B, C, h, w].
    target: Callable[[Base, Draw], Tensor]
    # The loss weights of samples at times [B] for a weighting of options.Weighting, [B] float32 on the CPU.
    weigh: Callable[[Base, Tensor, str], Tensor]
    # n times from pure noise to little noise for latents of a size (h, w), [n] on the CPU.
    levels: Callable[[Base, int, tuple[int, int]], Tensor]
    # One step of drawing: noisy latents [B, C, h, w], the prediction for them, their time and the next time (None: the
    # finished picture), to less noisy latents.
    denoise: Callable[[Base, Tensor, Tensor, Tensor, Tensor | None], Tensor]
    # Pictures [B, 3, height, width] from scaled latents [B, C, h, w], as they are trained on. The caller wakes the VAE.
    decode: Callable[[Base, Tensor], Tensor]
    # The tokens of each picture's caption, as a condition for `predict`, which encodes them with `Base.text_encoders`.
    # None: the family's text encoders are not trained.
    tokenize_captions: Callable[[Base, Sequence[Example]], list[Condition]] | None = None
    # Inside, the base draws as it does for users: without an adapter that is merged only for training.
    as_used: Callable[[Base], AbstractContextManager[None]] = lambda _: nullcontext()
    # Parts of diffusers' pipeline that it cannot load itself, for a base model in a folder or file.
    components: Callable[[Path], Mapping[str, Any]] = lambda _: {}
    # Changes diffusers' pipeline where it would not draw as the network was trained.
    mend_pipeline: Callable[[Any], None] = lambda _: None

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def parts(self) -> tuple[str, ...]:
        """The subfolders of its diffusers layout that training reads."""
        return self.record.parts

    @property
    def targets(self) -> Mapping[str, str]:
        """The layers that get a LoRA, by the names of options.Targets: regular expressions over full module names."""
        return self.record.targets

    @property
    def quantised(self) -> str:
        """The linears that a quantised base has in fewer bits: a regular expression over full module names."""
        return self.record.quantised

    @property
    def shares_steps(self) -> bool:
        """Whether several jobs share a step. Not if one job fills the device, or if captions change the shape."""
        return self.record.shares_steps
