"""Restore on another machine: the old one is lost in mid-training, the new one has other servers of every kind."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from jobs.owners import accounts
from storage import backup
from tests.site import ROOT, site, until

pytestmark = pytest.mark.drawn

STEPS = 80  # with a checkpoint every twelve
HEALTH = ROOT / "deploy" / "images" / "health"


@pytest.mark.timeout(900)  # two installations, one after the other; a minute on a quiet machine
def test_a_running_job_goes_on_elsewhere_and_is_charged_once(tmp_path: Path, base_model: Path) -> None:
    kept = tmp_path / "backup"
    with site(tmp_path / "old", base_model) as old:
        old.grant("owner")
        before = old.wait(old.send()["job_id"])
        assert before["status"] == "ready"
        job_id = old.send(max_steps=STEPS, checkpoint_every=2, seed=11)["job_id"]
        until(lambda: any(old.services.store.list(f"checkpoints/{job_id}/")), 90, "a checkpoint")
        # Not by the command: it takes seconds to start, and the training may be over by then.
        backup.backup(old.services.database, old.services.store, kept)
        for name in ("beat", "io", "train"):
            old.kill(name)

    with site(tmp_path / "new", base_model, start=(), database="postgresql", store="s3") as new:
        result = json.loads(new.imprint("restore", str(kept), "--json").stdout.splitlines()[-1])
        assert result["rows"]["training_job"] == 2
        assert json.loads(new.imprint("audit", "--json").stdout)["ok"]
        assert new.view(before["job_id"])["status"] == "ready"
        assert (new.view(job_id)["status"], new.view(job_id)["stage"]) == ("training", "train")
        for name in ("io", "train", "beat", "web"):
            new.start(name)
        view = new.wait(job_id)
        assert view["status"] == "ready", view["failure"]
        goes_on = re.findall(r"resumes at step (\d+) of", new.log("train").read_text())
        assert len(goes_on) == 1
        assert 0 < int(goes_on[0]) < STEPS
        assert accounts.balance(new.services, "owner").spent == sum(
            new.view(each)["credits"]["charged"] for each in (before["job_id"], job_id)
        )
        assert json.loads(new.imprint("audit", "--json").stdout)["ok"]
        assert new.services.store.exists(view["lora"]["key"])
        assert new.services.store.exists(before["lora"]["key"])

        # The images ask their processes the same way: by what they are, and of a dead one they hear nothing.
        for name in ("io", "train", "web"):
            line = " ".join(new.processes[name].argv) + " "
            assert healthy(new.surroundings(IMPRINT_WEB_PORT=new.web_url.rpartition(":")[2]), line), name
        line = " ".join(new.processes["io"].argv) + " "
        new.kill("io")
        assert not healthy(new.surroundings(), line)


def test_beat_is_healthy_while_it_writes_its_schedule(tmp_path: Path) -> None:
    schedule = tmp_path / "run" / "beat.dat"
    schedule.parent.mkdir()
    environment, line = {"IMPRINT_HOME": str(tmp_path), "PATH": os.environ["PATH"]}, "python -m celery beat --loglevel "
    assert not healthy(environment, line)
    schedule.touch()
    assert healthy(environment, line)
    os.utime(schedule, (time.time() - 3600,) * 2)
    assert not healthy(environment, line)


def healthy(environment: dict[str, str], line: str) -> bool:
    """What the images' health check finds, for a process with this command line."""
    path = f"{ROOT / '.venv' / 'bin'}:{environment['PATH']}"
    done = subprocess.run(["sh", HEALTH, line], cwd=ROOT, env={**environment, "PATH": path}, check=False, timeout=240)
    return done.returncode == 0
