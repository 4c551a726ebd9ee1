"""What Celery tasks of applications get from a job: results, callbacks, error callbacks, and the task of `on_end`.

`attach` and `queue_end` write messages in the transaction of the change that they tell. Later a task claims a message
and sends it through a `TaskSender`, the adapter to Celery in `tasks/`.

With `IMPRINT_CALLBACK_CONFIRM_S`, a sent message is followed by another one, its confirmation. That sends the callback
again until the application's worker has ended it.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol
from urllib.parse import quote

from sqlmodel import Session, col, select

from core.brokers.queues import is_own_queue
from core.clock import utcnow
from core.errors import AnswerRefused, ImprintError, TrainingCancelled, TrainingFailed, Unreachable
from core.settings import settings
from jobs.view import JobView
from notifications import outbox
from notifications.messages import CONFIRMATION, Message
from notifications.retries import Outcome, Verdict
from notifications.tables import TaskCall
from storage.tables.jobs import ACTIVE, EndTask, Job, Status

log = logging.getLogger(__name__)

# The topics of messages. Those of one job are sent in their order.
RESULT, CALLBACK, CHAIN, ERRBACK, ON_END = "result", "callback", "chain", "errback", "on_end"
_RESULTS = "celery://results"
_LONGEST_WAIT_S = 60
_PATIENCE = timedelta(days=3)  # how long a broker or result store may be away
_REPEATS = 5
_OF = "of"  # in the payload of a confirmation: the id of the callback


class TaskSender(Protocol):
    """Celery, as it acts at the end of a task.

    Every method raises Unreachable while the broker or the result store is away, and AnswerRefused for a signature that
    cannot be sent. With `confirm`, the id of a message, the application's worker sends `imprint.callback_ended` with it
    when the task has ended.
    """

    def store_result(self, call: TaskCall, result: object, error: ImprintError | None) -> None:
        """Store the result under the task's id, and count the task in its chord. An error also ends its chain."""

    def send_callback(
        self, call: TaskCall, signature: Any, result: object, chain: Sequence[Any] = (), *, confirm: str | None
    ) -> None:
        """Send a callback, or the first task of the rest of a chain."""

    def send_errback(self, call: TaskCall, signature: Any, error: ImprintError, *, confirm: str | None) -> None:
        """Send an error callback."""

    def send_task(
        self, name: str, queue: str | None, args: Sequence[Any], kwargs: Mapping[str, Any], *, confirm: str | None
    ) -> None:
        """Send a task by name."""


# ---- written with a change ------------------------------------------------------------------------------------


def attach(session: Session, job: Job, call: TaskCall | None) -> None:
    """Keep the task that asked for a job with that job. The same task again changes nothing.

    A task that does not wait gets its callbacks now, and so does one whose job has ended already.
    """
    if call is None or session.get(TaskCall, call.task_id) is not None:
        return
    # With the row locked, the job cannot end between this look at its status and the commit.
    job = session.get_one(Job, job.id, with_for_update=True, populate_existing=True)
    call.job_id = job.id
    session.add(call)
    session.flush()
    if not call.waits:
        _queue_callbacks(session, job, call)
    elif job.status not in ACTIVE:
        _queue_end_of(session, job, call)


def queue_end(session: Session, job: Job) -> None:
    """Queue what the end of a job brings: for each waiting task its result and callbacks, and the task of `on_end`."""
    waiting = select(TaskCall).where(TaskCall.job_id == job.id, col(TaskCall.waits))
    for call in session.exec(waiting.order_by(col(TaskCall.created_at), col(TaskCall.task_id))):
        _queue_end_of(session, job, call)
    if job.on_end is not None:
        _put(session, job, ON_END, _address(job.on_end.queue))


def _queue_end_of(session: Session, job: Job, call: TaskCall) -> None:
    # First the result, because an error callback gets only the task's id and looks the error up.
    _put(session, job, RESULT, _RESULTS, call)
    if job.status == Status.READY:
        _queue_callbacks(session, job, call)
    else:
        for index, signature in enumerate(call.errbacks):
            _put(session, job, ERRBACK, _destination(signature), call, index)


def _queue_callbacks(session: Session, job: Job, call: TaskCall) -> None:
    for index, signature in enumerate(call.callbacks):
        _put(session, job, CALLBACK, _destination(signature), call, index)
    if call.chain:
        _put(session, job, CHAIN, _destination(call.chain[-1]), call)


def _put(
    session: Session, job: Job, topic: str, destination: str, call: TaskCall | None = None, index: int = 0
) -> None:
    outbox.put(
        session, "callback", job_id=job.id, owner_id=job.owner_id, topic=topic, destination=destination,
        payload={"index": index}, task_id=call.task_id if call else None,
    )  # fmt: skip


def _destination(signature: Any) -> str:
    """The queue of a signature as an address. What clients send may be anything."""
    options = signature.get("options") if isinstance(signature, dict) else None
    return _address(options.get("queue") if isinstance(options, dict) else None)


def _address(queue: Any) -> str:
    is_named = isinstance(queue, str) and queue and not is_own_queue(queue)
    return f"celery://{quote(queue if is_named else settings().callback_queue, safe='')[:200]}"


# ---- sent later -----------------------------------------------------------------------------------------------


def send(sender: TaskSender, message: Message, view: JobView, call: TaskCall | None, on_end: EndTask | None) -> Outcome:
    """Send one message. While the broker or the result store is away, it is due again within a minute, for days."""
    now = utcnow()
    confirm = _original(message) if _can_be_confirmed(message, call) else None
    try:
        if message.topic == ON_END and on_end is not None:
            sender.send_task(on_end.task, on_end.queue, [view.to_dict()], on_end.kwargs, confirm=confirm)
        elif call is not None:
            _send_of(sender, message, view, call, confirm)
    except AnswerRefused as error:
        return Outcome(Verdict.DEAD, error.message, alert=True)
    except Unreachable as error:
        return _again(message, error, now)
    return _repeated(message, now) if message.kind == CONFIRMATION else Outcome(Verdict.SENT)


def _send_of(sender: TaskSender, message: Message, view: JobView, call: TaskCall, confirm: str | None) -> None:
    index, error = message.payload["index"], failure_of(view)
    match message.topic:
        case "result":
            sender.store_result(call, None if error else view.to_dict(), error)
        case "callback":
            sender.send_callback(call, call.callbacks[index], view.to_dict(), confirm=confirm)
        case "chain":
            sender.send_callback(call, call.chain[-1], view.to_dict(), call.chain[:-1], confirm=confirm)
        case "errback" if error is not None:
            sender.send_errback(call, call.errbacks[index], error, confirm=confirm)


def failure_of(view: JobView) -> TrainingFailed | None:
    """The error that a task ends with if it waited for this job; None unless the job failed or was cancelled."""
    if view.status not in (Status.FAILED, Status.CANCELLED) or view.failure is None:
        return None
    failure = view.failure
    kind = TrainingCancelled if view.status == Status.CANCELLED else TrainingFailed
    details = {"code": failure.code, "message": failure.message, "job_id": view.job_id, "details": failure.details}
    return kind(f"{failure.code}: {failure.message}", details)


def _again(message: Message, error: Unreachable, now: datetime) -> Outcome:
    if now - message.created_at > _PATIENCE:
        return Outcome(Verdict.DEAD, error.message, alert=True)
    wait = timedelta(seconds=min(2**message.attempts, _LONGEST_WAIT_S))
    return Outcome(Verdict.RETRY, error.message, now + wait)


# ---- confirmed by the application's worker --------------------------------------------------------------------


def expect_end(session: Session, message: Message, call: TaskCall | None) -> None:
    """Queue the confirmation of a callback that is marked as sent in this transaction."""
    if message.kind != CONFIRMATION and _can_be_confirmed(message, call):
        outbox.put(
            session, CONFIRMATION, job_id=message.job_id, owner_id=message.owner_id, topic=message.topic,
            destination=message.destination, payload={"index": message.payload["index"], _OF: message.id},
            task_id=message.task_id, due_at=utcnow() + timedelta(seconds=settings().callback_confirm_s),
        )  # fmt: skip


def record_end(session: Session, message_id: str) -> None:
    """The application's worker has ended the callback of a message: it is not sent again."""
    message = outbox.get(session, message_id)
    if message is None or message.job_id is None:
        return
    # If the worker was fast, the callback is not yet marked as sent, and gets no confirmation.
    outbox.mark_sent(session, message_id)
    for confirmation in outbox.waiting(session, message.job_id, CONFIRMATION):
        if confirmation.payload[_OF] == message_id:
            outbox.mark_sent(session, confirmation.id)


def _can_be_confirmed(message: Message, call: TaskCall | None) -> bool:
    """Whether the setting is on, and the message sends one task: a group or a chord has no end of its own."""
    if not settings().callback_confirm_s or message.topic == RESULT:
        return False
    if call is None:
        return message.topic == ON_END
    signatures = {CALLBACK: call.callbacks, ERRBACK: call.errbacks, CHAIN: call.chain[-1:]}[message.topic]
    signature = signatures[message.payload["index"]]
    return isinstance(signature, dict) and not signature.get("subtask_type")


def _original(message: Message) -> str:
    """The id of the callback that a message sends or repeats."""
    return str(message.payload.get(_OF, message.id))


def _repeated(message: Message, now: datetime) -> Outcome:
    """The next repetition of a callback; dead after the last one."""
    if message.attempts + 1 >= _REPEATS:
        return Outcome(Verdict.DEAD, "no worker of the application has ended this task", alert=True)
    wait = timedelta(seconds=settings().callback_confirm_s * 2 ** (message.attempts + 1))
    return Outcome(Verdict.RETRY, "no worker of the application has ended this task yet", now + wait, deferred=True)
