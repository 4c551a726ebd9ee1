"""Every family that is trained here, on a tiny model of its architecture, through the real chain with real workers."""

import json
from pathlib import Path

import pytest

from jobs import service
from tests.families import LOCAL
from tests.servers.launcher import run
from tests.site import ROOT, site
from training.lora import file as lora_file


@pytest.mark.drawn
@pytest.mark.timeout(900)
def test_a_job_of_every_family_becomes_a_lora_of_it(base_model: Path, tmp_path: Path) -> None:
    bases = {"sd15": base_model} | {name: tmp_path / f"tiny-{name}" for name in LOCAL if name != "sd15"}
    for name, folder in bases.items():
        if not folder.is_dir():
            argv = ["training.tiny.base", str(folder), "--family", name]
            done = run(argv, cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, folder=tmp_path, timeout=240)
            assert done.returncode == 0, done.stderr
    known = json.dumps({name: str(folder) for name, folder in bases.items()})
    with site(tmp_path, base_model, IMPRINT_BASE_MODELS=known) as running:
        running.grant("owner", 1_000_000)
        pictures = running.pictures("owner")
        jobs = {
            name: running.send(base_model=name, family=name, images=pictures, max_steps=1)["job_id"] for name in bases
        }
        for name, job_id in jobs.items():
            view = running.wait(job_id, timeout_s=300)
            assert view["status"] == "ready", (name, view["failure"])
            data = running.services.store.get(view["lora"]["key"])
            lora_file.check_trained(data, service.get(running.services, job_id).spec)
