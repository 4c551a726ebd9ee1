"""Encoded pictures and captions on the disk of a training worker: deleted with the last training on the picture."""

import logging
import threading
from collections.abc import Collection
from datetime import datetime

from sqlmodel import col, func, select

from jobs.services import Services
from storage.database import AWAY
from storage.tables.deletions import DeletedTraining, Deletion
from storage.tables.jobs import Job, JobPicture
from training.backends.encoded_files import delete_unused as delete_unused_files

log = logging.getLogger(__name__)


def delete_unused(services: Services) -> int:
    """Delete the encodings on this machine of pictures that no training has. Returns how many."""

    def used_of(hashes: Collection[str]) -> Collection[str]:
        with services.database.reading() as session:
            found = session.exec(select(JobPicture.prepared_sha256).where(col(JobPicture.prepared_sha256).in_(hashes)))
            return {sha256 for sha256 in found if sha256}

    return delete_unused_files(services.settings.home.resolve() / "encodings", used_of)


def keep_clean(services: Services) -> None:
    """Delete unused encodings at the start of a training worker and after each deletion. Does not return."""
    seen: list[datetime | None] | None = None
    pause = threading.Event()
    while True:
        try:
            newest = _newest_deletions(services)
            if newest != seen:
                deleted = delete_unused(services)
                log.info("%d encodings of deleted pictures are deleted", deleted)
                seen = newest
        except AWAY:
            log.info("the database does not answer; encodings are looked at later")
        except OSError as error:
            log.warning("encodings cannot be deleted: %s", error)
        pause.wait(services.settings.sweep_s)


def _newest_deletions(services: Services) -> list[datetime | None]:
    with services.database.reading() as session:
        times = (DeletedTraining.deleted_at, Deletion.finished_at, Job.thinned_at)
        return [session.exec(select(func.max(time))).one() for time in times]
