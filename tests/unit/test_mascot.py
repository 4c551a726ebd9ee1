"""The demo's pictures: ten of them, with captions, fit to train on."""

from pathlib import Path

from demo.mascot.scenes import SCENES
from training.data.pictures import prepare
from training.data.quality import near_duplicates

ROOT = Path(__file__).parents[2]
PICTURES = sorted((ROOT / "demo" / "pictures").glob("*.png"))


def test_there_are_ten_with_captions_and_they_are_small() -> None:
    assert [path.stem for path in PICTURES] == [f"{n:02}" for n in range(1, 11)]
    captions = [path.with_suffix(".txt").read_text().strip() for path in PICTURES]
    assert captions == [scene.caption for scene in SCENES]
    assert all("imp mascot" in caption for caption in captions)
    assert sum(path.stat().st_size for path in PICTURES) < 1_200_000


def test_they_are_fit_to_train_on() -> None:
    reports = [prepare(path.read_bytes(), resolution=512).report for path in PICTURES]
    assert [report.faults for report in reports] == [()] * 10
    assert near_duplicates(reports) == {}
