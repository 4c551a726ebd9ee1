"""Pictures of a subject that are fetched from addresses: asked for by a request, fetched by a worker, read by polling.

A worker and not the HTTP API fetches them, because a host may take as long as it likes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Literal

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from core.clock import utcnow
from core.errors import FailureCode, ImageUnreachable, ImprintError, NotFound, TooManyRequests
from core.ids import new_id
from core.outbound.download_budget import Requester
from core.picture_names import picture_label, source_name
from core.settings import Settings
from jobs.deletion import guard
from jobs.lifecycle.periodic import each
from jobs.services import Services
from jobs.subjects import subject_pictures
from jobs.subjects.subject_pictures import SubjectPicture
from jobs.turns import owner_slot
from notifications import outbox
from storage.tables.fetches import FetchResult, StoredImageFetch

TOPIC = "fetch"  # of the messages that launch a fetch
MAX_ADDRESSES = 20  # of one request
_KEPT = timedelta(days=1)  # how long the outcome of a finished fetch can be read
_SPARE = timedelta(seconds=30)  # beside the time limit of a fetch, before another worker continues it
_MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class RefusedAddress:
    """An address whose picture was not stored; `index` is its position in the request, from 0."""

    index: int
    code: str
    detail: str


@dataclass(frozen=True)
class FetchProgress:
    """How far a fetch is. `waiting` addresses have neither a picture nor a refusal yet."""

    fetch_id: str
    status: Literal["waiting", "done"]
    waiting: int
    images: Sequence[SubjectPicture]
    refused: Sequence[RefusedAddress]


def submit(
    services: Services, owner_id: str, subject_id: str, addresses: Sequence[str], *, is_mask: bool
) -> FetchProgress:
    """Accept addresses of pictures to fetch. If none of them may be called, the fetch is done already and has no id.

    Raises TooManyRequests.
    """
    refusals = [services.sources.refusal_reason(address) for address in addresses]
    results = [
        None if why is None else _refusal(FailureCode.IMAGE_UNREACHABLE, f"{_label(index, addresses)}: {why}")
        for index, why in enumerate(refusals)
    ]
    if all(results):
        return _progress("", results, [])
    now = utcnow()
    fetch = StoredImageFetch(
        id=new_id("fetch"),
        owner_id=owner_id,
        subject_id=subject_id,
        is_mask=is_mask,
        addresses=list(addresses),
        results=results,
        created_at=now,
        next_look_at=now,
    )
    with services.database.writing() as session:
        _forget_old(session, owner_id)
        guard.lock_owner(session, owner_id)  # also, so that all requests at once do not pass the limit together
        guard.refuse_if_deleting(session, owner_id, subject_id)
        open_fetches = select(func.count()).where(
            StoredImageFetch.owner_id == owner_id, col(StoredImageFetch.finished_at).is_(None)
        )
        most = services.settings.fetches_per_owner
        if session.exec(open_fetches).one() >= most:
            raise TooManyRequests(f"{most} requests of this owner wait for their pictures; wait until one is done")
        session.add(fetch)
        _launch(session, fetch, services.settings)
    return _progress(fetch.id, results, [])


def get(services: Services, owner_id: str, subject_id: str, fetch_id: str) -> FetchProgress:
    """How far a fetch is. Raises NotFound, also a day after it was done."""
    with services.database.reading() as session:
        fetch = session.get(StoredImageFetch, fetch_id)
        if fetch is None or (fetch.owner_id, fetch.subject_id) != (owner_id, subject_id):
            raise NotFound(f"there is no fetch {fetch_id}")
    stored = [result.picture_id for result in fetch.results if result is not None and result.picture_id]
    get_views = subject_pictures.list_masks if fetch.is_mask else subject_pictures.get_all
    return _progress(fetch.id, fetch.results, get_views(services, owner_id, subject_id, stored))


def fetch_images(services: Services, fetch_id: str) -> None:
    """Fetch and store the pictures of a fetch that are not fetched yet. A second run at the same time does nothing.

    Raises RetryLater if the owner's other work takes its share of this worker.
    """
    with services.database.reading() as session:
        fetch = session.get(StoredImageFetch, fetch_id)
    if fetch is None or fetch.finished_at is not None:
        return
    with owner_slot(services, fetch.owner_id, partial(_postpone, services, fetch)):
        limit_s = services.settings.fetch_images_s
        if (claimed := _claim(services, fetch_id, timedelta(seconds=limit_s) + _SPARE)) is not None:
            _fetch_all(services, claimed, time.monotonic() + limit_s)


def repair(services: Services) -> int:
    """Launch the fetches again that no worker works on; returns how many. The sweep calls this."""
    with services.database.reading() as session:
        found = session.exec(select(StoredImageFetch.id).where(*_is_lost()).limit(500)).all()
    return sum(each("repair", found, lambda fetch_id: _repair_one(services, fetch_id)))


def _is_lost() -> tuple[sa.ColumnElement[bool], ...]:
    return col(StoredImageFetch.finished_at).is_(None), col(StoredImageFetch.next_look_at) < utcnow()


def _repair_one(services: Services, fetch_id: str) -> bool:
    """Launch one fetch again, or end it after its last attempt; False if a worker has it meanwhile."""
    with services.database.writing() as session:
        query = select(StoredImageFetch).where(StoredImageFetch.id == fetch_id, *_is_lost())
        fetch = session.exec(query.with_for_update(skip_locked=True)).one_or_none()
        if fetch is None:
            return False
        if fetch.attempt >= _MAX_ATTEMPTS:
            refused = _refusal(FailureCode.WORKER_LOST, "the worker ended while it fetched the picture")
            _end(fetch, [refused] * len(fetch.results))
        else:
            _launch(session, fetch, services.settings)
        session.add(fetch)
        return True


# ---- one fetch ------------------------------------------------------------------------------------------------


def _claim(services: Services, fetch_id: str, lease: timedelta) -> StoredImageFetch | None:
    """Take the fetch for this worker; None if another worker has it or it is done."""
    now = utcnow()
    with services.database.writing() as session:
        fetch = session.get(StoredImageFetch, fetch_id, with_for_update=True)
        if fetch is None or fetch.finished_at is not None or (fetch.leased and fetch.next_look_at > now):
            return None
        fetch.leased, fetch.next_look_at, fetch.attempt = True, now + lease, fetch.attempt + 1
        session.add(fetch)
    return fetch


def _postpone(services: Services, fetch: StoredImageFetch, comes_back: datetime) -> None:
    """Keep the sweep from launching a fetch once more that comes back to a worker."""
    spare = timedelta(seconds=services.settings.relaunch_after_s)
    if fetch.next_look_at < comes_back + spare / 2:
        unclaimed = col(StoredImageFetch.id) == fetch.id, col(StoredImageFetch.leased).is_(False)
        with services.database.writing() as session:
            later = sa.update(StoredImageFetch).where(*unclaimed).values(next_look_at=comes_back + spare)
            session.connection().execute(later)


def _fetch_all(services: Services, fetch: StoredImageFetch, deadline: float) -> None:
    results = list(fetch.results)
    for index in range(len(results)):
        if results[index] is None:
            results[index] = _fetch_one(services, fetch, index, deadline - time.monotonic())
            if not _record(services, fetch.id, results, is_over=False):
                return
    _record(services, fetch.id, results, is_over=True)


def _record(services: Services, fetch_id: str, results: Sequence[FetchResult | None], *, is_over: bool) -> bool:
    """Write the results; False if the fetch was deleted meanwhile."""
    with services.database.writing() as session:
        row = session.get(StoredImageFetch, fetch_id, with_for_update=True)
        if row is None:
            return False
        if is_over:
            _end(row, results)
        else:
            row.results = list(results)
        session.add(row)
    return True


def _fetch_one(services: Services, fetch: StoredImageFetch, index: int, left_s: float) -> FetchResult:
    """Fetch and store one picture. Its outcome, also if that is a refusal."""
    address = fetch.addresses[index]
    name = source_name(address)
    try:
        if left_s <= 0:
            limit_s = services.settings.fetch_images_s
            raise ImageUnreachable(f"not fetched: the request's pictures took more than {limit_s:g} s")
        data = services.sources.fetch(
            address,
            max_bytes=services.settings.max_picture_bytes,
            requester=Requester(fetch.owner_id, fetch.id),
            timeout_s=left_s,
        )
        added = subject_pictures.add(services, fetch.owner_id, fetch.subject_id, data, is_mask=fetch.is_mask, name=name)
    except ImprintError as error:  # of the picture; or the subject has too many, or the store does not answer
        return _refusal(error.code, f"{picture_label(index, name)}: {error.message}")
    return FetchResult(picture_id=added)


def _launch(session: Session, fetch: StoredImageFetch, settings: Settings) -> None:
    fetch.leased, fetch.next_look_at = False, utcnow() + timedelta(seconds=settings.relaunch_after_s)
    outbox.put(session, "launch", job_id=None, topic=TOPIC, owner_id=fetch.owner_id, payload={"fetch_id": fetch.id})


def _end(fetch: StoredImageFetch, results: Sequence[FetchResult | None]) -> None:
    """Record the outcome. Addresses may be presigned, so they are not kept."""
    fetch.results = [old or new for old, new in zip(fetch.results, results, strict=True)]
    fetch.addresses = []
    fetch.finished_at = utcnow()


def _forget_old(session: Session, owner_id: str) -> None:
    old = sa.delete(StoredImageFetch).where(
        col(StoredImageFetch.owner_id) == owner_id, col(StoredImageFetch.finished_at) < utcnow() - _KEPT
    )
    session.connection().execute(old)


def _label(index: int, addresses: Sequence[str]) -> str:
    return picture_label(index, source_name(addresses[index]))


def _refusal(code: str, detail: str) -> FetchResult:
    return FetchResult(code=str(code), detail=detail)


def _progress(fetch_id: str, results: Sequence[FetchResult | None], views: Sequence[SubjectPicture]) -> FetchProgress:
    by_id = {view.id: view for view in views}
    stored = dict.fromkeys(result.picture_id for result in results if result is not None and result.picture_id)
    waiting = sum(result is None for result in results)
    return FetchProgress(
        fetch_id,
        "waiting" if waiting else "done",
        waiting,
        [by_id[picture_id] for picture_id in stored if picture_id in by_id],
        [
            RefusedAddress(index, result.code, result.detail)
            for index, result in enumerate(results)
            if result is not None and result.code
        ],
    )
