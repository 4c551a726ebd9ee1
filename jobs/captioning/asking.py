"""The application's captioner: a Celery task or an HTTP address (`caption_task`), asked about one picture at a time.

The stage asks for the captions that are not there and gives its job back, so no worker waits. The job is launched again
with the last answer, or looked at again in a minute.
"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from core.clock import utcnow
from core.errors import CaptionsUnavailable, Unreachable
from jobs import keys
from jobs.lifecycle import transitions
from jobs.lifecycle.leases import Lease
from jobs.questions import is_abandoned, uses_picture
from jobs.services import Services
from jobs.specs import spec_of
from notifications import application, outbox
from notifications.application import CaptionQuestion, SendTask
from storage.database import insert_if_absent
from storage.tables.captions import GeneratedCaption
from storage.tables.jobs import ACTIVE, Job, JobPicture
from training.captioning.instructions import Prompt, prompt_for
from training.spec import MAX_CAPTION_CHARACTERS

log = logging.getLogger(__name__)

TOPIC = "caption"  # of the messages that ask


class _Answer(BaseModel):
    """What a captioner says of a picture."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    caption: Annotated[
        str, StringConstraints(strip_whitespace=True, max_length=MAX_CAPTION_CHARACTERS, pattern=r"^[^\x00]*$")
    ]


def ask_for(
    services: Services, lease: Lease, job: Job, prompt: Prompt, hashes: Sequence[str]
) -> tuple[dict[str, str], str | None]:
    """The captions of these pictures, by their hash, and what the job waits for if some are not there.

    If the job waits, the lease is given back. Raises CaptionsUnavailable after the patience.
    """
    settings = services.settings
    with services.database.writing() as session:
        lease.renew(session, settings.lease_s)
        found = _ask(session, settings.caption_task or "", job, prompt, hashes, utcnow())
        missing = [one for one in found if one.text is None]
        if not missing:
            return {one.sha256: one.text or "" for one in found}, None
        patience = timedelta(seconds=settings.caption_patience_s)
        is_over = any(one.created_at < utcnow() - patience for one in missing)
        if is_over:  # a retry of the training asks again
            for one in missing:
                session.delete(one)
        else:
            reason = f"{len(missing)} picture(s) wait for their captions"
            transitions.give_back(session, lease, reason, settings, application.ASK_AGAIN_S)
            return {}, reason
    raise CaptionsUnavailable(f"{len(missing)} picture(s) got no caption in {settings.caption_patience_s:.0f} s")


def _ask(
    session: Session, name: str, job: Job, prompt: Prompt, hashes: Sequence[str], now: datetime
) -> list[GeneratedCaption]:
    """The captions of these pictures; the captioner is asked for those that are not there."""
    for sha256 in sorted(hashes):
        one = GeneratedCaption(owner_id=job.owner_id, sha256=sha256, prompt_sha256=prompt.sha256)
        insert_if_absent(session, one)
    query = select(GeneratedCaption).where(
        GeneratedCaption.owner_id == job.owner_id,
        GeneratedCaption.prompt_sha256 == prompt.sha256,
        col(GeneratedCaption.sha256).in_(hashes),
    )
    found = list(session.exec(query.order_by(col(GeneratedCaption.sha256)).with_for_update()))
    for one in found:
        waiting = _waiting_jobs(one.owner_id, one.sha256)
        if one.text is None and is_abandoned(session, waiting, one.asked_at, job):  # `job` gets the whole patience
            one.created_at, one.asked_at = now, None
        if one.text is None and application.is_due(name, one.created_at, one.asked_at, now):
            one.asked_at = now
            session.add(one)
            payload = {"job_id": job.id, "sha256": one.sha256}
            outbox.put(session, "launch", job_id=None, owner_id=job.owner_id, topic=TOPIC, payload=payload)
    return found


def ask(services: Services, job_id: str, sha256: str, send_task: SendTask) -> None:
    """Ask the captioner about one picture. If it does not answer, the stage asks again."""
    name = services.settings.caption_task
    with services.database.reading() as session:
        job = _waiting(session, job_id)
        one = None if job is None or name is None else session.get(GeneratedCaption, _key(job, name, sha256))
    if job is None or name is None or one is None or one.text is not None:
        return
    spec = spec_of(job)
    prompt = prompt_for(spec, name)
    lifetime_s = application.url_lifetime_s(services.settings.caption_patience_s)
    picture = CaptionQuestion(
        sha256=sha256, url=services.store.url(keys.prepared(sha256), lifetime_s),
        instruction=prompt.instruction, learns=prompt.learns,
        trigger_word=spec.trigger_word, class_word=spec.class_word,
        owner_id=job.owner_id, subject_id=job.subject_id, job_id=job.id,
    )  # fmt: skip
    try:
        if "://" not in name:
            send_task(name, services.settings.caption_queue, picture, (job_id, sha256))
            return
        given = application.ask(
            name, picture, f"caption_{sha256[:32]}{prompt.sha256[:32]}", secrets=services.webhook_secrets,
            timeout_s=services.settings.webhook_timeout_s,
        )  # fmt: skip
        answer(services, given, job_id, sha256)
    except Unreachable as error:
        log.warning("a picture has no caption yet: %s", error.message)


def answer(services: Services, given: Any, job_id: str, sha256: str) -> None:
    """Record what a captioner answered about a picture of a job, and launch the jobs that wait for nothing else.

    Raises Unreachable if the answer is no caption.
    """
    try:
        text = _Answer.model_validate({"caption": given} if isinstance(given, str) else given).caption
    except ValidationError:
        raise Unreachable(
            f'the answer is not {{"caption": a text of at most {MAX_CAPTION_CHARACTERS} characters}}'
        ) from None
    with services.database.writing() as session:
        job = _waiting(session, job_id)
        if job is None or services.settings.caption_task is None:
            return
        key = _key(job, services.settings.caption_task, sha256)
        one = session.get(GeneratedCaption, key, with_for_update=True)
        if one is None or one.text is not None:
            return
        one.text = text
        session.add(one)
        session.flush()
        waiting = session.exec(_waiting_jobs(job.owner_id, sha256)).all()
        missing = sa.select(col(JobPicture.job_id)).where(
            col(JobPicture.job_id).in_(waiting),
            col(JobPicture.prepared_sha256) == col(GeneratedCaption.sha256),
            col(GeneratedCaption.owner_id) == job.owner_id,
            col(GeneratedCaption.prompt_sha256) == one.prompt_sha256,
            col(GeneratedCaption.text).is_(None),
        )
        still = set(session.connection().execute(missing).scalars())
        outbox.make_due_now(session, [waits for waits in waiting if waits not in still], "launch")


def _key(job: Job, captioner: str, sha256: str) -> tuple[str, str, str]:
    return job.owner_id, sha256, prompt_for(spec_of(job), captioner).sha256


def _waiting(session: Session, job_id: str) -> Job | None:
    """The job, if it still waits for captions."""
    job = session.get(Job, job_id)
    return job if job is not None and job.status in ACTIVE and job.needs_captions else None


def _waiting_jobs(owner_id: str, sha256: str) -> SelectOfScalar[str]:
    active = (Job.owner_id == owner_id, col(Job.status).in_(ACTIVE), col(Job.needs_captions))
    return select(Job.id).where(*active, uses_picture(sha256)).order_by(col(Job.id))
