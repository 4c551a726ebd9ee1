"""The steps for moving from SQLite to PostgreSQL, done as their page says, with a training stopped in its middle."""

from pathlib import Path

import pytest

from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from jobs.services import Services
from tests.docs.pages import ROOT, blocks
from tests.servers.postgres import new_database, postgres_server
from tests.servers.shell import run_script
from tests.site import Site, site

PAGE = ROOT / "docs" / "deploy" / "upkeep.md"


@pytest.mark.drawn
def test_a_training_goes_on_after_the_move(base_model: Path, tmp_path: Path) -> None:
    with postgres_server() as server, site(tmp_path, base_model) as before:
        before.grant("owner")
        done = before.wait(before.send()["job_id"])
        running = before.send(max_steps=100, epochs=500)["job_id"]
        at_work = before.wait(running, lambda view: view["step"] >= 20)
        for name in ("train", "beat", "io"):  # step 1: the stack is stopped
            before.stop(name)
        kept = before.view(running)
        assert kept["status"] == "training"
        assert kept["step"] >= at_work["step"]

        back_up, restore = (block.text for block in blocks(PAGE) if block.language == "sh" and "moving" in block.text)
        type_in(before, tmp_path, back_up)
        address = new_database(server)
        after = Site(tmp_path, base_model, before.environment["IMPRINT_BROKER_URL"], IMPRINT_DATABASE_URL=address)
        try:
            assert type_in(after, tmp_path, restore).count("the ledger is consistent") == 1
            assert not after.services.database.is_sqlite
            assert after.view(done["job_id"]) == done
            assert after.view(running) == kept
            refused = type_in(after, tmp_path, restore.splitlines()[0], fails=True)
            assert "not empty" in refused

            for name in ("io", "train", "beat"):  # step 4
                after.start(name)
            ended = after.wait(running)
            assert (ended["status"], ended["step"]) == ("ready", 100)
            assert went_on_from(after.services, running) > 0
            assert sweeps.run_audit(after.services) == []
            charged = sum(after.view(job_id)["credits"]["charged"] for job_id in (done["job_id"], running))
            assert accounts.balance(after.services, "owner").spent == charged
        finally:
            after.end()


def type_in(there: Site, folder: Path, text: str, *, fails: bool = False) -> str:
    """Run commands of the page as its reader would."""
    ran = run_script(text, cwd=folder, env=there.surroundings(PYTHONPATH=str(ROOT)))
    assert (ran.returncode != 0) is fails, ran.stdout
    return ran.stdout


def went_on_from(services: Services, job_id: str) -> int:
    """The lowest step told after the hand-over: a training that began anew would tell of its first."""
    events = service.events(services, job_id)
    handed = max(number for number, event in enumerate(events) if "asked to stop" in event.data.get("reason", ""))
    steps = [int(event.data["step"]) for event in events[handed:] if "step" in event.data]
    return min(steps) - 1
