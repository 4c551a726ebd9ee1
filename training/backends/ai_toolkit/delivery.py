"""Upload pictures and captions to a dataset on an ai-toolkit server, and verify them there."""

import io
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from PIL import Image

from core.errors import BackendFailed, BackendUnreachable
from training.backends.ai_toolkit import config
from training.backends.ai_toolkit.connection import TRIES, backoff_s
from training.backends.ai_toolkit.server import ToolkitServer
from training.ports import Example

# The proxy of a pod rejects requests of 100 MB and ends them after 100 s: this needs 2.5 Mbit/s.
MAX_REQUEST_BYTES = 30_000_000

File = tuple[str, bytes]


def upload_dataset(server: ToolkitServer, dataset: str, examples: Sequence[Example], *, masked: bool = False) -> None:
    """Upload every picture that the dataset lacks as 0001.png, with its caption in 0001.txt.

    masked: give every picture an alpha channel, which ai-toolkit takes as the mask of its loss. Afterwards the server
    is asked for its files. Raises BackendFailed if they differ from these pictures and captions.
    """
    numbers = range(1, len(examples) + 1)
    sizes = {number: len(_picture(examples[number - 1], masked)) for number in numbers}
    missing = _missing(server, dataset, examples, sizes)
    for tried in range(1, TRIES + 1):
        try:
            pairs = (_pair(number, examples[number - 1], masked) for number in numbers if number in missing)
            for request in _requests(pairs):
                server.upload(dataset, request)
        except BackendUnreachable:
            # Some may have arrived: check before sending any again.
            time.sleep(backoff_s(tried))
            missing = _missing(server, dataset, examples, sizes)
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


def _picture(example: Example, masked: bool) -> bytes:
    """The PNG of a picture. ai-toolkit fails on one without an alpha channel if the loss is masked."""
    content = example.path.read_bytes()
    if not masked:
        return content
    with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
        if opened.mode == "RGBA":
            return content
        made = io.BytesIO()
        opened.convert("RGBA").save(made, "PNG")
    return made.getvalue()


def _pair(number: int, example: Example, masked: bool) -> list[File]:
    # The caption comes last: if it is complete, so is the picture.
    return [
        (f"{picture_name(number)}.png", _picture(example, masked)),
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
    server: ToolkitServer, dataset: str, examples: Sequence[Example], sizes: Mapping[int, int] | None = None
) -> set[int]:
    """The numbers of the pictures that the dataset lacks. Raises BackendFailed if it has other pictures.

    sizes: also compare the sizes of the files, because an earlier upload may have left a partial file.
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
        if same and (sizes is None or server.size_of(path) == sizes[expected[name]]):
            missing.discard(expected[name])
    return missing
