"""Deletion of a training, a subject or an account, and how far it is."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from core.errors import SpecInvalid
from jobs.deletion import requests
from jobs.deletion.requests import DeletionView
from web.auth import Caller, ReaderDep, ServicesDep, TrainerDep
from web.models.deletions import Deletion, Deletions, deletion_of
from web.parameters import DeletionId, SubjectId, TrainingId
from web.problems import ALWAYS, responses

router = APIRouter(prefix="/api", tags=["deletion"])

_ONE = (*ALWAYS, "not_found")
_ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {"headers": {"Location": {"description": "The deletion.", "schema": {"type": "string"}}}}
}


def check_confirmed(caller: Caller, confirm: str) -> None:
    """Raises SpecInvalid unless the owner's name was repeated."""
    if confirm != caller.owner_id:
        raise SpecInvalid.of({"confirm": "must be the name of the owner whose account is deleted"})


def _accept(response: Response, view: DeletionView) -> Deletion:
    response.headers["Location"] = f"/api/deletions/{view.id}"
    return deletion_of(view)


@router.delete(
    "/trainings/{id}",
    status_code=202,
    summary="Delete a training with its files",
    description="An active training is cancelled first: the steps done are charged and its webhook is sent. The LoRA "
    "file, kept checkpoints and previews are deleted; pictures of the subject stay. Asking again returns the same "
    "deletion.",
    responses={**_ACCEPTED, **responses(*_ONE, "illegal_move")},
)
def delete_training(services: ServicesDep, caller: TrainerDep, job_id: TrainingId, response: Response) -> Deletion:
    return _accept(response, requests.delete_training(services, job_id, caller.owner_id))


@router.delete(
    "/influencer/{id}",
    status_code=202,
    summary="Delete a subject with its pictures, trainings and settings",
    description="Until the deletion is done, the subject takes no pictures, trainings and settings (409). Asking again "
    "returns the same deletion; once nothing is left, the answer is 404.",
    responses={**_ACCEPTED, **responses(*_ONE, "illegal_move")},
)
def delete_subject(services: ServicesDep, caller: TrainerDep, subject_id: SubjectId, response: Response) -> Deletion:
    return _accept(response, requests.delete_subject(services, caller.owner_id, subject_id))


@router.delete(
    "/account",
    status_code=202,
    summary="Delete the owner with everything that belongs to it",
    description="All subjects, trainings, files, tokens and settings. The owner's tokens are revoked at once, so only "
    "a service token can ask how far the deletion is. Entries of the account stay without the owner's name.",
    responses={**_ACCEPTED, **responses(*_ONE, "illegal_move")},
)
def delete_account(
    services: ServicesDep,
    caller: TrainerDep,
    response: Response,
    confirm: Annotated[str, Query(max_length=300, description="The owner's name, so that no slip deletes it.")] = "",
) -> Deletion:
    check_confirmed(caller, confirm)
    return _accept(response, requests.delete_owner(services, caller.owner_id))


@router.get("/deletions", summary="List the deletions that are not done", responses=responses(*ALWAYS))
def deletions(services: ServicesDep, caller: ReaderDep) -> Deletions:
    return Deletions(deletions=[deletion_of(view) for view in requests.list_open(services, caller.owner_id)])


@router.get(
    "/deletions/{deletionId}",
    summary="Get how far a deletion is",
    description="A deletion that is done can be read for 30 days.",
    responses=responses(*_ONE),
)
def deletion(services: ServicesDep, caller: ReaderDep, deletion_id: DeletionId) -> Deletion:
    return deletion_of(requests.get(services, deletion_id, caller.owner_id))


@router.delete(
    "/deletions/{deletionId}",
    status_code=204,
    summary="Undo a deletion that has not begun",
    description="Deletions wait for `IMPRINT_DELETION_GRACE_S` before they begin.",
    responses=responses(*_ONE, "illegal_move"),
)
def undo_deletion(services: ServicesDep, caller: TrainerDep, deletion_id: DeletionId) -> None:
    requests.undo(services, deletion_id, caller.owner_id)
