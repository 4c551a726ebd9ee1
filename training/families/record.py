"""The record that describes a family of base models. Everything outside the family's own module reads it.

A record is data without torch, so the page, the command line and a price can read it. What needs torch is in the module
that `Family.code` names, which is imported when a job trains. A family without such a module trains only on rented
servers.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from training.families.workflow import Workflow

Config = Mapping[str, Any]
Form = Literal["kohya", "peft", "comfyui"]


@dataclass(frozen=True)
class BaseModel:
    """A base model with a short name."""

    name: str  # in requests
    family: str
    location: str  # a hub id
    title: str  # as people call it
    about: str  # a sentence for the page
    licence: str
    terms: str = ""  # what its licence forbids, if that concerns people who train; empty: nothing
    is_gated: bool = False  # the hub asks for a token of an account that has accepted the licence


@dataclass(frozen=True)
class Price:
    """Credits for 1,000 steps at the family's native resolution (in pixels, of a square)."""

    credits: int
    resolution: int


@dataclass(frozen=True)
class Drawing:
    """Steps, guidance scale and side in pixels with which the family's authors draw."""

    steps: int
    guidance: float
    side: int


@dataclass(frozen=True)
class TextSizes:
    """The sizes of a family's text encoders while they are trained, together."""

    parameters: int
    lora: int  # parameters of a LoRA of rank 1
    modules: int  # layers that get a LoRA
    sample: int  # bytes of a step per sample, with a base in 16 bits
    # Floating-point operations of a step on them, in thousandths of those of a step on the denoiser alone at the
    # resolution of the family's price. They are the same at every resolution.
    work: int


@dataclass(frozen=True)
class Sizes:
    """The sizes of a family's standard model with a base in 16 bits."""

    parameters: int  # of the denoiser
    quantised: tuple[int, int]  # parameters in the layers that may be quantised; and in the largest of these layers
    encoders: int  # bytes of the text encoders that are loaded together, before the denoiser
    lora: Mapping[str, int]  # parameters of a LoRA of rank 1, by target set
    modules: Mapping[str, int]  # layers that get a LoRA, by target set
    sample: tuple[int, int]  # bytes of a step per sample, and per latent pixel of a sample
    checkpointed: tuple[int, int]  # the same with gradient checkpointing
    spatial: int = 0  # of the parameters of `lora`, those on 3 x 3 convolutions, in the target set `convolutions`
    text: TextSizes | None = None  # None: its text encoders get no LoRA


@dataclass(frozen=True)
class Naming:
    """How the files of a family name the tensors of a module, and the precision of the two matrices."""

    prefix: str
    down: str
    up: str
    underscores: bool  # kohya writes a module's dots as underscores
    modules: re.Pattern[str]  # valid module names in a file, after the prefix
    kind: str
    # For files with LoRAs on text encoders: the prefix of each encoder, and the valid module names after it.
    texts: Mapping[str, str] = field(default_factory=dict)
    text_modules: re.Pattern[str] | None = None
    # Whether each module has an `.alpha`. Without, the scale is multiplied into the up matrices, because a program that
    # finds no alpha loads the file at scale 1.
    alpha: bool = True

    def stem(self, module: str) -> str:
        """The name in a file of a module with diffusers' name `module`, without the suffix of a tensor.

        The name of a module of a text encoder begins with the encoder's: `text_encoder.text_model.…`.
        """
        part, _, rest = module.partition(".")
        if part in self.texts:
            return self.texts[part] + rest.replace(".", "_")
        return self.prefix + (module.replace(".", "_") if self.underscores else module)

    def text_encoder_of(self, stem: str) -> str | None:
        """The text encoder that a name in a file belongs to; None for another module."""
        if self.text_modules is None:
            return None
        found = ((part, prefix) for part, prefix in self.texts.items() if stem.startswith(prefix))
        return next((part for part, prefix in found if self.text_modules.fullmatch(stem, len(prefix))), None)


class WrittenName(Protocol):
    """How a file names a module, see `training.lora.names.ModuleName`."""

    @property
    def part(self) -> str: ...
    @property
    def module(self) -> str: ...
    @property
    def form(self) -> str: ...
    @property
    def prefix(self) -> str: ...
    @property
    def written(self) -> str: ...


class WrittenModule(Protocol):
    """A module in a file, see `training.lora.reading.Module`."""

    @property
    def name(self) -> WrittenName: ...
    @property
    def suffix(self) -> str: ...
    @property
    def has_alpha(self) -> bool: ...


# Which modules of a file a program reads, for a program that refuses some files whole.
Reader = Callable[[Sequence[WrittenModule]], Callable[[WrittenModule], bool]]


@dataclass(frozen=True)
class LoraNames:
    """How LoRA files of a family name its modules, for reading files of all trainers."""

    naming: Naming  # what a training writes
    form: Form  # the name of that form: what most programs read whole
    # Whether modules are of this family: full canonical names (`transformer.layers.0.attention.to_q`), with the number
    # of inputs of each.
    is_of: Callable[[Mapping[str, int]], bool]
    example: Mapping[str, int]  # a few modules of the standard model that training targets, with their number of inputs
    diffusers: Reader | None = None  # what diffusers reads; None: it is not known what programs read
    # The modules that ComfyUI reads, by their full names in a file: its key map. None: it reads none.
    comfyui: re.Pattern[str] | None = None
    comfyui_published: re.Pattern[str] | None = None  # its map of the published model, if other models have another
    is_of_automatic1111: bool = False  # whether AUTOMATIC1111 knows the model: it reads kohya's names
    modules: re.Pattern[str] | None = None  # diffusers' names in the denoiser; None: those of a UNet
    # Names of the family's own code with diffusers' names, as arguments of `re.sub`. A fused module has several.
    original: tuple[tuple[str, tuple[str, ...]], ...] = ()
    # The rows of the parts of a fused module, by the last word of their names, where they are not all as many.
    shares: Mapping[str, int] = field(default_factory=dict)
    # Whether the kohya and comfyui forms have the names of the family's own code.
    is_fused: bool = False
    words: tuple[str, ...] = ()  # of names that were written with underscores only
    declared: tuple[str, ...] = ()  # words of `ss_base_model_version` and `modelspec.architecture`, in lower case
    kind: str = ""  # the usual name of the kind of model, if files of it may also be of another family
    refused: Mapping[str, str] = field(default_factory=dict)  # forms that cannot be written, with the reason
    architecture: str = ""  # `modelspec.architecture` of files
    version: str = ""  # `ss_base_model_version` of files

    def rows(self, parts: Sequence[str]) -> list[int]:
        """How many rows each part of a fused module has, relative to each other."""
        return [self.shares.get(part.rpartition(".")[2], 1) for part in parts]


def own_name(module: str, table: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[str, int, tuple[str, ...]] | None:
    """The layer of a model's own code that a module of diffusers is, or is a part of; with the part's number, and all.

    table: such as `LoraNames.original`, with a block's number as the only group.
    """
    for pattern, names in table:
        for place, name in enumerate(names):
            if (found := re.fullmatch(re.escape(name).replace(r"\\1", r"(\d+)"), module)) is not None:
                number = found[1] if found.groups() else ""
                return pattern.replace(r"(\d+)", number).replace(r"\.", "."), place, names
    return None


@dataclass(frozen=True)
class Source:
    """The tensor in a single file that a weight comes from."""

    name: str
    rows: tuple[int, int, int] | None = None  # use only the rows from one share to another, of so many equal ones
    is_transposed: bool = False
    is_swapped: bool = False  # the two halves of the rows change places


def _says_nothing(_part: str, _names: Collection[str]) -> Config:
    return {}


# Finds the source of a weight by diffusers' name, from the configuration of its part. Raises KeyError.
Finder = Callable[[str, Config], Source]


@dataclass(frozen=True)
class SingleFile:
    """How one checkpoint file names the weights of a family's parts."""

    # The prefixes of each part's names. If programs differ, all variants, the usual one first.
    prefixes: Mapping[str, tuple[str, ...]]
    marks: Mapping[str, tuple[str, ...]]  # names by which each part is recognised: all parts of the kind have one
    sources: Mapping[str, Finder]
    # Whether a file with tensors of these names holds the family's denoiser.
    is_of: Callable[[Mapping[str, str]], bool]
    # Tensors of the family's files that training does not use, beside those that files of all families may have.
    left_over: re.Pattern[str] | None = None
    # What the names in a file say about the configuration of a part, besides `Family.configs`.
    says: Callable[[str, Collection[str]], Config] = _says_nothing


@dataclass(frozen=True)
class Variant:
    """Base models of a family that ai-toolkit trains in another way, known by their names. The changes to its job."""

    names: re.Pattern[str]  # searched for in the name on the hub, in lower case
    model: Mapping[str, Any] = field(default_factory=dict)
    sample: Mapping[str, Any] = field(default_factory=dict)
    recovery: str = ""  # see AiToolkit


@dataclass(frozen=True)
class AiToolkit:
    """How ai-toolkit trains the family. `model`, `train` and `sample` add to the sections of its job."""

    arch: str
    precision: str  # of the file: ai-toolkit's name for `Naming.kind`
    prediction: str  # epsilon or flow
    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    sample: Mapping[str, Any] = field(default_factory=dict)
    # For each target set, parts of the names of layers that get a LoRA; None: all layers that ai-toolkit trains.
    layers: Mapping[str, tuple[str, ...]] | None = None
    skipped: tuple[str, ...] = ()  # parts of the names of layers that get none
    has_alpha: bool = False  # False: it trains at scale 1 and writes no alpha, so alpha must equal the rank
    weightings: frozenset[str] = frozenset({"none"})  # that it trains as Imprint does
    variants: tuple[Variant, ...] = ()  # the first whose names match counts
    prefix: str = "diffusion_model."  # of the names in its files
    version: str = ""  # `ss_base_model_version` of its files
    modules: int | None = None  # layers that get a LoRA, where `Family.sizes` does not tell and it is known
    # Billions of parameters of the denoiser and of the text encoders, which decide about the card and about
    # quantisation; None: unknown.
    billions: tuple[float, float] | None = None
    # A few bits and an accuracy-recovery adapter on the hub, as ai-toolkit writes them: `uint3|owner/name/file`. For
    # cards on which 8 bits do not fit.
    recovery: str = ""

    def variant(self, base_model: str) -> Variant | None:
        """The variant that a base model is of, by its name on the hub."""
        name = base_model.rsplit("/", 1)[-1].lower()
        return next((one for one in self.variants if one.names.search(name)), None)


@dataclass(frozen=True)
class Family:
    """One kind of base model."""

    name: str  # in requests, in files and of the queue `train.<name>`
    title: str
    base_models: tuple[BaseModel, ...]
    recipe: Mapping[str, Any]  # defaults of a training
    price: Price
    seconds_per_step: float  # on one consumer GPU, until an installation has measured its own
    drawing: Drawing
    previews: tuple[int, float]  # steps and guidance scale of previews while training
    lora: LoraNames
    # The parts of its folder in diffusers' layout that training and drawing read, the denoiser first, each with its
    # class in diffusers or transformers. Empty for a family that is trained only on rented servers.
    classes: Mapping[str, str] = field(default_factory=dict)
    pipeline: str = ""  # diffusers' class
    # Of the standard model, as diffusers and transformers have them.
    configs: Mapping[str, Config] = field(default_factory=dict)
    home: str = ""  # hub id of a model with the parts that a single file lacks
    code: str | None = None  # the module with its FamilyCode; None: it trains only on rented servers
    targets: Mapping[str, str] = field(default_factory=dict)  # see FamilyCode
    quantised: str = ""
    text_targets: str = ""  # the layers of text encoders that may get a LoRA, as `targets`; empty: none may
    few_steps: Drawing | None = None  # how its few-step models are drawn with, if it has some
    shares_steps: bool = True
    latent_channels: int = 4
    latent_pixels: int = 8  # the side of a place of the latents, in pixels of the picture
    caption_tokens: int = 77  # the most that it reads of a caption
    sizes: Sizes | None = None  # None: the memory of a training is not planned
    encoder_weight_bytes: int = 4  # of one weight of its text encoders, as training loads them
    pipeline_arguments: Mapping[str, Any] = field(default_factory=dict)
    guidance: str = "guidance_scale"  # the pipeline's argument for the guidance scale
    call: Mapping[str, Any] = field(default_factory=dict)  # other arguments of a call of the pipeline
    single_file: SingleFile | None = None  # None: a base model in one file is refused
    workflow: Workflow | None = None  # None: there is no workflow for ComfyUI
    toolkit: AiToolkit | None = None  # None: rented servers cannot train it
    refused: Mapping[str, str] = field(default_factory=dict)  # options that do not work, by name, with the reason

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts, the denoiser first."""
        return tuple(self.classes)

    @property
    def denoiser(self) -> str:
        """The name of the denoiser's part: unet or transformer."""
        return self.parts[0]
