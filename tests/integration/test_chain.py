"""The chain with real workers: what an application sends, and what comes of it."""

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from credits.price import Rate, price_of_part
from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from tests.servers.pictures import picture_server
from tests.site import MASCOT, PHOTOGRAPHS, Site, View, drawing


@pytest.fixture
def owner(shared_site: Site) -> str:
    """An owner of this test's own, with credits."""
    name = f"owner-{secrets.token_hex(4)}"
    shared_site.grant(name)
    return name


def balance(site: Site, owner: str) -> dict[str, int]:
    found = accounts.balance(site.services, owner)
    return {"available": found.available, "held": found.held, "spent": found.spent}


def released(site: Site, owner: str, view: View) -> None:
    """Nothing was charged, nothing is held, nothing is left."""
    assert balance(site, owner) == {"available": 10_000, "held": 0, "spent": 0}
    assert view["credits"]["charged"] == 0
    assert view["credits"]["held"] == 0
    assert sweeps.run_audit(site.services) == []


def test_pictures_become_a_lora_and_are_charged_once(shared_site: Site, owner: str, tmp_path: Path) -> None:
    accepted = shared_site.send(owner_id=owner, images=shared_site.pictures(owner, 10))
    assert accepted["status"] in ("pending", "training")
    assert accepted["credits"]["held"] >= 1
    view = shared_site.wait(accepted["job_id"])
    assert view["status"] == "ready", view["failure"]
    assert view["step"] == view["total_steps"] == 2
    assert len(view["pictures"]) == 10
    assert {picture["state"] for picture in view["pictures"]} == {"good"}
    errors = shared_site.settings.log_dir / "errors.jsonl"
    if errors.exists():
        assert "pending deprecation" not in errors.read_text(), "Celery's advice on chords, with every job"

    path = tmp_path / "lora.safetensors"
    service.download(shared_site.services, view["job_id"], path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == view["lora"]["sha256"]
    assert path.stat().st_size == view["lora"]["bytes"]
    with safe_open(path, "np") as file:
        assert any(key.endswith(".lora_down.weight") for key in file.keys())  # noqa: SIM118 - no iterator there
        assert "imp" in json.dumps(file.metadata())

    charged = view["credits"]["charged"]
    assert charged >= 1
    assert balance(shared_site, owner) == {"available": 10_000 - charged, "held": 0, "spent": charged}
    kinds = [entry.kind for entry in accounts.statement(shared_site.services, owner)]
    assert kinds == ["settle", "hold", "grant"]
    assert sweeps.run_audit(shared_site.services) == []


def test_a_final_job_leaves_nothing_but_its_file(shared_site: Site, owner: str) -> None:
    view = shared_site.wait(shared_site.send(owner_id=owner)["job_id"])
    from tests.site import until

    wanted = [f"models/{view['job_id']}/lora_weights.safetensors"]
    until(lambda: shared_site.left_behind(view["job_id"]) == wanted, 60, "checkpoints and outputs gone")


def test_the_same_key_gives_the_same_job_and_another_request_is_an_error(shared_site: Site, owner: str) -> None:
    images = shared_site.pictures(owner)
    first = shared_site.send(owner_id=owner, images=images, idempotency_key="one")
    again = shared_site.send(owner_id=owner, images=images, idempotency_key="one")
    assert again["job_id"] == first["job_id"]
    with pytest.raises(Exception, match="was used for another request"):
        shared_site.send(owner_id=owner, images=images, idempotency_key="one", rank=8)
    shared_site.wait(first["job_id"])
    assert [entry.kind for entry in accounts.statement(shared_site.services, owner)] == ["settle", "hold", "grant"]


def test_every_fault_of_a_request_is_named_at_once(shared_site: Site, owner: str) -> None:
    with pytest.raises(Exception, match="fault") as caught:
        shared_site.send(
            owner_id=owner, images=["https://169.254.169.254/x"] * 5, epochs=9, rank=0, colour="red", trigger_word=""
        )
    for word in ("colour", "epochs", "rank", "trigger_word", "images.0"):
        assert word in str(caught.value)
    assert "169.254.169.254/x" not in str(caught.value)
    assert service.jobs(shared_site.services, owner_id=owner) == []
    assert balance(shared_site, owner)["held"] == 0


def test_too_few_credits_store_nothing(shared_site: Site) -> None:
    owner = f"poor-{secrets.token_hex(4)}"
    images = shared_site.pictures(owner)
    with pytest.raises(Exception, match="credits"):
        shared_site.send(owner_id=owner, images=images, idempotency_key="k")
    assert service.jobs(shared_site.services, owner_id=owner) == []
    shared_site.grant(owner)
    assert shared_site.send(owner_id=owner, images=images, idempotency_key="k")["job_id"]


def test_a_quote_starts_nothing(shared_site: Site, owner: str) -> None:
    request = {"owner_id": owner, "subject_id": "s", "images": shared_site.pictures(owner), "base_model": "sd15",
               "trigger_word": "imp", "epochs": 10}  # fmt: skip
    quote = shared_site.application.send_task("imprint.quote", kwargs=request, queue="io").get(timeout=30)
    assert quote["steps"] == 60
    assert quote["credits"] == 6
    assert quote["seconds"] > 0
    assert service.jobs(shared_site.services, owner_id=owner) == []


def test_bad_pictures_are_left_out_and_named(shared_site: Site, owner: str, tmp_path: Path) -> None:
    """A file that is no picture, half a picture, a copy, and one that may be missing: the rest is trained."""
    whole = (MASCOT / sorted(file.name for file in MASCOT.glob("*.png"))[7]).read_bytes()
    from jobs.stages import intake

    def store(data: bytes) -> str:
        return intake.store_picture(shared_site.services, owner, "mascot", data)

    copy = tmp_path / "copy.png"
    from PIL import Image

    Image.open(sorted(MASCOT.glob("*.png"))[0]).resize((400, 400)).save(copy)
    images: list[Any] = [
        *shared_site.pictures(owner, 6),
        store(b"this is no picture"),
        store(whole[: len(whole) // 2]),
        store(copy.read_bytes()),
        "http://192.0.2.1.invalid/x.png",
    ]
    view = shared_site.wait(shared_site.send(owner_id=owner, images=images, allow_missing=True)["job_id"])
    assert view["status"] == "ready", view["failure"]
    faults = [picture["faults"] for picture in view["pictures"]]
    assert faults[6:8] == [["unreadable"], ["unreadable"]]
    assert faults[8] == ["near_duplicate"]
    assert view["pictures"][8]["report"]["repeats"] == 0
    assert faults[9] == ["unreachable"]
    assert all(fault == [] for fault in faults[:6])


def test_too_few_good_pictures_fail_with_the_whole_report(shared_site: Site, owner: str) -> None:
    from jobs.stages import intake

    poison = [intake.store_picture(shared_site.services, owner, "m", b"poison %d" % number) for number in range(3)]
    view = shared_site.wait(
        shared_site.send(owner_id=owner, images=[*shared_site.pictures(owner, 4), *poison])["job_id"]
    )
    assert view["status"] == "failed"
    assert view["failure"]["code"] == "too_few_images"
    assert [entry["state"] for entry in view["failure"]["details"]["pictures"]] == ["good"] * 4 + ["bad"] * 3
    released(shared_site, owner, view)


def test_a_missing_base_model_fails_and_says_what_to_do(shared_site: Site, owner: str) -> None:
    folder = shared_site.settings.home.resolve() / "bases" / "not-there"
    view = shared_site.wait(shared_site.send(owner_id=owner, base_model=str(folder), family="sd15")["job_id"])
    assert view["failure"]["code"] == "base_model_unavailable"
    assert "not-there" in view["failure"]["message"]
    released(shared_site, owner, view)


def test_a_retrain_neither_fetches_nor_converts_again(shared_site: Site, owner: str) -> None:
    first = shared_site.wait(shared_site.send(owner_id=owner)["job_id"])
    done = shared_site.imprint("retry", first["job_id"], "--watch", "--json")
    second = json.loads(done.stdout.splitlines()[-1])
    assert second["job_id"] != first["job_id"]
    assert second["status"] == "ready"
    # The same pictures, seed and recipe: the same file.
    assert second["lora"]["sha256"] == first["lora"]["sha256"]
    stages = [event.kind for event in service.events(shared_site.services, second["job_id"]) if event.kind == "retry"]
    assert stages == []


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the shared photographs are not there")
def test_photographs_from_a_folder_by_the_command(shared_site: Site, owner: str, tmp_path: Path) -> None:
    out = tmp_path / "dog.safetensors"
    done = shared_site.imprint(
        "submit", str(PHOTOGRAPHS / "dog"), "--owner", owner, "--trigger", "sks", "--class-word", "dog",
        "--resolution", "64", "--max-steps", "2", "--watch", "--json",
    )  # fmt: skip
    view = json.loads(done.stdout.splitlines()[-1])
    assert view["status"] == "ready", view
    assert view["subject_id"] == "dog"
    shared_site.imprint("download", view["job_id"], str(out))
    assert hashlib.sha256(out.read_bytes()).hexdigest() == view["lora"]["sha256"]
    nowhere = shared_site.imprint("download", view["job_id"], str(tmp_path / "none" / "dog.safetensors"), check=False)
    assert nowhere.returncode == 2
    assert "nothing can be written into" in nowhere.stderr
    assert view["job_id"] in shared_site.imprint("list", "--owner", owner).stdout
    assert "consistent" in shared_site.imprint("audit").stdout
    assert json.loads(shared_site.imprint("balance", owner, "--json").stdout)["spent"] == view["credits"]["charged"]


def test_cancel_before_during_and_after(shared_site: Site, owner: str) -> None:
    # during: a long training, cancelled as soon as it reports steps
    long = shared_site.send(owner_id=owner, max_steps=100_000)
    running = shared_site.wait(long["job_id"], lambda view: view["step"] > 0)
    # before: queued behind the long one
    queued = shared_site.send(owner_id=owner)
    shared_site.wait(queued["job_id"], lambda view: view["stage"] == "train")
    before = json.loads(shared_site.imprint("cancel", queued["job_id"], "--json").stdout)
    assert (before["status"], before["credits"]["charged"]) == ("cancelled", 0)
    during = json.loads(shared_site.imprint("cancel", running["job_id"], "--json").stdout)
    assert during["status"] == "cancelled"
    assert during["credits"]["charged"] == price_of_part(Rate(100, 512), during["step"], 64)
    # the worker is free again, and nothing is left of either
    after = shared_site.wait(shared_site.send(owner_id=owner)["job_id"])
    assert after["status"] == "ready"
    refused = shared_site.imprint("cancel", after["job_id"], check=False)
    assert refused.returncode == 1
    assert "already" in refused.stderr
    from tests.site import until

    until(lambda: shared_site.left_behind(long["job_id"]) == [], 60, "nothing left of the cancelled one")
    assert balance(shared_site, owner)["held"] == 0
    spent = during["credits"]["charged"] + after["credits"]["charged"]
    assert balance(shared_site, owner)["spent"] == spent
    assert sweeps.run_audit(shared_site.services) == []


def test_pictures_over_http_are_fetched_once_and_an_outage_is_waited_out(base_model: Path, tmp_path: Path) -> None:
    from tests.site import site, until

    with picture_server() as server:
        urls = [server.put(f"/{n}.png", drawing(tmp_path / f"{n}.png", n).read_bytes()) for n in range(6)]
        server.put("/slow.png", drawing(tmp_path / "slow.png", 99).read_bytes())
        allowed = json.dumps([server.address])
        with site(
            tmp_path / "site", base_model, IMPRINT_FETCH_ALLOW_HOSTS=allowed, IMPRINT_FETCH_PATIENCE_S="120"
        ) as running:
            running.grant("owner")
            secret = "X-Amz-Signature=do-not-tell"
            view = running.wait(running.send(images=[f"{url}?{secret}" for url in urls])["job_id"])
            assert view["status"] == "ready", view["failure"]
            assert set(server.asked.values()) == {1}
            assert all("do-not-tell" not in log.read_text() for log in running.folder.glob("*.log"))
            assert "do-not-tell" not in json.dumps(view)
            # Half of the pictures are away for longer than three attempts take, then they are back.
            away = [server.put(f"/away/{n}.png", (tmp_path / f"{n}.png").read_bytes() + b"again") for n in range(6)]
            server.status.update({f"/away/{n}.png": 503 for n in range(3)})
            job_id = running.send(images=away)["job_id"]
            until(lambda: all(server.asked.get(f"/away/{n}.png", 0) > 4 for n in range(3)), 60, "tried again")
            assert running.view(job_id)["status"] == "training"
            server.status.clear()
            view = running.wait(job_id)
            assert view["status"] == "ready", view["failure"]
            assert [picture["state"] for picture in view["pictures"]] == ["good"] * 6
