"""The recipe of one training: its fields, limits and the defaults of each family."""

import unicodedata
from collections.abc import Mapping
from math import ceil, sqrt
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from core.numbers import NumbersAreNotBools
from training.families.registry import BASE_MODELS, FAMILIES
from training.options import Adapter, Data, Group, Objective, Optimization, Ranks, Validation


class _FamilyName:
    """Accepts the name of a family that is registered, and lists them all in JSON schemas."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(FAMILIES)}


def _is_registered(name: str) -> str:
    if name not in FAMILIES:
        *others, last = [f"'{known}'" for known in FAMILIES]
        raise PydanticCustomError("literal_error", "Input should be {expected}", {
            "expected": f"{', '.join(others)} or {last}" if others else last
        })  # fmt: skip
    return name


Family = Annotated[str, AfterValidator(_is_registered), _FamilyName()]
Backend = Literal["local", "ai-toolkit"]
Optimizer = Literal["adamw", "adamw8bit", "prodigy"]
CaptionSource = Literal["given", "auto", "template"]
Learns = Literal["character", "object", "style"]

MOST_RATE = 0.1  # for AdamW
_ADAMW = {"optimizer": "adamw", "learning_rate": 1e-4}  # for a family whose default is another optimizer
LEAST_PRODIGY_RATE = 0.01
MIN_PICTURES, MAX_PICTURES = 5, 1000
MAX_CAPTION_CHARACTERS = 1000


def base_model_location(base_model: str, configured: Mapping[str, str]) -> str:
    """Where the weights of a base model are: a folder, a file or a hub id. `configured`: IMPRINT_BASE_MODELS."""
    named = BASE_MODELS.get(base_model)
    return configured.get(base_model) or (named.location if named is not None else base_model)


def licence_of(base_model: str) -> str | None:
    """The licence of a base model with a short name, or of its hub id, and what it forbids; None: unknown."""
    known = BASE_MODELS.get(base_model) or next(
        (one for one in BASE_MODELS.values() if one.location == base_model), None
    )
    return None if known is None else f"{known.licence}{f': {known.terms}' if known.terms else ''}"


def is_distilled(*names: str) -> bool:
    """Whether a base model is a few-step (distilled) one, which plain training would undo. Only its names tell.

    De-distilled models (de-turbo) are not.
    """
    joined = " ".join(names).lower()
    return ("turbo" in joined and "de-turbo" not in joined and "deturbo" not in joined) or "schnell" in joined


# Invisible characters outside Unicode's category "format": fillers, and the combining grapheme joiner.
_BLANK_LETTERS = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0")
_JOINERS = frozenset("\u200c\u200d")  # part of the spelling of some languages, and of some emoji


def _visible(word: str, info: ValidationInfo) -> str:
    """`word` with single spaces. Raises ValueError for invisible characters.

    The words of existing trainings stay as they are (`STORED`): they are in captions and files already.
    """
    if info.context == STORED:
        return word
    folded = " ".join(word.split())
    for before, letter, after in zip(f" {folded}", folded, f"{folded[1:]} ", strict=False):
        if letter in _JOINERS and not (before + after).isascii() and " " not in before + after:
            continue
        if letter in _BLANK_LETTERS or unicodedata.category(letter) in ("Cc", "Cf", "Cs"):
            raise ValueError(f"contains the invisible character U+{ord(letter):04X}; remove it")
    return folded


def _has_letters(word: str, info: ValidationInfo) -> str:
    if info.context != STORED and not any(letter.isalnum() for letter in word):
        raise ValueError("must contain a letter or a digit")
    return word


Word = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=120, pattern=r"^[^\x00-\x1f\x7f]*$"),
    AfterValidator(_visible),
]

PERSON_WORDS = frozenset(
    "person people man woman boy girl child kid baby lady guy character face human model actor actress".split()  # noqa: SIM905
)
GROUPS = ("adapter", "optimization", "objective", "data", "validation")
# Fields that change no weight, or only through the dataset: they are not part of the recipe in files and checkpoints.
_NOT_IN_RECIPE = frozenset({"checkpoint_every", "keep_checkpoints", "captions", "learns"})
# The context for validating the recipe of an existing training, which later rules for requests must not refuse.
STORED = "stored"


def _needs_adamw(given: Mapping[str, Any]) -> bool:
    """Whether a request that names no optimizer has options that Prodigy does not take."""
    rate, group = given.get("learning_rate"), given.get("optimization")
    is_of_adamw = isinstance(rate, int | float) and rate <= MOST_RATE
    return is_of_adamw or (isinstance(group, dict) and group.get("loraplus_ratio") not in (None, 1))


class TrainSpec(NumbersAreNotBools):
    """The frozen, validated recipe of one job. Build it with `TrainSpec.of`, which fills in the family's defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    base_model: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]
    family: Family
    trigger_word: Annotated[Word, StringConstraints(min_length=1), AfterValidator(_has_letters)]
    class_word: Word = ""
    captions: CaptionSource = "given"
    learns: Learns | None = None  # what captions leave out; None: `learnt` tells it from the class word
    rank: int = Field(ge=1, le=256)
    alpha: float = Field(gt=0, le=1024)
    optimizer: Optimizer = "adamw"
    learning_rate: float = Field(ge=1e-7, le=1.0)
    batch_size: int = Field(default=1, ge=1, le=64)
    resolution: int = Field(ge=64, le=2048, multiple_of=64)
    aspect_buckets: bool = False
    epochs: int = Field(ge=1, le=500)
    max_steps: int | None = Field(default=None, ge=1, le=100_000)
    seed: int = Field(ge=0, lt=2**63)
    backend: Backend = "local"
    checkpoint_every: int = Field(default=10, ge=1, le=500)
    keep_checkpoints: bool = False
    adapter: Adapter = Field(default_factory=Adapter)
    optimization: Optimization = Field(default_factory=Optimization)
    objective: Objective = Field(default_factory=Objective)
    data: Data = Field(default_factory=Data)
    validation: Validation = Field(default_factory=Validation)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """Fill in the family from the name of the base model, and defaults from the family."""
        if not isinstance(given, dict):
            return given
        given = {name: value for name, value in given.items() if value is not None}
        named = BASE_MODELS.get(str(given.get("base_model")))
        given.setdefault("family", named.family if named else None)
        # The validator of `family` reports an unknown family; any defaults will do, so that it is the only error.
        family = given["family"]
        known = FAMILIES.get(family) if isinstance(family, str) else None
        recipe = dict((known or next(iter(FAMILIES.values()))).recipe)
        is_usual = recipe.get("optimizer") == "prodigy"
        is_asked = given.get("optimizer", "prodigy" if is_usual and not _needs_adamw(given) else "adamw") == "prodigy"
        if is_asked != is_usual:
            # Prodigy finds the rate itself and multiplies it with the given one.
            recipe |= {"optimizer": "prodigy", "learning_rate": 1.0} if is_asked else _ADAMW
        return {**recipe, **given}

    @field_validator("learning_rate")
    @classmethod
    def _is_small(cls, rate: float, info: ValidationInfo) -> float:
        if rate > MOST_RATE and info.data.get("optimizer") in ("adamw", "adamw8bit"):
            raise ValueError(f"Input should be less than or equal to {MOST_RATE:g} (only prodigy takes up to 1)")
        # Trainings that were accepted before this was checked stay as they are.
        if rate < LEAST_PRODIGY_RATE and info.data.get("optimizer") == "prodigy" and info.context != STORED:
            raise ValueError(
                f"{rate:g} multiplies the rate that prodigy finds, so nothing would be learned: leave it out, or use "
                "about 1"
            )
        return rate

    @field_validator("optimization")
    @classmethod
    def _fits_the_optimizer(cls, asked: Optimization, info: ValidationInfo) -> Optimization:
        if asked.loraplus_ratio != 1 and info.data.get("optimizer") == "prodigy":
            raise ValueError("loraplus_ratio: prodigy finds one rate for all weights; leave it at 1, or use adamw")
        if asked.text_encoder_learning_rate is not None:
            adapter = info.data.get("adapter")
            if adapter is not None and not adapter.text_encoder:
                raise ValueError("text_encoder_learning_rate: set adapter.text_encoder too, or leave it out")
            if info.data.get("optimizer") == "prodigy":
                raise ValueError(
                    "text_encoder_learning_rate: prodigy finds one rate for all weights; leave it out, or use adamw"
                )
        return asked

    @field_validator("adapter", "optimization", "objective", "data", "validation")
    @classmethod
    def _works_with_the_family(cls, asked: Group, info: ValidationInfo) -> Group:
        """Options that the family does not have are named. Trainings that were accepted before stay as they are."""
        family = FAMILIES.get(info.data.get("family", ""))
        if family is not None and info.context != STORED:
            for option in asked.to_dict():
                if (reason := family.refused.get(f"{info.field_name}.{option}")) is not None:
                    raise ValueError(f"{option}: not for {family.name}: {reason}")
            if isinstance(asked, Adapter) and family.targets and asked.targets not in family.targets:
                raise ValueError(f"targets: {family.name} has {' and '.join(family.targets)}, not {asked.targets}")
            if isinstance(asked, Adapter) and asked.text_encoder and not family.text_targets:
                raise ValueError(f"text_encoder: not for {family.name}: its trainers leave its text encoder as it is")
        return asked

    @field_validator("data")
    @classmethod
    def _fits_into_the_pictures(cls, asked: Data, info: ValidationInfo) -> Data:
        largest = info.data.get("resolution")
        if largest is not None and any(side > largest for side in asked.resolutions):
            raise ValueError(f"resolutions: at most {largest}, the resolution that the pictures are prepared for")
        if len(set(asked.resolutions)) < len(asked.resolutions):
            raise ValueError("resolutions: each at most once")
        return asked

    @field_validator("family", mode="before")
    @classmethod
    def _belongs_to_its_base_model(cls, family: Any, info: ValidationInfo) -> Any:
        """Validated with this field, not before all others, so that its error is reported together with theirs."""
        base_model = info.data.get("base_model")
        if base_model is None:
            return family or "sd15"  # the error of base_model is enough
        named = BASE_MODELS.get(base_model)
        if named is not None and family != named.family:
            raise ValueError(f"base_model {base_model} is of family {named.family}")
        if family is None:
            raise ValueError(
                f"base_model is none of {', '.join(BASE_MODELS)}: for a folder or hub id, set family too "
                f"({', '.join(FAMILIES)})"
            )
        return family

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values. Groups contain only options that differ from the defaults, and may be absent.

        So new options do not change the recipe of existing trainings.
        """
        fields = self.model_dump(mode="json", exclude={*GROUPS, *_NOT_IN_RECIPE})
        groups: dict[str, dict[str, Any]] = {name: getattr(self, name).to_dict() for name in GROUPS}
        return fields | {name: group for name, group in groups.items() if group}

    @property
    def subject(self) -> str:
        """The words for the subject in a prompt: trigger word and class word."""
        return " ".join(f"{self.trigger_word} {self.class_word}".split())

    @property
    def learnt(self) -> Learns:
        """What the LoRA learns, as asked, or by the class word."""
        words = set(self.class_word.lower().split())
        if self.learns is not None:
            return self.learns
        if "style" in words:
            return "style"
        return "character" if not words or words & PERSON_WORDS else "object"

    @property
    def scale(self) -> float:
        """The factor of B A: alpha / rank, or for rsLoRA alpha / sqrt(rank), arXiv 2312.03732."""
        return self.alpha / (sqrt(self.rank) if self.adapter.rslora else self.rank)

    @property
    def file_alpha(self) -> float:
        """The alpha in the LoRA file: loaders divide it by the rank, which gives `scale`."""
        return self.alpha * sqrt(self.rank) if self.adapter.rslora else self.alpha

    @property
    def ranks(self) -> Ranks:
        """The rank of each kind of layer. Convolutions have one of their own if the rank or the alpha is given."""
        asked = self.adapter
        has_own = asked.conv_rank is not None or asked.conv_alpha is not None
        return Ranks(self.rank, asked.conv_rank or self.rank if has_own else None)

    @property
    def scales(self) -> tuple[float, float]:
        """The factors of B A: of most layers, and of 3 x 3 convolutions."""
        asked, (_, rank) = self.adapter, self.ranks
        if rank is None or asked.conv_alpha is None:
            return self.scale, self.scale
        return self.scale, asked.conv_alpha / (sqrt(rank) if asked.rslora else rank)

    @property
    def text_encoder_rate(self) -> float:
        """The learning rate of the LoRA on the text encoders."""
        return self.optimization.text_encoder_learning_rate or self.learning_rate

    @property
    def file_alphas(self) -> tuple[float, float]:
        """The alphas in the LoRA file, of layers as in `scales`."""
        rank = self.ranks.of(spatial=True)
        return self.file_alpha, self.file_alpha if self.ranks.spatial is None else self.scales[1] * rank

    def steps(self, pictures: int) -> int:
        """The number of steps for a training with `pictures` pictures, including held-out ones."""
        if self.max_steps is not None:
            return self.max_steps
        return self.epochs * ceil(max(pictures - self.validation.held_out, 1) / self.batch_size)
