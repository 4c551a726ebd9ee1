"""Captions of ten photographs by a captioner on the training worker, through the whole chain; a kill loses none."""

import json
from datetime import datetime
from pathlib import Path

import pytest
from sqlmodel import col, select

from jobs import service
from storage.tables.captions import GeneratedCaption
from storage.tables.jobs import JobPicture
from tests.site import PHOTOGRAPHS, Site, site, until
from training.tiny import captioner

pytestmark = pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the shared photographs are not there")


def written(running: Site) -> dict[str, datetime]:
    with running.services.database.reading() as session:
        return {one.sha256: one.created_at for one in session.exec(select(GeneratedCaption)) if one.text}


@pytest.mark.drawn
def test_ten_photographs_are_captioned_once_although_the_worker_is_killed(base_model: Path, tmp_path: Path) -> None:
    weights = captioner.make(tmp_path / "captioner")
    files = [*sorted((PHOTOGRAPHS / "dog").glob("*.jpg"))[:5], *sorted((PHOTOGRAPHS / "cat").glob("*.jpg"))[:5]]
    assert len(files) == 10
    allowed = {"IMPRINT_FILE_ROOTS": json.dumps([str(PHOTOGRAPHS)]), "IMPRINT_CAPTIONER": str(weights)}
    with site(tmp_path, base_model, **allowed) as running:
        running.grant("owner")
        images = [{"ref": file.as_uri(), "caption": "my own words" if file == files[0] else None} for file in files]
        accepted = running.send(images=images, captions="auto", class_word="dog")
        job_id = accepted["job_id"]
        until(lambda: bool(written(running)), 120, "the first caption")
        running.kill("train")
        before = written(running)
        running.start("train")
        view = running.wait(job_id)
        assert view["status"] == "ready", view["failure"]
        assert len(written(running)) == 9
        assert {name: at for name, at in written(running).items() if name in before} == before, "not asked again"
        stages = [one.data["stage"] for one in service.events(running.services, job_id) if one.kind == "stage"]
        assert stages == ["preprocess", "caption", "dataset", "train", "upload", "settle"]
        with running.services.database.reading() as session:
            of_job = select(JobPicture.caption).where(JobPicture.job_id == job_id).order_by(col(JobPicture.position))
            captions = [text or "" for text in session.exec(of_job)]
        print("\n".join(f"{file.parent.name}/{file.name}: {text}" for file, text in zip(files, captions, strict=True)))
        assert captions[0] == "my own words"
        assert all("imp dog" in text for text in captions[1:])
        assert len(set(captions[1:])) > 3, "they are about the pictures"
