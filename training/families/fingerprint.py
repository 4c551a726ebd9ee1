"""Which base model this is, by what is in its files, without reading gigabytes of them."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.errors import BaseModelUnavailable
from training.families import single_file

_WHOLE_BYTES = 2**20
_SAMPLES, _SAMPLE_BYTES = 64, 4096


def fingerprint(folder: Path, parts: Sequence[str], also: Sequence[Path] = ()) -> str:
    """A SHA-256 over the files that training reads of the base model in `folder`, or in that single file, in hex.

    Files up to 1 MiB count whole; of larger ones the size, the start (a safetensors header names and sizes every
    tensor) and 64 blocks spread over it. A changed weight between the blocks goes unseen: it tells models apart, it
    does not prove one. Raises BaseModelUnavailable for a file that cannot be read.
    """
    digest = hashlib.sha256()
    if folder.is_file():
        files = single_file.files(folder, parts)
    else:
        files = [path for part in parts for path in sorted((folder / part).glob("*")) if path.is_file()]
    wanted = [path for path in files if path.suffix in (".json", ".txt", ".safetensors", ".jinja")]
    for path in [*wanted, *also]:
        try:
            for piece in _pieces(path):
                digest.update(piece)
        except OSError as error:
            raise BaseModelUnavailable(
                f"{path} cannot be read ({error.strerror}): the user that training workers run as must be able to"
            ) from error
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield f"{path.parent.name}/{path.name}:{size}\n".encode()
    with path.open("rb") as file:
        yield file.read(_WHOLE_BYTES)
        if size > _WHOLE_BYTES:
            for number in range(_SAMPLES):
                file.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                yield file.read(_SAMPLE_BYTES)
