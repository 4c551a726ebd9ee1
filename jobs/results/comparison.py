"""Two trainings beside each other: what differs in their recipes and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import Session, col, select

from jobs import service
from jobs.requests.recipe_options import RecipeChange, changes
from jobs.services import Services
from jobs.view import JobView
from storage.tables.jobs import Job, JobPicture


@dataclass(frozen=True)
class Comparison:
    """What the training `after` does otherwise than `before`. Pictures are counted by their content."""

    before: JobView
    after: JobView
    changes: list[RecipeChange]
    added: int  # pictures that only `after` has
    left_out: int  # pictures that only `before` has
    recaptioned: int  # pictures of both with another caption

    @property
    def is_same(self) -> bool:
        """Whether only the seed differs."""
        return not (self.changes or self.added or self.left_out or self.recaptioned)


def previous(services: Services, job_id: str, owner_id: str | None = None) -> str | None:
    """The training of the same subject before this one. Raises NotFound as `service.get_job` does."""
    with services.database.reading() as session:
        job = service.get_job(session, job_id, owner_id)
        earlier = select(Job.id).where(Job.owner_id == job.owner_id, Job.subject_id == job.subject_id, Job.id < job.id)
        return session.exec(earlier.order_by(col(Job.id).desc()).limit(1)).first()


def compare(services: Services, before_id: str, after_id: str, owner_id: str | None = None) -> Comparison:
    """Raises NotFound as `service.get_job` does, for either."""
    before, after = (service.get(services, job_id, owner_id) for job_id in (before_id, after_id))
    with services.database.reading() as session:
        old, new = _captions(session, before_id), _captions(session, after_id)
    return Comparison(
        before,
        after,
        changes(before.spec, after.spec),
        added=len(new.keys() - old.keys()),
        left_out=len(old.keys() - new.keys()),
        recaptioned=sum(old[picture] != new[picture] for picture in old.keys() & new.keys()),
    )


def _captions(session: Session, job_id: str) -> dict[str, str | None]:
    """The captions of a job's pictures, by the content of the picture, or by its reference while that is not known."""
    pictures: Sequence[JobPicture] = session.exec(select(JobPicture).where(JobPicture.job_id == job_id)).all()
    return {picture.source_sha256 or picture.reference: picture.caption for picture in pictures}
