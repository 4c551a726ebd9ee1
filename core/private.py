"""Files that only the user who runs Imprint may read: the home folder has pictures, LoRAs, the database and keys."""

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger(__name__)

UMASK = 0o077


def keep_private(home: Path) -> None:
    """Make every file that this process writes from now on private, and the home folder too.

    Call it first in every process of the service. Commands that write a file for the user call only `make_private`.
    """
    os.umask(UMASK)
    make_private(home)


def make_private(home: Path) -> None:
    """Create the home folder for its user only; take the others' rights from one that exists."""
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        home.mkdir(mode=0o700, exist_ok=True)
    if not is_private(home):
        try:
            home.chmod(0o700)
        except PermissionError:  # a volume of Kubernetes belongs to root
            log.info("%s belongs to another user, so its mode is left as it is", home)


def is_private(home: Path) -> bool:
    """Whether no other user has any right on the folder."""
    return not stat.S_IMODE(home.stat().st_mode) & UMASK
