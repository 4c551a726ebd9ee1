"""The images: rules for the Dockerfile, and that what the locks hold is enough, and no more than that."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.site import MASCOT, ROOT

IMAGES = ROOT / "deploy" / "images"
DOCKERFILE = (IMAGES / "Dockerfile").read_text()
TRAINS = {"torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes"}

# Runs the rest of the command line in a Python that has only the packages of a lock: others cannot be imported.
_ONLY = """
import importlib.metadata, re, runpy, sys
lock, *sys.argv = sys.argv[1:]
flat = lambda name: re.sub("[-_.]+", "-", name).lower()
kept = {flat(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", open(lock).read(), re.MULTILINE)} | {"imprint"}
tops = importlib.metadata.packages_distributions()
gone = {top for top, names in tops.items() if not {flat(name) for name in names} & kept}
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in gone:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)
sys.meta_path.insert(0, Gone())
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""

# Everything that a process of the image serve imports, and a stranger's picture prepared in the decoder's child.
_SERVES = """
import importlib, sys
from pathlib import Path
for name in ("stages", "sweeps", "ingress", "workers.worker", "rabbitmq.consumer"):
    importlib.import_module(f"tasks.{{name}}")
for name in ("cli.main", "web.app", "flower.command", "storage.objects.s3", "psycopg"):
    importlib.import_module(name)
from jobs.services import services
services().decoder.prepare(Path({picture!r}).read_bytes(), resolution=64)
assert "torch" not in sys.modules
"""


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of each instruction, continuation lines joined."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return [(line.split()[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def stage(name: str) -> list[tuple[str, str]]:
    """The instructions of one stage."""
    found: dict[str, list[tuple[str, str]]] = {}
    current = ""
    for word, rest in instructions():
        if word == "FROM":
            current = rest.split(" AS ")[1]
            found[current] = []
        found.setdefault(current, []).append((word, rest))
    return found[name]


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock.read_text(), re.MULTILINE))


class TestDockerfile:
    def test_bases_are_pinned(self) -> None:
        stages: set[str] = set()
        arguments = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG" and "=" in rest)
        for word, rest in instructions():
            if word == "FROM":
                image, _, name = rest.partition(" AS ")
                image = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], image)
                assert image in stages or re.search(r":\d+\.\d+\.\d+[\w.-]*$", image), f"{image} is not pinned"
                stages.add(name)

    def test_nothing_is_fetched_but_by_the_package_managers(self) -> None:
        for word, rest in instructions():
            assert word != "ADD", "COPY says what it does"
            assert not re.search(r"\b(curl|wget|git clone)\b", rest), rest
            for command in re.findall(r"pip install [^&]+", rest):
                assert "--no-cache-dir" in command
                assert "--require-hashes" in command or "==" in command or "/wheel/" in command, command
            if "apt-get install" in rest:
                assert "--no-install-recommends" in rest
                assert "rm -rf /var/lib/apt/lists" in rest

    @pytest.mark.parametrize("name", ["serve", "train"])
    def test_the_image_is_run_by_nobody_special_and_can_be_asked_how_it_is(self, name: str) -> None:
        words = [word for word, _ in stage(name)]
        assert ("USER", "10001:10001") in stage(name)
        assert words.index("USER") > max(index for index, word in enumerate(words) if word in ("RUN", "COPY"))
        assert "HEALTHCHECK" in words
        assert not any(re.search("(PASSWORD|SECRET|TOKEN|_KEY)=", rest) for word, rest in stage(name) if word == "ENV")
        [command] = [rest for word, rest in stage(name) if word == "CMD"]
        assert json.loads(command)[0] == "python", "the process itself is process 1: it gets SIGTERM, no shell does"

    def test_what_is_copied_is_let_through(self) -> None:
        ignore = (ROOT / ".dockerignore").read_text().splitlines()
        let = {line[1:] for line in ignore if line.startswith("!")}
        assert ignore[1] == "*"
        for word, rest in instructions():
            if word == "COPY" and not rest.startswith("--from"):
                for source in rest.split()[:-1]:
                    assert source == "." or any(source == path or source.startswith(f"{path}/") for path in let), source
                    assert (ROOT / source).exists()
        packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks", "demo", "fakes"}
        assert packages <= let, "a package of ours that the images would lack"

    def test_its_scripts_are_sound(self) -> None:
        subprocess.run(["sh", "-n", IMAGES / "health"], check=True)


def test_the_wheel_in_the_images_has_every_file_of_the_packages(tmp_path: Path) -> None:
    """An installation from the checkout would not notice a template that is packed nowhere."""
    let = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *let], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in tracked:
        if (ROOT / name).is_file():
            (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "src" / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir",
         tmp_path, tmp_path / "src"], check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    [wheel] = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    missing = {name for name in tracked if name.split("/")[0] in packages & set(let)} - packed
    assert {name for name in missing if (ROOT / name).is_file()} == set()


class TestLocks:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    everything = pins(ROOT / "requirements.lock")

    @pytest.mark.parametrize("name", ["serve", "train"])
    def test_they_are_parts_of_the_whole_lock_and_up_to_date(self, name: str) -> None:
        held = pins(IMAGES / f"{name}.lock")
        assert {package: self.everything.get(package) for package in held} == held, "run tools/lock.sh"
        optional = self.project["optional-dependencies"]
        wanted = [*self.project["dependencies"], *optional["postgres"], *optional["tracing"]]
        for line in wanted:
            package, version = re.findall(r"^([\w.-]+)(?:\[\w+\])?==(.+)$", line)[0]
            if package != "torch" and not (name == "serve" and package in TRAINS):
                assert held[package.lower()] == version, f"{package}: run tools/lock.sh"

    def test_what_serves_has_nothing_that_trains_or_tests(self) -> None:
        held = pins(IMAGES / "serve.lock")
        assert not TRAINS & held.keys()
        assert not {"pytest", "hypothesis", "matplotlib", "mypy", "triton"} & held.keys()
        assert not any(package.startswith("nvidia") for package in held)

    def test_what_serves_is_enough_to_serve(self, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text(_SERVES.format(picture=str(min(MASCOT.glob("*.png")))))

        def only(*command: str) -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                [sys.executable, "-c", _ONLY, str(IMAGES / "serve.lock"), *command], cwd=ROOT, text=True,
                env={"PATH": "/usr/bin:/bin", "IMPRINT_HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path)},
                capture_output=True, timeout=120, check=False,
            )  # fmt: skip

        done = only("celery", "-A", "tasks.app", "imprint", "grant", "me", "5")
        assert done.returncode == 0, done.stderr
        assert "5 available" in done.stdout
        done = only("program")
        assert done.returncode == 0, done.stderr
        # And the wall is one: what trains cannot be imported.
        assert "torch is not in the image" in only("torch").stderr
