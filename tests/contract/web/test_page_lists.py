"""Lists of the page: everything that an owner has paid for can be reached, however much came after it."""

import re
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import col

from core.clock import utcnow
from jobs import keys, service
from storage.tables.jobs import Job, Status
from storage.tables.pictures import Subject
from tests.contract.web.conftest import Api
from tests.contract.web.page import Visit


@pytest.fixture(scope="module")
def visit(lone_api: Api) -> Visit:
    return Visit.of(lone_api, "ada")


def _many(api: Api, count: int) -> list[str]:
    """The ids of an old ready training of `rex` and of `count` failed ones after it, newest first."""
    secret = api.token("ada")
    images = api.upload(secret, 6)
    ids = []
    for at in range(count + 1):
        job_id = api.train(secret, images).json()["id"]
        service.cancel(api.services, job_id)
        ids.append(job_id)
        values: dict[str, Any] = {"created_at": utcnow() - timedelta(hours=count - at)}
        if at == 0:
            values |= {"status": Status.READY, "lora_key": keys.lora(job_id), "lora_sha256": "0" * 64, "lora_bytes": 6}
        else:
            values |= {"status": Status.FAILED, "failure_code": "internal"}
        with api.services.database.writing() as session:
            session.connection().execute(sa.update(Job).where(col(Job.id) == job_id).values(**values))
    return ids[::-1]


def test_an_old_lora_is_reached_in_every_way(visit: Visit) -> None:
    ids = _many(visit.api, 30)
    ready = ids[-1]
    subject = visit.get("/subjects/rex").text
    assert f'href="/trainings/{ready}"' in subject.split('id="pictures-title"')[0], "pinned on its subject"
    assert f'href="/trainings/{ready}/download"' in subject
    assert f'href="/trainings/{ready}"' in visit.get("/").text, "pinned on the tile"
    assert 'href="/trainings?subject=rex"' in subject
    seen: list[str] = []
    path = "/trainings?subject=rex"
    while path:
        text = visit.get(path).text
        seen += re.findall(r'<li><a href="/trainings/(job_\w+)"', text)
        older = re.search(r'href="([^"]+)">Older', text)
        path = older[1].replace("&amp;", "&") if older else ""
    assert seen == ids
    assert re.findall(r'<li><a href="/trainings/(job_\w+)"', visit.get("/trainings?show=ready").text) == [ready]
    assert "No training fits this filter" in visit.get("/trainings?show=active").text
    assert "No training fits this filter" in visit.get("/trainings?subject=nobody").text
    assert visit.get("/trainings?show=odd").status_code == 422


def test_subjects_have_pages(visit: Visit) -> None:
    with visit.api.services.database.writing() as session:
        session.add_all([Subject(owner_id="ada", id=f"subject {at:03}") for at in range(70)])
    names = set()
    for page in (1, 2):
        text = visit.get(f"/?page={page}").text
        names |= set(re.findall(r"<strong>(subject \d+)</strong>", text))
    assert len(names) == 70
