"""Set-up: one command, everything pinned, and nothing done twice. No network: the interpreter is a double."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
SCRIPTS = [*sorted((ROOT / "tools").glob("*.sh")), ROOT / ".ci" / "run"]

# Plays python: makes a .venv whose python is itself, and writes down what pip is asked for.
DOUBLE = """#!/bin/sh
case "$*" in
  --version) echo "Python 3.11.0"; exit 0 ;;
  *"-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo "$PWD/.venv" >.venv/bin/activate ;;
  *"-m pip"*install*) ;;
  *) exit 0 ;;
esac
echo "$*" >>calls
"""


def run(*argv: str | Path, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Without what an outer make tells inner ones: these tests run under `make test` too."""
    clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(
        argv, cwd=cwd, env=clean | env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What setup.sh needs of a checkout, with a space in its path and a double for Python."""
    folder = tmp_path / "a checkout"
    shutil.copytree(ROOT / "tools", folder / "tools")
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    double = folder / "python"
    double.write_text(DOUBLE)
    double.chmod(0o755)
    return folder


def set_up(checkout: Path) -> subprocess.CompletedProcess[str]:
    return run("tools/setup.sh", "demo", cwd=checkout, PYTHON=str(checkout / "python"))


def calls(checkout: Path) -> list[str]:
    return (checkout / "calls").read_text().splitlines()


class TestSetUp:
    def test_installs_torch_by_its_pin_then_the_lock_then_imprint(self, checkout: Path) -> None:
        done = set_up(checkout)
        assert done.returncode == 0, done.stderr
        venv, torch, locked, own = calls(checkout)
        assert "-m venv .venv" in venv
        assert re.search(r"install torch==\d+\.\d+\.\d+ -c .cache/constraints.txt$", torch)
        assert locked.endswith("install --no-deps --require-hashes -r requirements.lock")
        assert own.endswith("install --no-deps --no-build-isolation -e .")
        assert "ready" in done.stdout

    def test_the_second_run_does_nothing_until_a_pin_changes(self, checkout: Path) -> None:
        set_up(checkout)
        before = calls(checkout)
        again = set_up(checkout)
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
        assert calls(checkout) == before
        with (checkout / "requirements.lock").open("a") as lock:
            lock.write("# changed\n")
        set_up(checkout)
        added = calls(checkout)[len(before) :]
        assert len(added) == 3  # the packages again, in the environment that is there
        assert not any("-m venv" in call for call in added)

    def test_a_checkout_that_was_moved_is_set_up_again(self, checkout: Path) -> None:
        set_up(checkout)
        moved = checkout.rename(checkout.with_name("elsewhere"))
        set_up(moved)
        assert sum("-m venv" in call for call in calls(moved)) == 2

    def test_two_at_once_install_once(self, checkout: Path) -> None:
        argv = [checkout / "tools" / "setup.sh", "demo"]
        both = [
            subprocess.Popen(argv, env=os.environ | {"PYTHON": str(checkout / "python")}, stdout=subprocess.DEVNULL)
            for _ in range(2)
        ]
        assert [one.wait(timeout=240) for one in both] == [0, 0]
        assert len(calls(checkout)) == 4

    def test_a_step_that_fails_shows_the_log_and_leaves_no_stamp(self, checkout: Path) -> None:
        double = checkout / "python"
        double.write_text(DOUBLE.replace("install*) ;;", "install*) echo no such wheel; exit 1 ;;"))
        failed = set_up(checkout)
        assert failed.returncode == 1
        assert "no such wheel" in failed.stderr
        assert not (checkout / ".venv" / "imprint.stamp").exists()

    def test_without_a_python_it_says_so(self, checkout: Path) -> None:
        (checkout / "python").write_text("#!/bin/sh\nexit 1\n")
        failed = set_up(checkout)
        assert failed.returncode == 1
        assert "Python 3.11 or newer" in failed.stderr


class TestPins:
    lock = (ROOT / "requirements.lock").read_text()
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())

    def test_the_lock_holds_every_direct_pin_and_not_torch(self) -> None:
        project = self.pyproject["project"]
        extras = project["optional-dependencies"].values()
        direct = [*project["dependencies"], *(pin for extra in extras for pin in extra)]
        direct += self.pyproject["build-system"]["requires"]
        assert all(re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", pin) for pin in direct)
        pins = {re.sub(r"\[.*\]", "", pin).lower() for pin in direct}
        locked = set(re.findall(r"^([\w.-]+==[\w.]+)", self.lock, re.MULTILINE))
        torch = {pin for pin in pins if pin.startswith("torch==")}
        assert len(torch) == 1
        assert pins - torch <= locked
        assert not re.search(r"^(torch|triton|nvidia-[\w-]+)==", self.lock, re.MULTILINE)

    def test_every_locked_package_has_hashes_and_no_address(self) -> None:
        blocks = re.split(r"\n(?=\S)", self.lock.strip())
        assert all("--hash=sha256:" in block for block in blocks)
        assert "://" not in self.lock
        assert "--index-url" not in self.lock


class TestMake:
    def test_help_lists_every_target(self) -> None:
        listed = re.findall(r"^  make ([a-z-]+) +\S", run("make").stdout, re.MULTILINE)
        assert set(listed) == TARGETS
        phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
        assert phony is not None
        assert set(phony.group(1).split()) == TARGETS

    def test_test_checks_style_types_and_imports_before_the_tests(self) -> None:
        plan = run("make", "-n", "test").stdout
        order = ["setup.sh test", "ruff check", "ruff format --check", "mypy", "lint-imports", "pytest -n"]
        assert [plan.find(step) for step in order] == sorted(plan.find(step) for step in order)
        assert all(step in plan for step in order)

    def test_ci_makes_a_fresh_set_up_and_runs_exactly_make_test(self) -> None:
        lines = (ROOT / ".ci" / "run").read_text().splitlines()
        assert [line for line in lines if "make" in line and not line.startswith("#")] == ["exec make test </dev/null"]
        assert "rm -rf .venv" in lines

    @pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
    def test_what_the_pages_say_to_type_exists(self, page: str) -> None:
        text = (ROOT / page).read_text()
        code = re.findall(r"^```.*?^```|`[^`\n]+`", text, re.MULTILINE | re.DOTALL)
        named = re.findall(r"(?:^|[`$] ?)make ((?:[a-z-]+ ?)+)", "\n".join(code), re.MULTILINE)
        assert {target for words in named for target in words.split()} <= TARGETS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_and_executable(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert run("bash", "-n", script).stderr == ""
    if shutil.which("shellcheck"):
        assert run("shellcheck", script).stdout == ""
