"""Hostile single-file base models: what is done to a sound one, and what is said of it."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.weights import LFS_POINTER, Runs, doubled, headed, relabel, two, zipped
from tests.unit.test_training_lora_file import made
from training.families.registry import FAMILIES
from training.lora.safetensor import Tensor, pack, tensor, unpack

UNET = "model.diffusion_model."
FIRST = UNET + "input_blocks.0.0.weight"
NOT_SOUND = "the base model {} is not sound: "
_READ = ", ".join(name for name, family in FAMILIES.items() if family.single_file is not None)
NONE = "the base model {} has no names of a checkpoint of " + _READ
STRANGE = "the base model {} has 1 unknown weights, such as "


def bytes_as(data: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(data(file.read_bytes())) and None  # type: ignore[func-returns-value]


def tensors_as(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        tensors, metadata = unpack(file.read_bytes())
        change(tensors)
        file.write_bytes(pack(tensors, metadata))

    return spoil


def put(name: str, values: Any) -> Callable[[Path], None]:
    return tensors_as(lambda held: held.update({name: tensor(np.asarray(values))}))


def spoiled(value: float) -> Callable[[Path], None]:
    def change(held: dict[str, Tensor]) -> None:
        numbers = held[FIRST].floats().copy()
        numbers.flat[3] = value
        held[FIRST] = tensor(numbers)

    return tensors_as(change)


def beside(name: str, data: bytes) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        (file.with_suffix(".parts") / name).write_bytes(data)

    return spoil


def all_as(kind: str) -> Callable[[Path], None]:
    return bytes_as(lambda data: relabel(data, FIRST, kind))


CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pickle as safetensors": (bytes_as(lambda _: pickle.dumps(Runs())), NOT_SOUND + "it is a pickle"),
    "a torch archive as safetensors": (
        bytes_as(lambda _: zipped("archive/data.pkl", pickle.dumps(Runs()))), NOT_SOUND + "it is a pickle",
    ),
    "a Git LFS pointer": (bytes_as(lambda _: LFS_POINTER), NOT_SOUND + "it is a Git LFS pointer"),
    "a web page": (bytes_as(lambda _: b"<!doctype html><title>Sign in</title>"), NOT_SOUND + "it is a web page"),
    "nothing": (bytes_as(lambda _: b""), NOT_SOUND + "it is empty"),
    "half a file": (bytes_as(lambda data: data[: len(data) // 2]), NOT_SOUND + "tensor "),
    "a zip behind it": (bytes_as(lambda data: data + zipped("x", b"x")), NOT_SOUND + "its header describes "),
    "a header of 100 MB": (
        bytes_as(lambda _: headed(b"{" + b" " * 100_000_000 + b"}")), NOT_SOUND + "its header has 100000002",
    ),
    "tensors that overlap": (bytes_as(lambda _: two([0, 10], [5, 15], 15)), NOT_SOUND + "its tensors overlap"),
    "the same name twice": (bytes_as(doubled), NOT_SOUND + "its header has a name twice"),
    "no tensors": (bytes_as(lambda _: headed(b"{}")), NONE + " (its first is 'none at all')"),
    "a LoRA": (bytes_as(lambda _: made()), "the base model {} is a LoRA: a LoRA is trained"),
    "names that climb": (bytes_as(lambda _: pack({"../../etc/x": tensor(np.ones(1))}, {})), NONE),
    "a Stable Diffusion 2": (put("cond_stage_model.model.ln_final.weight", 1.0), "the base model {} is a Stable Diff"),
    "a weight too many": (put(UNET + "input_blocks.99.0.weight", 1.0), STRANGE + f"'{UNET}input_blocks.99.0.weight'"),
    "a name that climbs": (put("../../etc/cron.d/x", 1.0), STRANGE + "'../../etc/cron.d/x'"),
    "a name of a megabyte": (put("x" * 10**6, 1.0), STRANGE + "'" + "x" * 118),
    "a weight too few": (
        tensors_as(lambda held: held.pop(UNET + "out.2.bias")), "the unet of the base model {} lacks 1 weights, such",
    ),
    "a weight of nan": (spoiled(np.nan), "the unet of the base model {} has weights that are not finite"),
    "a weight without end": (spoiled(np.inf), "the unet of the base model {} has weights that are not finite"),
    "a weight of another shape": (
        put(FIRST, np.ones((1, 1))), "the unet of the base model {} has conv_in.weight with shape (1, 1); models of",
    ),
    "a weight beyond all sense": (
        put(UNET + "time_embed.0.weight", np.ones((4096, 512), np.float32)),
        "the unet of the base model {} has time_embedding.linear_1.weight with shape (4096, 512); models",
    ),
    "whole numbers as weights": (all_as("I32"), "the unet of the base model {} has conv_in.weight as I32"),
    "a configuration beside it that is none": (beside("unet/config.json", b"[1]"), "the base model in {.parts} has no"),
    "a configuration without a bottom": (beside("unet/config.json", b"[" * 10**5), "the base model in {.parts} has no"),
    "a configuration of text": (
        beside("unet/config.json", b'{"layers_per_block": "x"}'), "the unet of the base model {} cannot be loaded",
    ),
}  # fmt: skip
