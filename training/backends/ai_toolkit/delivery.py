"""Pictures and captions on their way into a dataset of an ai-toolkit server, verified there."""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from core.errors import BackendFailed, BackendUnreachable
from training.backends.ai_toolkit import config
from training.backends.ai_toolkit.connection import TRIES, backoff_s
from training.backends.ai_toolkit.server import ToolkitServer
from training.ports import Example

# A proxy in front of a pod refuses requests of 100 MB, and gives up after 100 s: this is 2.5 Mbit/s.
MAX_REQUEST_BYTES = 30_000_000

File = tuple[str, bytes]


def upload_dataset(server: ToolkitServer, dataset: str, examples: Sequence[Example]) -> None:
    """Bring every picture, as 0001.png with its caption in 0001.txt, into a dataset; what is there already stays.

    Then the server is asked what it has: BackendFailed if that is not these pictures with these captions.
    """
    numbers = range(1, len(examples) + 1)
    missing = _missing(server, dataset, examples, compare_sizes=True)
    for tried in range(1, TRIES + 1):
        try:
            for request in _requests(_pair(number, examples[number - 1]) for number in numbers if number in missing):
                server.upload(dataset, request)
        except BackendUnreachable:
            # Some may have come: look before any is sent again.
            time.sleep(backoff_s(tried))
            missing = _missing(server, dataset, examples, compare_sizes=True)
            if tried == TRIES and missing:
                raise
        else:
            missing = missing and _missing(server, dataset, examples)
        if not missing:
            return
    raise BackendFailed(f"the server keeps {len(examples) - len(missing)} of {len(examples)} pictures in {dataset}")


def picture_name(number: int) -> str:
    """What picture `number`, from 1, is called on the server, without its suffix."""
    return f"{number:04d}"


def _pair(number: int, example: Example) -> list[File]:
    # The caption comes last: where it is whole, so is the picture.
    return [
        (f"{picture_name(number)}.png", example.path.read_bytes()),
        (f"{picture_name(number)}.txt", config.caption_file(example.caption)),
    ]


def _requests(pairs: Iterable[list[File]]) -> Iterator[list[File]]:
    """Pairs put together into requests that a proxy lets through."""
    held: list[list[File]] = []
    size = 0
    for pair in pairs:
        more = sum(len(data) + 500 for _, data in pair)
        if held and size + more > MAX_REQUEST_BYTES:
            yield list(chain.from_iterable(held))
            held, size = [], 0
        held.append(pair)
        size += more
    if held:
        yield list(chain.from_iterable(held))


def _missing(
    server: ToolkitServer, dataset: str, examples: Sequence[Example], *, compare_sizes: bool = False
) -> set[int]:
    """The numbers of the pictures that are not in the dataset as they should be. BackendFailed for any other picture.

    compare_sizes: also ask for each picture's size, for those that an earlier submission may have left half-written.
    """
    paths = {re.split(r"[/\\]", path)[-1]: path for path in server.pictures(dataset)}
    expected = {f"{picture_name(number)}.png": number for number in range(1, len(examples) + 1)}
    if strange := sorted(set(paths) - set(expected)):
        raise BackendFailed(f"the dataset {dataset} on the server has {len(strange)} pictures that are not of this job")
    captions = server.captions(list(paths.values()))
    missing = set(expected.values())
    for name, path in paths.items():
        example = examples[expected[name] - 1]
        same = captions.get(path, "").encode() == config.caption_file(example.caption)
        if same and (not compare_sizes or server.size_of(path) == example.path.stat().st_size):
            missing.discard(expected[name])
    return missing
