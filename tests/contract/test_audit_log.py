"""What operators, tokens and sweeps do to jobs, owners, credits and limits is in the audit log."""

import ast
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import click
import sqlalchemy as sa
from sqlmodel import Session

from cli.main import imprint
from core.actor import acting
from core.clock import utcnow
from credits import ledger
from jobs import service
from jobs.admission import pauses, shares, workers
from jobs.deletion import requests, retention
from jobs.drawings import drawings
from jobs.lifecycle import sweeps, transitions
from jobs.lifecycle.periodic import Part, run_parts
from jobs.notices import dead_letters, notices
from jobs.owners import accounts, audit_log, limits, sessions, tokens
from jobs.owners import unusable_names as owners
from jobs.services import Services
from notifications import outbox, receivers
from storage.tables.jobs import Job, Stage
from tests.contract.jobs import put_at, request
from tests.contract.web import test_matrix, test_page_matrix

JOBS = Path(service.__file__).parent
# What changes nothing of a job, an owner, credits or a limit, by command and by route; and why.
_OF_SUBJECTS = "changes pictures, captions and settings of a subject: their own tables keep the history"
_QUIET_COMMANDS = {
    **dict.fromkeys(("captions prepend", "captions replace", "captions set", "captions undo"), _OF_SUBJECTS),
    **dict.fromkeys(("approvals", "captions list", "delete status", "ingress", "ingress status", "owners"), "reads"),
    **dict.fromkeys(("pauses", "screening", "sessions", "balance", "backends", "pods", "receivers"), "reads"),
    **dict.fromkeys(("audit", "check", "doctor", "download", "inspect", "letters", "limits", "list", "log"), "reads"),
    **dict.fromkeys(("captions review", "resolve", "status", "token list", "workers"), "reads"),
    **dict.fromkeys(
        ("backup", "caption", "convert", "generate", "migrate", "restore"), "works on files or on the whole database"
    ),
    **dict.fromkeys(("fake-comfyui", "fake-pod", "fake-runpod"), "stand-ins for development"),
    "ingress replay": "sends a message again; the job that it brings is accepted as any other",
}
_COMMANDS = {
    "captions accept": "job.reviewed",
    "approvals accept": "job.approved", "approvals refuse": "job.refused", "cancel": "job.cancelled",
    "delete owner": "deletion.requested", "delete picture": "deletion.requested",
    "delete subject": "deletion.requested", "delete training": "deletion.requested", "delete undo": "deletion.undone",
    "drain": "worker.drained", "grant": "credits.granted", "limit": "limit.changed", "notices": "preferences.changed",
    "owners rename": "owner.renamed", "pause": "admission.paused", "pods close": "pod.closed",
    "receivers enable": "receiver.enabled", "redeliver": "notice.redelivered", "refund": "credits.refunded",
    "resume": "admission.resumed", "retry": "job.accepted", "screening accept": "picture.accepted",
    "screening refuse": "picture.refused", "sessions end": "session.ended", "submit": "job.accepted",
    "token create": "token.created", "token revoke": "token.revoked", "weight": "weight.changed",
}  # fmt: skip
_ENDS = {  # of the last parts of a path that is not a GET
    "/trainings/{id}/review": "job.reviewed", "/checkpoints/{step}/deliver": "checkpoint.delivered",
    "/trainings/{id}/comfyui": "lora.sent",
    "/account/tokens": "token.created", "/account/tokens/{tokenId}/revoke": "token.revoked",
    "/train": "job.accepted", "/retry": "job.accepted", "/again": "job.accepted", "/completed": "job.accepted",
    "/trainings/{id}/cancel": "job.cancelled", "/drawings": "drawing.accepted", "/draw": "drawing.accepted",
    "/drawings/{drawingId}/cancel": "drawing.cancelled", "/account/notices": "preferences.changed",
    "/operate/limits": "limit.changed", "PUT /api/operate/pauses/{scope}": "admission.paused",
    "DELETE /api/operate/pauses/{scope}": "admission.resumed", "/operate/approvals/{id}": "job.approved",
    "/operators/jobs/{id}/cancel": "job.cancelled", "/operators/jobs/{id}/refund": "credits.refunded",
    "/operators/owners/{owner}/grant": "credits.granted", "/operators/owners/{owner}/tokens": "token.created",
    "/operators/owners/{owner}/limits": "limit.changed", "/operators/owners/{owner}/rename": "owner.renamed",
    "/operators/tokens/{tokenId}/revoke": "token.revoked", "/operators/pauses": "admission.paused",
    "/operators/pauses/end": "admission.resumed", "/operators/workers/drain": "worker.drained",
    "/operators/trainings/{id}/decide": "job.approved", "/operators/pictures/{sha256}/decide": "picture.accepted",
    "/sign-in": "session.begun", "/sign-in/{secret}": "session.begun", "/sign-out": "session.ended",
    "DELETE /api/account/sessions/{sessionId}": "session.ended",
    "/account/sessions/{sessionId}/end": "session.ended", "/account/sessions/end-others": "session.ended",
    "DELETE /api/account": "deletion.requested", "DELETE /api/deletions/{deletionId}": "deletion.undone",
    "/deletions/{deletionId}/undo": "deletion.undone", "DELETE /api/influencer/{id}": "deletion.requested",
    "DELETE /api/trainings/{id}": "deletion.requested", "/delete": "deletion.requested",
    "DELETE /api/influencer/{id}/images/{imageId}": "deletion.requested",
    "/images/{imageId}/remove": "deletion.requested", "/images/{imageId}/unmask": "deletion.requested",
}  # fmt: skip
_QUIET_ENDS = (
    "/settings", "/recipe", "/recipe/preset", "/recipe/import",
    "/automatic", "/images", "/uploads", "/language", "/caption", "/captions", "/captions/undo", "/captions/{imageId}",
    "/captions/all/replace", "/captions/all/prepend", "/captions/all/undo", "/captions/all/import", "/uncrop",
    "/crop", "/mask", "/notes", "/dismiss",
    "PATCH /api/influencer/{id}/images/{imageId}",
)  # fmt: skip


def recorded() -> set[str]:
    """The actions that the code records; those with a status in their name for each status."""
    found = set()
    for path in JOBS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_call = isinstance(node, ast.Call) and ast.unparse(node.func) in ("audit_log.record", "_log")
            if not is_call or len(node.args) < 2:  # type: ignore[attr-defined]
                continue
            action = node.args[1]  # type: ignore[attr-defined]
            texts = [one.value for one in ast.walk(action) if isinstance(one, ast.Constant)]
            if isinstance(action, ast.JoinedStr):
                texts = [f"{texts[0]}{status}" for status in ("ready", "failed", "cancelled")]
            found |= {text for text in texts if isinstance(text, str) and "." in text}
    return found


def commands(group: click.Group, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
            if not command.invoke_without_command:
                continue
        yield prefix + name


def test_all_actions_can_be_filtered_by() -> None:
    assert recorded() == set(audit_log.ACTIONS)


def test_every_command_is_in_the_audit_log_or_changes_nothing() -> None:
    known = _COMMANDS.keys() | _QUIET_COMMANDS.keys()
    assert set(commands(imprint)) <= known
    assert set(_COMMANDS.values()) <= recorded()


def test_every_route_is_in_the_audit_log_or_changes_nothing() -> None:
    rows = [f"{row.method} {row.path}" for row in (*test_matrix.ROWS, *test_page_matrix.ROWS) if row.method != "GET"]
    unknown = [row for row in rows if not row.endswith((*_ENDS, *_QUIET_ENDS))]
    assert unknown == []
    assert set(_ENDS.values()) <= recorded()


# ---- what is done, and the entry of it -----------------------------------------------------------------------------


def a_job(services: Services) -> str:
    job_id: str = service.submit(services, request(services)).job_id
    return job_id


def a_ready_job(services: Services) -> str:
    job_id = a_job(services)
    put_at(services, job_id, Stage.SETTLE)
    with services.database.writing() as session:
        transitions.settle(session, job_id, services.settings)
    return job_id


def change(services: Services, work: Callable[[Session], object]) -> None:
    with services.database.writing() as session:
        work(session)


def make_late(services: Services, job_id: str) -> None:
    change(services, lambda session: session.connection().execute(
        sa.update(Job).where(Job.id == job_id).values(next_look_at=utcnow() - timedelta(days=1))  # type: ignore[arg-type]
    ))  # fmt: skip


def redeliver(services: Services) -> None:
    job_id = a_job(services)
    service.cancel(services, job_id)
    with services.database.writing() as session:
        [notice] = outbox.waiting(session, job_id, "notice")
        outbox.mark_failed(session, notice.id, "no answer", None)
    assert dead_letters.redeliver_dead(services, job_id=job_id).again == [notice.id]


def rename(services: Services) -> None:
    change(services, lambda session: ledger.grant(session, "bo\u200bb", 1, key="odd"))
    owners.rename(services, "bo\u200bb", "bob")


def enable(services: Services) -> None:
    change(services, lambda session: receivers.disable(session, "ada", "https://app.example/x", "410", utcnow()))
    dead_letters.enable_receiver(services, "ada", "https://app.example")


def begin_and_end_sessions(services: Services) -> None:
    _, token = tokens.create(services, "shop", owner_id="ada")
    sessions.end(services, sessions.begin(services, token, "ada"), "ada")
    sessions.begin(services, token, "ada")
    assert sessions.end_all(services, "ada") == 1
    tokens.revoke(services, token.id)


def drain(services: Services) -> None:
    workers.beat(services, "train@one", ["train.sd15"], 1)
    workers.drain(services, "train@one")
    workers.drain(services, "train@one", draining=False)


def draw(services: Services) -> None:
    asked = {"owner_id": "ada", "job_id": a_ready_job(services), "prompt": "on a beach"}
    drawings.cancel(services, drawings.submit(services, asked).drawing_id)


def undo_a_deletion(services: Services) -> None:
    patient = Services(services.settings.model_copy(update={"deletion_grace_s": 60}))
    requests.undo(patient, requests.delete_training(patient, a_ready_job(services)).id, "ada")
    patient.database.close()


def lose_its_worker(services: Services) -> None:
    make_late(services, a_job(services))
    assert sweeps.repair_jobs(services) == 1


def let_its_hold_expire(services: Services) -> None:
    make_late(services, a_job(services))
    change(services, lambda session: session.connection().execute(
        sa.text("UPDATE credit_hold SET expires_at = '2026-01-01 00:00:00.000000+00:00' WHERE state = 'held'")
    ))  # fmt: skip
    sweeps.repair_jobs(services)


def thin(services: Services) -> None:
    job_id = a_ready_job(services)
    change(services, lambda session: session.connection().execute(
        sa.update(Job).where(Job.id == job_id).values(finished_at=utcnow() - timedelta(days=9))  # type: ignore[arg-type]
    ))  # fmt: skip
    assert retention.sweep(Services(services.settings.model_copy(update={"retention_days": 5}))) == 1


DONE: list[tuple[Callable[[Services], object], set[str]]] = [
    (lambda s: service.cancel(s, a_job(s)), {"job.accepted", "job.cancelled"}),
    (lambda s: service.retry(s, a_ready_job(s)), {"job.accepted", "job.ready"}),
    (lambda s: accounts.grant(s, "ada", 5), {"credits.granted"}),
    (lambda s: accounts.refund(s, a_ready_job(s), 1), {"credits.refunded"}),
    (lambda s: limits.change(s, "pictures", 9, owner_id="ada"), {"limit.changed"}),
    (lambda s: shares.set_weight(s, "ada", 2.0), {"weight.changed"}),
    (lambda s: (pauses.pause(s, "all"), pauses.resume(s, "all")), {"admission.paused", "admission.resumed"}),
    (lambda s: notices.change(s, "ada", {"low_credits": 5}), {"preferences.changed"}),
    (begin_and_end_sessions, {"token.created", "session.begun", "session.ended", "token.revoked"}),
    (drain, {"worker.drained", "worker.undrained"}),
    (redeliver, {"notice.redelivered"}),
    (rename, {"owner.renamed"}),
    (enable, {"receiver.enabled"}),
    (draw, {"drawing.accepted", "drawing.cancelled"}),
    (undo_a_deletion, {"deletion.requested", "deletion.undone"}),
    (lose_its_worker, {"job.sent_again"}),
    (let_its_hold_expire, {"credits.expired", "job.failed"}),
    (thin, {"job.thinned"}),
]


def test_what_is_done_is_recorded_with_its_actor(services: Services) -> None:
    """Approvals, screening and pods are in the tests of those."""
    for work, actions in DONE:
        before = {entry.id for entry in audit_log.list_entries(services, limit=1000)}
        with acting("token", "token_1"):
            work(services)
        new = [entry for entry in audit_log.list_entries(services, limit=1000) if entry.id not in before]
        assert actions <= {entry.action for entry in new}, actions
        assert {(entry.actor, entry.actor_id) for entry in new} == {("token", "token_1")}


def test_a_sweep_is_named(services: Services) -> None:
    make_late(services, a_job(services))
    run_parts(services, [Part("repair", sweeps.repair_jobs)])
    [entry] = audit_log.list_entries(services, action="job.sent_again")
    assert (entry.actor, entry.actor_id) == ("sweep", "repair")
