"""The first start of a stack on one machine: when everything is ready, and an owner to begin with."""

import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from sqlmodel import col, select

from core.settings import settings
from jobs.admission import workers
from jobs.owners import accounts, sign_in_links
from jobs.services import Services
from jobs.subjects import subject_pictures, subject_settings
from storage.tables.access import ApiToken
from storage.tables.jobs import Job
from storage.tables.pictures import Subject

OWNER = "me"
CREDITS = 10_000
_SUBJECT = "mascot"
_PICTURES = Path(__file__).resolve().parent.parent / "demo" / "pictures"
_POCKET = _PICTURES.parent / "pocket" / "model"
_WAIT_S = 120.0


def wait_until_ready(services: Services, web_url: str, stopped: threading.Event) -> bool:
    """Wait until the page answers and a training worker reports; False if that takes too long, or `stopped` is set."""
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline and not stopped.wait(0.3):
        if _answers(web_url) and any(worker.alive for worker in workers.list_workers(services)):
            return True
    return False


def _answers(web_url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine is not behind its proxy
    try:
        with opener.open(f"{web_url}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def has_base_model(services: Services) -> bool:
    """Whether a worker has a base model and need not download one."""
    return any(worker.bases for worker in workers.list_workers(services) if worker.alive)


def sign_in_link(services: Services) -> str | None:
    """The secret of a link for the owner `me`, who has demo credits and pictures; None on an installation with others.

    Everybody who sees the terminal can sign in, so there is none where other machines reach the page.
    """
    if settings().web_host not in ("127.0.0.1", "::1", "localhost") or _has_others(services):
        return None
    accounts.grant(services, OWNER, CREDITS, key="first run")
    if not subject_pictures.list_pictures(services, OWNER, _SUBJECT) and _PICTURES.is_dir():
        for file in sorted(_PICTURES.glob("*.png")):
            subject_pictures.add(services, OWNER, _SUBJECT, file.read_bytes(), name=file.name)
        subject_settings.change(services, OWNER, _SUBJECT, _settings())
    return sign_in_links.create(services, OWNER)


def _settings() -> dict[str, object]:
    """The settings of the subject to begin with: ready to start, and with the pocket model done in minutes."""
    pocket = Path(settings().base_models.get("sd15", ".")).resolve() == _POCKET
    recipe = {"resolution": 64, "epochs": 60, "rank": 16} if pocket else None
    return {"trigger_word": "imp mascot", "class_word": "creature", "base_model": "sd15", "recipe": recipe}


def _has_others(services: Services) -> bool:
    """Whether any owner but `me` uses this installation."""
    with services.database.reading() as session:
        owners = (ApiToken.owner_id, Job.owner_id, Subject.owner_id)
        return any(session.exec(select(one).where(col(one).is_distinct_from(OWNER)).limit(1)).all() for one in owners)
