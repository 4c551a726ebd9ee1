"""The `train` stage on a remote server: submit the training, or fetch its file. No worker waits in between.

    claim -> a run with its own name, committed before the first request -> a server -> submit -> release the job
    claim -> the run is completed -> download, verify, convert -> on to `upload`

Polls (jobs/remote/polls.py) follow the run in between. A worker that dies here leaves a run in state `submitting`; the
next worker continues with it, and finds by its name what the server already has.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

from core.errors import BackendFailed, BackendUnreachable, ImprintError, LeaseLost, LoraInvalid
from jobs import keys
from jobs.lifecycle import transitions
from jobs.lifecycle.leases import Lease
from jobs.remote import pods, runs, waiting_jobs
from jobs.services import Services
from jobs.specs import spec_of
from jobs.stages import intake
from jobs.stages.stage_runner import NothingToDo, holding_lease, work_dir
from storage.tables.jobs import Job
from storage.tables.remote import PodState, RemoteRun, RentedPod, RunState
from training.backends.ai_toolkit import convert, work
from training.backends.ai_toolkit.config import find_base_model
from training.data.dataset import Manifest, with_early_trigger
from training.ports import Example

log = logging.getLogger(__name__)


def train(services: Services, lease: Lease, job: Job) -> None:
    """Submit the job, or collect a completed one. Raises NothingToDo where a poll, not this chain, continues."""
    with holding_lease(services, lease), work_dir(services, job.id) as folder:
        is_done = _submit_or_collect(services, lease, job, folder)
    if not is_done:
        raise NothingToDo(f"{job.id} is trained on a remote server; a poll continues with it")


def _submit_or_collect(services: Services, lease: Lease, job: Job, folder: Path) -> bool:
    """Returns whether the file has been fetched and the job has advanced."""
    with services.database.writing() as session:
        run = runs.get_or_create(session, lease, services.settings)
    if run.state == RunState.SUBMITTED:  # this message was delivered twice
        with services.database.writing() as session:
            runs.release_job(session, lease, services.settings)
        return False
    try:
        if run.state == RunState.SUBMITTING:
            return _submit(services, lease, job, run, folder)
        return _collect(services, lease, job, run, folder)
    except BackendUnreachable as error:
        return _wait_or_give_up(services, lease, run, error)
    except (BackendFailed, LoraInvalid) as error:
        # A server that rejects a submission would reject the next one too; another attempt may give a good file.
        if run.state == RunState.SUBMITTING or run.attempt >= services.settings.max_attempts:
            raise
        return _give_up(services, lease, run, error)


def _wait_or_give_up(services: Services, lease: Lease, run: RemoteRun, error: BackendUnreachable) -> bool:
    """Try again later, as often as a poll would: a server that restarts costs no attempt.

    If the pod is gone, a submission goes to another server, and a completed training is lost.
    """
    is_lost = pods.is_lost(_pod_of(services, run))
    if run.missed + 1 >= services.settings.remote_lost_polls or (is_lost and run.state == RunState.COMPLETED):
        return _give_up(services, lease, run, error)
    log.warning("%s, %d times in a row: %s", run.name, run.missed + 1, error)
    with services.database.writing() as session:
        waiting_jobs.wait_for_server(session, lease, error.message, services.settings)
        runs.record(session, run, missed=run.missed + 1)
    return False


def _give_up(services: Services, lease: Lease, run: RemoteRun, error: ImprintError) -> bool:
    log.warning("attempt %d (%s) is given up: %s", run.attempt, run.name, error)
    with services.database.writing() as session:
        lease.renew(session, services.settings.lease_s)
        runs.give_up(session, run, error, services.settings)
    return False


# ---- submit ---------------------------------------------------------------------------------------------------


def _submit(services: Services, lease: Lease, job: Job, run: RemoteRun, folder: Path) -> bool:
    spec = spec_of(job)
    pod = _pod_of(services, run)
    if pods.is_lost(pod) and run.remote_id is not None:
        return _give_up(services, lease, run, BackendUnreachable("the rented machine is gone"))
    if run.pod_id is None or pods.is_lost(pod):
        place = pods.place(services, spec, partial(runs.assign, lease, run, services.settings))
        if not place.found:
            return _wait(services, lease, place.reason)
        pod = place.pod
    if pod is not None and pod.state != PodState.READY:
        return _wait(services, lease, "a pod is being started for this training")
    run.pod_id = None if pod is None else pod.id
    server = pods.server_of(services, run.pod_id)
    manifest = Manifest.from_json(services.store.get(keys.manifest(job.dataset_sha256 or "")))
    # The trainer cuts captions without a word, and this worker has no tokenizer to see where.
    examples = [
        replace(example, caption=with_early_trigger(spec, example.caption))
        for example in intake.unpack(services, manifest, folder)
    ]
    order = work.RemoteTraining(run.name, spec, examples, find_base_model(spec, services.settings.base_models))
    try:
        remote_id = work.submit(server, order, partial(_check_lease, services, lease))
        with services.database.writing() as session:
            runs.record_submitted(session, lease, run, remote_id, services.settings)
    except LeaseLost:
        with services.database.writing() as session:
            runs.record_late_submission(session, run)
        raise
    return False


def _check_lease(services: Services, lease: Lease) -> None:
    """Raise LeaseLost if another worker has claimed the job: a worker that was held up must not submit it too."""
    with services.database.reading() as session:
        if not lease.is_held(session):
            raise LeaseLost(f"{lease.job_id}: another worker submits the job, or it is final")


def _wait(services: Services, lease: Lease, reason: str) -> bool:
    with services.database.writing() as session:
        waiting_jobs.wait_for_server(session, lease, reason, services.settings)
    return False


def _pod_of(services: Services, run: RemoteRun) -> RentedPod | None:
    if run.pod_id is None:
        return None
    with services.database.reading() as session:
        return session.get(RentedPod, run.pod_id)


# ---- collect --------------------------------------------------------------------------------------------------


def _collect(services: Services, lease: Lease, job: Job, run: RemoteRun, folder: Path) -> bool:
    """Fetch the file, convert it, and store it for `upload`."""
    spec = spec_of(job)
    manifest = Manifest.from_json(services.store.get(keys.manifest(job.dataset_sha256 or "")))
    examples = [Example(Path(), one.caption, one.sha256, one.width, one.height) for one in manifest.examples]
    server = pods.server_of(services, run.pod_id)
    fetched = work.collect(server, run.name, run.remote_id or "", folder, spec)
    path = folder / "lora_weights.safetensors"
    report = convert.convert_lora(
        fetched,
        path,
        spec,
        examples,
        dataset_sha256=manifest.sha256,
        base_model=find_base_model(spec, services.settings.base_models),
    )
    services.store.put_file(keys.output(job.id, report.sha256), path)
    with services.database.writing() as session:
        runs.record_collected(session, run)
        transitions.advance(
            session,
            lease,
            services.settings,
            step=job.total_steps,
            seconds_left=0.0,
            lora_sha256=report.sha256,
            lora_bytes=report.size_bytes,
        )
    return True
