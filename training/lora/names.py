"""The names of tensors in LoRA files: the formats that trainers write, and the module that each name means.

A module's canonical name is diffusers', with its part in front of it: `unet.mid_block.attentions.0.proj_in`,
`transformer.layers.0.attention.to_q`, `text_encoder.text_model.encoder.layers.0.mlp.fc1`.
"""

import re
from dataclasses import dataclass

# Suffixes of the two matrices in all formats, and of the other tensors of a module.
PAIRS = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)
ALPHA = ".alpha"
MAGNITUDES = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
# Other methods than LoRA. Their tensors are recognised, to tell them from unknown ones.
OTHER_METHODS = {
    "LoHa": re.compile(r".*\.hada_[wt]\w+"),
    "LoKr": re.compile(r".*\.lokr_[wt]\w+"),
    "OFT": re.compile(r".*\.(oft_\w+|oft_blocks|lora_oft\w*)"),
    "a Tucker-decomposed LoRA": re.compile(r".*\.lora_mid\.weight"),
    "IA3": re.compile(r".*\.on_input"),
    "full differences": re.compile(r".*\.(diff|diff_b)"),
}

# Words of module names, to restore the dots of names that were written with underscores only.
_WORDS = """
down_blocks up_blocks mid_block input_blocks output_blocks middle_block attentions resnets downsamplers upsamplers
transformer_blocks attn1 attn2 to_q to_k to_v to_out ff net proj_in proj_out proj conv1 conv2 conv_shortcut
time_emb_proj conv_in conv_out conv time_embedding add_embedding linear_1 linear_2 in_layers out_layers emb_layers
skip_connection op out time_embed label_emb text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1
fc2 text_projection attention qkv feed_forward w1 w2 w3 adaLN_modulation noise_refiner context_refiner cap_embedder
t_embedder x_embedder final_layer linear
""".split()  # noqa: SIM905 - sixty quoted words read worse
_WORD = re.compile("(" + "|".join([*sorted(_WORDS, key=len, reverse=True), r"\d+"]) + ")(?:_|$)")
_STARTS = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "lycoris_": "unet",
}
_DOTTED = {
    "model.diffusion_model.": "unet",
    "diffusion_model.": "unet",
    "base_model.model.": "unet",
    "unet.": "unet",
    "transformer.": "transformer",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
}
_FORMS = {
    **dict.fromkeys(("lora_unet_", "lora_te1_", "lora_te2_", "lora_te_"), "kohya"),
    **dict.fromkeys(("model.diffusion_model.", "diffusion_model."), "comfyui"),
    "lycoris_": "lycoris",
    "base_model.model.": "bare peft",
}
# One pattern per family whose denoiser is a transformer: its modules by diffusers' names.
_TRANSFORMERS = (
    re.compile(r"(layers|noise_refiner|context_refiner)\.\d+\.(attention|feed_forward|adaLN_modulation)\b.*"),
)
_LDM = re.compile(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)|middle_block\.(\d)\.(.+)")
_RESNET = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
           "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}  # fmt: skip


@dataclass(frozen=True)
class ModuleName:
    """The module of a tensor, and the format of its name."""

    part: str
    module: str  # diffusers' name within the part
    form: str  # kohya, comfyui, peft, lycoris, bare peft, bare

    @property
    def full(self) -> str:
        return f"{self.part}.{self.module}"


def parse_module_name(stem: str) -> ModuleName | None:
    """The module of a tensor name without its suffix; None if no format has such a name."""
    for start, part in _STARTS.items():
        if stem.startswith(start):
            dotted = _dotted(stem.removeprefix(start))
            return None if dotted is None else _named(part, dotted, _FORMS[start])
    for start, part in _DOTTED.items():
        if stem.startswith(start):
            return _named(part, stem.removeprefix(start), _FORMS.get(start, "peft"))
    return _named("unet", stem, "bare")


def _named(part: str, module: str, form: str) -> ModuleName | None:
    module = module.replace(".processor.", ".").replace("adaLN.modulation", "adaLN_modulation")
    if part in ("unet", "transformer") and any(known.fullmatch(module) for known in _TRANSFORMERS):
        return ModuleName("transformer", module, form)
    if part.startswith("text_encoder"):
        module = module if module.startswith("text_model.") or module == "text_projection" else f"text_model.{module}"
        is_known = re.fullmatch(
            r"text_model\.encoder\.layers\.\d+\.(self_attn\.\w+|mlp\.fc[12])|text_projection", module
        )
        return ModuleName(part, module, form) if is_known else None
    if part != "unet":
        return None
    if found := _LDM.fullmatch(module):
        return ModuleName(part, of_ldm(found), form)
    module = re.sub(r"\.to_out$", ".to_out.0", module)  # old attention processors have no dropout beside it
    known = r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(attentions|resnets|downsamplers|upsamplers)\.\d+\.[\w.]+"
    others = r"conv_in|conv_out|(time|add)_embedding\.linear_[12]"
    return ModuleName(part, module, form) if re.fullmatch(f"{known}|{others}", module) else None


def _dotted(text: str) -> str | None:
    """Restore the dots of `down_blocks_0_attentions_1_proj_in`; None if a word is unknown."""
    words, place = [], 0
    while place < len(text):
        found = _WORD.match(text, place)
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
