"""The application's screener: refused pictures reach no trainer, held ones wait for a person, jobs wait for free."""

import json
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import col, select

from core.clock import utcnow
from core.errors import NotFound, ScreeningUnavailable, TooFewImages, Unreachable
from core.settings import Settings
from jobs import screening, service
from jobs.deletion import requests
from jobs.deletion import run as deletions
from jobs.lifecycle import sweeps
from jobs.services import Services
from jobs.stages import stage_runner, steps
from notifications.application import PictureQuestion
from notifications.tables import OutboxMessage
from storage.tables.jobs import Job, JobPicture, PictureState
from storage.tables.screening import Screening, ScreeningState
from tests.contract.jobs import balances, request
from tests.contract.jobs import row as job_row

HASHES = [f"{number:x}" * 64 for number in range(1, 7)]


@pytest.fixture
def screened(services: Services) -> Iterator[Services]:
    made = Services(services.settings.model_copy(update={"screen_task": "shop.screen", "screen_queue": "shop"}))
    yield made
    made.database.close()


@pytest.fixture
def waiting(screened: Services) -> str:
    """A job with six prepared pictures, before its dataset."""
    job_id = service.submit(screened, request(screened)).job_id
    prepare(screened, job_id)
    return job_id


def prepare(services: Services, job_id: str) -> None:
    with services.database.writing() as session:
        for number, picture in enumerate(session.exec(select(JobPicture).where(JobPicture.job_id == job_id)).all()):
            picture.state, picture.prepared_sha256 = PictureState.GOOD, HASHES[number]
            picture.width = picture.height = 512
            session.add(picture)


class Sent:
    """The application's tasks that were sent."""

    def __init__(self) -> None:
        self.pictures: list[PictureQuestion] = []

    def __call__(self, name: str, queue: str | None, picture: PictureQuestion, back: Any) -> None:
        assert (name, queue, *back) == ("shop.screen", "shop", picture.sha256)
        self.pictures.append(picture)


def asked(services: Services) -> list[str]:
    """The pictures that the outbox asks for, and takes them out of it."""
    with services.database.writing() as session:
        found = session.exec(select(OutboxMessage).where(OutboxMessage.topic == "screening")).all()
        for message in found:
            session.delete(message)
        return sorted(message.payload["sha256"] for message in found if message.kind == "launch")


def dataset(services: Services, job_id: str) -> bool:
    """Run the stage; whether the job went on."""
    try:
        steps.dataset(services, job_id)
    except stage_runner.NothingToDo:
        return False
    return True


def test_a_job_waits_for_its_verdicts_without_a_worker_and_goes_on(screened: Services, waiting: str) -> None:
    held = balances(screened)["held"]
    assert not dataset(screened, waiting)
    job = job_row(screened, waiting)
    assert (job.lease_until, job.attempt, job.stage) == (None, 0, "preprocess")
    assert job.waiting_note == "5 picture(s) are being screened"
    sent = Sent()
    for sha256 in asked(screened):
        screening.ask(screened, sha256, sent)
    assert [picture.sha256 for picture in sent.pictures] == HASHES[:5]
    one = sent.pictures[0]
    assert (one.owner_id, one.subject_id, one.job_id) == ("ada", "dog", waiting)
    assert one.url.endswith(f"/prepared/{HASHES[0][:2]}/{HASHES[0]}.png")
    assert not dataset(screened, waiting)
    assert asked(screened) == []  # not twice in a minute
    for sha256 in HASHES[:4]:
        screening.answer(screened, {"verdict": "accept"}, sha256)
    assert not is_due(screened, waiting)
    screening.answer(screened, "accept", HASHES[4])
    assert is_due(screened, waiting)
    assert dataset(screened, waiting)
    assert job_row(screened, waiting).stage == "train"
    assert balances(screened)["held"] == held
    # Another training on the same pictures does not ask again.
    again = service.submit(screened, request(screened, seed=2)).job_id
    prepare(screened, again)
    assert dataset(screened, again)
    assert asked(screened) == []


def is_due(services: Services, job_id: str) -> bool:
    """Whether a launch of the job is to be sent now."""
    now = utcnow() + timedelta(seconds=1)
    launches = select(OutboxMessage).where(
        OutboxMessage.job_id == job_id, OutboxMessage.kind == "launch", OutboxMessage.due_at < now
    )
    with services.database.reading() as session:
        return any(one.dead_at is None and one.sent_at is None for one in session.exec(launches))


def test_a_refused_picture_reaches_no_trainer_and_its_owner_learns_why(screened: Services, waiting: str) -> None:
    assert not dataset(screened, waiting)
    screening.answer(screened, {"verdict": "refuse", "reason": "not allowed here"}, HASHES[2])
    for sha256 in HASHES[:5]:
        screening.answer(screened, {"verdict": "accept"}, sha256)  # the first verdict counts
    with pytest.raises(TooFewImages, match="refused"):
        steps.dataset(screened, waiting)
    view = service.get(screened, waiting)
    assert view.status == "failed"
    refused = view.pictures[2]
    assert (refused.state, refused.faults) == ("bad", ["refused"])
    assert "not allowed here" in json.dumps(view.to_dict()["pictures"][2]["report"])
    assert balances(screened)["held"] == 0


def test_a_held_picture_waits_for_a_person(screened: Services, waiting: str) -> None:
    assert not dataset(screened, waiting)
    screening.answer(screened, {"verdict": "hold", "reason": "not sure"}, HASHES[0])
    for sha256 in HASHES[1:5]:
        screening.answer(screened, {"verdict": "accept"}, sha256)
    assert not dataset(screened, waiting)
    assert job_row(screened, waiting).waiting_note == "1 picture(s) wait for a person's decision"
    [held] = screening.list_held(screened)
    assert (held.sha256, held.reason, held.owner_id, held.job_ids) == (HASHES[0], "not sure", "ada", [waiting])
    with pytest.raises(NotFound):
        screening.decide(screened, HASHES[1], accept=False)
    screening.decide(screened, HASHES[0], accept=True)
    assert screening.list_held(screened) == []
    assert is_due(screened, waiting)
    assert dataset(screened, waiting)


@pytest.mark.parametrize(("state", "seconds"), [(ScreeningState.WAITING, 3601), (ScreeningState.HELD, 3 * 86400 + 1)])
def test_without_a_verdict_the_job_fails_after_the_patience_and_costs_nothing(
    screened: Services, waiting: str, state: ScreeningState, seconds: int
) -> None:
    assert not dataset(screened, waiting)
    past = utcnow() - timedelta(seconds=seconds)
    with screened.database.writing() as session:
        session.connection().execute(sa.update(Screening).values(state=state, changed_at=past))
    with pytest.raises(ScreeningUnavailable):
        steps.dataset(screened, waiting)
    view = service.get(screened, waiting)
    assert view.failure is not None
    assert (view.status, view.failure.code, view.credits.charged) == ("failed", "screening_unavailable", 0)
    assert balances(screened)["held"] == 0
    # A retry asks again.
    again = service.retry(screened, waiting).job_id
    prepare(screened, again)
    asked(screened)
    assert not dataset(screened, again)
    assert asked(screened) == HASHES[:5]


@pytest.mark.parametrize(("state", "seconds"), [(ScreeningState.WAITING, 3601), (ScreeningState.HELD, 3 * 86400 + 1)])
def test_what_a_cancelled_job_waited_for_costs_the_next_job_none_of_its_patience(
    screened: Services, waiting: str, state: ScreeningState, seconds: int
) -> None:
    assert not dataset(screened, waiting)
    asked(screened)
    service.cancel(screened, waiting)
    past = timedelta(seconds=seconds)
    with screened.database.writing() as session:  # a long time goes by
        for one in session.exec(select(Screening)).all():
            one.state, one.changed_at, one.asked_at = state, one.changed_at - past, one.asked_at and one.asked_at - past
            session.add(one)
    again = service.submit(screened, request(screened, seed=2)).job_id
    prepare(screened, again)
    for _ in range(2):  # the job waits, and the second look asks nothing anew
        assert not dataset(screened, again)
    if state == ScreeningState.WAITING:
        assert asked(screened) == HASHES[:5]  # once
    else:  # the screener has answered; the picture is a person's turn
        assert [held.job_ids for held in screening.list_held(screened)] == [[again]] * 5
        with screened.database.reading() as session:
            alerts = session.exec(select(OutboxMessage).where(OutboxMessage.topic == "screening")).all()
        assert [alert.kind for alert in alerts] == ["alert"] * 5
        assert all(again in str(alert.payload) for alert in alerts)


def test_a_job_that_still_waits_keeps_the_clock_of_the_question(screened: Services, waiting: str) -> None:
    """Otherwise an owner who sends the same pictures every half hour keeps jobs without a screener for ever."""
    assert not dataset(screened, waiting)
    past = timedelta(seconds=3601)
    with screened.database.writing() as session:
        for one in session.exec(select(Screening)).all():
            one.changed_at, one.asked_at = one.changed_at - past, one.asked_at and one.asked_at - past
            session.add(one)
        job = session.get_one(Job, waiting)
        job.created_at -= past + timedelta(minutes=1)
        session.add(job)
    again = service.submit(screened, request(screened, seed=2)).job_id
    prepare(screened, again)
    with pytest.raises(ScreeningUnavailable):
        steps.dataset(screened, again)


def test_a_screener_that_is_an_hour_behind_gets_few_tasks_and_its_late_verdict_counts(
    screened: Services, waiting: str
) -> None:
    assert not dataset(screened, waiting)
    assert asked(screened) == HASHES[:5]
    again = []
    for minute in range(1, 60):
        past = timedelta(minutes=1)
        with screened.database.writing() as session:  # a minute goes by
            for one in session.exec(select(Screening)).all():
                one.changed_at, one.asked_at = one.changed_at - past, one.asked_at and one.asked_at - past
                session.add(one)
            job = session.get_one(Job, waiting)
            job.created_at -= past
            session.add(job)
        assert not dataset(screened, waiting)
        again += [minute] if asked(screened) == HASHES[:5] else []
    assert again == [1, 2, 4, 8, 16, 32]
    for sha256 in HASHES[:5]:
        screening.answer(screened, {"verdict": "accept"}, sha256)
    assert dataset(screened, waiting)


LONG = {"verdict": "accept", "reason": "x" * 501}


@pytest.mark.parametrize("answer", [None, 7, {}, {"verdict": "maybe"}, "yes", ["accept"], LONG])
def test_an_answer_that_is_no_verdict_counts_as_none(screened: Services, waiting: str, answer: Any) -> None:
    assert not dataset(screened, waiting)
    with pytest.raises(Unreachable):
        screening.answer(screened, answer, HASHES[0])
    with screened.database.reading() as session:
        assert session.get_one(Screening, HASHES[0]).state == "waiting"


def test_off_by_default_nothing_is_asked(services: Services) -> None:
    job_id = service.submit(services, request(services)).job_id
    prepare(services, job_id)
    assert dataset(services, job_id)
    assert asked(services) == []


def test_the_verdicts_on_deleted_pictures_go_with_them(screened: Services, waiting: str) -> None:
    assert not dataset(screened, waiting)
    screening.answer(screened, {"verdict": "hold"}, HASHES[0])
    deletion = requests.delete_owner(screened, "ada")
    for _ in range(3):
        deletions.run(screened, deletion.id, lambda _: None)
        with screened.database.writing() as session:
            done = sa.update(OutboxMessage).where(col(OutboxMessage.dead_at).is_(None)).values(sent_at=utcnow())
            session.connection().execute(done)
            session.connection().execute(sa.text("UPDATE deletion SET quiet_at = NULL"))
    assert requests.get(screened, deletion.id).status == "done"
    with screened.database.reading() as session:
        assert session.exec(select(Screening)).all() == []
        assert session.exec(select(Job)).all() == []
    assert sweeps.run_audit(screened) == []


class HttpScreener:
    """A screener at an HTTP address; `answers` are given in turn, a number as a status."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.got: list[tuple[dict[str, str], dict[str, Any]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.got.append(({name.lower(): text for name, text in self.headers.items()}, json.loads(body)))
                answer = outer.answers.pop(0)
                content = json.dumps(answer).encode()
                self.send_response(answer if isinstance(answer, int) else 200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/screen"


@pytest.fixture
def http() -> Iterator[HttpScreener]:
    made = HttpScreener()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_screener_at_an_http_address(services: Services, http: HttpScreener) -> None:
    secret = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    changed: dict[str, Any] = {"screen_task": http.url, "webhook_timeout_s": 5.0}
    settings = Settings(_env_file=None, **{**services.settings.model_dump(), **changed, "webhook_secret": secret})
    screened = Services(settings)
    job_id = service.submit(screened, request(screened)).job_id
    prepare(screened, job_id)
    assert not dataset(screened, job_id)

    def never(*_: Any) -> None:
        raise AssertionError("an address is no task")

    # Down, and with answers that are none: the picture waits.
    http.answers = [503, ["?"], {"verdict": "accept"}]
    for _ in range(3):
        screening.ask(screened, HASHES[0], never)
    screening.ask(screened, HASHES[0], never)  # it has its verdict: nobody is asked
    assert len(http.got) == 3
    headers, picture = http.got[0]
    assert headers["webhook-signature"].startswith("v1,")
    assert (picture["sha256"], picture["owner_id"]) == (HASHES[0], "ada")
    http.answers = [{"verdict": "accept"}] * 4
    for sha256 in HASHES[1:5]:
        screening.ask(screened, sha256, never)
    assert dataset(screened, job_id)
    screened.database.close()
