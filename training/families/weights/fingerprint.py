"""A fingerprint of a base model from samples of its files, without reading gigabytes."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.errors import BaseModelUnavailable
from training.families.weights import single_file

_WHOLE_BYTES = 2**20
_SAMPLES, _SAMPLE_BYTES = 64, 4096


def fingerprint(folder: Path, parts: Sequence[str], also: Sequence[Path] = ()) -> str:
    """A SHA-256 over the files that training reads of a base model, and the files `also`, in hex.

    folder: in diffusers' layout, or a single file. Files up to 1 MiB are hashed completely; of larger ones the size,
    the first 1 MiB (the header of a safetensors file has the name and shape of every tensor), and 64 blocks spread over
    the file. So it tells models apart, but a change between the blocks is not detected. Raises BaseModelUnavailable for
    a file that cannot be read.
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
                f"{path} cannot be read ({error.strerror}): give the user of the training workers permission to read it"
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
