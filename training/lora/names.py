"""The names of tensors in LoRA files: the formats that trainers write, and the module that each name means.

A module's canonical name is diffusers', with its part in front of it: `unet.mid_block.attentions.0.proj_in`,
`transformer.layers.0.attention.to_q`, `text_encoder.text_model.encoder.layers.0.mlp.fc1`.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from training.families.record import Family
from training.families.registry import FAMILIES

# Words of module names of UNets and text encoders, to restore the dots of names that were written with underscores
# only. The records of the other families have theirs.
_WORDS = """
down_blocks up_blocks mid_block input_blocks output_blocks middle_block attentions resnets downsamplers upsamplers
transformer_blocks attn1 attn2 to_q to_k to_v to_out ff net proj_in proj_out proj conv1 conv2 conv_shortcut
time_emb_proj conv_in conv_out conv time_embedding add_embedding linear_1 linear_2 in_layers out_layers emb_layers
skip_connection op out time_embed label_emb text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1
fc2 text_projection
""".split()  # noqa: SIM905 - fifty quoted words read worse
# What a name begins with: the part of the model, and the form of the file.
_UNDERSCORED = {
    "lora_unet_": ("unet", "kohya"),
    "lora_te1_": ("text_encoder", "kohya"),
    "lora_te2_": ("text_encoder_2", "kohya"),
    "lora_te_": ("text_encoder", "kohya"),
    "lycoris_": ("unet", "lycoris"),
}
_DOTTED = {
    "model.diffusion_model.": ("unet", "comfyui"),
    "diffusion_model.": ("unet", "comfyui"),
    "base_model.model.": ("unet", "bare peft"),
    "unet.": ("unet", "peft"),
    "transformer.": ("transformer", "peft"),
    "text_encoder_2.": ("text_encoder_2", "peft"),
    "text_encoder.": ("text_encoder", "peft"),
}
_LDM = re.compile(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)|middle_block\.(\d)\.(.+)")
_LDM_SINGLE = {
    "input_blocks.0.0": "conv_in", "out.2": "conv_out", "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2", "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}  # fmt: skip
_RESNET = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
           "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}  # fmt: skip


@dataclass(frozen=True)
class _Transformers:
    """The names of modules of all families whose denoiser is a transformer."""

    word: re.Pattern[str]
    modules: tuple[re.Pattern[str], ...]
    original: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]


@lru_cache(maxsize=8)
def _transformers(_names: tuple[str, ...]) -> _Transformers:
    """From the records of the families that are registered, by whose names it is cached."""
    names = [family.lora for family in FAMILIES.values()]
    words = {*_WORDS, *(word for one in names for word in one.words)}
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return _Transformers(
        re.compile("(" + "|".join([*map(re.escape, longest_first), r"\d+"]) + ")(?:_|$)"),
        tuple(one.modules for one in names if one.modules is not None),
        tuple((re.compile(pattern), module) for one in names for pattern, module in one.original),
    )


def _known() -> _Transformers:
    return _transformers(tuple(FAMILIES))


_MAX_KEPT = 200  # characters of a name: longer ones are of no real file


@dataclass(frozen=True)
class ModuleName:
    """The module of a tensor, and how the file names it."""

    part: str
    module: str  # diffusers' name within the part
    form: str  # kohya, comfyui, peft, lycoris, bare peft, bare
    prefix: str = ""  # what the name in the file begins with
    written: str = ""  # the name in the file after the prefix, with dots

    @property
    def full(self) -> str:
        return f"{self.part}.{self.module}"


def parse_module_name(stem: str) -> ModuleName | None:
    """The module of a tensor name without its suffix; None for a module of no family that Imprint knows."""
    parse = _parse if len(stem) <= _MAX_KEPT else _parse.__wrapped__
    return parse(stem, tuple(FAMILIES))


@lru_cache(maxsize=8192)
def _parse(stem: str, _names: tuple[str, ...]) -> ModuleName | None:
    """As above, kept for the families that are registered: the files of a family have the same names, and an upload
    would spend a third of its time on them.
    """
    for prefix, (part, form) in _UNDERSCORED.items():
        if stem.startswith(prefix):
            dotted = _dotted(stem.removeprefix(prefix))
            return None if dotted is None else _named(part, dotted, form, prefix)
    prefix, part, form = split_prefix(stem)
    return _named(part, stem.removeprefix(prefix), form, prefix)


def split_prefix(stem: str) -> tuple[str, str, str]:
    """What a name begins with, the part of the model, and the form of the file, whatever model it is of."""
    for prefix, (part, form) in (_UNDERSCORED | _DOTTED).items():
        if stem.startswith(prefix):
            return prefix, part, form
    return "", "unet", "bare"


def _named(part: str, written: str, form: str, prefix: str) -> ModuleName | None:
    module = written.replace(".processor.", ".").replace("adaLN.modulation", "adaLN_modulation")
    if part in ("unet", "transformer"):
        if (modules := of_original(module)) is not None:
            # A fused module has no name in diffusers, and keeps its own.
            return ModuleName("transformer", modules[0] if len(modules) == 1 else module, form, prefix, module)
        if any(known.fullmatch(module) for known in _known().modules):
            return ModuleName("transformer", module, form, prefix, module)
    if part.startswith("text_encoder"):
        module = module if module.startswith("text_model.") or module == "text_projection" else f"text_model.{module}"
        is_known = re.fullmatch(
            r"text_model\.encoder\.layers\.\d+\.(self_attn\.\w+|mlp\.fc[12])|text_projection", module
        )
        return ModuleName(part, module, form, prefix, written) if is_known else None
    if part != "unet":
        return None
    if found := _LDM.fullmatch(module):
        return ModuleName(part, _LDM_SINGLE.get(module) or of_ldm(found), form, prefix, written)
    if (single := _LDM_SINGLE.get(module)) is not None:
        return ModuleName(part, single, form, prefix, written)
    module = re.sub(r"\.to_out$", ".to_out.0", module)  # old attention processors have no dropout beside it
    known = r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(attentions|resnets|downsamplers|upsamplers)\.\d+\.[\w.]+"
    others = r"conv_in|conv_out|(time|add)_embedding\.linear_[12]"
    return ModuleName(part, module, form, prefix, written) if re.fullmatch(f"{known}|{others}", module) else None


def of_original(module: str, family: Family | None = None) -> tuple[str, ...] | None:
    """diffusers' names of a module of a family's own code: several for a fused one; None for any other module.

    Without `family`, the first family with such a name tells. Some give one name to different layers: `in_family`.
    """
    known = _known().original if family is None else family.lora.original
    for pattern, modules in known:
        if (found := re.fullmatch(pattern, module)) is not None:
            return tuple(found.expand(one) for one in modules)
    return None


def in_family(name: ModuleName, family: Family) -> ModuleName:
    """The module that a name in a file means in a family."""
    if name.part != "transformer" or (modules := of_original(name.written, family)) is None:
        return name
    return replace(name, module=modules[0] if len(modules) == 1 else name.written)


def _dotted(text: str) -> str | None:
    """Restore the dots of `down_blocks_0_attentions_1_proj_in`; None if a word is unknown."""
    words, place, word = [], 0, _known().word
    while place < len(text):
        found = word.match(text, place)
        if found is None:
            return None
        words.append(found[1])
        place = found.end()
    return ".".join(words)


def of_ldm(found: re.Match[str]) -> str:
    """diffusers' name of a module in the original Stable Diffusion naming, with three layers per block."""
    if found[5] is not None:
        place, rest = int(found[5]), found[6]
        return (
            f"mid_block.attentions.0.{rest}"
            if place == 1
            else f"mid_block.resnets.{place // 2}.{_RESNET.get(rest, rest)}"
        )
    number, place, rest = int(found[2]), int(found[3]), found[4]
    block, layer = divmod(number - (found[1] == "input"), 3)
    where = "down_blocks" if found[1] == "input" else "up_blocks"
    if rest == "op":
        return f"down_blocks.{block}.downsamplers.0.conv"
    if rest == "conv":
        return f"up_blocks.{block}.upsamplers.0.conv"
    if place == 1:
        return f"{where}.{block}.attentions.{layer}.{rest}"
    return f"{where}.{block}.resnets.{layer}.{_RESNET.get(rest, rest)}"


_KINDS = (
    ("self-attention", re.compile(r".*\.attn1\..*")),
    ("cross-attention", re.compile(r".*\.attn2\..*")),
    ("attention", re.compile(r".*\.(attention|self_attn)\..*")),
    ("feed-forward", re.compile(r".*\.(ff|feed_forward|mlp)\..*")),
    ("projection", re.compile(r".*\.proj_(in|out)")),
    ("modulation", re.compile(r".*adaLN_modulation.*")),
    ("convolution", re.compile(r".*\b(resnets|downsamplers|upsamplers|conv_in|conv_out)\b.*")),
)


def kind_of(name: ModuleName) -> str:
    """The kind of a module, in a word or two."""
    kind = next((kind for kind, pattern in _KINDS if pattern.fullmatch(name.full)), "other")
    return f"text encoder, {kind}" if name.part.startswith("text_encoder") else kind
