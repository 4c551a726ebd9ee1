"""An idle fetch worker prepares the pictures of a job that waits for its turn, also after a kill -9 in the middle."""

import json
from pathlib import Path

from sqlmodel import select

from jobs.lifecycle import sweeps
from storage.tables.jobs import JobPicture
from tests.site import Site, drawing, site, until

PICTURES = 8


def pictures(running: Site, job_id: str) -> list[JobPicture]:
    with running.services.database.reading() as session:
        return list(session.exec(select(JobPicture).where(JobPicture.job_id == job_id)))


def count_good(running: Site, job_id: str) -> int:
    return sum(one.state == "good" for one in pictures(running, job_id))


def test_a_training_finds_its_pictures_ready(base_model: Path, tmp_path: Path) -> None:
    roots = json.dumps([str(tmp_path)])
    with site(
        tmp_path, base_model, start=("io", "fetch", "beat"), IMPRINT_FILE_ROOTS=roots, IMPRINT_LIMIT_RUNNING_JOBS="1"
    ) as running:
        running.grant("owner")
        jobs = []
        for first in (0, PICTURES):
            images = [drawing(tmp_path / f"{number}.png", number) for number in range(first, first + PICTURES)]
            jobs.append(running.send(images=[image.as_uri() for image in images])["job_id"])
        until(lambda: count_good(running, jobs[1]) > 0, 60, "a picture that is ready before its job's turn")
        running.kill("fetch")
        running.start("fetch")
        until(lambda: count_good(running, jobs[1]) == PICTURES, 60, "all pictures ready before their job's turn")
        waiting = running.view(jobs[1])
        assert (waiting["status"], waiting["step"]) == ("pending", 0)
        running.start("train")
        for job_id in jobs:
            view = running.wait(job_id)
            assert view["status"] == "ready", view["failure"]
        assert {one.attempt for one in pictures(running, jobs[1])} == {0}  # no preprocess stage has claimed one
        assert sweeps.run_audit(running.services) == []
