"""The single-machine way, for real: systemd boots, the installer runs as its page says, a training is sent through,
stopped in mid-training by an update, and finished.

The machine is made of namespaces (tests/servers/machine.sh). It differs from an empty Debian in this: packages are
there already, and the Python environment is that of the tests.
"""

import json
import re
import site
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import SecretStr

from cli.stack_members import Layout
from core.settings import Settings
from tests.docs.pages import blocks
from tests.servers.systemd import Machine, machine, why_not
from tests.site import ROOT, until
from web.server.open_files import WANTED_FILES

UNITS = ROOT / "deploy" / "systemd"
PAGE_STEPS = 1000
STEPS = 200  # still at work when the update comes: its first act, after a second, is to stop the units
WAIT_S = 300  # limits of waits on a busy machine; on a quiet one none takes more than a few seconds

# What a test's machine needs beside the settings of the installer.
SETTINGS = """
IMPRINT_LEASE_S=3
IMPRINT_SWEEP_S=1
IMPRINT_RETRY_BASE_S=0.2
OMP_NUM_THREADS=1
LD_LIBRARY_PATH=/opt/python/lib
"""

# An environment of one's own, as the page allows: the tests' packages, on their Python.
ENVIRONMENT = """
set -e
mkdir -p /opt/imprint /srv/environment/bin /srv/environment/lib/{python}
printf 'home = /opt/python/bin\\ninclude-system-site-packages = false\\n' >/srv/environment/pyvenv.cfg
ln -s /opt/python/bin/{python} /srv/environment/bin/python
ln -s {packages} /srv/environment/lib/{python}/site-packages
ln -s /srv/environment /opt/imprint/.venv
"""

# How far the training is, without the seconds of a core that a command of ours takes to start.
JOB = """LD_LIBRARY_PATH=/opt/python/lib /opt/python/bin/python3 -c "
import sqlite3
database = sqlite3.connect('file:/var/lib/imprint/imprint.db?mode=ro', uri=True)
print(*database.execute('SELECT status, step FROM training_job').fetchone())"
"""

# What the walls around the decoder's child are, seen from inside a unit (training/data/decoding/confinement.py).
WALLS = """
import json, os
from training.data.decoding.confinement import confine
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, json.dumps(confine(1 << 30)).encode())
    os._exit(0)
os.close(writing)
print("WALLS", os.read(reading, 4096).decode(), "UID", os.getuid(), flush=True)
"""


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Machine]:
    if reason := why_not():
        pytest.skip(reason)
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [name for name in tracked.stdout.splitlines() if (ROOT / name).is_file()]
    packages = Path(site.getsitepackages()[0])
    with machine(tmp_path / "machine", ROOT) as booted:
        booted.copy(ROOT, "/srv/imprint", names)
        lent = Path("/opt/checkout") / packages.relative_to(ROOT) if packages.is_relative_to(ROOT) else packages
        booted.do(ENVIRONMENT.format(python=packages.parent.name, packages=lent))
        yield booted


PAGE = ROOT / "docs" / "deploy" / "single-machine.md"

# What a reader's machine has and this one need not: root types, and the newer checkout is there already.
AS_ROOT = 'sudo() { "$@"; }; export LD_LIBRARY_PATH=/opt/python/lib; cd /srv/imprint; set -e\n'
INSTALL, BASE, START, SUBMIT, UPDATE, STOP = range(6)  # the page's blocks of commands


def typed(number: int) -> str:
    """A block of commands of the page, as it stands there."""
    return AS_ROOT + [block.text for block in blocks(PAGE) if block.language == "sh"][number]


def status_and_step(on: Machine) -> tuple[str, int]:
    """Of the one training."""
    status, step = on.do(JOB).split()
    return status, int(step)


def imprint(on: Machine, *arguments: str) -> Any:
    return json.loads(on.do(f"imprint {' '.join(arguments)} --json", WAIT_S).splitlines()[-1])


@pytest.mark.timeout(900)  # a minute on a quiet machine; it boots, trains twice and starts everything twice
@pytest.mark.drawn
def test_from_an_empty_machine_to_a_lora_over_an_update(debian: Machine) -> None:
    # ---- install, set, start: as the page says ----
    debian.do(typed(INSTALL))
    verify = "cd /etc/systemd/system; systemd-analyze verify imprint.target imprint-*.service imprint-*.timer 2>&1"
    assert debian.do(f"{verify} | grep imprint || true") == ""
    security = debian.do("systemd-analyze security --no-pager imprint-io.service | tail -1")
    # On systemd's own scale 10 is no wall at all, and what it calls OK is below 5.
    assert float(re.findall(r"\d+\.\d", security)[0]) < 4, security
    assert debian.do("stat -c '%a %U %G' /etc/imprint/imprint.env").split() == ["640", "root", "imprint"]
    assert "CHANGE-ME" not in debian.do("cat /etc/imprint/imprint.env /etc/imprint/redis.conf")
    debian.do(f"cat >>/etc/imprint/imprint.env <<'END'{SETTINGS}END")
    debian.do(typed(BASE))
    debian.do(typed(START))
    until(lambda: debian.journal().count(" ready.") >= 4, WAIT_S, "four workers", every_s=1)
    states = debian.do("systemctl list-units --no-legend --plain 'imprint-*.service' | awk '{print $1, $4}'")
    running = {
        f"imprint-{name}.service running"
        for name in ("redis", "io", "fetch", "beat", "web", "flower", "train@0", "draw")
    }
    assert set(states.splitlines()) == running | {"imprint-migrate.service exited"}, debian.journal()
    debian.do("curl -fsS http://127.0.0.1:8080/healthz")

    # ---- a training, as far as its middle ----
    submit = typed(SUBMIT)
    assert f"--max-steps {PAGE_STEPS} " in submit
    debian.do(submit.replace(f"--max-steps {PAGE_STEPS} ", f"--max-steps {STEPS} "))
    [job_id] = [job["job_id"] for job in imprint(debian, "list")]
    until(lambda: status_and_step(debian)[1] > 0, WAIT_S, "the first steps", every_s=0.5)

    # ---- the update: a newer checkout, the same command ----
    debian.do("echo newer >/srv/imprint/NEWER")
    content = debian.do(typed(UPDATE))
    assert "handed over" in content
    debian.do("test -e /opt/imprint/NEWER")
    debian.do('test -n "$(ls /opt/imprint/tasks/__pycache__)"')
    between = debian.journal()
    assert "Killing" not in between, "something had to be killed at its stop"
    assert "Failed with result" not in between
    until(lambda: status_and_step(debian)[0] in ("ready", "failed"), WAIT_S, "the end of the training", every_s=1)

    # ---- ready, charged once, no step done twice ----
    view = imprint(debian, "status", job_id)
    assert view["status"] == "ready", view
    goes_on = [line for line in debian.journal().splitlines() if "resumes at step" in line and job_id in line]
    assert len(goes_on) == 1, debian.journal()[-4000:]
    resumed = int(goes_on[0].split("resumes at step ")[1].split()[0])
    assert 0 < resumed < STEPS
    assert view["step"] == STEPS
    balance = imprint(debian, "balance", "me")
    assert balance["spent"] == view["credits"]["charged"] > 0
    assert [entry["kind"] for entry in balance["entries"]].count("settle") == 1
    assert imprint(debian, "audit")["ok"]

    # ---- the command is the installation's, in a checkout too, and where its user may not go ----
    debian.do(
        "mkdir -p /srv/other/tasks; cd /srv/other; echo 'raise OSError' | tee celeryconfig.py >tasks/__init__.py\n"
        "echo IMPRINT_DATABASE_URL=sqlite:////tmp/x.db >.env; chmod -R a+rX .; imprint list; test ! -e /tmp/x.db"
    )
    debian.do("mkdir -m 700 /srv/closed; cd /srv/closed; imprint list")
    refused = debian.run("cd /srv/closed; mkdir pictures; imprint submit pictures --trigger imp")
    assert refused.returncode == 2
    assert "may not enter /srv/closed" in refused.stdout

    # ---- a worker that dies is started again; the walls stand; a back-up is made ----
    pid = debian.do("systemctl show -P MainPID imprint-io").strip()
    debian.do(f"kill -9 {pid}")
    until(
        lambda: debian.do("systemctl show -P MainPID imprint-io").strip() not in ("0", pid), WAIT_S, "another io worker"
    )
    debian.do(
        # The installed code, not the checkout that the lent environment may know: that may lie where nobody sees it.
        "sed 's|^ExecStart=.*|Environment=PYTHONPATH=/opt/imprint\\nExecStart=/opt/imprint/.venv/bin/python "
        "/srv/walls.py|; s|^Restart=.*|Restart=no|' "
        "/etc/systemd/system/imprint-io.service >/etc/systemd/system/imprint-walls.service\n"
        f"cat >/srv/walls.py <<'END'{WALLS}END\nsystemctl start imprint-walls"
    )
    until(lambda: "WALLS" in debian.journal(), WAIT_S, "the walls", every_s=0.5)
    held, uid = re.findall(r"WALLS (\[.*\]) UID (\d+)", debian.journal())[0]
    assert {"no new rights", "no network"} <= set(json.loads(held))
    assert uid != "0"
    debian.do("systemctl start imprint-backup")
    debian.do("test -s /var/backups/imprint/manifest.json")
    assert "resumes at step" in debian.do(typed(STOP).replace("--lines 50", "--lines 500"))
    assert debian.do("pgrep -u imprint || true").strip() == ""


class TestUnits:
    """What can be said of the units without booting anything."""

    texts: ClassVar[dict[str, str]] = {path.name: path.read_text() for path in sorted(UNITS.glob("imprint-*.service"))}
    common = (UNITS / "imprint-.service.d" / "common.conf").read_text()

    def test_they_run_the_same_processes_as_make_up(self) -> None:
        ran = {
            name: re.sub(r"^\S+ -m ", "", line.removeprefix("ExecStart=")).replace("%%", "%")
            for name, text in self.texts.items()
            for line in text.splitlines()
            if line.startswith("ExecStart=/opt/imprint")
        }
        stack = Layout(Settings(_env_file=None, flower_port=5555, ingress_url=SecretStr("amqp://there")))
        for member in stack.members:
            words = [*member.command, *member.arguments]
            if member.name == "io":
                words[-1] = "${IMPRINT_IO_CONCURRENCY}"
            unit = {"train": "imprint-train@.service"}.get(member.name, f"imprint-{member.name}.service")
            assert ran[unit].replace("train-%i@", "train@") == " ".join(words), unit

    def test_a_stop_gives_trainings_the_time_to_hand_over(self) -> None:
        assert "KillMode=mixed" in self.common
        assert "KillSignal=SIGTERM" in self.common
        for name, text in self.texts.items():
            assert "KillMode" not in text, name
            if "worker" in text:
                assert "TimeoutStopSec=90" in text, name

    def test_every_unit_has_the_walls(self) -> None:
        for wall in ("NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=\n", "User=imprint"):
            assert wall in self.common
        assert f"LimitNOFILE={WANTED_FILES}\n" in self.common  # event streams and uploads need one each
        for name, text in self.texts.items():
            assert "User=" not in text, name
            own = re.findall("^(Protect|Restrict|NoNew|Capability|LimitNOFILE)", text, re.MULTILINE)
            assert own == (["LimitNOFILE"] if name == "imprint-redis.service" else []), name

    def test_settings_in_the_example_exist(self) -> None:
        names = re.findall(r"^IMPRINT_([A-Z0-9_]+)=", (UNITS / "imprint.env.example").read_text(), re.MULTILINE)
        assert names
        assert {name.lower() for name in names} <= set(Settings.model_fields)

    def test_the_api_believes_proxies_on_this_machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in re.findall(r"^(IMPRINT_WEB_\w+)=(.*)$", (UNITS / "imprint.env.example").read_text(), re.M):
            monkeypatch.setenv(name, value.replace("CHANGE-ME", "x" * 32))
        assert Settings(_env_file=None).web_trusted_proxies == ["127.0.0.1", "::1"]
