"""The linear layers of the standard models, as ai-toolkit's LoRA files name them, with inputs and outputs."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.families.record import Family
from training.families.registry import FAMILIES

Widths = tuple[int, int]  # inputs and outputs
# Of the transformers, from diffusers' modules: written by tools/model_layers.py.
_LAYERS = json.loads(Path(__file__).with_name("layers.json").read_text(encoding="utf-8"))


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
    elif name in _LAYERS:
        numbers: Counter[str] = Counter()
        for block, count, layers in _LAYERS[name]:
            for number in range(numbers[block], numbers[block] + count):
                for layer, (inputs, outputs) in layers.items():
                    yield f"{block}.{number}.{layer}", (inputs, outputs)
            numbers[block] += count
    else:
        yield from _example(family)


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
