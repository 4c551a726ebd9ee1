"""The cost of decoding in a child process instead of in the worker: `python -m benchmarks.decoding`.

Milliseconds per picture, the least of several tries, taken in turns; the last line is one JSON object.
"""

import io
import json
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from training.data.decoding.decoder import Decoder
from training.data.pictures import prepare

TRIES = 15


def photograph(width: int, height: int, quality: int) -> bytes:
    """A JPEG with as much detail as a photograph."""
    coarse = np.random.default_rng(0).integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=quality)
    return out.getvalue()


def milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def main() -> None:
    """Measure and print."""
    started = time.perf_counter()
    with Decoder() as decoder:
        decoder.prepare(photograph(64, 64, 80), resolution=64)
        result: dict[str, float] = {"start_ms": round((time.perf_counter() - started) * 1000, 1)}
        for name, data in (("12mp", photograph(4000, 3000, 90)), ("512px", photograph(512, 512, 90))):
            here, there = [], []
            for _ in range(TRIES):
                here.append(milliseconds(lambda data=data: prepare(data, resolution=512)))  # type: ignore[misc]
                there.append(milliseconds(lambda data=data: decoder.prepare(data, resolution=512)))  # type: ignore[misc]
            result |= {f"{name}_in_worker_ms": round(min(here), 1), f"{name}_in_child_ms": round(min(there), 1)}
            print(f"{name}: {len(data)} bytes, {min(here):.1f} ms in the worker, {min(there):.1f} ms in a child")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
