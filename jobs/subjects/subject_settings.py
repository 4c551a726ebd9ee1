"""The settings of a subject, and the training that starts automatically when its profile set is complete."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.errors import InsufficientCredits, KeyReused, SpecInvalid
from jobs import service
from jobs.deletion import guard
from jobs.notices import notices
from jobs.owners.unusable_names import normal_name
from jobs.requests import acceptance, envelope, installation, training_request
from jobs.services import Services
from jobs.subjects import presets, subject_pictures, subject_recipe
from jobs.view import JobView, View
from notifications import webhooks
from notifications.webhook_payload import Event, NoticeFailure, NoticeJob
from storage.database import insert_if_absent
from storage.tables.jobs import ACTIVE, Job
from storage.tables.pictures import Subject
from training.families.registry import BASE_MODELS
from training.spec import MIN_PICTURES, Word

NOT_STARTED: Event = "training.not_started"
_WORD: TypeAdapter[str] = TypeAdapter(Word)
_NAME: TypeAdapter[str] = TypeAdapter(envelope.SubjectName)
_KEPT = ("train_automatically", "base_model", "trigger_word", "class_word", "webhook_url", "recipe")


# ---- settings -------------------------------------------------------------------------------------------------


def get(services: Services, owner_id: str, subject_id: str) -> Subject:
    """A subject's settings; the defaults for a subject that has none."""
    with services.database.reading() as session:
        return session.get(Subject, (owner_id, subject_id)) or Subject(owner_id=owner_id, id=subject_id)


def change(services: Services, owner_id: str, subject_id: str, values: Mapping[str, Any]) -> Subject:
    """Change some of a subject's settings; None clears one. Raises SpecInvalid with every fault."""
    changed, faults = _validate(services, get(services, owner_id, subject_id), values)
    if faults:
        raise SpecInvalid.of(faults)
    with services.database.writing() as session:
        guard.lock_owner(session, owner_id)
        guard.refuse_if_deleting(session, owner_id, subject_id)
        insert_if_absent(session, Subject(owner_id=owner_id, id=subject_id))
        subject = session.get_one(Subject, (owner_id, subject_id), with_for_update=True)
        words = subject.trigger_word, subject.class_word
        for name, value in {**changed, "updated_at": utcnow()}.items():
            setattr(subject, name, value)
        if subject.recipe and words != (subject.trigger_word, subject.class_word):
            subject.recipe = presets.with_words(subject.recipe, words, (subject.trigger_word, subject.class_word))
        session.add(subject)
    return subject


def _validate(services: Services, subject: Subject, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values to store, and their faults."""
    faults = {name: f"unknown; the settings are {', '.join(_KEPT)}" for name in values if name not in _KEPT}
    kept: dict[str, Any] = {name: value for name, value in values.items() if name in _KEPT}
    if _word_fault(_NAME, subject.id):
        faults["subject_id"] = "must have 1 to 200 characters, and no control characters"
    if "train_automatically" in kept:
        kept["train_automatically"] = bool(kept["train_automatically"])
    if kept.get("base_model") is not None and kept["base_model"] not in BASE_MODELS:
        faults["base_model"] = f"must be one of {', '.join(BASE_MODELS)}"
    for name in ("trigger_word", "class_word"):
        if kept.get(name) is not None:
            if fault := _word_fault(_WORD, kept[name]):
                faults[name] = fault
            kept[name] = kept[name].strip() or None
    if kept.get("webhook_url") is not None and (
        fault := installation.webhook_fault(kept["webhook_url"], services.sources)
    ):
        faults["webhook_url"] = fault
    if kept.get("recipe") is not None:
        base_model = kept.get("base_model", subject.base_model)
        try:
            base_model = base_model if base_model in BASE_MODELS else None  # a fault of its own
            kept["recipe"] = subject_recipe.parse(kept["recipe"], base_model) or None
        except SpecInvalid as error:
            faults |= error.faults
    return kept, faults


def _word_fault(kind: TypeAdapter[str], value: str) -> str | None:
    try:
        kind.validate_python(value)
    except ValidationError as error:
        return str(error.errors(include_url=False, include_input=False)[0]["msg"])
    return None


def training_arguments(services: Services, owner_id: str, subject_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a training: what is given, completed by the subject's settings.

    A subject without a trigger word gets one that is derived from its id; `keep_trigger_word` stores it.
    """
    subject = get(services, owner_id, subject_id)
    arguments = subject_recipe.arguments(subject, given)
    if "trigger_word" not in arguments:
        with services.database.reading() as session:
            arguments["trigger_word"] = subject_recipe.derive_trigger_word(session, owner_id, subject_id)
    arguments = _with_sample_words(subject, arguments)
    if isinstance(arguments.get("images"), list) and is_masked(arguments):
        arguments["images"] = subject_pictures.with_masks(services, owner_id, subject_id, arguments["images"])
    return {**arguments, "owner_id": owner_id, "subject_id": subject_id}


def _with_sample_words(subject: Subject, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments whose sample prompts, if they are a preset's, have the words of this training."""
    trigger_word, class_word = arguments["trigger_word"], arguments.get("class_word")
    if not isinstance(trigger_word, str) or not isinstance(class_word, str | None):
        return dict(arguments)  # refused later
    return presets.with_words(arguments, (subject.trigger_word, subject.class_word), (trigger_word, class_word))


def is_masked(arguments: Mapping[str, Any]) -> bool:
    """Whether the training of these arguments uses masks."""
    objective = arguments.get("objective")
    return isinstance(objective, Mapping) and objective.get("masked") is True


def keep_trigger_word(services: Services, owner_id: str, subject_id: str, trigger_word: str) -> None:
    """Store the trigger word of an accepted training, if the subject has none."""
    is_silent = (
        col(Subject.owner_id) == owner_id, col(Subject.id) == subject_id, col(Subject.trigger_word).is_(None)
    )  # fmt: skip
    with services.database.writing() as session:
        insert_if_absent(session, Subject(owner_id=owner_id, id=subject_id))
        session.connection().execute(sa.update(Subject).where(*is_silent).values(trigger_word=trigger_word))


# ---- a complete profile set -----------------------------------------------------------------------------------


class Completion(View):
    """The answer to a complete profile set. `training` is the one that was started, or that prevented a start."""

    started: bool
    # disabled, not_set_up, too_few_images, already_started, running, insufficient_credits, spec_invalid
    reason: str | None = None
    message: str | None = None
    training: JobView | None = None


@dataclass(frozen=True)
class _Outcome:
    job_id: str | None = None
    reason: str | None = None
    message: str | None = None


def profile_set_completed(services: Services, owner_id: str, subject_id: str, key: str | None = None) -> Completion:
    """Start a training of a subject that has all its pictures, or say why not.

    Good pictures and recipe identify a set: reported twice, even at the same time, it is trained once. The same `key`
    also starts one training, even if a picture was added between two reports. If nothing was started, the reason also
    goes to the subject's webhook. Raises SpecInvalid for invalid names, and KeyReused for the key of another subject.
    """
    owner_id, subject_id = normal_name(owner_id), envelope.subject_name(subject_id)
    with services.database.writing() as session:
        # The second of two callers waits here, and then sees what the first one did.
        subject = session.get(Subject, (owner_id, subject_id), with_for_update=True)
        if subject is None:
            subject = Subject(owner_id=owner_id, id=subject_id)
        else:
            subject.profile_sets += 1
            session.add(subject)
        outcome = _started_before(session, subject, key) or _start(session, services, subject, key)
        if outcome.reason not in (None, "already_started"):
            _queue_not_started_notices(session, subject, outcome)
    view = service.get(services, outcome.job_id, owner_id) if outcome.job_id else None
    return Completion(started=outcome.reason is None, reason=outcome.reason, message=outcome.message, training=view)


def _started_before(session: Session, subject: Subject, key: str | None) -> _Outcome | None:
    """The training that the first report with this key started."""
    if key is None:
        return None
    job = session.exec(select(Job).where(Job.owner_id == subject.owner_id, Job.report_key == key)).one_or_none()
    if job is not None and job.subject_id != subject.id:
        raise KeyReused("this idempotency key was used for another subject; use a new key for a new report")
    return None if job is None else _Outcome(job.id)


def _start(session: Session, services: Services, subject: Subject, key: str | None) -> _Outcome:
    if not subject.train_automatically:
        return _Outcome(reason="disabled", message="automatic training is off for this subject")
    if not subject.base_model:
        return _Outcome(reason="not_set_up", message="the subject's settings have no base model")
    good = sorted(subject_pictures.usable_ids(session, subject.owner_id, subject.id))[
        -services.settings.max_pictures :
    ]  # ids sort by time
    if len(good) < MIN_PICTURES:
        message = f"{len(good)} good pictures; a training needs at least {MIN_PICTURES}"
        return _Outcome(reason="too_few_images", message=message)
    # Stored with the accepted job.
    trigger_word = subject.trigger_word or subject_recipe.derive_trigger_word(session, subject.owner_id, subject.id)
    request = _request(subject, good, trigger_word)
    if (known := _job(session, subject, idempotency_key=request["idempotency_key"])) is not None:
        message = f"a training of these pictures exists already: {known.id} is {known.status}"
        return _Outcome(known.id, "already_started", message)
    if (running := _job(session, subject)) is not None:
        return _Outcome(
            running.id, "running", f"{running.id} is {running.status}; one training of a subject runs at a time"
        )
    try:
        job = acceptance.accept(
            session, training_request.parse(request, services.settings, services.sources), services.settings
        )
    except InsufficientCredits as error:
        return _Outcome(reason="insufficient_credits", message=error.message)
    except KeyReused:
        return _Outcome(reason="already_started", message="a training of these pictures exists already")
    except SpecInvalid as error:
        faults = "; ".join(f"{name}: {fault}" for name, fault in error.faults.items())
        return _Outcome(reason="spec_invalid", message=f"the subject's settings do not fit: {faults}"[:1000])
    job.report_key = key
    subject.trigger_word = trigger_word
    session.add_all([job, subject])
    return _Outcome(job.id)


def _request(subject: Subject, images: list[str], trigger_word: str) -> dict[str, Any]:
    recipe = {
        "subject_id": subject.id,
        "base_model": subject.base_model,
        "trigger_word": trigger_word,
        "class_word": subject.class_word,
        "images": images,
    }
    # Without a recipe, the key is the one of versions that had none: a set that they trained is not trained again. With
    # the words of this training in its samples: a form that is saved later stores them so.
    words = (subject.trigger_word, subject.class_word), (trigger_word, subject.class_word)
    identity = recipe | ({"recipe": presets.with_words(subject.recipe, *words)} if subject.recipe else {})
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    given = {"owner_id": subject.owner_id, "subject_id": subject.id, "images": images, "trigger_word": trigger_word}
    arguments = subject_recipe.arguments(subject, {**given, "idempotency_key": f"profile-set:{key}"})
    return _with_sample_words(subject, arguments)


def _job(session: Session, subject: Subject, idempotency_key: str | None = None) -> Job | None:
    """The job with this key; without a key, an active job of the subject."""
    query = select(Job).where(Job.owner_id == subject.owner_id)
    if idempotency_key is not None:
        return session.exec(query.where(Job.idempotency_key == idempotency_key)).one_or_none()
    return session.exec(query.where(Job.subject_id == subject.id, col(Job.status).in_(ACTIVE)).limit(1)).first()


def _queue_not_started_notices(session: Session, subject: Subject, outcome: _Outcome) -> None:
    """Queue notices that no training was started. They are about the subject: there is no job and no model."""
    notices.queue_not_started_mail(session, subject.owner_id, subject.id, outcome.reason or "", outcome.message or "")
    if subject.webhook_url is None:
        return
    failure = NoticeFailure(code=outcome.reason, message=outcome.message)
    about = NoticeJob(owner_id=subject.owner_id, subject_id=subject.id, failure=failure)
    webhooks.put(session, about, NOT_STARTED, subject.webhook_url)
