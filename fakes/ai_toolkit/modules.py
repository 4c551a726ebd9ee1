"""The linear layers of the standard models, as ai-toolkit's LoRA files name them, with inputs and outputs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from training.families.record import Family
from training.families.registry import FAMILIES

Widths = tuple[int, int]  # inputs and outputs


def modules_of(family: str, network: Mapping[str, Any]) -> dict[str, Widths]:
    """The layers that a job's `network` section asks for."""
    kwargs = network.get("network_kwargs") or {}
    wanted, skipped = kwargs.get("only_if_contains"), kwargs.get("ignore_if_contains") or ()
    return {
        name: widths
        for name, widths in _all(family)
        if (wanted is None or any(part in name for part in wanted)) and not any(part in name for part in skipped)
    }


def _all(name: str) -> Iterator[tuple[str, Widths]]:
    family = FAMILIES[name]
    if "unet" in family.classes:
        yield from _unet(family.configs["unet"])
    elif name == "z-image":
        sides = {f"attention.to_{part}": (3840, 3840) for part in ("q", "k", "v", "out.0")}
        sides |= {"feed_forward.w1": (3840, 10240), "feed_forward.w2": (10240, 3840), "feed_forward.w3": (3840, 10240)}
        yield from _blocks("layers", 30, sides | {"adaLN_modulation.0": (256, 15360)})
    elif name.startswith("flux2-klein"):
        config = family.configs["transformer"]
        width = 128 * config["num_attention_heads"]
        double: dict[str, Widths] = {}
        for stream in ("img", "txt"):
            double |= {f"{stream}_attn.qkv": (width, 3 * width), f"{stream}_attn.proj": (width, width)}
            double |= {f"{stream}_mlp.0": (width, 6 * width), f"{stream}_mlp.2": (3 * width, width)}
        yield from _blocks("double_blocks", config["num_layers"], double)
        single = {"linear1": (width, 9 * width), "linear2": (4 * width, width)}
        yield from _blocks("single_blocks", config["num_single_layers"], single)
    elif name == "flux1":
        parts = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        sides = {f"attn.{part}": (3072, 3072) for part in parts}
        for stream in ("ff", "ff_context"):
            sides |= {f"{stream}.net.0.proj": (3072, 12288), f"{stream}.net.2": (12288, 3072)}
        sides |= {"norm1.linear": (3072, 18432), "norm1_context.linear": (3072, 18432)}
        yield from _blocks("transformer_blocks", 19, sides)
        single = {f"attn.to_{part}": (3072, 3072) for part in "qkv"}
        single |= {"proj_mlp": (3072, 12288), "proj_out": (15360, 3072), "norm.linear": (3072, 9216)}
        yield from _blocks("single_transformer_blocks", 38, single)
    elif name == "qwen-image":
        parts = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        sides = {f"attn.{part}": (3072, 3072) for part in parts}
        for stream in ("img", "txt"):
            sides |= {f"{stream}_mlp.net.0.proj": (3072, 12288), f"{stream}_mlp.net.2": (12288, 3072)}
            sides |= {f"{stream}_mod.1": (3072, 18432)}
        yield from _blocks("transformer_blocks", 60, sides)
    else:
        yield from _example(family)


def _blocks(prefix: str, count: int, sides: Mapping[str, Widths]) -> Iterator[tuple[str, Widths]]:
    for number in range(count):
        for layer, widths in sides.items():
            yield f"{prefix}.{number}.{layer}", widths


def _example(family: Family) -> Iterator[tuple[str, Widths]]:
    """For the families that are trained only here: as many layers as the model has, but narrow ones."""
    toolkit = family.toolkit
    wanted = toolkit.modules if toolkit is not None and toolkit.modules else len(family.lora.example)
    layers = list(family.lora.example.items())
    for number in range(wanted):
        name, width = layers[number % len(layers)]
        yield name.replace(".0.", f".{number // len(layers)}.", 1), (width, width)


def _unet(config: Mapping[str, Any]) -> Iterator[tuple[str, Widths]]:
    """The transformers of a UNet, down, middle and up."""
    widths: Sequence[int] = config["block_out_channels"]
    depths: Sequence[int] = config.get("transformer_layers_per_block", [1] * len(widths))
    layers = int(config["layers_per_block"])
    places = [
        (f"down_blocks.{number}.attentions.{layer}", width, depth)
        for number, (width, depth, kind) in enumerate(zip(widths, depths, config["down_block_types"], strict=True))
        for layer in range(layers)
        if kind.startswith("CrossAttn")
    ]
    places.append(("mid_block.attentions.0", widths[-1], depths[-1]))
    places += [
        (f"up_blocks.{number}.attentions.{layer}", width, depth)
        for number, (width, depth, kind) in enumerate(
            zip(reversed(widths), reversed(depths), config["up_block_types"], strict=True)
        )
        for layer in range(layers + 1)
        if kind.startswith("CrossAttn")
    ]
    context = int(config["cross_attention_dim"])
    for place, width, depth in places:
        yield f"{place}.proj_in", (width, width)
        for number in range(depth):
            block = f"{place}.transformer_blocks.{number}"
            for attention, inputs in (("attn1", width), ("attn2", context)):
                for part, given in (("to_q", width), ("to_k", inputs), ("to_v", inputs), ("to_out.0", width)):
                    yield f"{block}.{attention}.{part}", (given, width)
            yield f"{block}.ff.net.0.proj", (width, 8 * width)
            yield f"{block}.ff.net.2", (4 * width, width)
        yield f"{place}.proj_out", (width, width)
