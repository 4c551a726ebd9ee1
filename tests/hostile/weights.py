"""Hostile weights: LoRA files as a remote trainer may send them, and base models as strangers may share them."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.unit.test_training_lora_file import STEM, changed, made, put
from training.lora.safetensor import data_offset, pack, tensor, unpack

UNSOUND = "the LoRA file is damaged: "
PICKLE = UNSOUND + "it is a pickle, and pickles are never loaded"
STRANGE = "the LoRA file has a tensor {!r}, which no sd15 LoRA has"
DOWN, UP = f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight"


class Runs:
    """Unpickled, it would leave a file: nobody may ever unpickle it."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/imprint-was-here"),)  # noqa: S108 - looked for, and never there


def zipped(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, data)
    return out.getvalue()


def tarred(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def headed(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def entry(**lies: Any) -> bytes:
    """A file of one tensor whose header lies."""
    content = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **lies}
    return headed(json.dumps({"a": content}).encode(), bytes(16))


def two(first: list[int], second: list[int], size: int) -> bytes:
    entries = {"a": first, "b": second}
    table = {
        name: {"dtype": "U8", "shape": [span[1] - span[0]], "data_offsets": span} for name, span in entries.items()
    }
    return headed(json.dumps(table).encode(), bytes(size))


def relabelled(kind: str) -> bytes:
    """A sound file whose first matrix says that it is of another kind of the same width."""
    return relabel(made(), DOWN, kind)


def relabel(data: bytes, name: str, kind: str) -> bytes:
    start = data_offset(data)
    header = json.loads(data[8:start])
    header[name]["dtype"] = kind
    return headed(json.dumps(header).encode(), data[start:])


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

A_FIT = UNSOUND + "tensor 'a' does not fit its shape, or exceeds the file"
A_BAD = UNSOUND + "the entry of tensor 'a' is malformed"

LORAS: dict[str, tuple[Callable[[], bytes], str]] = {
    # other formats, most of them programs
    "a pickle that runs": (lambda: pickle.dumps(Runs()), PICKLE),
    "a pickle of protocol 2": (lambda: pickle.dumps(Runs(), 2), PICKLE),
    "a pickle of protocol 0": (lambda: pickle.dumps(Runs(), 0), UNSOUND + "its header has "),
    "a torch archive": (lambda: zipped("archive/data.pkl", pickle.dumps(Runs())), PICKLE),
    "a zip that climbs": (lambda: zipped("../../etc/x", b"x"), PICKLE),
    "a tar that climbs": (lambda: tarred("../../etc/x", b"x"), UNSOUND + "its header has "),
    "gguf": (lambda: b"GGUF\x03\0\0\0" + bytes(100), UNSOUND + "its header has "),
    "an error page": (lambda: b"<html>502 Bad Gateway</html>", UNSOUND + "it is a web page"),
    "a file with a zip behind it": (
        lambda: made() + zipped("data.pkl", pickle.dumps(Runs())),
        UNSOUND + "its header describes",
    ),
    "a file in a zip": (lambda: zipped("lora.safetensors", made()), PICKLE),
    # headers that lie
    "a header of 100 MB": (
        lambda: headed(b"{" + b" " * 100_000_000 + b"}"),
        UNSOUND + "its header has 100000002 bytes",
    ),
    "a header of 2^64": (lambda: b"\xff" * 8 + b"{}", UNSOUND + "its header has 18446744073709551615 bytes"),
    "a header longer than the file": (lambda: struct.pack("<Q", 1000) + b"{}", UNSOUND + "it ends within its header"),
    "a header of lists in lists": (lambda: headed(b"[" * 200_000), UNSOUND + "its header is not JSON"),
    "a header of tables in tables": (lambda: headed(b'{"a":' * 200_000), UNSOUND + "its header is not JSON"),
    "a header with a mark": (lambda: headed(b"\xef\xbb\xbf{}"), UNSOUND + "its header is not JSON"),
    "two headers": (lambda: headed(b"{}{}"), UNSOUND + "its header is not JSON"),
    "a shape in shapes": (lambda: entry(shape=[[2], 2]), A_BAD),
    "a shape of text": (lambda: entry(shape="22"), A_BAD),
    "a shape of fractions": (lambda: entry(shape=[2.0, 2.0]), A_BAD),
    "a shape beyond all memory": (lambda: entry(shape=[2**62, 2**62]), A_FIT),
    "a shape of nothing, wide": (lambda: entry(shape=[0, 2**62]), A_FIT),
    "offsets backwards": (lambda: entry(data_offsets=[16, 0]), A_FIT),
    "offsets below zero": (lambda: entry(data_offsets=[-16, 0]), A_BAD),
    "offsets of text": (lambda: entry(data_offsets="0,16"), A_BAD),
    "three offsets": (lambda: entry(data_offsets=[0, 8, 16]), A_BAD),
    "offsets beyond the file": (lambda: entry(data_offsets=[2**40, 2**40 + 16]), A_FIT),
    "a wider kind than its data": (lambda: entry(dtype="F64"), A_FIT),
    "a kind that runs": (
        lambda: entry(dtype="__import__('os')"), UNSOUND + "tensor 'a' has type \"__import__('os')\", which",
    ),
    "tensors that overlap": (lambda: two([0, 10], [5, 15], 15), UNSOUND + "its tensors overlap"),
    "tensors that are one": (lambda: two([0, 10], [0, 10], 10), UNSOUND + "its tensors overlap"),
    "tensors with a gap": (lambda: two([0, 5], [10, 15], 15), UNSOUND + "its tensors overlap or leave gaps"),
    # tensors that no LoRA of ours has
    "a name that climbs": (lambda: changed(put("../../../etc/cron.d/x", 1.0)), STRANGE.format("../../../etc/cron.d/x")),
    "a name from the root": (lambda: changed(put("/etc/passwd", 1.0)), STRANGE.format("/etc/passwd")),
    "a name that climbs and ends well": (
        lambda: changed(put("lora_unet_../../x.lora_down.weight", 1.0)),
        STRANGE.format("lora_unet_../../x.lora_down.weight"),
    ),
    "a name with a null": (lambda: changed(put(f"{STEM}\0.alpha", 1.0)), STRANGE.format(f"{STEM}\0.alpha")[:60]),
    "a name of a megabyte": (lambda: changed(put("x" * 10**6, 1.0)), STRANGE.format("x" * 120)),
    "whole numbers as weights": (lambda: relabelled("I32"), f"the LoRA file's {DOWN} has type I32"),
    "eight bits as weights": (lambda: changed(put(DOWN, np.ones((4, 32)))).replace(b'"F32"', b'"F8 "'), UNSOUND),
    "one weight without end": (
        lambda: changed(put(UP, np.where(np.eye(48, 4) > 0, np.inf, 1.0))),
        f"the LoRA file's {UP} has",
    ),
    "an alpha of nan": (lambda: changed(put(f"{STEM}.alpha", np.nan)), f"the LoRA file's {STEM}.alpha has values"),
    "an alpha of zero": (lambda: changed(put(f"{STEM}.alpha", 0.0)), f"the LoRA file's {STEM}.alpha is 0.0"),
    "a rank of zero": (lambda: changed(put(DOWN, np.ones((0, 32)))), f"the LoRA file's {STEM} has rank 0 and 4"),
    # metadata that lies
    "a rank that is a program": (
        lambda: changed(metadata=lambda content: content.update(ss_network_dim="__import__('os')")),
        "the LoRA file's metadata names rank __import__('os')",
    ),
    "an alpha told as nan": (
        lambda: changed(metadata=lambda content: content.update(ss_network_alpha="nan")),
        "the LoRA file's metadata names alpha nan",
    ),
    "a recipe without a bottom": (
        lambda: changed(metadata=lambda content: content.update(imprint_recipe="[" * 100_000)),
        "the LoRA file's metadata has an alpha or a recipe that cannot be read",
    ),
}  # fmt: skip


# ---- base models: what is done to the UNet's folder, and what is said of it ----


def weights_of(unet: Path) -> Path:
    return unet / "diffusion_pytorch_model.safetensors"


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(unet: Path) -> None:
        tensors, metadata = unpack(weights_of(unet).read_bytes())
        change(tensors)
        weights_of(unet).write_bytes(pack(tensors, metadata))

    return spoil


def replaced(data: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(unet: Path) -> None:
        weights_of(unet).write_bytes(data(weights_of(unet).read_bytes()))

    return spoil


def indexed(name: Any, beside: bytes | None = None) -> Callable[[Path], None]:
    """Sharded, with an index that names a shard of that name."""

    def spoil(unet: Path) -> None:
        held, _ = unpack(weights_of(unet).read_bytes())
        table = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(held, name)}
        weights_of(unet).with_name(weights_of(unet).name + ".index.json").write_text(json.dumps(table))
        weights_of(unet).rename(unet / "diffusion_pytorch_model-00001-of-00001.safetensors")
        if beside is not None:
            (unet / name).write_bytes(beside)

    return spoil


def doubled(data: bytes) -> bytes:
    """With one name twice in its header."""
    start = data_offset(data)
    return headed(data[8:start].rstrip()[:-1] + b',"__metadata__":{}}', data[start:])


def renamed(suffix: str) -> Callable[[Path], None]:
    def spoil(unet: Path) -> None:
        weights_of(unet).unlink()
        (unet / f"diffusion_pytorch_model{suffix}").write_bytes(pickle.dumps(Runs()))

    return spoil


def first(held: dict[str, Any], value: float) -> None:
    name = next(name for name in held if name.endswith("conv_in.weight"))
    numbers = held[name].floats().copy()
    numbers.flat[7] = value
    held[name] = tensor(numbers)


def shaped(held: dict[str, Any]) -> None:
    held["conv_in.weight"] = tensor(np.ones((1, 1)))


NOT_LOADED = "the unet of the base model in {} cannot be loaded"
FILE = NOT_LOADED + ": diffusion_pytorch_model.safetensors is not sound: "
INDEX = NOT_LOADED + ": diffusion_pytorch_model.safetensors.index.json names "
OF_THIS = ", which is no safetensors file of this folder"

BASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pickle as safetensors": (replaced(lambda _: pickle.dumps(Runs())), FILE + "it is a pickle"),
    "a torch archive as safetensors": (
        replaced(lambda _: zipped("data.pkl", pickle.dumps(Runs()))),
        FILE + "it is a pickle",
    ),
    "a pickle as .bin": (renamed(".bin"), "the base model in {} has its unet only as a pickle (.bin), which"),
    "a pickle as .ckpt": (renamed(".ckpt"), "the base model in {} has no diffusion_pytorch_model.safetensors in unet"),
    "a pickle as .pt": (renamed(".pt"), "the base model in {} has no diffusion_pytorch_model.safetensors in unet"),
    "a pickle as .pth": (renamed(".pth"), "the base model in {} has no diffusion_pytorch_model.safetensors in unet"),
    "an index to a pickle": (
        indexed("diffusion_pytorch_model.bin", pickle.dumps(Runs())), INDEX + "'diffusion_pytorch_model.bin'" + OF_THIS,
    ),
    "an index to no safetensors": (indexed("weights.dat", pickle.dumps(Runs())), INDEX + "'weights.dat'" + OF_THIS),
    "an index that climbs": (indexed("../../x.safetensors"), INDEX + "'../../x.safetensors'" + OF_THIS),
    "an index from the root": (indexed("/etc/x.safetensors"), INDEX + "'/etc/x.safetensors'" + OF_THIS),
    "an index to a number": (indexed(5), INDEX + "'5'" + OF_THIS),
    "an index to nothing": (indexed("b.safetensors"), INDEX + "b.safetensors, which is not there"),
    "an index to a pickle by a good name": (
        indexed("b.safetensors", pickle.dumps(Runs())),
        NOT_LOADED + ": b.safetensors is not sound: it is a pickle",
    ),
    "nothing": (replaced(lambda _: b""), FILE + "it is empty"),
    "half a file": (replaced(lambda data: data[: len(data) // 2]), FILE + "tensor "),
    "a zip behind it": (replaced(lambda data: data + zipped("x", b"x")), FILE + "its header describes "),
    "a header of 100 MB": (
        replaced(lambda _: headed(b"{" + b" " * 100_000_000 + b"}")),
        FILE + "its header has 100000002",
    ),
    "tensors that overlap": (replaced(lambda _: two([0, 10], [5, 15], 15)), FILE + "its tensors overlap"),
    "the same name twice": (
        replaced(doubled),
        FILE + "its header has a name twice",
    ),
    "a weight of nan": (
        rewritten(lambda held: first(held, np.nan)),
        "the unet of the base model in {} has weights that are not finite",
    ),
    "a weight without end": (
        rewritten(lambda held: first(held, -np.inf)),
        "the unet of the base model in {} has weights that are not",
    ),
    "a weight of another shape": (rewritten(shaped), NOT_LOADED),
    "a weight too few": (
        rewritten(lambda held: held.pop("conv_in.bias")),
        "the unet of the base model in {} lacks 1 weights",
    ),
    "a weight too many": (
        rewritten(lambda held: held.update({"../../x": tensor(np.ones(1))})),
        "the unet of the base model in {} has 1 unknown weights, such as '../../x'",
    ),
    "a configuration that is none": (lambda unet: write(unet, b"[1]"), NOT_LOADED),
    "a configuration without a bottom": (lambda unet: write(unet, b"[" * 100_000), NOT_LOADED),
}  # fmt: skip


def write(unet: Path, config: bytes) -> None:
    (unet / "config.json").write_bytes(config)
