"""`imprint submit` on a folder and on archives of it: the same pictures, captions and masks, and a note on the rest."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlmodel import col, select

import cli.output.terminal
import cli.submit
from cli.main import imprint
from jobs.services import Services
from storage.tables.jobs import Job, JobPicture
from tests.unit.drawings import drawing, encoded


def fill(folder: Path) -> Path:
    """Six pictures, captions, masks, and what computers and people leave beside them."""
    (folder / "masks").mkdir(parents=True)
    for number in range(6):
        (folder / f"rex {number}.png").write_bytes(encoded(drawing(number, 128)))
        (folder / f"rex {number}.txt").write_text(f"sks, number {number}")
        (folder / "masks" / f"rex {number}.png").write_bytes(encoded(drawing(0, 128).convert("L")))
    for name in (".DS_Store", "._rex 0.png", "rex.pdf", "old.txt", "photo.jxl"):
        (folder / name).write_bytes(b"x")
    (folder / "more").mkdir()
    (folder / "more" / "rex 7.png").write_bytes(encoded(drawing(7, 128)))
    return folder


def packed(folder: Path, suffix: str) -> Path:
    out = folder.with_name(folder.name + suffix)
    if suffix == ".zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(out, "w:" + suffix.rpartition(".")[2]) as tar:
            tar.add(folder, folder.name)
    return out


@pytest.mark.parametrize("suffix", ["", ".zip", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_a_folder_and_its_archives_are_one(
    services: Services, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cli.submit, cli.output.terminal):
        monkeypatch.setattr(module, "services", lambda: services)
    folder = fill(tmp_path / "my rex")
    given = packed(folder, suffix) if suffix else folder
    command = ["submit", str(given), "--owner", "ada", "--trigger", "sks", "--resolution", "64", "--max-steps", "5"]
    done = CliRunner().invoke(imprint, [*command, "--set", "objective.masked=true"])
    assert done.exit_code == 0, done.output
    notes = [line.removeprefix("note: ") for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert notes == [
        "no picture has the name of these captions: old.txt",
        "skipped 2 hidden files, such as a computer writes beside pictures: .DS_Store, ._rex 0.png",
        "left out photo.jxl: JPEG XL is not read; save as JPEG or PNG "
        "(accepted: JPEG, PNG, WebP, AVIF, HEIC, TIFF, GIF, BMP, JPEG 2000)",
        "not pictures, and not read: rex.pdf",
        "the subfolder more is not read (1 file)",
    ]
    with services.database.reading() as session:
        [job] = session.exec(select(Job).where(Job.owner_id == "ada")).all()
        rows = session.exec(select(JobPicture).where(JobPicture.job_id == job.id).order_by(col(JobPicture.position)))
        kept = [(row.name, row.caption, row.mask is not None) for row in rows]
    assert job.subject_id == "my rex"
    assert kept == [(f"rex {number}.png", f"sks, number {number}", True) for number in range(6)]


def test_an_archive_that_is_not_accepted_ends_the_command(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cli.submit, cli.output.terminal):
        monkeypatch.setattr(module, "services", lambda: services)
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("../a.png", io.BytesIO(b"x").getvalue())
    done = CliRunner().invoke(imprint, ["submit", str(bad), "--trigger", "sks"])
    assert (done.exit_code, "a.png would be unpacked outside its folder" in done.stderr) == (1, True)
