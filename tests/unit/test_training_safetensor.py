"""safetensors in plain numpy: the library reads what we write, we read what it writes, and what is odd is refused."""

import json
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors import numpy as library

from training.lora.safetensor import MAX_HEADER_BYTES, Malformed, data_offset, pack, tensor, unpack

SHAPES = array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


@given(
    st.dictionaries(st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
                    arrays(np.float32, SHAPES, elements=st.floats(width=32)), max_size=4),
    st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=3),
)  # fmt: skip
def test_the_library_reads_what_we_write(values: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    data = pack({name: tensor(held) for name, held in values.items()}, metadata)
    read = library.load(data)
    assert set(read) == set(values)
    for name, held in values.items():
        assert read[name].shape == held.shape
        assert read[name].tobytes() == held.tobytes()
    back, content = unpack(library.save(values, metadata) if values else data)
    assert {name: held.elements.tobytes() for name, held in back.items()} == {n: v.tobytes() for n, v in values.items()}
    assert content == metadata


def test_the_same_arguments_the_same_bytes_in_any_order() -> None:
    one, two = tensor(np.arange(6.0).reshape(2, 3)), tensor(np.ones(2))
    assert pack({"a": one, "b": two}, {"x": "1", "y": "2"}) == pack({"b": two, "a": one}, {"y": "2", "x": "1"})


def test_half_precisions_round_as_torch_does() -> None:
    # 1 + 2^-8 lies halfway between two bfloat16 and goes to the even one; 1 + 3 * 2^-8 goes up.
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -2.5, 3.4e38, np.nan, np.inf], np.float32)
    got = tensor(values, "BF16").floats()
    assert got[:4].tolist() == [1.0, 1.0, 1 + 2**-6, -2.5]
    assert np.isinf(got[4])  # beyond the largest bfloat16
    assert np.isnan(got[5])
    assert np.isinf(got[6])
    assert tensor(values, "F16").floats()[0] == 1.0


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
REFUSED = {
    "empty": b"",
    "short": b"abc",
    "cut in its header": struct.pack("<Q", 100) + b"{}",
    "a huge header": struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}",
    "no JSON": raw(b"{]"),
    "no UTF-8": raw(b"\xff\xfe"),
    "deep": raw(b"[" * 100_000),
    "huge number": raw(b'{"a": ' + b"1" * 10_000 + b"}"),
    "a list": raw([]),
    "the same name twice": raw(b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, '
                               b'"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"0000"),
    "a kind that is not there": raw({"a": {**ENTRY, "dtype": "Q7"}}, b"0000"),
    "a kind that is no text": raw({"a": {**ENTRY, "dtype": [1]}}, b"0000"),
    "no offsets": raw({"a": {"dtype": "F32", "shape": [1]}}, b"0000"),
    "negative": raw({"a": {**ENTRY, "shape": [-1], "data_offsets": [4, 0]}}, b"0000"),
    "a true as a number": raw({"a": {**ENTRY, "shape": [True]}}, b"0000"),
    "another size than its shape": raw({"a": {**ENTRY, "shape": [2]}}, b"0000"),
    "outside of the file": raw({"a": {**ENTRY, "data_offsets": [4, 8]}}, b"0000"),
    "a hole": raw({"a": ENTRY, "b": {**ENTRY, "data_offsets": [8, 12]}}, b"0" * 12),
    "an overlap": raw({"a": ENTRY, "b": ENTRY}, b"0" * 4),
    "bytes behind it": raw({"a": ENTRY}, b"0000PK"),
    "metadata that is no table": raw({"__metadata__": [1], "a": ENTRY}, b"0000"),
    "metadata that is no text": raw({"__metadata__": {"x": 1}, "a": ENTRY}, b"0000"),
    "an entry that is no table": raw({"a": 3}, b"0000"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_odd_files_are_refused(what: str) -> None:
    with pytest.raises(Malformed):
        unpack(REFUSED[what])


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        unpack(data)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_no_changed_byte_does_more_than_be_refused(place: int, value: int) -> None:
    data = bytearray(pack({"a": tensor(np.ones((3, 4))), "b": tensor(np.ones(2), "BF16")}, {"k": "v"}))
    data[place % len(data)] = value
    with suppress(Malformed):
        unpack(bytes(data))


def test_data_offset() -> None:
    data = pack({"a": tensor(np.ones(1))}, {})
    assert data[data_offset(data) :] == np.ones(1, np.float32).tobytes()
