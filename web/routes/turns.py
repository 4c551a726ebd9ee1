"""Limits for owners; pauses, limits, workers and the audit log for operators: `/api/operate`."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from jobs.admission import approvals, pauses, workers
from jobs.owners import audit_log
from jobs.owners import limits as job_limits
from web.auth import OperatorDep, ReaderDep, ServicesDep
from web.models.turns import (
    Decision,
    Entry,
    HeldTraining,
    HeldTrainings,
    Limit,
    LimitChange,
    Limits,
    Log,
    Pause,
    PauseRequest,
    Text,
    Turns,
    Worker,
)
from web.parameters import TrainingId
from web.problems import ALWAYS, responses

router = APIRouter(prefix="/api", tags=["operators"])

_WRITES = (*ALWAYS, "too_large")
Scope = Annotated[str, Path(max_length=100, pattern=r"^[a-z0-9:.-]+$", description="`all`, `queue:…` or `family:…`.")]


@router.get("/account/limits", summary="Get the limits of the owner, and what is used", responses=responses(*ALWAYS))
def limits_of(services: ServicesDep, caller: ReaderDep) -> Limits:
    found = job_limits.list_limits(services, caller.owner_id)
    return Limits(limits=[Limit.model_validate(view) for view in found])


@router.put(
    "/operate/limits",
    status_code=204,
    summary="Set a limit of an owner or of a token",
    responses=responses(*_WRITES, "not_found"),
)
def change_limit(services: ServicesDep, _: OperatorDep, change: LimitChange) -> None:
    job_limits.change(services, change.name, change.value, owner_id=change.owner, token_id=change.token)


@router.get("/operate/turns", summary="Get the training workers and the pauses", responses=responses(*ALWAYS))
def turns(services: ServicesDep, _: OperatorDep) -> Turns:
    return Turns(
        workers=[Worker.model_validate(view) for view in workers.list_workers(services)],
        pauses=[Pause.model_validate(view) for view in pauses.list_pauses(services)],
    )


@router.put(
    "/operate/pauses/{scope}",
    summary="Let no job of a scope start; pausing again changes nothing",
    responses=responses(*_WRITES),
)
def pause(services: ServicesDep, _: OperatorDep, scope: Scope, given: PauseRequest) -> Pause:
    return Pause.model_validate(pauses.pause(services, scope, given.reason))


@router.delete(
    "/operate/pauses/{scope}", status_code=204, summary="End a pause", responses=responses(*ALWAYS, "not_found")
)
def resume(services: ServicesDep, _: OperatorDep, scope: Scope) -> None:
    pauses.resume(services, scope)


@router.get("/operate/approvals", summary="Get the trainings that wait for an approval", responses=responses(*ALWAYS))
def list_held(services: ServicesDep, _: OperatorDep) -> HeldTrainings:
    return HeldTrainings(trainings=[HeldTraining.model_validate(view) for view in approvals.list_held(services)])


@router.post(
    "/operate/approvals/{id}",
    status_code=204,
    summary="Accept or refuse a training that waits for an approval",
    responses=responses(*_WRITES, "not_found"),
)
def decide(services: ServicesDep, _: OperatorDep, training_id: TrainingId, decision: Decision) -> None:
    if decision.verdict == "accept":
        approvals.approve(services, training_id)
    else:
        approvals.refuse(services, training_id, decision.reason)


@router.get("/operate/log", summary="Get the audit log, newest first", responses=responses(*ALWAYS))
def log(
    services: ServicesDep,
    _: OperatorDep,
    owner: Annotated[Text | None, Query(description="Only about this owner.")] = None,
    training: Annotated[Text | None, Query(description="Only about this training.")] = None,
    action: Annotated[Text | None, Query(description="Only this action, such as `job.cancelled`.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Log:
    found = audit_log.list_entries(services, owner_id=owner, job_id=training, action=action, limit=limit)
    return Log(entries=[Entry.model_validate(view) for view in found])
