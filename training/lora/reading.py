"""Read any LoRA file as modules with their matrices and scale. Does not import torch.

kohya's form has the scale as `.alpha` beside the matrices (alpha / rank), peft's as JSON in the metadata, with rank,
alpha and exceptions by module; without either, programs take it as 1.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from core.errors import LoraInvalid
from training.families.registry import FAMILIES
from training.lora import file as lora_file
from training.lora import origin
from training.lora.names import ModuleName, in_family, parse_module_name, split_prefix
from training.lora.safetensor import Malformed, Tensor, unpack
from training.lora.suffixes import ALPHA, MAGNITUDES, extra_of, method_of, split_matrix

ADAPTER = "lora_adapter_metadata"  # the metadata key under which diffusers stores peft's configuration


@dataclass
class Module:
    """The LoRA of one module, as in the file: down [rank, in, ...] and up [out, rank, ...]."""

    name: ModuleName
    stem: str  # the name in the file
    suffix: str  # of the down matrix
    down: Tensor
    up: Tensor
    alpha: float | None = None  # None: not in the file; programs take the rank
    has_alpha: bool = False  # as a tensor, not only in the metadata
    magnitude: Tensor | None = None  # DoRA's lengths
    magnitude_suffix: str = ""

    @property
    def rank(self) -> int:
        return self.down.shape[0] if self.down.shape else 0

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None or not self.rank else self.alpha / self.rank

    @property
    def axis(self) -> Literal["output", "input"] | None:
        """Whether DoRA's lengths are of the weight's rows (as in peft) or columns (as in LyCORIS); None if neither."""
        if self.magnitude is None or not self.up.shape or len(self.down.shape) < 2:
            return None
        shape, outputs, inputs = self.magnitude.shape, self.up.shape[0], self.down.shape[1]
        ones = (1,) * (len(self.down.shape) - 1)
        if shape in ((outputs,), (outputs, *ones), (outputs, 1)):
            return "output"
        return "input" if shape in ((1, inputs), (1, inputs, *ones[1:]), (inputs,)) else None


@dataclass
class ParsedLora:
    """The contents of a LoRA file.

    `problems` make it unusable. `methods` and `extras` are what it holds beside LoRA that Imprint does not read.
    """

    modules: dict[str, Module]  # of a family of ours, by full canonical name
    metadata: dict[str, str]
    form: str
    family: str | None
    other_family: str | None = None
    possible: list[str] = field(default_factory=list)  # families of ours that have its modules, if several do
    others: dict[str, Module] = field(default_factory=dict)  # of no family of ours, by the name in the file
    problems: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)  # other methods than LoRA
    extras: dict[str, int] = field(default_factory=dict)  # the number of other tensors, by what they are
    tensors: dict[str, Tensor] = field(default_factory=dict)
    data: bytes = b""

    @property
    def contains(self) -> list[str]:
        """What the file holds that Imprint does not read, in words."""
        family = self.other_family or ("a model that Imprint does not know" if self.others else None)
        found = [f"a LoRA of {family}"] if family else []
        return [*found, *self.methods, *(f"{name} ({count})" for name, count in self.extras.items())]

    @property
    def is_ours(self) -> bool:
        """Whether the metadata says that Imprint made the file."""
        return "imprint_version" in self.metadata


def read_lora(path: Path | bytes, max_bytes: int = lora_file.DEFAULT_MAX_BYTES) -> ParsedLora:
    """Read a LoRA file in any form. Raises LoraInvalid if it is not a valid safetensors file."""
    data = lora_file.read_bytes(path, max_bytes)
    try:
        tensors, metadata = unpack(data)
    except Malformed as error:
        raise LoraInvalid(f"the LoRA file is damaged: {error}") from error
    made = ParsedLora({}, metadata, "unknown", None, tensors=tensors, data=data)
    left = dict(tensors)
    forms: dict[str, int] = {}
    for key in tensors:
        found = split_matrix(key)
        if found is None or key not in left or found[0] + found[2] not in tensors:
            continue
        module = _module(*found, left, made)
        forms[module.name.form] = forms.get(module.name.form, 0) + 1
    _note_left(left, made)
    made.form = max(forms, key=lambda form: forms[form]) if forms else "unknown"
    _find_origin(made)
    if len(forms) > 1 and not made.others:
        made.problems.append(f"its names mix {len(forms)} forms: {', '.join(sorted(forms))}")
    _apply_adapter(made)
    return made


def _module(stem: str, end: str, other: str, left: dict[str, Tensor], made: ParsedLora) -> Module:
    """Take a module's tensors out of `left` and put them into `made`."""
    is_down = any(word in end for word in ("down", "lora_A"))
    down, up = (end, other) if is_down else (other, end)
    known = parse_module_name(stem) or _rented_name(stem, made.metadata)
    prefix, part, form = split_prefix(stem)
    name = known or ModuleName(part, stem.removeprefix(prefix), form, prefix, stem.removeprefix(prefix))
    module = Module(name, stem, down, left.pop(stem + down), left.pop(stem + up))
    if (alpha := left.pop(stem + ALPHA, None)) is not None:
        module.has_alpha = True
        if alpha.elements.size == 1:
            module.alpha = float(alpha.floats().reshape(-1)[0])
        else:
            made.problems.append(f"{stem}{ALPHA} is not a single number")
    for suffix in MAGNITUDES:
        if (held := left.pop(stem + suffix, None)) is not None:
            module.magnitude, module.magnitude_suffix = held, suffix
    if known is None:
        made.others[stem] = module
    elif known.full in made.modules:
        made.problems.append(f"{known.full} occurs twice, under two names")
    else:
        made.modules[known.full] = module
    return module


def _rented_name(stem: str, metadata: Mapping[str, str]) -> ModuleName | None:
    """The module of a file that was trained on a rented server, of a family whose names only its record has."""
    family = FAMILIES.get(metadata.get("imprint_family", ""))
    if family is None or family.code is not None:
        return None
    naming = family.lora.naming
    module = stem.removeprefix(naming.prefix)
    if not stem.startswith(naming.prefix) or not naming.modules.fullmatch(module):
        return None
    return ModuleName("transformer", module, family.lora.form, naming.prefix, module)


def _note_left(left: Mapping[str, Tensor], made: ParsedLora) -> None:
    """What the tensors are that belong to no module."""
    of_methods = {key.rsplit(".", 1)[0] for key in left if method_of(key)}
    of_methods |= {key.rsplit(".", 2)[0] for key in left if method_of(key)}  # such as x.a1.weight
    for key in left:
        if (method := method_of(key)) is not None:
            made.methods += [method] if method not in made.methods else []
        elif (half := split_matrix(key)) is not None:
            made.problems.append(f"{key[:160]} lacks its other matrix, {half[2]}")
        elif key.rsplit(".", 1)[0] not in of_methods:
            kind = extra_of(key) or "unknown tensors"
            made.extras[kind] = made.extras.get(kind, 0) + 1
            if made.is_ours:
                made.problems.append(f"the tensor {key[:120]!r} is unknown")


def _find_origin(made: ParsedLora) -> None:
    """Set the family. Modules of another family's file are of that family, whatever their names could also mean."""
    every = [*made.modules.values(), *made.others.values()]
    named = [(module.name, module.down.shape[1] if len(module.down.shape) > 1 else 0) for module in every]
    stems = [module.stem for module in every] or [key.partition(".")[0] for key in made.tensors if method_of(key)]
    made.other_family = None if made.is_ours else origin.other_family(stems, named, made.metadata)
    if made.other_family is not None:
        made.others |= {module.stem: module for module in made.modules.values()}
        made.modules = {}
    if not made.modules:
        return
    ours = [one for one in named if one[0].full in made.modules]
    made.family = origin.family_of(ours, made.metadata)
    made.possible = origin.possible_families(ours) if made.family is None else []
    if made.family is not None:
        family = FAMILIES[made.family]
        modules = [replace(one, name=in_family(one.name, family)) for one in made.modules.values()]
        made.modules = {module.name.full: module for module in modules}


def _apply_adapter(made: ParsedLora) -> None:
    """Set the alpha of modules that have none from peft's configuration in the metadata."""
    text = made.metadata.get(ADAPTER)
    if text is None:
        return
    try:
        config = json.loads(text)
        for module in (*made.modules.values(), *made.others.values()):
            if module.alpha is None and (alpha := _alpha_of_config(config, module)) is not None:
                module.alpha = alpha
    except (ValueError, TypeError, AttributeError, RecursionError):
        made.problems.append(f"its {ADAPTER} cannot be parsed, so programs fail")


def _alpha_of_config(config: Mapping[str, Any], module: Module) -> float | None:
    """The alpha such that alpha / rank is peft's scale for this module; None if the configuration has none."""
    part, name = module.name.part, module.name.module
    alpha = _by_pattern(config.get(f"{part}.alpha_pattern") or {}, name, config.get(f"{part}.lora_alpha"))
    if alpha is None:
        return None
    value = float(alpha)
    return value * module.rank**0.5 if config.get(f"{part}.use_rslora") else value


def _by_pattern(pattern: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    """peft matches the ends of names by regular expressions; here they are plain text, because files are untrusted."""
    plain = {key.removeprefix("^").replace("\\.", "."): value for key, value in pattern.items()}
    return next((value for key, value in plain.items() if name == key or name.endswith("." + key)), otherwise)
