"""Which base model this is, by what is in its files, without reading gigabytes of them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from training.families import single_file

_WHOLE_BYTES = 2**20
_SAMPLES, _SAMPLE_BYTES = 64, 4096


def fingerprint(folder: Path, parts: Sequence[str], also: Sequence[Path] = ()) -> str:
    """A SHA-256 over the files that training reads of the base model in `folder`, or in that single file, in hex.

    Files up to 1 MiB count whole; of larger ones the size, the start (a safetensors header names and sizes every
    tensor) and 64 blocks spread over it. A changed weight between the blocks goes unseen: it tells models apart, it
    does not prove one.
    """
    digest = hashlib.sha256()
    if folder.is_file():
        files = single_file.files(folder, parts)
    else:
        files = [path for part in parts for path in sorted((folder / part).glob("*")) if path.is_file()]
    wanted = [path for path in files if path.suffix in (".json", ".txt", ".safetensors", ".jinja")]
    for path in [*wanted, *also]:
        size = path.stat().st_size
        digest.update(f"{path.parent.name}/{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_WHOLE_BYTES))
            if size > _WHOLE_BYTES:
                for number in range(_SAMPLES):
                    file.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
