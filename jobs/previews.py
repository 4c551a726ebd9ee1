"""The previews of a job: pictures that the trainer drew during the training.

A preview's name is its key in the object store without the prefix: attempt, step, prompt, kind of file.
"""

import re
from collections.abc import Iterable

from core.errors import NotFound
from jobs import keys, service
from jobs.services import Services

_NAME = re.compile(r"([0-9]+)-([0-9]+)_([0-9a-z]+)\.(png|jpg|jpeg|webp)")


def names(services: Services, job_id: str, owner_id: str | None = None) -> list[str]:
    """The names of a job's previews, in the order of attempt and step. Raises NotFound as `service.get_job` does."""
    with services.database.reading() as session:
        service.get_job(session, job_id, owner_id)
    prefix = keys.previews(job_id)
    found = (key.removeprefix(prefix).replace("/", "-") for key in services.store.list(prefix))
    return [name for name in found if _NAME.fullmatch(name)]


def get(services: Services, job_id: str, name: str, owner_id: str | None = None) -> bytes:
    """One preview. Raises NotFound, also for a job of another owner."""
    with services.database.reading() as session:
        service.get_job(session, job_id, owner_id)
    if not _NAME.fullmatch(name):
        raise NotFound(f"job {job_id} has no preview of this name")
    return services.store.get(keys.previews(job_id) + name.replace("-", "/", 1))


def by_prompt(previews: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
    """For each prompt the steps and names of its previews; of a repeated step, that of the later attempt."""
    rows: dict[str, dict[int, str]] = {}
    for name in sorted(previews):
        if found := _NAME.fullmatch(name):
            rows.setdefault(found[3], {})[int(found[2])] = name
    return {prompt: sorted(pictures.items()) for prompt, pictures in sorted(rows.items())}
