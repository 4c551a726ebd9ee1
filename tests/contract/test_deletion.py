"""What an owner gave is deleted everywhere, on both databases and both kinds of store, whenever the work is killed."""

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlmodel import col, select

from core.clock import utcnow
from core.errors import IllegalMove, KeyReused, NotFound, SpecInvalid, Unreachable
from core.settings import Settings
from jobs import keys, service, shared_objects
from jobs.deletion import encodings, requests, retention
from jobs.deletion import run as deletions
from jobs.lifecycle import sweeps, transitions
from jobs.notices import notices
from jobs.owners import accounts, tokens
from jobs.services import Services
from jobs.stages import control, intake, stage_runner, steps
from jobs.subjects import captions, drawing, image_fetches, subject_notes, subject_pictures, subject_settings
from notifications import receivers
from notifications.tables import OutboxMessage
from storage.tables.deletions import Deletion, DeletionState, UnusedObject
from storage.tables.jobs import Job, JobPicture, Stage
from storage.tables.pictures import StoredPicture
from storage.tables.remote import RemoteRun, RunState
from tests.contract.jobs import make_services, put_at, task_call
from tests.contract.personal import places
from tests.contract.processes import FORK
from tests.samples import sample
from tests.servers.s3 import S3Server, s3_server
from tests.unit.drawings import drawing as drawn
from tests.unit.drawings import encoded
from training.lora.safetensor import pack, tensor

# Each database and each kind of store; in a full run, each of both.
_PAIRED = [(("sqlite", "folder"), ("postgresql", "s3")), (("sqlite", "s3"), ("postgresql", "folder"))]
pytestmark = pytest.mark.parametrize(
    ("address", "settings"),
    [place for pair in sample(_PAIRED, 1, "places of deletions") for place in pair],
    indirect=True,
)

ADA, DOG = "Ada Lovelace", "ada-s-secret-dog"
BOB = "Bob Bystander"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def settings(request: pytest.FixtureRequest, address: str, tmp_path: Path) -> Settings:
    place: dict[str, Any] = {}
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        place = {
            "store_url": f"s3://{server.bucket()}/here", "s3_endpoint_url": server.endpoint_url,
            "s3_access_key_id": server.access_key_id, "s3_secret_access_key": server.secret_access_key,
        }  # fmt: skip
    home = tmp_path / "home"
    database = address.replace(str(tmp_path), str(home))  # a database file is searched too
    if database != address:
        home.mkdir(mode=0o700)
        (tmp_path / "imprint.db").rename(home / "imprint.db")
    return Settings(_env_file=None, home=home, database_url=database, lease_s=30, relaunch_after_s=60, **place)


@pytest.fixture
def services(settings: Settings) -> Iterator[Services]:
    made = make_services(settings)
    for owner in (ADA, BOB):
        accounts.grant(made, owner, 1000, key="welcome")
    yield made
    made.database.close()


@cache
def png(number: int) -> bytes:
    """A picture that a training takes; another for each number."""
    return encoded(drawn(number))


@dataclass
class Results:
    """A result store that remembers what was deleted from it."""

    deleted: set[str] = field(default_factory=set)
    away: bool = False

    def __call__(self, task_ids: Any) -> None:
        if self.away:
            raise Unreachable("the result store does not answer")
        self.deleted |= set(task_ids)


@dataclass
class Gift:
    """What Ada gave and what was made of it."""

    services: Services
    pictures: list[str]
    active: str  # a training that is under way, and one that is ready
    ready: str

    def words(self) -> list[str | bytes]:
        """What must be found nowhere when Ada is gone: names, words, and the bytes of her pictures."""
        return [ADA, DOG, "her-trigger", "a caption of hers", "ada.example", b"her LoRA", b"her drawing", *self.bytes]

    bytes: list[bytes] = field(default_factory=list)


REQUEST = {"base_model": "sd15", "max_steps": 10, "seed": 1}


def gift(services: Services, *, of_bob: bool = False) -> Gift:
    """Ada's pictures, trainings, settings, drawings and tokens; with `of_bob`, Bob has three of the pictures too."""
    files = [png(number) for number in range(6)]
    pictures = [subject_pictures.add(services, ADA, DOG, data, name=f"{DOG} {n}.png") for n, data in enumerate(files)]
    captions.set_all(services, ADA, DOG, {pictures[0]: "a caption of hers"})
    captions.set_all(services, ADA, DOG, {pictures[0]: "a caption of hers, changed"})
    subject_notes.add(services, ADA, DOG, [f"{DOG}.txt: not used"])
    subject_settings.change(services, ADA, DOG, {"trigger_word": "her-trigger", "webhook_url": "https://ada.example"})
    jobs = []
    for name in ("ready", "active"):
        arguments = {
            **REQUEST, "owner_id": ADA, "subject_id": DOG, "trigger_word": "her-trigger", "images": pictures,
            "webhook_url": "https://ada.example", "idempotency_key": f"{name} {ADA}", "reference": {"of": ADA},
        }  # fmt: skip
        jobs.append(service.submit(services, arguments, call=task_call(f"task-{name}")).job_id)
    ready, active = jobs
    end_ready(services, ready)
    for job_id in jobs:
        services.store.put(keys.checkpoints(job_id) + "00000001.safetensors", b"her LoRA, half of it")
        services.store.put(keys.preview(job_id, 1, 1, 0, "png"), b"her drawing, a preview")
        services.store.put(keys.kept_lora(job_id, 1), b"her LoRA, kept")
        services.store.put(keys.output(job_id, "a" * 64), b"her LoRA, on its way")
    record_drawing(services, ready)
    tokens.create(services, f"token of {ADA}", owner_id=ADA, scopes=("read", "train"))
    notices.change(services, ADA, {"email": "her@ada.example", "low_credits": 10_000})
    image_fetches.submit(services, ADA, DOG, ["https://ada.example/dog.png"], is_mask=False)
    with services.database.writing() as session:
        receivers.disable(session, ADA, "https://ada.example", "gone", utcnow())
        notices.alert_failure(session, ready, ADA, "internal")
    made = Gift(services, pictures, active, ready)
    if of_bob:
        for data in files[:3]:
            subject_pictures.add(services, BOB, "cat", data)
    with services.database.reading() as session:
        originals = session.exec(select(StoredPicture).where(StoredPicture.owner_id == ADA)).all()
    made.bytes = [services.store.get(one.key) for one in originals]
    return made


def end_ready(services: Services, job_id: str) -> None:
    services.store.put(keys.lora(job_id), b"her LoRA")
    steps.dataset(services, job_id)
    put_at(services, job_id, Stage.SETTLE, lora_bytes=8)
    with services.database.writing() as session:
        assert transitions.settle(session, job_id, services.settings)


def record_drawing(services: Services, job_id: str) -> None:
    made = drawing.StoredDrawing(id="d" * 32, owner_id=ADA, subject_id=DOG, job_id=job_id, task_id="task-drawing")
    drawing._record(services, made)
    services.store.put(keys.drawing("d" * 32) + "000.png", b"her drawing")


def deliver(services: Services) -> None:
    """All messages of jobs are sent."""
    with services.database.writing() as session:
        waiting = sa.update(OutboxMessage).where(
            col(OutboxMessage.sent_at).is_(None), col(OutboxMessage.dead_at).is_(None)
        )
        session.connection().execute(waiting.values(sent_at=utcnow()))


def go_quiet(services: Services) -> None:
    """The time is over in which a stopped worker may still write."""
    with services.database.writing() as session:
        session.connection().execute(sa.update(Deletion).values(quiet_at=utcnow() - timedelta(seconds=1)))


def until_done(services: Services, deletion_id: str, results: Results | None = None) -> None:
    for _ in range(3):
        deletions.run(services, deletion_id, results or Results())
        deliver(services)
        go_quiet(services)
    assert requests.get(services, deletion_id).status == "done"
    with services.database.reading() as session:
        assert session.exec(select(UnusedObject)).all() == []


def everything(services: Services) -> set[str]:
    return set(services.store.list(""))


# ---- an owner -------------------------------------------------------------------------------------------------


def test_of_a_deleted_owner_nothing_is_left_anywhere(services: Services) -> None:
    made = gift(services)
    before = places(services, made.words())
    # The search finds each kind of place, or it would prove nothing.
    tables = {
        "picture", "subject", "image_fetch", "training_job", "job_picture", "outbox_message", "api_token", "drawing",
        "credit_account", "notice_preferences", "disabled_receiver", "caption_change",
        "audit_entry",
        "owner_share",
    }  # fmt: skip
    assert tables <= {place.partition(".")[0] for place in before}
    kinds = {"originals", "models", "checkpoints", "previews", "outputs", "drawings"}
    assert kinds <= {place.removeprefix("object ").partition("/")[0] for place in before}
    files = everything(services)
    assert {"prepared", "thumbnails", "datasets"} <= {key.partition("/")[0] for key in files}
    (services.work_dir.parent / "1" / f"{made.active}-x").mkdir(parents=True)
    deletion, results = requests.delete_owner(services, ADA), Results()
    assert tokens.list_tokens(services)[0].revoked_at is not None  # at once
    until_done(services, deletion.id, results)
    assert places(services, made.words()) == set()
    assert everything(services) == set()
    assert results.deleted == {"task-ready", "task-active", "task-drawing"}
    assert sweeps.run_audit(services) == []
    done = requests.get(services, deletion.id, ADA)
    assert (done.owner_id, done.subject_id, done.note) == (None, None, None)
    with pytest.raises(NotFound):
        requests.get(services, deletion.id, BOB)
    # The account is there under a pseudonym, with all its entries.
    with services.database.reading() as session:
        names = session.execute(sa.text("SELECT owner_id FROM credit_account ORDER BY granted, owner_id")).scalars()
        [pseudonym] = [name for name in names if name != BOB]
    assert pseudonym.startswith("deleted_")
    found = accounts.balance(services, pseudonym)
    assert (found.granted, found.held) == (1000, 0)
    assert found.spent > 0
    with pytest.raises(NotFound):
        requests.delete_owner(services, ADA)
    # An owner of the same name begins anew.
    accounts.grant(services, ADA, 5)
    assert accounts.balance(services, ADA).available == 5


def test_what_others_use_stays_and_goes_with_its_last_user(services: Services) -> None:
    gift(services, of_bob=True)
    until_done(services, requests.delete_owner(services, ADA).id)
    left = everything(services)
    assert sum(key.startswith("originals/") for key in left) == 3
    cat = subject_pictures.list_pictures(services, BOB, "cat")
    assert [picture.verdict for picture in cat] == ["good"] * 3
    for picture in cat:
        assert subject_pictures.preview(services, BOB, "cat", picture.id)
    until_done(services, requests.delete_subject(services, BOB, "cat").id)
    assert everything(services) == set()
    assert accounts.balance(services, BOB).available == 1000


# ---- the rest, each by itself ---------------------------------------------------------------------------------


def test_a_deleted_training_leaves_the_subject_and_its_pictures(services: Services) -> None:
    made = gift(services)
    held = accounts.balance(services, ADA).held
    assert held > 0
    deletion = requests.delete_training(services, made.active, ADA)
    assert requests.delete_training(services, made.active, ADA).id == deletion.id
    assert deletions.run(services, deletion.id, Results()) is False
    # It is cancelled at once and its owner is told; only then it goes.
    assert service.get(services, made.active).status == "cancelled"
    assert requests.get(services, deletion.id).note == "the end of a training is still to be announced"
    deliver(services)
    assert deletions.run(services, deletion.id, Results()) is False
    assert requests.get(services, deletion.id).note == "a worker may still write a file of a training that was stopped"
    with pytest.raises(NotFound):
        service.get(services, made.active)
    # What a worker that has lost its job writes late goes as well.
    services.store.put(keys.kept_lora(made.active, 2), b"her LoRA, too late")
    unnamed = keys.prepared("f" * 64)
    services.store.put(unnamed, b"a picture that nothing names")
    until_done(services, deletion.id)
    assert not {key for key in everything(services) if made.active in key or key == unnamed}
    assert accounts.balance(services, ADA).held == 0
    assert sweeps.run_audit(services) == []
    assert service.get(services, made.ready).status == "ready"
    assert len(subject_pictures.list_pictures(services, ADA, DOG)) == 6
    # Asked again, the answer is the same; a late copy of the request does not start the training again.
    assert requests.delete_training(services, made.active, ADA).status == "done"
    with pytest.raises(NotFound):
        requests.delete_training(services, made.active, BOB)
    again = {**REQUEST, "owner_id": ADA, "subject_id": DOG, "trigger_word": "x", "images": made.pictures}
    with pytest.raises(KeyReused, match="was deleted"):
        service.submit(services, {**again, "idempotency_key": f"active {ADA}"})


def test_a_deleted_subject_leaves_the_owner(services: Services) -> None:
    made = gift(services)
    other = subject_pictures.add(services, ADA, "her cat", png(77))
    deletion = requests.delete_subject(services, ADA, DOG)
    # What is being deleted takes nothing new.
    for refused in (
        lambda: intake.store_picture(services, ADA, DOG, png(78)),
        lambda: subject_settings.change(services, ADA, DOG, {"class_word": "dog"}),
        lambda: image_fetches.submit(services, ADA, DOG, ["https://ada.example/2.png"], is_mask=False),
        lambda: service.submit(
            services, {**REQUEST, "owner_id": ADA, "subject_id": DOG, "trigger_word": "x", "images": made.pictures}
        ),
    ):
        with pytest.raises(IllegalMove, match="being deleted"):
            refused()
    until_done(services, deletion.id)
    assert places(services, [DOG, "her-trigger", "a caption of hers", b"her LoRA", *made.bytes]) == set()
    assert [view.id for view in subject_pictures.list_pictures(services, ADA, "her cat")] == [other]
    assert notices.get(services, ADA).email == "her@ada.example"
    assert len(tokens.list_tokens(services)) == 1
    intake.store_picture(services, ADA, DOG, png(79))  # the name is free again


def test_a_removed_picture_is_deleted_once_no_active_training_uses_it(services: Services) -> None:
    made = gift(services)
    first, data = made.pictures[0], made.bytes[0]
    with services.database.reading() as session:
        data = services.store.get(session.get_one(StoredPicture, first).key)
    subject_pictures.remove(services, ADA, DOG, first)
    [deletion] = requests.list_open(services, ADA)
    assert deletions.run(services, deletion.id, Results()) is False
    assert requests.get(services, deletion.id).note == "an active training uses a picture"
    # The same bytes again bring it back under the same id, and the deletion ends with nothing to do.
    assert intake.store_picture(services, ADA, DOG, data) == first
    assert deletions.run(services, deletion.id, Results()) is True
    subject_pictures.remove(services, ADA, DOG, first)
    service.cancel(services, made.active)
    [deletion] = requests.list_open(services, ADA)
    assert deletions.run(services, deletion.id, Results()) is True
    assert not places(services, ["a caption of hers", f"{DOG} 0.png", data])
    assert len(service.get(services, made.ready).pictures) == 6  # that it was there is not forgotten
    subject_pictures.remove(services, ADA, DOG, first)  # as often as one likes
    with pytest.raises(NotFound):
        subject_pictures.remove(services, BOB, DOG, first)
    with pytest.raises(SpecInvalid):
        service.retry(services, made.ready)
    assert intake.store_picture(services, ADA, DOG, data) != first


def test_a_deletion_can_be_undone_while_it_waits(services: Services) -> None:
    made = gift(services)
    patient = Services(services.settings.model_copy(update={"deletion_grace_s": 3600.0}))
    waiting = requests.delete_owner(patient, ADA)
    assert waiting.status == "waiting"
    assert deletions.run(patient, waiting.id, Results()) is False
    with pytest.raises(NotFound):
        requests.undo(patient, waiting.id, BOB)
    requests.undo(patient, waiting.id, ADA)
    subject_pictures.remove(patient, ADA, DOG, made.pictures[1])
    [removal] = requests.list_open(patient, ADA)
    requests.undo(patient, removal.id, ADA)
    assert len(subject_pictures.list_pictures(patient, ADA, DOG)) == 6
    assert service.get(patient, made.active).status == "pending"
    begun = requests.delete_subject(services, ADA, DOG)
    with pytest.raises(IllegalMove, match="has begun"):
        requests.undo(services, begun.id, ADA)
    patient.database.close()


def test_a_result_store_that_is_away_is_waited_for(services: Services) -> None:
    made = gift(services)
    deliver(services)
    deletion, results = requests.delete_training(services, made.ready, ADA), Results(away=True)
    assert deletions.run(services, deletion.id, results) is False
    assert requests.get(services, deletion.id).note == "the result store does not answer"
    results.away = False
    until_done(services, deletion.id, results)
    assert results.deleted >= {"task-ready"}


def test_a_training_on_a_remote_server_is_deleted_there_first(services: Services) -> None:
    made = gift(services)
    deliver(services)
    run = RemoteRun(job_id=made.ready, attempt=1, name="run_1", state=RunState.ENDED)
    with services.database.writing() as session:
        session.add(run)
    deletion = requests.delete_training(services, made.ready, ADA)
    assert deletions.run(services, deletion.id, Results()) is False
    assert requests.get(services, deletion.id).note == "a training is still to be deleted from its remote server"
    assert not services.store.exists(keys.lora(made.ready))  # what is here goes at once
    with services.database.writing() as session:
        session.connection().execute(sa.update(RemoteRun).values(cleared_at=utcnow()))
    until_done(services, deletion.id)
    assert sweeps.run_audit(services) == []


def test_the_sweep_launches_what_no_worker_works_on(services: Services) -> None:
    gift(services)
    deletion = requests.delete_owner(services, ADA)
    assert deletions.sweep(services) == 0  # its message is on its way
    late = sa.update(Deletion).values(leased=True, next_look_at=utcnow() - timedelta(seconds=1))
    with services.database.writing() as session:
        session.connection().execute(late)
    assert deletions.sweep(services) == 1
    assert deletions.sweep(services) == 0
    until_done(services, deletion.id)
    done_long_ago = sa.update(Deletion).values(finished_at=utcnow() - timedelta(days=31))
    with services.database.writing() as session:
        session.connection().execute(done_long_ago)
    deletions.sweep(services)
    with pytest.raises(NotFound):
        requests.get(services, deletion.id)


def test_retention_deletes_pictures_and_kept_checkpoints_and_keeps_the_file(services: Services) -> None:
    made = gift(services)
    newer = subject_pictures.add(services, ADA, DOG, png(90))
    assert retention.sweep(services) == 0  # off by default
    keeping = Services(services.settings.model_copy(update={"retention_days": 30}))
    assert retention.sweep(keeping) == 0
    past = sa.update(Job).where(col(Job.id) == made.ready).values(finished_at=utcnow() - timedelta(days=31))
    with services.database.writing() as session:
        session.connection().execute(past)
    # An active training uses the same pictures: they stay until it is old too.
    assert retention.sweep(keeping) == 1
    assert services.store.get(keys.lora(made.ready)) == b"her LoRA"
    assert not services.store.exists(keys.kept_lora(made.ready, 1))
    assert len(subject_pictures.list_pictures(services, ADA, DOG)) == 7
    service.cancel(services, made.active)
    past = sa.update(Job).values(finished_at=utcnow() - timedelta(days=31))
    with services.database.writing() as session:
        session.connection().execute(past)
    assert retention.sweep(keeping) == 1
    assert retention.sweep(keeping) == 0
    assert [view.id for view in subject_pictures.list_pictures(services, ADA, DOG)] == [newer]
    assert not places(services, made.bytes)
    assert sweeps.run_audit(services) == []
    keeping.database.close()


def test_encodings_of_pictures_that_no_training_has_are_deleted(services: Services) -> None:
    made = gift(services)
    folder = services.settings.home.resolve() / "encodings" / "ab"
    folder.mkdir(parents=True)
    with services.database.reading() as session:
        used = session.exec(select(JobPicture.prepared_sha256).where(JobPicture.job_id == made.ready)).all()
    for name, sha256 in (("used", used[0] or ""), ("unused", "f" * 64)):
        array = tensor(np.zeros(3, np.float32))
        (folder / f"{name}.safetensors").write_bytes(pack({"moments": array}, {"made_of": sha256}))
    (folder / "old.safetensors").write_bytes(pack({"moments": array}, {}))
    assert encodings.delete_unused(services) == 2
    assert [path.stem for path in folder.iterdir()] == ["used"]
    until_done(services, requests.delete_owner(services, ADA).id)
    assert encodings.delete_unused(services) == 1


# ---- races ----------------------------------------------------------------------------------------------------


def test_uploads_of_the_same_bytes_while_they_are_deleted_lose_nothing(services: Services) -> None:
    """Owners store and remove the same three pictures at once: who has a picture at the end has its bytes too."""
    data = [b"picture %d" % number for number in range(3)]

    def one(owner: int) -> None:
        chance = random.Random(owner)
        for _ in range(12):
            number = chance.randrange(3)
            name = f"owner-{owner}"
            picture_id = intake.store_picture(services, name, "dog", data[number])
            with services.database.reading() as session:
                key = session.get_one(StoredPicture, picture_id).key
            assert services.store.get(key) == data[number]
            if chance.random() < 0.7:
                requests.delete_picture(services, picture_id)
                for deletion in requests.list_open(services, name):
                    deletions.run(services, deletion.id, Results())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(4)))
    shared_objects.collect(services)
    with services.database.reading() as session:
        kept = {picture.key for picture in session.exec(select(StoredPicture)).all()}
    assert everything(services) == kept


@pytest.mark.parametrize("when", ["before the mark", "marked", "deleted"])
def test_a_use_that_is_recorded_at_each_point_of_a_deletion(services: Services, when: str) -> None:
    """The writer has put the object, which a deletion of its last user finds at each moment of its work."""
    data, key = b"shared", keys.original("0" * 64)
    services.store.put(key, data)
    with services.database.writing() as session:
        shared_objects.note_unused(session, [key])

    def use() -> None:
        with services.database.writing() as session:
            shared_objects.record_use(session, key)
            session.add(
                StoredPicture(id="pic_1", owner_id=BOB, subject_id="cat", sha256="0" * 64, key=key, size_bytes=6)
            )

    if when == "before the mark":
        use()
        shared_objects.collect(services)
    elif when == "deleted":
        shared_objects.collect(services)
        use()
    else:
        store = services.store
        seen: list[type[Exception]] = []

        class Interrupted:
            def delete(self, key: str) -> None:
                try:
                    use()
                except shared_objects.ObjectBeingDeleted as error:
                    seen.append(type(error))
                store.delete(key)

            def __getattr__(self, name: str) -> Any:
                return getattr(store, name)

        services.__dict__["store"] = Interrupted()
        shared_objects.collect(services)
        assert seen == [shared_objects.ObjectBeingDeleted]
        services.__dict__["store"] = store
        use()
    shared_objects.make_sure(services, key, data)
    shared_objects.collect(services)
    assert services.store.get(key) == data


def test_a_worker_that_lost_a_deleted_job_leaves_nothing(services: Services) -> None:
    made = gift(services)
    put_at(services, made.active, Stage.TRAIN)
    lease, job = stage_runner.claim(services, made.active, Stage.TRAIN)
    deletion = requests.delete_training(services, made.active)
    deletions.run(services, deletion.id, Results())
    until_done(services, deletion.id)

    # It finds out at its next look, after it has written once more.
    def late() -> None:
        with stage_runner.holding_lease(services, lease) as held:
            services.store.put(keys.checkpoints(job.id) + "00000009.safetensors", b"her LoRA, too late")
            control.JobControl(services.database, lease, held, 60).check()

    with pytest.raises(stage_runner.NothingToDo):
        late()
    assert not {key for key in everything(services) if made.active in key}


# ---- kills ----------------------------------------------------------------------------------------------------


def _doomed(settings: Settings, deletion_id: str, steps_left: int) -> None:
    """Work on a deletion, and die by SIGKILL at the n-th statement or call to the store."""
    here = Services(settings)
    left = steps_left

    def reach(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    here.database.engine.dispose(close=False)
    sa.event.listen(here.database.engine, "after_cursor_execute", reach)
    sa.event.listen(here.database.engine, "commit", reach)
    store = here.store

    class Counted:
        def __getattr__(self, name: str) -> Any:
            reach()
            return getattr(store, name)

    here.__dict__["store"] = Counted()
    deletions.run(here, deletion_id, lambda _: None)


def killed_after(settings: Settings, deletion_id: str, steps: int) -> bool:
    child = FORK.Process(target=_doomed, args=(settings, deletion_id, steps))
    child.start()
    child.join(60)
    assert child.exitcode in (0, -signal.SIGKILL), child.exitcode
    return child.exitcode != 0


@pytest.mark.parametrize("seed", sample(range(8), 2, "deletions killed"))
def test_a_deletion_killed_again_and_again_is_finished_by_the_sweep(
    services: Services, settings: Settings, seed: int
) -> None:
    made = gift(services)
    deliver(services)
    deletion = requests.delete_owner(services, ADA)
    chance, kills = random.Random(seed), 0
    for _ in range(12):
        services.database.engine.dispose()  # connections do not survive a fork
        killed = killed_after(settings, deletion.id, chance.randrange(1, 120))
        kills += killed
        deliver(services)
        assert sweeps.run_audit(services) == []
        free = sa.update(Deletion).where(col(Deletion.state) != DeletionState.DONE).values(next_look_at=utcnow())
        stale = sa.update(UnusedObject).where(col(UnusedObject.deleting_since).is_not(None))
        with services.database.writing() as session:
            session.connection().execute(free.values(leased=False, quiet_at=utcnow()))
            session.connection().execute(stale.values(deleting_since=utcnow() - timedelta(minutes=6)))
        if requests.get(services, deletion.id).status == "done":
            break
    assert kills
    if requests.get(services, deletion.id).status != "done":
        until_done(services, deletion.id)
    deletions.sweep(services)
    services.database.empty_log()
    assert places(services, made.words()) == set()
    assert everything(services) == set()
