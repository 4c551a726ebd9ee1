"""`make bench-quality` in its short form: both sides train, draw and are graded, and the last line is the JSON."""

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import quality
from demo.pocket.strangers import PRACTICE


@pytest.mark.drawn
def test_a_recipe_is_tried_on_subjects_to_practise_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--quick", "--practice", "--sides", "ours", "--steps", "2"]
    asked += ["--set", "optimization.loraplus_ratio=2", "--learning-rate", "1e-3"]
    assert quality.main([*asked, "--sheet", str(tmp_path / "sheet.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(PRACTICE[0].name) for line in lines)
    assert json.loads(lines[-1])["seeds"] == 1


@pytest.mark.drawn
def test_both_sides_are_graded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    assert quality.main(["--quick", "--sheet", str(sheet)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for side in ("ours", "plain"):
        assert set(result[side]) == {"recall", "leak", "drift", "nearness"}
        assert 0 < result[side]["drift"] < 1  # ten steps are seen, however little they teach
    assert result["base"]["drift"] == 0
    assert result["judge"]["spotted"] > result["judge"]["taken_for_it"]
    with Image.open(sheet) as picture:
        assert picture.width > 5 * picture.height
