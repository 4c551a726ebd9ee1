"""What this installation refuses of a request: families, base models, backends, captions and addresses."""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import urlsplit

from core.errors import SpecInvalid
from core.settings import Settings
from jobs.requests.envelope import Envelope, label_of
from storage.sources import Sources
from training.backends.ai_toolkit import config, options
from training.families.registry import BASE_MODELS, FAMILIES
from training.hub import is_hub_id
from training.spec import TrainSpec

_CONTROL = r"[\x00-\x1f\x7f]"
_PATH = re.compile(r"[/\\.~:]")  # ids of stored pictures have none of these


def spec_faults(spec: TrainSpec, settings: Settings) -> dict[str, str]:
    """What the recipe asks for and this installation does not have."""
    return {
        **base_model_faults(spec.base_model, settings),
        **_family_faults(spec, settings),
        **_remote_faults(spec, settings),
        **_caption_faults(spec, settings),
    }


def envelope_faults(envelope: Envelope, settings: Settings, sources: Sources) -> dict[str, str]:
    """Addresses that are refused, and too many pictures."""
    faults = _address_faults(envelope, sources)
    if len(envelope.images) > settings.max_pictures:
        faults["images"] = (
            f"has {len(envelope.images)} pictures; this installation accepts {settings.max_pictures} "
            "(IMPRINT_MAX_PICTURES)"
        )
    return faults


def _family_faults(spec: TrainSpec, settings: Settings) -> dict[str, str]:
    """Families that the operator has switched off, and those that no worker trains."""
    if spec.family in settings.disabled_families:
        return {"family": f"{spec.family} is switched off on this installation"}
    if spec.backend == "local" and FAMILIES[spec.family].code is None:
        return {"backend": f"{spec.family} is trained only on rented GPUs: set backend to ai-toolkit, or leave it out"}
    return {}


def _remote_faults(spec: TrainSpec, settings: Settings) -> dict[str, str]:
    """What a remote server cannot do, found before credits are held."""
    if spec.backend == "local":
        return {}
    faults = options.unsupported_options(spec)
    if settings.ai_toolkit_url is None and settings.runpod_api_key is None:
        faults["backend"] = (
            "no ai-toolkit server is configured: set IMPRINT_AI_TOOLKIT_URL, or IMPRINT_RUNPOD_API_KEY to rent one"
        )
    try:
        config.find_base_model(spec, settings.base_models)
    except SpecInvalid as error:
        faults |= error.faults
    return faults


def _caption_faults(spec: TrainSpec, settings: Settings) -> dict[str, str]:
    """Why this installation has no captions for a request that asks for them."""
    if spec.captions != "auto" or settings.caption_task is not None:
        return {}
    if settings.captioner is None:
        return {
            "captions": "this installation has no captioner: its operator sets IMPRINT_CAPTIONER or "
            "IMPRINT_CAPTION_TASK; or give captions, or set this to template"
        }
    if spec.backend != "local":
        return {
            "captions": "the captioner runs on the training workers of this installation, and this training goes to a "
            "remote server: give captions, or have the operator set IMPRINT_CAPTION_TASK"
        }
    return {}


def _address_faults(envelope: Envelope, sources: Sources) -> dict[str, str]:
    faults = {}
    for index, image in enumerate(envelope.images):
        for name, reference in ((f"images.{index}", image.ref), (f"images.{index}.mask", image.mask)):
            if reference and (reason := _reference_fault(reference, sources)):
                faults[name] = f"{label_of(index, image)}: {reason}"
    if envelope.webhook_url is not None and (reason := webhook_fault(envelope.webhook_url, sources)):
        faults["webhook_url"] = reason
    return faults


def is_path(reference: str) -> bool:
    """Whether a reference that is no address is a path, and not the id of a stored picture."""
    return _PATH.search(reference) is not None


def _reference_fault(reference: str, sources: Sources) -> str | None:
    if "://" in reference:
        return sources.refusal_reason(reference)
    if not is_path(reference):
        return None  # an id; whether the owner has such a picture is checked with the database
    for path in (PurePosixPath(reference), PureWindowsPath(reference)):
        if path.is_absolute():
            return f"is a path; write {path.as_uri()[:200]} for a file on the workers' machine"
    return "is a path; write its whole address, such as file:///folder/name for a file on the workers' machine"


def webhook_fault(url: str, sources: Sources) -> str | None:
    """Why a webhook address is refused, or None. Webhooks use the same guard as downloads of pictures."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "is not a valid address"
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        return "must be an http(s) address without user info and query"
    return sources.refusal_reason(url)


def base_model_faults(base_model: str, settings: Settings) -> dict[str, str]:
    """A request may name a folder, but only below the folders that the operator allows."""
    if base_model in BASE_MODELS or base_model in settings.base_models:
        return {}
    if re.search(_CONTROL, base_model):
        return {"base_model": "contains a control character"}
    if is_hub_id(base_model):
        return {}
    roots = [*settings.base_model_roots, settings.home / "bases"]
    folder = Path(base_model).resolve()
    if any(folder.is_relative_to(root.resolve()) for root in roots):
        return {}
    return {"base_model": "is neither a hub id (name/name) nor a folder below one of IMPRINT_BASE_MODEL_ROOTS"}
