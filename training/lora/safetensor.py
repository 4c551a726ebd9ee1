"""safetensors with numpy: for processes without torch, and with the same bytes on every run.

The safetensors library stores metadata in a hash map, so two writes may differ. Imprint compares files by hash, so it
writes the header sorted. Reading is stricter than in the library: duplicate names, gaps and overlaps in the data, and
oversized headers are errors.

Format: 8 bytes little-endian header length, a JSON header, the data. https://github.com/huggingface/safetensors#format
"""

import json
import mmap
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MAX_HEADER_BYTES = 16 * 2**20

# All types of the format that have whole bytes. numpy has no bfloat16 and no float8: their bits are read as integers,
# and `Tensor.floats` widens them.
_KINDS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
}
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # what weights may be


class Malformed(ValueError):
    """Not a valid safetensors file, or one with unsupported contents. The message says why."""


class Tensor:
    """One tensor: its type (`F32`, `BF16`, …) and its elements, which for BF16 are the raw 16 bits."""

    def __init__(self, kind: str, elements: Array) -> None:
        self.kind, self.elements = kind, elements

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.elements.shape)

    def floats(self) -> Array:
        """The values as float32, or float64 for F64. BF16 is the upper half of a float32."""
        if self.kind == "BF16":
            return (self.elements.astype(np.uint32) << 16).view(np.float32)
        if self.kind in ("F8_E4M3", "F8_E5M2"):
            return _float8_values(self.kind)[self.elements]
        return self.elements if self.kind == "F64" else self.elements.astype(np.float32)


@lru_cache
def _float8_values(kind: str) -> Array:
    """The 256 values of a float8. E5M2 is the upper half of a float16; E4M3 has no infinity and one NaN of each sign.

    https://arxiv.org/abs/2209.05433
    """
    bits = np.arange(256)
    if kind == "F8_E5M2":
        return (bits.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    exponent, mantissa = (bits >> 3) & 15, bits & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return np.where(bits & 127 == 127, np.nan, np.where(bits & 128, -size, size)).astype(np.float32)


def tensor(values: Array, kind: str = "F32") -> Tensor:
    """`values` as a tensor of type `kind`. BF16 rounds to nearest even, as torch does."""
    if kind != "BF16":
        with np.errstate(over="ignore"):  # too large for float16 gives infinity, which the check of a file rejects
            return Tensor(kind, np.asarray(values, _KINDS[kind], order="C"))
    wide = np.asarray(values, np.float32, order="C")
    bits = wide.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return Tensor("BF16", np.where(np.isnan(wide), np.uint16(0x7FC0), rounded))


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A file as bytes; the same arguments give the same bytes. Tensors are in the library's order: wide types first."""
    order = sorted(tensors, key=lambda name: (-_KINDS[tensors[name].kind].itemsize, tensors[name].kind, name))
    header: dict[str, Any] = {"__metadata__": {key: metadata[key] for key in sorted(metadata)}}
    parts, at = [], 0
    for name in order:
        data = tensors[name].elements.tobytes()
        header[name] = {"dtype": tensors[name].kind, "shape": tensors[name].shape, "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def unpack(data: bytes | memoryview) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file. Elements are read-only views into `data`. Raises Malformed."""
    laid_out, metadata, start = _layout(data)
    tensors = {}
    for name, (kind, shape, first, last) in laid_out.items():
        count = (last - first) // _KINDS[kind].itemsize
        elements = np.frombuffer(data, _KINDS[kind], count, start + first) if count else np.empty(0, _KINDS[kind])
        tensors[name] = Tensor(kind, elements.reshape(shape))
    return tensors, metadata


def check_layout(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Check a file's header, and that its tensors fill the file, without reading them.

    Returns the type of every tensor and the metadata. Raises Malformed, OSError.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise Malformed("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            laid_out, metadata, _ = _layout(data)
    return {name: entry[0] for name, entry in laid_out.items()}, metadata


def _layout(
    data: bytes | memoryview | mmap.mmap,
) -> tuple[dict[str, tuple[str, tuple[int, ...], int, int]], dict[str, str], int]:
    """Type, shape, first and last byte of each tensor; the metadata; the offset of the data."""
    header, start = read_header(data)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Malformed("its metadata is not a JSON object of strings")
    laid_out = {name: _entry(name, entry, len(data) - start) for name, entry in header.items()}
    end = 0
    for first, last in sorted(entry[2:] for entry in laid_out.values()):
        if first != end:
            raise Malformed("its tensors overlap or leave gaps")
        end = last
    if start + end != len(data):
        raise Malformed(f"its header describes {start + end} bytes, but the file has {len(data)}")
    return laid_out, metadata, start


def data_offset(data: bytes | memoryview | mmap.mmap) -> int:
    """The offset of the data."""
    return 8 + int(struct.unpack("<Q", data[:8])[0])


def read_header(data: bytes | memoryview | mmap.mmap) -> tuple[dict[str, Any], int]:
    """The header of a file that begins with `data`, and the offset of its data. Raises Malformed."""
    try:
        return _header(data)
    except Malformed as error:
        raise Malformed(_other_file(bytes(data[:64])) or str(error)) from error


def _header(data: bytes | memoryview | mmap.mmap) -> tuple[dict[str, Any], int]:
    if len(data) < 8:
        raise Malformed("it is shorter than a safetensors header")
    length = data_offset(data) - 8
    if length > MAX_HEADER_BYTES:
        raise Malformed(f"its header has {length} bytes, over the limit of {MAX_HEADER_BYTES}")
    if 8 + length > len(data):
        raise Malformed("it ends within its header")
    try:
        header = json.loads(bytes(data[8 : 8 + length]).decode(), object_pairs_hook=_without_duplicates)
    except Malformed:
        raise
    except (ValueError, RecursionError) as error:
        raise Malformed("its header is not JSON") from error
    if not isinstance(header, dict):
        raise Malformed("its header is not a JSON object")
    return header, 8 + length


def _other_file(start: bytes) -> str | None:
    """What a file is that is often found in the place of weights, by its first bytes."""
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        return "it is a pickle, and pickles are never loaded"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer instead of the file: run `git lfs pull`, or download the file itself"
    if start.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page instead of the file: download it again, signed in if the site asks for that"
    return None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Malformed("its header has a name twice")
    return made


def _entry(name: str, entry: Any, size: int) -> tuple[str, tuple[int, ...], int, int]:
    try:
        kind, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, first, last)) or type(kind) is not str:
            raise TypeError
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed(f"the entry of tensor {name[:80]!r} is malformed") from error
    if kind not in _KINDS:
        raise Malformed(f"tensor {name[:80]!r} has type {kind[:20]!r}, which is not supported")
    count = 1
    for number in shape:
        count *= number
    if first + count * _KINDS[kind].itemsize != last or last > size:
        raise Malformed(f"tensor {name[:80]!r} does not fit its shape, or exceeds the file")
    return kind, shape, first, last
