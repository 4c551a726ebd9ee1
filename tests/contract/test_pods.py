"""Renting, keeping and giving back machines at a fake RunPod, on both databases. No pod is left, whatever happens."""

import random
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.errors import BackendFailed, BackendUnreachable
from core.ids import made_at, new_id
from core.settings import Settings
from jobs.owners import audit_log
from jobs.remote import pod_costs, pod_reaper, pods, trainers
from jobs.remote.pod_rental import ORDER_GRACE_S
from jobs.services import Services
from storage.tables.jobs import Job
from storage.tables.remote import PodState, RemoteRun, RentedPod, RunState
from tests.contract.processes import FORK
from tests.servers.runpod import KEY, RunPodServer, runpod_server
from tests.site import until
from training.backends.runpod import PodRequest, RunPod
from training.spec import TrainSpec

RTX, A6000 = "NVIDIA GeForce RTX 4090", "NVIDIA RTX A6000"
SPEC = TrainSpec(base_model="sd15", trigger_word="imp", seed=1, backend="ai-toolkit")  # type: ignore[call-arg]
Z_IMAGE = TrainSpec(base_model="z-image-turbo", trigger_word="imp", seed=1)  # type: ignore[call-arg]
_numbers = count()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunPodServer]:
    """A RunPod whose pods run at once."""
    with runpod_server(tmp_path_factory.mktemp("running")) as server:
        yield server


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunPodServer]:
    """A RunPod whose pods never come to run: for all that needs no server."""
    with runpod_server(tmp_path_factory.mktemp("cloud"), start_s=3600) as server:
        yield server


@pytest.fixture
def make(address: str, tmp_path: Path) -> Iterator[Callable[..., Services]]:
    """Services that rent pods, with a prefix of its own, so that tests share a RunPod."""
    made: list[Services] = []

    def build(server: RunPodServer | None, **changed: Any) -> Services:
        here: dict[str, Any] = {"pod_prefix": f"t{next(_numbers)}", "remote_poll_s": 30}
        if server is not None:
            at = {"runpod_url": server.url, "pod_proxy": f"{server.base}/proxy/{{pod_id}}"}
            here |= {"runpod_api_key": KEY, **at}
        services = Services(Settings(_env_file=None, home=tmp_path / "home", database_url=address, **(here | changed)))
        services.__dict__["runpod"] = services.runpod and impatient(services.settings)
        made.append(services)
        return services

    yield build
    for services in made:
        services.database.close()


def impatient(settings: Settings) -> RunPod:
    assert settings.runpod_api_key is not None
    return RunPod(settings.runpod_url, settings.runpod_api_key.get_secret_value(), timeout_s=20, pause=lambda _: None)


def place(services: Services, spec: TrainSpec = SPEC) -> tuple[pods.PodPlacement, str]:
    """Place a training; its job's id."""
    job_id = new_id("job")

    def assign(session: Session, pod: RentedPod | None) -> None:
        session.add(Job(id=job_id, owner_id="o", subject_id="s", request_sha256="", spec={}))
        session.flush()
        session.add(RemoteRun(job_id=job_id, attempt=1, name=f"imprint_{job_id}", pod_id=pod and pod.id))

    return pods.place(services, spec, assign), job_id


def end(services: Services, job_id: str) -> None:
    change_run(services, job_id, state=RunState.ENDED, ended_at=utcnow())


def change_run(services: Services, job_id: str, **values: Any) -> None:
    with services.database.writing() as session:
        run = session.get_one(RemoteRun, (job_id, 1))
        pod_costs.share_out_cost(session, run.pod_id)
        session.execute(sa.update(RemoteRun).where(col(RemoteRun.job_id) == job_id).values(**values))


def rows(services: Services) -> list[RentedPod]:
    with services.database.reading() as session:
        return list(session.exec(select(RentedPod).order_by(col(RentedPod.id))))


def states(services: Services) -> list[str]:
    return [str(pod.state) for pod in rows(services)]


def change(services: Services, pod_id: str, **values: Any) -> None:
    with services.database.writing() as session:
        session.execute(sa.update(RentedPod).where(col(RentedPod.id) == pod_id).values(**values))


def insert(services: Services, state: str, **values: Any) -> RentedPod:
    pod_id = new_id("pod")
    name = f"{services.settings.pod_prefix}-{pod_id}"
    given = {"provider_id": f"x{pod_id}", "gpu": RTX, "cost_microdollars_per_h": 690_000, "url": "http://127.0.0.1:1"}
    pod = RentedPod(id=pod_id, name=name, state=state, **(given | values))
    with services.database.writing() as session:
        session.add(pod)
    return pod


def rented(server: RunPodServer, services: Services) -> list[dict[str, Any]]:
    """What these services have ever rented, by the provider's books."""
    return [pod for pod in server.ledger() if pod["name"].startswith(f"{services.settings.pod_prefix}-")]


def left(server: RunPodServer, services: Services) -> int:
    return sum(pod["left"] for pod in rented(server, services))


def ready(services: Services) -> RentedPod:
    def looks() -> bool:
        pods.check(services)
        return states(services) == ["ready"]

    until(looks, 90, "the pod is ready")
    return rows(services)[0]


# ---- one pod, from the first training to its end --------------------------------------------------------------


def test_a_pod_serves_trainings_one_after_another_is_kept_warm_and_goes(
    make: Callable[..., Services], running: RunPodServer
) -> None:
    services = make(running, pod_jobs_max=2, pods_max=1, pod_warm_s=100)
    first, job = place(services)
    assert (first.found, first.reason) == (True, "")
    assert first.pod is not None
    assert (first.pod.state, first.pod.gpu, first.pod.family) == (PodState.STARTING, RTX, "sd15")
    other, other_job = place(services, Z_IMAGE)
    assert other.pod is not None
    assert other.pod.id == first.pod.id
    full, _ = place(services)
    assert (full.found, full.reason) == (False, "all 1 pods that may be rented are full (IMPRINT_PODS_MAX)")

    pod = ready(services)
    assert pod.ready_at is not None
    assert pods.server_of(services, pod.id).ready()
    word = pods.token_of(services, pod)
    assert " " not in word
    content = running.http.get(f"/v2/pods/{pod.provider_id}", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert content["env"] == {"AI_TOOLKIT_AUTH": word}

    change_run(services, job, state=RunState.SUBMITTED, status="running")
    accounted_at = rows(services)[0].accounted_at
    change(services, pod.id, accounted_at=accounted_at - timedelta(hours=1))
    end(services, job)  # it worked for an hour, while the other waited
    end(services, other_job)
    pods.check(services)
    idle = rows(services)[0]
    assert (idle.state, idle.family) == (PodState.READY, "sd15 z-image")
    assert idle.idle_since is not None
    with services.database.reading() as session:
        costs = {run.job_id: run.cost_microdollars for run in session.exec(select(RemoteRun))}
    assert 690_000 <= costs[job] < 720_000
    assert costs[other_job] < 20_000

    again, job = place(services)  # a warm pod is taken again, and is idle no more
    assert again.pod is not None
    assert (again.pod.id, again.pod.idle_since) == (pod.id, None)
    end(services, job)
    pods.check(services)
    change(services, pod.id, idle_since=utcnow() - timedelta(seconds=101))
    at_once = [threading.Thread(target=pods.check, args=(services,)) for _ in range(3)]
    for thread in at_once:
        thread.start()
    for thread in at_once:
        thread.join()
    gone = rows(services)[0]
    assert (gone.state, gone.reason, pods.is_lost(gone)) == (PodState.GONE, "idle", True)
    [entry] = rented(running, services)
    assert (entry["left"], entry["end"]) == (False, "deleted")
    with pytest.raises(BackendUnreachable):
        pods.server_of(services, gone.id)

    with services.database.reading() as session:
        runs = list(session.exec(select(RemoteRun)))
    assert all(run.cleared_at is not None for run in runs)  # nothing of them can be left on a pod that is gone
    borne = sum(run.cost_microdollars for run in runs) + gone.idle_microdollars
    took = pod_costs.cost(gone, utcnow())
    assert abs(borne - 690_000 - took) < 100  # one hour was made up; the rest is shared out to the microdollar
    assert took >= entry["microdollars"]


@pytest.mark.parametrize("how", ["vanished", "EXITED", "ERROR"])
def test_a_pod_that_vanished_or_ended_is_gone_and_what_runs_on_it_is_lost(
    make: Callable[..., Services], cloud: RunPodServer, how: str
) -> None:
    services = make(cloud)
    pod = place(services)[0].pod
    assert pod is not None
    assert pod.provider_id is not None
    cloud.change(pod.provider_id, how)
    pods.check(services)
    row = rows(services)[0]
    assert row.state == PodState.GONE
    assert (row.reason or "").startswith("RunPod ")
    assert pods.is_lost(row)
    assert left(cloud, services) == 0


def test_a_pod_that_does_not_start_or_stops_answering_is_given_up(
    make: Callable[..., Services], cloud: RunPodServer
) -> None:
    services = make(cloud, pod_ready_s=600, remote_lost_polls=2)
    pod = place(services)[0].pod
    assert pod is not None
    change(services, pod.id, created_at=utcnow() - timedelta(seconds=590))
    pods.check(services)
    assert states(services) == ["starting"]
    change(services, pod.id, created_at=utcnow() - timedelta(seconds=610))
    cloud.order(delete=["500"] * 4)  # and deleting it fails at first
    pods.check(services)
    assert states(services) == ["closing"]
    assert left(cloud, services) == 1
    pods.check(services)
    assert [(row.state, row.reason) for row in rows(services)] == [("gone", "its server did not answer within 600 s")]

    pod = place(services)[0].pod
    assert pod is not None
    change(services, pod.id, state=PodState.READY)
    pods.check(services)
    assert states(services) == ["gone", "ready"]
    pods.check(services)
    assert [row.reason for row in rows(services)][1] == "its server did not answer 2 times in a row"
    assert left(cloud, services) == 0


def test_a_pod_that_has_another_password_is_given_up_at_once(
    make: Callable[..., Services], running: RunPodServer
) -> None:
    services = make(running)
    place(services)
    pod = ready(services)
    changed = make(running, pod_prefix=services.settings.pod_prefix, runpod_api_key="rpa_ROTATED")
    changed.__dict__["runpod"] = services.runpod
    pods.check(changed)
    assert states(services) == ["gone"]
    assert "password" in (rows(services)[0].reason or "")
    assert pods.token_of(services, pod) not in (rows(services)[0].reason or "")


# ---- where a training goes ------------------------------------------------------------------------------------


def test_a_training_goes_where_its_base_model_is_and_where_somebody_answers(
    make: Callable[..., Services], cloud: RunPodServer
) -> None:
    services = make(cloud, pod_jobs_max=2)
    insert(services, PodState.STARTING, family="z-image")
    insert(services, PodState.READY, family="sd15")
    fit = insert(services, PodState.READY, family="sd15 z-image")
    insert(services, PodState.READY, family="z-image", missed=1)
    for gone in (PodState.CLOSING, PodState.GONE):
        insert(services, gone, family="z-image", gone_at=utcnow())
    for _ in range(2):
        found = place(services, Z_IMAGE)[0].pod
        assert found is not None
        assert found.id == fit.id
    overflow = place(services, Z_IMAGE)[0].pod
    assert overflow is not None
    assert overflow.family == "sd15 z-image"
    assert overflow.id != fit.id
    assert rented(cloud, services) == []


def test_with_a_fixed_server_nothing_is_rented_and_without_a_key_nothing_happens(
    make: Callable[..., Services], cloud: RunPodServer
) -> None:
    fixed = make(cloud, ai_toolkit_url="http://127.0.0.1:1", ai_toolkit_token="word")
    found, job_id = place(fixed)
    assert found == pods.PodPlacement(found=True)
    with fixed.database.reading() as session:
        assert session.get_one(RemoteRun, (job_id, 1)).pod_id is None
    assert rented(cloud, fixed) == []
    nobody = make(None)
    with pytest.raises(BackendFailed, match="IMPRINT_RUNPOD_API_KEY"):
        place(nobody)
    pods.check(nobody)
    assert pod_reaper.reap(nobody) == 0


# ---- ceilings -------------------------------------------------------------------------------------------------


def test_the_next_type_of_gpu_is_tried_and_a_refusal_is_remembered(
    make: Callable[..., Services], cloud: RunPodServer
) -> None:
    services = make(cloud, pod_gpus=["NVIDIA Abacus", RTX, A6000], pods_max=5, pod_jobs_max=1)
    cloud.order(create=["400"])
    pod = place(services)[0].pod
    assert pod is not None
    assert (pod.gpu, pod.cost_microdollars_per_h) == (A6000, 490_000)
    cloud.order(create=["402", "400"])
    refused, _ = place(services)
    assert not refused.found
    assert "balance" in refused.reason
    before = cloud.calls()
    assert [place(services)[0].reason for _ in range(20)] == [refused.reason] * 20
    assert cloud.calls() == before  # a crowd that waits asks RunPod nothing
    change(services, rows(services)[1].id, gone_at=utcnow() - timedelta(seconds=31))
    assert "no free machine" in place(services)[0].reason or place(services)[0].found
    assert {pod.state for pod in rows(services)} <= {"starting", "gone"}


def test_a_refused_key_is_no_reason_to_wait(make: Callable[..., Services], cloud: RunPodServer) -> None:
    services = make(cloud)
    services.__dict__["runpod"] = RunPod(cloud.url, "wrong", pause=lambda _: None)
    with pytest.raises(BackendFailed, match="IMPRINT_RUNPOD_API_KEY"):
        place(services)
    services.__dict__["runpod"] = impatient(services.settings)
    cloud.order(create=["422"])
    with pytest.raises(BackendFailed):
        place(services)
    assert states(services) == ["gone"]


@pytest.mark.parametrize(
    ("ceiling", "gpus"),
    [
        ({"pods_max": 2}, [RTX, RTX]),
        ({"spend_per_hour": 1.2}, [RTX, A6000]),  # a second 4090 would be too dear; the cheaper card is not
        ({"spend_per_day": 0.7}, [RTX]),
        ({"spend_per_day": 0.0}, []),
    ],
)
def test_processes_that_race_keep_to_the_ceilings(
    make: Callable[..., Services], cloud: RunPodServer, ceiling: dict[str, Any], gpus: list[str]
) -> None:
    services = make(cloud, **({"pods_max": 6, "pod_jobs_max": 1, "pod_gpus": [RTX, A6000]} | ceiling))
    services.database.migrate()
    services.database.close()  # connections do not survive a fork
    results = FORK.Queue()
    barrier = FORK.Barrier(5)

    def crowd() -> None:
        here = Services(services.settings)
        barrier.wait(60)
        found = []
        for _ in range(6):
            content = place(here)[0]
            found.append(content.pod.id if content.pod else content.reason)
        results.put(found)

    children = [FORK.Process(target=crowd) for _ in range(5)]
    for child in children:
        child.start()
    placed = [one for _ in children for one in results.get(timeout=120)]
    for child in children:
        child.join(60)
    assert sorted(one for one in placed if one.startswith("pod_")) == [
        pod.id for pod in rows(services) if pod.provider_id
    ]
    assert [pod["gpu"] for pod in rented(cloud, services)] == gpus
    assert left(cloud, services) == len(gpus)


def test_the_day_has_a_ceiling_over_what_was_spent_in_24_hours(
    make: Callable[..., Services], cloud: RunPodServer
) -> None:
    services = make(cloud, spend_per_day=3.0, pod_gpus=[RTX], pod_ready_s=10_000)
    now = utcnow()

    def used(begun_h: float, ended_h: float | None) -> RentedPod:
        gone = {} if ended_h is None else {"gone_at": now - timedelta(hours=ended_h)}
        state = PodState.READY if ended_h is None else PodState.GONE
        return insert(services, state, created_at=now - timedelta(hours=begun_h), **gone)

    def spent() -> float:
        return round(float(trainers.spending(services).in_24_hours), 3)

    used(30, 23)
    assert spent() == 0.69
    used(50, 25)
    assert spent() == 0.69
    used(10, 8)
    assert spent() == 2.07
    assert place(services)[0].found  # 2.07 and an hour of 0.69 stay below 3
    warm = used(1.1, None)
    assert spent() == 2.829
    change(services, warm.id, created_at=now - timedelta(hours=1.4))
    refused, _ = place(services)
    assert (refused.found, refused.reason) == (False, "the ceiling of $3.00 for pods in 24 hours is reached")
    # What runs goes on to its end; what is idle is not kept.
    pods_on = [pod for pod in rows(services) if pod.state == PodState.STARTING]
    change(services, warm.id, provider_id=pods_on[0].provider_id, state=PodState.STARTING)
    change(services, pods_on[0].id, provider_id=None, state=PodState.GONE, gone_at=now)
    pods.check(services)
    [row] = [pod for pod in rows(services) if pod.id == warm.id]
    assert (row.state, row.reason) == (PodState.GONE, refused.reason)


# ---- crashes while renting ------------------------------------------------------------------------------------


def die(*_: Any, **__: Any) -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def rent_and_die(services: Services, point: str) -> None:
    """Rent in a process that is killed: before the order is sent, once it is done, or once it is written down."""
    services.database.migrate()
    services.database.close()

    def doomed() -> None:
        here = Services(services.settings)
        runpod = impatient(services.settings)
        here.__dict__["runpod"] = runpod
        create = runpod.create

        def dying(order: PodRequest) -> Any:
            if point == "before":
                die()
            made = create(order)
            if point == "after":
                die()
            return made

        runpod.create = dying  # type: ignore[method-assign]
        pods.place(here, SPEC, die)

    child = FORK.Process(target=doomed)
    child.start()
    child.join(60)
    assert child.exitcode == -9


@pytest.mark.parametrize("point", ["before", "after", "assign"])
def test_a_crash_while_renting_is_found_by_the_name(
    make: Callable[..., Services], cloud: RunPodServer, point: str
) -> None:
    services = make(cloud, pod_warm_s=0)
    rent_and_die(services, point)
    assert states(services) == ["renting"]
    made = len(rented(cloud, services))
    assert made == (point != "before")
    assert place(services)[0].reason == "a pod is being rented"
    assert pod_reaper.reap(services) == 0  # an order on its way is nobody's prey
    pods.check(services)
    if point == "before":
        assert states(services) == ["renting"]
        change(services, rows(services)[0].id, asked_at=utcnow() - timedelta(seconds=ORDER_GRACE_S + 1))
        pods.check(services)
        assert rows(services)[0].reason == "RunPod has not created this pod"
    else:
        assert states(services) == ["starting"]  # taken over; nobody needs it, so it goes with the next look
        pods.check(services)
    assert states(services) == ["gone"]
    assert (len(rented(cloud, services)), left(cloud, services)) == (made, 0)


def test_an_answer_that_was_lost_rents_one_pod(make: Callable[..., Services], cloud: RunPodServer) -> None:
    services = make(cloud)
    cloud.order(create=["lost"], list=["500"])
    assert place(services)[0].found
    assert len(rented(cloud, services)) == 1


def test_a_worker_that_wakes_after_its_order_was_given_up_gives_the_pod_back(
    make: Callable[..., Services], cloud: RunPodServer
) -> None:
    services = make(cloud)
    assert services.runpod is not None
    create = services.runpod.create

    def paused(order: PodRequest) -> Any:
        change(services, rows(services)[0].id, asked_at=utcnow() - timedelta(hours=1))
        pods.check(services)
        return create(order)

    services.runpod.create = paused  # type: ignore[method-assign]
    late, _ = place(services)
    assert (late.found, late.reason) == (False, "the order for a pod was given up")
    assert states(services) == ["gone"]
    assert (len(rented(cloud, services)), left(cloud, services)) == (1, 0)


def test_the_sweep_may_take_a_pod_over_before_its_sender_does(
    make: Callable[..., Services], cloud: RunPodServer
) -> None:
    services = make(cloud)
    assert services.runpod is not None
    create = services.runpod.create

    def slow(order: PodRequest) -> Any:
        made = create(order)
        pods.check(services)
        return made

    services.runpod.create = slow  # type: ignore[method-assign]
    found, job_id = place(services)
    assert found.pod is not None
    with services.database.reading() as session:
        assert session.get_one(RemoteRun, (job_id, 1)).pod_id == found.pod.id
    assert states(services) == ["starting"]
    assert left(cloud, services) == 1


# ---- the reaper -----------------------------------------------------------------------------------------------


def test_the_reaper_takes_what_no_row_needs_and_nothing_else(
    make: Callable[..., Services], cloud: RunPodServer
) -> None:
    services = make(cloud, pods_max=3, pod_jobs_max=1)
    prefix = services.settings.pod_prefix
    kept, forgotten = place(services)[0].pod, place(services)[0].pod
    assert kept is not None
    assert forgotten is not None
    change(services, forgotten.id, state=PodState.GONE, gone_at=utcnow())  # marked gone, still there
    old, young = _id_of(utcnow() - timedelta(days=1)), new_id("pod")
    assert made_at(young) is not None
    runpod = services.runpod
    assert runpod is not None
    names = {
        "restored": f"{prefix}-{old}",  # rented yesterday; then our database was restored from the day before
        "fresh": f"{prefix}-{young}",  # another process may be at it this moment
        "twice": kept.name,
        "theirs": f"{prefix}x-{old}",  # another installation's, or a person's
        "odd": f"{prefix}-{old}x",
        "hand": f"{prefix}-my-own-pod",
    }
    made = {key: runpod.create(PodRequest(name, RTX, 20, {}, image="i")).id for key, name in names.items()}
    assert pod_reaper.reap(services) == 3
    there = {pod.id for pod in runpod.pods()}
    assert {key for key, pod_id in made.items() if pod_id not in there} == {"restored", "twice"}
    assert kept.provider_id in there
    assert forgotten.provider_id not in there
    assert pod_reaper.reap(services) == 0
    for pod_id in made.values():
        runpod.delete(pod_id)


def _id_of(moment: datetime) -> str:
    """An id as `new_id` would have made it then."""
    alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
    number = int(moment.timestamp() * 1000) << 80
    made = "pod_" + "".join(alphabet[number >> shift & 31] for shift in range(125, -1, -5))
    assert abs((made_at(made) or utcnow()) - moment) < timedelta(milliseconds=2)
    return made


def test_while_runpod_is_away_nothing_is_decided(make: Callable[..., Services], cloud: RunPodServer) -> None:
    services = make(cloud, pod_warm_s=0)
    place(services)
    cloud.order(list=["503"] * 8)
    pods.check(services)
    assert pod_reaper.reap(services) == 0
    assert states(services) == ["starting"]
    elsewhere = make(cloud, runpod_url="http://127.0.0.1:1/v2", pod_prefix=services.settings.pod_prefix, pod_jobs_max=1)
    refused, _ = place(elsewhere)
    assert (refused.found, refused.reason) == (False, "RunPod does not answer, or only with errors")


@pytest.mark.parametrize("seed", [1])
def test_whatever_goes_wrong_no_pod_is_left_and_none_is_rented_twice(
    make: Callable[..., Services], tmp_path: Path, seed: int
) -> None:
    wrong = {"errors": 0.1, "too_many": 0.1, "lost_creates": 0.4, "sold_out_creates": 0.2, "failed_deletes": 0.5}
    with runpod_server(tmp_path / "runpod", seed=seed, start_s=3600, **wrong) as server:
        services = make(server, pods_max=4, pod_jobs_max=2, spend_per_day=1000, pod_warm_s=0.2, remote_poll_s=0.1)
        luck, placed = random.Random(seed), []
        for _ in range(30):
            found, job_id = place(services)
            placed += [job_id] if found.found else []
            if placed and luck.random() < 0.4:
                end(services, placed.pop(luck.randrange(len(placed))))
            there = [pod for pod in server.ledger() if pod["left"]]
            if there and luck.random() < 0.2:
                server.change(luck.choice(there)["id"], luck.choice(["vanished", "EXITED", "ERROR"]))
            if luck.random() < 0.2:  # an order whose sender fell asleep
                with services.database.writing() as session:
                    long_ago = sa.update(RentedPod).where(col(RentedPod.state) == PodState.RENTING)
                    session.execute(long_ago.values(asked_at=utcnow() - timedelta(hours=1)))
            pods.check(services)
            pod_reaper.reap(services)
            assert len(server.left()) <= 4
        for job_id in placed:
            end(services, job_id)

        def all_gone() -> bool:
            pods.check(services)
            pod_reaper.reap(services)
            with services.database.writing() as session:
                session.execute(sa.update(RentedPod).values(asked_at=utcnow() - timedelta(hours=1)))
            return server.left() == [] and set(states(services)) <= {"gone"}

        until(all_gone, 60, "no pod is left")
        names = [pod["name"] for pod in server.ledger()]
        assert len(names) >= 5
        assert len(names) == len(set(names))
        billed = {pod["name"]: pod["microdollars"] for pod in server.ledger()}
        had = [pod for pod in rows(services) if pod.provider_id]
        assert all(pod_costs.cost(pod, utcnow()) >= billed[pod.name] - 10 for pod in had)


def test_an_operator_sees_and_closes_a_pod(make: Callable[..., Services], cloud: RunPodServer) -> None:
    services = make(cloud)
    found, job_id = place(services)
    assert found.pod is not None
    [content] = trainers.list_pods(services)
    assert (content.name, content.gpu, content.state, content.jobs) == (found.pod.name, RTX, "starting", [job_id])
    assert trainers.spending(services).per_hour == 0.69
    [account, pod] = trainers.list_trainers(services)
    assert (account.name, account.gpu) == ("runpod", f"{RTX} ($0.69), {A6000} ($0.49), NVIDIA L40S ($0.86)")
    assert (pod.health, pod.dollars_per_hour) == ("starting", 0.69)
    assert trainers.close_pod(services, found.pod.name) == [job_id]
    assert trainers.close_pod(services, "nobody") is None
    assert {entry.action for entry in audit_log.list_entries(services)} >= {"pod.rented", "pod.closed"}
    assert trainers.list_pods(services) == []
    assert [pod.state for pod in trainers.list_pods(services, gone=True)] == ["gone"]
    assert left(cloud, services) == 0
