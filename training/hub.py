"""How ids of the model hub look: `owner/name`, and `owner/name/file.safetensors` for one file of a model."""

import re

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE = re.compile(rf"{_ID.pattern}/[\w.-]+\.safetensors")


def is_hub_id(text: str) -> bool:
    """Whether a base model or captioner is given as a hub id. A relative path of two parts looks the same."""
    return _ID.fullmatch(text) is not None and ".." not in text


def is_hub_file(text: str) -> bool:
    """Whether a file is given as a hub id with its name."""
    return _FILE.fullmatch(text) is not None
