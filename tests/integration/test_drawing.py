"""`imprint.generate` as an application uses it: sent by name, watched, and cancelled while ComfyUI draws."""

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import col

from jobs import keys, service
from storage.tables.jobs import Job, Status
from tests.generation.templates import default
from tests.lora_layouts import written
from tests.servers.fake_comfyui import fake_comfyui
from tests.site import RECIPE, Site, site, until


def ready_lora(made: Site) -> str:
    """A training of Ada's dog that is ready."""
    request = {**RECIPE, "owner_id": "ada", "subject_id": "dog", "images": made.pictures("ada")}
    job_id = str(service.submit(made.services, request).job_id)
    made.services.store.put(keys.lora(job_id), written("sd15", "kohya"))
    ready = {"status": Status.READY, "lora_key": keys.lora(job_id), "lora_sha256": "ab" * 32, "lora_bytes": 9}
    with made.services.database.writing() as session:
        session.execute(sa.update(Job).where(col(Job.id) == job_id).values(**ready))
    return job_id


def test_a_drawing_shows_its_progress_and_can_be_cancelled(base_model: Path, tmp_path: Path) -> None:
    with (
        fake_comfyui(tmp_path / "comfyui", "--seconds-per-step", "0.05") as comfyui,
        site(
            tmp_path / "site", base_model, start=("io", "fetch"),
            IMPRINT_COMFYUI_URL=comfyui.url, IMPRINT_COMFYUI_LORAS=str(comfyui.loras),
        ) as made,
    ):  # fmt: skip
        made.grant("ada")
        job_id = ready_lora(made)

        def send(name: str, **arguments: Any) -> Any:
            return made.application.send_task(name, kwargs=arguments, queue="io")

        nodes = default().nodes
        nodes["3"]["inputs"]["steps"] = 5000
        slow = send("imprint.generate", owner_id="ada", subject_id="dog", workflow=nodes)
        until(lambda: slow.state == "PROGRESS" and slow.info["step"] > 0, 60, "the drawing shows its steps")
        assert (slow.info["node"], slow.info["total"]) == ("3", 5000)
        # Other tasks do not wait for it.
        assert send("imprint.resolve", owner_id="ada", subject_id="dog").get(timeout=30)["job_id"] == job_id
        assert send("imprint.cancel_drawing", task_id=slow.id).get(timeout=30) == {"cancelled": True}
        with pytest.raises(Exception, match="was interrupted"):
            slow.get(timeout=60)
        assert send("imprint.cancel_drawing", task_id=slow.id).get(timeout=30) == {"cancelled": False}

        nodes["3"]["inputs"]["steps"] = 3
        quick = send("imprint.generate", owner_id="ada", subject_id="dog", workflow=nodes, seed=5)
        assert len(quick.get(timeout=60)["pictures"]) == 1
