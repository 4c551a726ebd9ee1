"""What the records' rules about LoRA files share: the suffixes of the usual forms, and parts of ComfyUI's key maps."""

from collections.abc import Sequence

from training.families.record import WrittenModule
from training.lora.suffixes import PAIRS

NO_DORA = {"adapter.dora": "no program reads a DoRA of this family"}
KOHYA, PEFT = PAIRS[0][0], PAIRS[1][0]  # of the down matrix


def alike(modules: Sequence[WrittenModule]) -> tuple[str | None, str | None]:
    """The prefix and the suffix that all modules of a file have; None if they differ."""
    prefixes, suffixes = {module.name.prefix for module in modules}, {module.suffix for module in modules}
    return prefixes.pop() if len(prefixes) == 1 else None, suffixes.pop() if len(suffixes) == 1 else None


def underscored(pattern: str) -> str:
    """The pattern of names in which kohya's trainer has written all dots as underscores."""
    return pattern.replace(r"\.", "_")


def of_own_code(own: str, diffusers: str) -> str:
    """ComfyUI's key map for a model that it loads under the names of the makers' own code, beside diffusers' names."""
    return (
        rf"diffusion_model\.({own})|lora_unet_({underscored(own)})|"
        rf"(transformer\.)?({diffusers})|lycoris_({underscored(diffusers)})"
    )
