"""How names of pictures, captions and masks are compared, and which names have a meaning."""

import re
import unicodedata
from pathlib import Path

from training.data.file_kinds import SUFFIXES

MASKS = "masks"  # subfolder with masks: white counts, black does not
_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini", "__macosx"))  # names that begin with a dot are hidden anyway
KOHYA = re.compile(r"(\d+)_(\S+)(?: (.+))?")


def compared_stem(name: str) -> str:
    """A file's name without its suffix, as the names of pictures, captions and masks are compared."""
    return compared_name(Path(name).stem)


def is_hidden(path: Path) -> bool:
    """Whether a computer has written the file beside others, and people do not see it."""
    return path.name.startswith(".") or path.name.lower() in _SYSTEM_FILES


def is_special_folder(path: Path) -> bool:
    """Whether a folder's name has a meaning for the folder that it is in."""
    return path.name == MASKS or KOHYA.fullmatch(path.name) is not None


def is_picture(path: Path) -> bool:
    """Whether a file has the name of a picture that is read."""
    return path.suffix.lower() in SUFFIXES and path.is_file() and not is_hidden(path)


def compared_name(name: str) -> str:
    """A name as it is compared: macOS writes "é" as two characters, cameras write suffixes in capitals."""
    return unicodedata.normalize("NFC", name).casefold()
