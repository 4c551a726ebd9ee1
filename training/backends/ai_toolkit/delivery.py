"""Upload pictures and captions to a dataset on an ai-toolkit server, and verify them there."""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from core.errors import BackendFailed, BackendUnreachable
from training.backends.ai_toolkit import config
from training.backends.ai_toolkit.connection import TRIES, backoff_s
from training.backends.ai_toolkit.server import ToolkitServer
from training.ports import Example

# The proxy of a pod rejects requests of 100 MB and ends them after 100 s: this needs 2.5 Mbit/s.
MAX_REQUEST_BYTES = 30_000_000

File = tuple[str, bytes]


def upload_dataset(server: ToolkitServer, dataset: str, examples: Sequence[Example]) -> None:
    """Upload every picture that the dataset lacks as 0001.png, with its caption in 0001.txt.

    Afterwards the server is asked for its files. Raises BackendFailed if they differ from these pictures and captions.
    """
    numbers = range(1, len(examples) + 1)
    missing = _missing(server, dataset, examples, compare_sizes=True)
    for tried in range(1, TRIES + 1):
        try:
            for request in _requests(_pair(number, examples[number - 1]) for number in numbers if number in missing):
                server.upload(dataset, request)
        except BackendUnreachable:
            # Some may have arrived: check before sending any again.
            time.sleep(backoff_s(tried))
            missing = _missing(server, dataset, examples, compare_sizes=True)
            if tried == TRIES and missing:
                raise
        else:
            missing = missing and _missing(server, dataset, examples)
        if not missing:
            return
    raise BackendFailed(
        f"the server stored only {len(examples) - len(missing)} of {len(examples)} pictures in {dataset}"
    )


def picture_name(number: int) -> str:
    """The file name on the server of picture `number`, from 1, without its suffix."""
    return f"{number:04d}"


def _pair(number: int, example: Example) -> list[File]:
    # The caption comes last: if it is complete, so is the picture.
    return [
        (f"{picture_name(number)}.png", example.path.read_bytes()),
        (f"{picture_name(number)}.txt", config.caption_file(example.caption)),
    ]


def _requests(pairs: Iterable[list[File]]) -> Iterator[list[File]]:
    """Group pairs into requests that a proxy accepts."""
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
    """The numbers of the pictures that the dataset lacks. Raises BackendFailed if it has other pictures.

    compare_sizes: also compare file sizes, because an earlier upload may have left a partial file.
    """
    paths = {re.split(r"[/\\]", path)[-1]: path for path in server.pictures(dataset)}
    expected = {f"{picture_name(number)}.png": number for number in range(1, len(examples) + 1)}
    if strange := sorted(set(paths) - set(expected)):
        raise BackendFailed(
            f"the dataset {dataset} on the server has {len(strange)} pictures that do not belong to this job"
        )
    captions = server.captions(list(paths.values()))
    missing = set(expected.values())
    for name, path in paths.items():
        example = examples[expected[name] - 1]
        same = captions.get(path, "").encode() == config.caption_file(example.caption)
        if same and (not compare_sizes or server.size_of(path) == example.path.stat().st_size):
            missing.discard(expected[name])
    return missing
