"""`train` where a remote server trains: bring the dataset there and end, or fetch the file. No worker waits.

    claim -> a run with a name of its own, committed before the first call -> a place -> submit -> nobody holds the job
    claim -> the run is completed -> download, verify, convert -> on to `upload`

What lies between, the poll looks after (jobs/polls.py). A worker that dies here leaves a run in state `submitting`,
and the next one goes on with it under the same name: what is on the server already is found by that.
"""

import logging
from functools import partial
from pathlib import Path

from core.errors import BackendFailed, BackendUnreachable, ImprintError, LeaseLost, LoraInvalid
from jobs import intake, keys, moves, pods, runs
from jobs.leases import Lease
from jobs.shell import NotMine, work_dir, working
from jobs.wiring import House
from storage.tables import Job, PodState, RemoteRun, RentedPod, RunState
from training.backends.ai_toolkit import convert, work
from training.backends.ai_toolkit.config import find_base_model
from training.dataset import Manifest
from training.ports import Example
from training.spec import TrainSpec

log = logging.getLogger(__name__)


def train(house: House, lease: Lease, job: Job) -> None:
    """Submit, or collect what is completed. Raises NotMine where the chain does not go on from here, but by a poll."""
    with working(house, lease), work_dir(house, job.id) as folder:
        is_done = _go_on(house, lease, job, folder)
    if not is_done:
        raise NotMine(f"{job.id} is trained elsewhere; a poll goes on with it")


def _go_on(house: House, lease: Lease, job: Job, folder: Path) -> bool:
    """Whether the file is here and the job has advanced."""
    with house.database.writing() as session:
        run = runs.current(session, lease, house.settings)
    if run.state == RunState.SUBMITTED:  # this message came twice
        with house.database.writing() as session:
            runs.give_back(session, lease, house.settings)
        return False
    try:
        if run.state == RunState.SUBMITTING:
            return _submit(house, lease, job, run, folder)
        return _collect(house, lease, job, run, folder)
    except BackendUnreachable as error:
        return _be_patient(house, lease, run, error)
    except (BackendFailed, LoraInvalid) as error:
        # A server that refuses a submission would refuse the next one too; a file may come out right another time.
        if run.state == RunState.SUBMITTING or run.attempt >= house.settings.max_attempts:
            raise
        return _give_up(house, lease, run, error)


def _be_patient(house: House, lease: Lease, run: RemoteRun, error: BackendUnreachable) -> bool:
    """Ask again later, as often as a poll would: a server that restarts costs nobody an attempt.

    A pod that is gone holds nothing any more: what was submitted there goes elsewhere, what was trained there is lost.
    """
    is_lost = pods.is_lost(_pod_of(house, run))
    if run.missed + 1 >= house.settings.remote_lost_polls or (is_lost and run.state == RunState.COMPLETED):
        return _give_up(house, lease, run, error)
    log.warning("%s, %d times in a row: %s", run.name, run.missed + 1, error)
    with house.database.writing() as session:
        runs.wait(session, lease, error.message, house.settings)
        runs.record(session, run, missed=run.missed + 1)
    return False


def _give_up(house: House, lease: Lease, run: RemoteRun, error: ImprintError) -> bool:
    log.warning("attempt %d, %s, is given up: %s", run.attempt, run.name, error)
    with house.database.writing() as session:
        lease.renew(session, house.settings.lease_s)
        runs.give_up(session, run, error, house.settings)
    return False


# ---- submit ---------------------------------------------------------------------------------------------------


def _submit(house: House, lease: Lease, job: Job, run: RemoteRun, folder: Path) -> bool:
    spec = TrainSpec.model_validate_json(job.spec)
    pod = _pod_of(house, run)
    if run.pod_id is None or pods.is_lost(pod):
        place = pods.place(house, spec, partial(runs.assign, lease, run, house.settings))
        if not place.found:
            return _wait(house, lease, place.reason)
        pod = place.pod
    if pod is not None and pod.state != PodState.READY:
        return _wait(house, lease, "a machine is being started for this training")
    run.pod_id = None if pod is None else pod.id
    server = pods.server_of(house, run.pod_id)
    manifest = Manifest.from_json(house.store.get(keys.manifest(job.dataset_sha256 or "")))
    examples = intake.unpack(house, manifest, folder)
    order = work.Order(run.name, spec, examples, find_base_model(spec, house.settings.base_models))
    try:
        remote_id = work.submit(server, order, partial(_see_that_it_is_mine, house, lease))
        with house.database.writing() as session:
            runs.submitted(session, lease, run, remote_id, house.settings)
    except LeaseLost:
        with house.database.writing() as session:
            runs.submitted_in_vain(session, run)
        raise
    return False


def _see_that_it_is_mine(house: House, lease: Lease) -> None:
    """Raises LeaseLost. A worker that was held up for long must not go on with what another one does by now."""
    with house.database.reading() as session:
        if not lease.held(session):
            raise LeaseLost(f"{lease.job_id}: somebody else submits it, or it is final")


def _wait(house: House, lease: Lease, reason: str) -> bool:
    with house.database.writing() as session:
        runs.wait(session, lease, reason, house.settings)
    return False


def _pod_of(house: House, run: RemoteRun) -> RentedPod | None:
    if run.pod_id is None:
        return None
    with house.database.reading() as session:
        return session.get(RentedPod, run.pod_id)


# ---- collect --------------------------------------------------------------------------------------------------


def _collect(house: House, lease: Lease, job: Job, run: RemoteRun, folder: Path) -> bool:
    """Fetch the file, make it one of ours, keep it for `upload`."""
    spec = TrainSpec.model_validate_json(job.spec)
    manifest = Manifest.from_json(house.store.get(keys.manifest(job.dataset_sha256 or "")))
    told = [Example(Path(), one.caption, one.sha256, one.width, one.height) for one in manifest.examples]
    server = pods.server_of(house, run.pod_id)
    fetched = work.collect(server, run.name, run.remote_id or "", folder, spec)
    path = folder / "lora_weights.safetensors"
    report = convert.convert(
        fetched,
        path,
        spec,
        told,
        dataset_sha256=manifest.sha256,
        base_model=find_base_model(spec, house.settings.base_models),
    )
    house.store.put_file(keys.output(job.id, report.sha256), path)
    with house.database.writing() as session:
        runs.collected(session, run)
        moves.advance(
            session,
            lease,
            house.settings,
            step=job.total_steps,
            seconds_left=0.0,
            lora_sha256=report.sha256,
            lora_bytes=report.size_bytes,
        )
    return True
