"""The captions of a subject's pictures: `/api/influencer/{id}/captions`."""

from fastapi import APIRouter

from jobs.services import Services
from jobs.subjects import captions
from web.auth import ReaderDep, ServicesDep, TrainerDep
from web.models.pictures import Captions, CaptionsChange, CaptionsChanged, captions_of
from web.parameters import SubjectId
from web.problems import ALWAYS, responses

router = APIRouter(prefix="/api/influencer/{id}/captions", tags=["images"])


@router.get("", summary="List the captions of a subject's pictures", responses=responses(*ALWAYS))
def list_captions(services: ServicesDep, caller: ReaderDep, subject_id: SubjectId) -> Captions:
    return Captions(captions=captions_of(captions.list_captions(services, caller.owner_id, subject_id)))


@router.post(
    "",
    summary="Change captions, many at a time",
    description="Sets captions by image id, replaces a text in captions, or puts a text in front of them. All changes "
    "of one request are made, or none. A picture without a caption stays without when a text is replaced or put in "
    "front. Later trainings use the new captions.",
    responses=responses(*ALWAYS, "not_found", "too_large"),
)
def change_captions(
    services: ServicesDep, caller: TrainerDep, subject_id: SubjectId, body: CaptionsChange
) -> CaptionsChanged:
    done = _change(services, caller.owner_id, subject_id, body)
    return CaptionsChanged.model_validate({"kind": done.kind, "captions": captions_of(done.changed)})


def _change(services: Services, owner_id: str, subject_id: str, body: CaptionsChange) -> captions.CaptionsChanged:
    if body.captions is not None:
        return captions.set_all(services, owner_id, subject_id, body.captions)
    if body.prepend is not None:
        return captions.prepend(services, owner_id, subject_id, body.prepend, body.image_ids)
    return captions.replace(services, owner_id, subject_id, body.find or "", body.replace or "", body.image_ids)


@router.post(
    "/undo",
    summary="Take back the last change of captions",
    description=f"Also a change of one caption, and captions from an upload. Calling it again takes back the change "
    f"before that, up to {captions.MAX_KEPT} changes. With nothing to take back the answer is 409.",
    responses=responses(*ALWAYS, "illegal_move"),
)
def undo_captions(services: ServicesDep, caller: TrainerDep, subject_id: SubjectId) -> CaptionsChanged:
    done = captions.undo(services, caller.owner_id, subject_id)
    return CaptionsChanged.model_validate({"kind": done.kind, "captions": captions_of(done.changed)})
