"""`make demo JOBS=4`: four demo jobs sent at once train as one cohort, and none of them shows in another's file."""

from pathlib import Path

import pytest

from demo.pocket import MODEL
from demo.run import PICTURES, RECIPE, SEED, TRIGGER
from tests.site import Site, site, until

pytestmark = pytest.mark.drawn


def test_no_file_shows_who_trained_beside_it(tmp_path: Path) -> None:
    with site(tmp_path, MODEL, IMPRINT_COHORT="4") as running:
        running.grant("owner")
        images = running.pictures("owner", len(list(PICTURES.glob("*.png"))))
        four = _train(running, images, [SEED + number for number in range(4)])
        assert "4 job(s) in 4 slot(s)" in running.log("train").read_text()
        among_others = _train(running, images, [91, SEED + 2, 92, SEED])
        alone = _train(running, images, [SEED + 1])
        assert len(set(four)) == 4
        assert [four[2], four[0]] == [among_others[1], among_others[3]]
        assert four[1] == alone[0]


def _train(running: Site, images: list[str], seeds: list[int]) -> list[str]:
    """Jobs of the demo with these seeds, cut short, sent at once; what their files hash to."""
    recipe = {**RECIPE, "trigger_word": TRIGGER, "max_steps": 10}
    jobs = [running.send(images=images, seed=seed, **recipe)["job_id"] for seed in seeds]
    until(lambda: all(running.view(job)["status"] in ("ready", "failed") for job in jobs), 240, "all are done")
    views = [running.view(job) for job in jobs]
    assert [view["status"] for view in views] == ["ready"] * len(seeds), [view["failure"] for view in views]
    return [view["lora"]["sha256"] for view in views]
