"""Which names of LoRA files for Stable Diffusion 1.x and XL diffusers and ComfyUI read."""

import re
from collections.abc import Callable, Sequence

from training.families.record import Reader, WrittenModule
from training.families.records.lora_files import KOHYA, PEFT, underscored

_OLD_PROCESSOR = "_lora.down.weight"
_KOHYA_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_ORIGINAL = re.compile(r"(input|output)_blocks\.|middle_block\.|time_embed\.|label_emb\.|out\.2$")

# Blocks with transformers, by diffusers' names and by the original ones: of any model, and of the published ones.
_BLOCKS = (r"(down_blocks\.\d|mid_block|up_blocks\.\d)", r"(input_blocks\.\d+|middle_block|output_blocks\.\d+)")
_PUBLISHED_BLOCKS = {
    False: (r"(down_blocks\.[012]|mid_block|up_blocks\.[123])",
            r"(input_blocks\.[124578]|middle_block|output_blocks\.([3-9]|1[01]))"),
    True: (r"(down_blocks\.[12]|mid_block|up_blocks\.[01])",
           r"(input_blocks\.[4578]|middle_block|output_blocks\.[0-5])"),
}  # fmt: skip
_IN_TRANSFORMER = r"(norm|proj_in|proj_out|transformer_blocks\.\d+\.(norm[123]|ff\.net\.(0\.proj|2)|{attention}))"
_ATTENTION = r"attn[12]\.to_(q|k|v|out\.0)"
_OLD_ATTENTION = r"attn[12]\.processor\.to_(q|k|v|out)"
_OTHER_MODULES = (
    r"(down_blocks\.\d|mid_block|up_blocks\.\d)\.(resnets\.\d\.(norm[12]|conv[12]|time_emb_proj|conv_shortcut)|"
    r"(downsamplers|upsamplers)\.0\.conv)|conv_in|conv_out|conv_norm_out|(time|add)_embedding\.linear_[12]"
)
_OTHER_ORIGINAL = (
    r"((input|output)_blocks\.\d+\.[012]|middle_block\.[02])\.(in_layers\.[02]|emb_layers\.1|out_layers\.[03]|"
    r"skip_connection|op|conv)|input_blocks\.0\.0|out\.[02]|time_embed\.[02]|label_emb\.0\.[02]"
)
_CLIP = r"text_model\.encoder\.layers\.\d+\.(mlp\.fc[12]|self_attn\.(q|k|v|out)_proj)"


def comfyui(*, is_xl: bool, is_published: bool = False) -> re.Pattern[str]:
    """ComfyUI's key map, recorded from its `model_lora_keys_unet`, `model_lora_keys_clip` and `unet_to_diffusers`.

    It makes the map from the blocks of the model that it has loaded. is_published: of the published model; or else of
    any, because models with fewer blocks have their transformers in others.
    """
    blocks, original = _PUBLISHED_BLOCKS[is_xl] if is_published else _BLOCKS
    inside = _IN_TRANSFORMER.replace("{attention}", _ATTENTION)
    named = rf"{blocks}\.attentions\.\d\.{inside}|{_OTHER_MODULES}"
    old = rf"{blocks}\.attentions\.\d\.{_IN_TRANSFORMER.replace('{attention}', _OLD_ATTENTION)}|{_OTHER_MODULES}"
    own = rf"{original}\.1\.{inside}|{_OTHER_ORIGINAL}"
    encoders = r"lora_te[12]?_" if is_xl else r"lora_te1?_"
    dotted = r"text_encoder(_2)?\." if is_xl else r"text_encoder\."
    return re.compile(
        rf"lora_unet_({underscored(named)}|{underscored(own)})|lycoris_({underscored(named)})|"
        rf"diffusion_model\.({own})|(unet\.)?({old})|{encoders}({underscored(_CLIP)})|{dotted}({_CLIP})"
    )


def diffusers(*, is_xl: bool) -> Reader:
    """Which modules diffusers reads. It refuses some files whole."""

    def reads(modules: Sequence[WrittenModule]) -> Callable[[WrittenModule], bool]:
        if all(module.name.prefix in _KOHYA_PREFIXES for module in modules):
            # Its converter knows kohya's suffixes, and the original names only of SDXL.
            fits = all(module.suffix == KOHYA for module in modules) and (
                is_xl or not any(_ORIGINAL.match(module.name.written) for module in modules)
            )
            return lambda _: fits
        readable = {PEFT, ".lora.down.weight", _OLD_PROCESSOR, ".lora_linear_layer.down.weight"}
        fits = (
            {module.suffix for module in modules} <= readable
            and all(module.name.form == "peft" for module in modules)
            and not any(module.has_alpha for module in modules)
        )
        # The suffix of its old attention processors is read on attention alone.
        return lambda module: fits and (module.suffix != _OLD_PROCESSOR or ".to_" in module.name.module)

    return reads
