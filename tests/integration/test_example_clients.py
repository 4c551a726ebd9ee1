"""The clients under examples/, as a reader runs them, against a live server: upload, train, follow, download."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from jobs import service
from jobs.owners import tokens
from jobs.subjects import subject_settings
from storage.tables.jobs import Status
from tests.site import MASCOT, ROOT, Site, site

EXAMPLES = ROOT / "examples"
SMALL = {"max_steps": 2, "resolution": 64}


@pytest.fixture(scope="module")
def running(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site"), base_model, start=("io", "train")) as made:
        made.grant("ada")
        made.start("web")
        yield made


def login(running: Site, subject: str) -> dict[str, str]:
    """The environment of a client. The recipe in the subject's settings makes its trainings small."""
    subject_settings.change(running.services, "ada", subject, {"recipe": SMALL})
    secret = tokens.create(running.services, "example", owner_id="ada")[0]
    return {"API": running.web_url, "TOKEN": secret, "PATH": os.environ["PATH"]}


def run(*command: str | Path, cwd: Path, env: Mapping[str, str]) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def trained(running: Site, subject: str, file: Path) -> dict[str, Any]:
    """The one training of the subject, whose LoRA is in the file."""
    [view] = [one.to_dict() for one in service.jobs(running.services, subject_id=subject)]
    assert view["status"] == Status.READY
    with safe_open(file, "np") as lora:
        assert view["spec"]["trigger_word"] in str(lora.metadata())
    assert file.stat().st_size == view["lora"]["bytes"]
    assert view["spec"]["trigger_word"].startswith(subject)  # derived: neither client sends one
    return view


def pictures(folder: Path) -> list[Path]:
    folder.mkdir()
    return [Path(shutil.copy(file, folder)) for file in sorted(MASCOT.glob("*.png"))[:6]]


@pytest.fixture(scope="module")
def project(running: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, with the types of the server's own OpenAPI document, type-checked and compiled."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine, and tools/system.sh could not install it")
    folder = tmp_path_factory.mktemp("typescript") / "example"
    shutil.copytree(EXAMPLES / "typescript", folder, ignore=shutil.ignore_patterns("node_modules", "dist", "*.d.ts"))
    env = {"API": running.web_url, "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    if (EXAMPLES / "typescript" / "node_modules").is_dir():  # as `make test` leaves it
        (folder / "node_modules").symlink_to(EXAMPLES / "typescript" / "node_modules")
    else:
        run("npm", "ci", cwd=folder, env=env)
    run("npm", "run", "generate", cwd=folder, env=env)
    run("npm", "run", "build", cwd=folder, env=env)
    return folder


class TestTypeScript:
    @pytest.mark.drawn
    def test_it_uploads_trains_follows_and_downloads(self, running: Site, project: Path, tmp_path: Path) -> None:
        pictures(tmp_path / "pictures")
        (tmp_path / "pictures" / "notes.txt").write_text("no picture")
        lora = tmp_path / "anna.safetensors"
        env = login(running, "anna")
        message = run("npm", "start", "--", "anna", tmp_path / "pictures", lora, cwd=project, env=env)
        assert message.count(".png: good") == 6
        assert "status { at: " in message
        assert "status: 'ready'" in message
        view = trained(running, "anna", lora)
        assert f"training {view['job_id']}; the trigger word is {view['spec']['trigger_word']}" in message
        assert f"{view['lora']['bytes']} bytes for {view['credits']['charged']} credits" in message

    def test_what_is_wrong_is_told(self, running: Site, project: Path, tmp_path: Path) -> None:
        (tmp_path / "pictures").mkdir()
        command = ["npm", "start", "--", "nobody", str(tmp_path / "pictures"), "x.safetensors"]
        done = subprocess.run(
            command, cwd=project, env=login(running, "nobody"), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 1
        assert '"imageIds"' in done.stderr

    @pytest.mark.drawn
    def test_a_call_that_the_document_does_not_allow_does_not_compile(self, project: Path) -> None:
        main = project / "src" / "main.ts"
        right = main.read_text()
        try:
            for wrong in (
                right.replace("image.verdict", "image.judgement"),
                right.replace("/lora/train", "/lora/learn"),
            ):
                assert wrong != right
                main.write_text(wrong)
                done = subprocess.run(
                    ["npx", "tsc", "--noEmit"], cwd=project, capture_output=True, text=True, timeout=120, check=False
                )
                assert "src/main.ts" in done.stdout
        finally:
            main.write_text(right)

    def test_the_lock_names_versions_and_hashes_and_no_registry(self) -> None:
        lock = (EXAMPLES / "typescript" / "package-lock.json").read_text()
        assert '"integrity": "sha512-' in lock
        assert '"resolved"' not in lock


class TestPython:
    def test_ten_lines_upload_train_follow_and_download(self, running: Site, tmp_path: Path) -> None:
        script = EXAMPLES / "python" / "train.py"
        message = run(
            sys.executable, script, "bert", *pictures(tmp_path / "pictures"), cwd=tmp_path, env=login(running, "bert")
        )
        assert "event: status" in message
        assert '"status": "ready"' in message
        trained(running, "bert", tmp_path / "bert.safetensors")
