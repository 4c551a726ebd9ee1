"""What a training has delivered: its file in every form under a readable name, its card, and the chosen checkpoint."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from sqlmodel import col

from core.clock import utcnow
from core.errors import IllegalMove, NotFound, SpecInvalid
from generation.comfyui.nodes import NODES
from generation.comfyui.patch import WorkflowLora
from jobs import checkpoints, keys, service
from jobs.deletion import retention
from jobs.lifecycle import launches
from jobs.owners import audit_log
from jobs.results import delivery, in_comfyui, lora_files, model_card
from jobs.results.starter_workflow import Start, starter_workflow
from jobs.subjects import loras
from storage.tables.jobs import Job, Status
from tests.contract.web.conftest import Api
from tests.contract.web.test_page_matrix import HERE, a_drawing
from tests.lora_layouts import written
from tests.servers.fake_comfyui import fake_comfyui
from training.families.registry import FAMILIES
from training.lora import inspect
from web.pages.session import COOKIE


def ready(api: Api, family: str = "sd15", **changed: Any) -> str:
    """A ready training of Ada's with a real LoRA file; its id."""
    images = api.upload(api.token("ada"), 6, subject="rex")
    answer = api.train(api.token("ada"), images, **changed)
    assert answer.status_code == 202, answer.text
    job_id = str(answer.json()["id"])
    data = written(family, FAMILIES[family].lora.form)
    api.services.store.put(keys.lora(job_id), data)
    values = {
        "status": Status.READY, "step": 10, "finished_at": utcnow(), "lora_key": keys.lora(job_id),
        "lora_sha256": "ab" * 32, "lora_bytes": len(data),
    }  # fmt: skip
    with api.services.database.writing() as session:
        session.connection().execute(sa.update(Job).where(col(Job.id) == job_id).values(**values))
    return job_id


def keep(api: Api, job_id: str, step: int, validation_loss: float | None = None) -> None:
    """A kept checkpoint of a job."""
    key = keys.kept_lora(job_id, step)
    api.services.store.put(key, b"after %d" % step)
    facts = {"step": step, "key": key, "sha256": f"{step:064d}", "bytes": 8, "validation_loss": validation_loss}
    with api.services.database.writing() as session:
        launches.record_event(session, job_id, "checkpoint", **facts)


def cookie_of(api: Api, owner: str = "ada") -> dict[str, str]:
    api.client.cookies.clear()
    answer = api.call("POST", "/sign-in", headers=HERE, data={"token": api.token(owner)})
    api.client.cookies.clear()
    return {**HERE, "cookie": f"{COOKIE}={answer.cookies[COOKIE]}"}


def test_each_family_offers_the_forms_that_programs_read() -> None:
    found = {name: {form.name: form.programs for form in lora_files.forms(name)} for name in FAMILIES}
    assert found["sd15"] == found["sdxl"] == {"kohya": ("ComfyUI", "AUTOMATIC1111", "Forge"), "peft": ("diffusers",)}
    assert found["z-image"] == {"comfyui": ("ComfyUI",), "peft": ("diffusers",)}
    assert found["qwen-image"] == {
        "peft": ("ComfyUI", "diffusers"),
        "kohya": ("ComfyUI", "musubi-tuner"),
        "comfyui": ("ComfyUI", "ai-toolkit"),
    }
    assert found["krea2"] == {"comfyui": ("ComfyUI",)}  # trained on rented servers only, with their names
    for name, record in FAMILIES.items():
        first = lora_files.forms(name)[0]
        assert (first.name, first.is_own) == (record.lora.form, True)


def test_a_file_is_downloaded_in_both_forms_under_a_readable_name(lone_api: Api) -> None:
    job_id = ready(lone_api, triggerWord="sks rex", baseModel="sd15")
    signed_in = cookie_of(lone_api)
    page = lone_api.call("GET", f"/trainings/{job_id}", headers=signed_in).text
    assert f'href="/trainings/{job_id}/download"' in page
    assert f'href="/trainings/{job_id}/download?form=peft"' in page
    version = (
        lora_files.find(lone_api.services, job_id).name.removeprefix("sks-rex-sd15-v").removesuffix(".safetensors")
    )
    own = lone_api.call("GET", f"/trainings/{job_id}/download", headers=signed_in)
    assert own.headers["content-disposition"] == f'attachment; filename="sks-rex-sd15-v{version}.safetensors"'
    assert own.content == written("sd15", "kohya")
    other = lone_api.call("GET", f"/trainings/{job_id}/download?form=peft", headers=signed_in)
    assert (
        other.headers["content-disposition"] == f'attachment; filename="sks-rex-sd15-v{version}-diffusers.safetensors"'
    )
    before, after = inspect.inspect(own.content), inspect.inspect(other.content)
    assert (before.format, after.format) == ("kohya", "peft")
    assert (after.scales, after.modules) == (before.scales, before.modules)
    # The same through the API, whose address needs no token.
    redirect = lone_api.call("GET", f"/api/trainings/{job_id}/download?form=peft", lone_api.token("ada"))
    assert redirect.status_code == 307
    assert lone_api.call("GET", redirect.headers["location"]).content == other.content
    refused = lone_api.call("GET", f"/api/trainings/{job_id}/download?form=zip", lone_api.token("ada"))
    assert refused.status_code == 422


def test_a_form_that_the_family_does_not_have_is_named(lone_api: Api) -> None:
    job_id = ready(lone_api, "z-image", baseModel="z-image", resolution=512)
    with pytest.raises(SpecInvalid) as refused:
        lora_files.find(lone_api.services, job_id, "ada", form="kohya")
    assert "convert to comfyui or peft" in refused.value.faults["form"]
    with pytest.raises(NotFound):
        lora_files.find(lone_api.services, job_id, "bob")


@pytest.mark.parametrize(
    ("subject", "word", "stem"),
    [
        ("rex", "rex", "rex"), ("rex", "sks rex", "sks-rex"), ("Rex the dog", "rex", "rex-the-dog"),
        ("mascot", "imp", "mascot-imp"), ("José", "jose", "jose"), ("雷克斯", "léi", "lei"), ("雷克斯", "雷", ""),
    ],
)  # fmt: skip
def test_names_say_subject_and_word(subject: str, word: str, stem: str, lone_api: Api) -> None:
    spec = service.get(lone_api.services, ready(lone_api)).spec.model_copy(update={"trigger_word": word})
    job = Job(id="job_0", owner_id="nobody", subject_id=subject, request_sha256="", spec={})
    with lone_api.services.database.reading() as session:
        assert lora_files.name_of(session, job, spec) == f"{stem}-sd15-v1".removeprefix("-")


def test_versions_count_the_ready_trainings_of_a_subject(api: Api) -> None:
    first, second = ready(api), ready(api, maxSteps=12)
    names = [lora_files.find(api.services, job_id).name for job_id in (first, second)]
    assert names == ["rex-sks-sd15-v1.safetensors", "rex-sks-sd15-v2.safetensors"]


def test_the_card_says_what_it_was_made_of(lone_api: Api) -> None:
    odd = "sks `rex` <b>"
    job_id = ready(
        lone_api, triggerWord=odd, classWord="dog", rank=8, validation={"previews": ["rex | on a beach"]}
    )  # fmt: skip
    answer = lone_api.call("GET", f"/api/trainings/{job_id}/card", lone_api.token("ada"))
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    text = answer.text
    assert 'base_model: "stable-diffusion-v1-5/stable-diffusion-v1-5"' in text
    assert 'license_name: "CreativeML OpenRAIL-M"' in text
    assert 'instance_prompt: "sks `rex` <b>"' in text
    assert "Trigger word: `` sks `rex` <b> ``" in text
    assert "- `rex | on a beach`" in text
    assert "| rank (default 4) | 8 |" in text
    assert "| seed |" in text
    assert "SHA-256 `abab" in text
    assert lone_api.call("GET", f"/trainings/{job_id}/card", headers=cookie_of(lone_api)).text == text
    with pytest.raises(NotFound):
        model_card.build(lone_api.services, job_id, "bob")


def test_a_chosen_checkpoint_is_delivered_until_another_is(api: Api) -> None:
    services = api.services
    job_id = ready(api, keepCheckpoints=True)
    for step, loss in ((4, 0.5), (6, 0.2), (8, 0.3)):
        keep(api, job_id, step, loss)
    found = delivery.choices(services, job_id, "ada")
    assert [(one.step, one.is_best, one.is_delivered) for one in found] == [
        (4, False, False), (6, True, False), (8, False, False), (10, False, True),
    ]  # fmt: skip
    signed_in = cookie_of(api)
    answer = api.call("POST", f"/trainings/{job_id}/checkpoints/6/deliver", headers=signed_in)
    assert answer.headers["location"] == f"/trainings/{job_id}?notice=delivered#checkpoints"
    assert api.call("GET", f"/trainings/{job_id}/download", headers=signed_in).content == b"after 6"
    found_lora = loras.resolve(services, "ada", "rex")
    assert (found_lora.file, found_lora.sha256) == (f"{job_id}-6.safetensors", f"{6:064d}")
    assert [one.data for one in audit_log.list_entries(services, job_id=job_id, action="checkpoint.delivered")] == [
        {"step": 6}
    ]
    # The LoRA of the last step is still there, and can be delivered again.
    assert [one.step for one in delivery.choices(services, job_id) if one.is_delivered] == [6]
    assert checkpoints.get(services, job_id, 10).key == keys.lora(job_id)
    view = delivery.deliver(services, job_id, 10, "ada")
    assert view.lora is not None
    assert (view.lora.key, view.lora.sha256) == (keys.lora(job_id), "ab" * 32)
    assert loras.resolve(services, "ada", "rex").file == f"{job_id}.safetensors"
    with pytest.raises(NotFound):
        delivery.deliver(services, job_id, 6, "bob")
    with pytest.raises(NotFound):
        delivery.deliver(services, job_id, 7, "ada")


def test_a_checkpoint_of_a_cancelled_training_is_downloaded_but_not_delivered(api: Api) -> None:
    job_id = str(api.train(api.token("ada"), api.upload(api.token("ada"), 6), keepCheckpoints=True).json()["id"])
    keep(api, job_id, 4)
    service.cancel(api.services, job_id)
    answer = api.call("GET", f"/trainings/{job_id}/download?step=4", headers=cookie_of(api))
    assert answer.content == b"after 4"
    assert "rex-sks-sd15-v1-step4.safetensors" in answer.headers["content-disposition"]
    with pytest.raises(IllegalMove, match="cancelled"):
        delivery.deliver(api.services, job_id, 4, "ada")


def test_retention_keeps_the_delivered_checkpoint(api: Api) -> None:
    services = api.services
    job_id = ready(api, keepCheckpoints=True)
    for step in (4, 6):
        keep(api, job_id, step)
    delivery.deliver(services, job_id, 4)
    with services.database.writing() as session:
        old = utcnow() - timedelta(days=50)
        session.connection().execute(sa.update(Job).where(col(Job.id) == job_id).values(finished_at=old))
    thrifty = replace(services, settings=services.settings.model_copy(update={"retention_days": 30}))
    assert retention.sweep(thrifty) == 1
    thrifty.database.close()
    assert list(services.store.list(keys.kept_loras(job_id))) == [keys.kept_lora(job_id, 4)]
    assert lora_files.find(services, job_id).key == keys.kept_lora(job_id, 4)


def test_a_drawing_is_still_possible_with_a_delivered_checkpoint(api: Api) -> None:
    job_id = ready(api, keepCheckpoints=True)
    keep(api, job_id, 4)
    delivery.deliver(api.services, job_id, 4)
    assert a_drawing(api, job_id).startswith("draw_")


@pytest.mark.parametrize("family", sorted(name for name, family in FAMILIES.items() if family.workflow))
def test_a_workflow_has_the_lora_in_it_and_comfyui_accepts_it(family: str) -> None:
    start, lora = Start("a photo of sks rex", 512, 20, 4.0), WorkflowLora("rex.safetensors", "sks rex")
    model = FAMILIES[family].workflow
    assert model is not None
    made = starter_workflow(model, start, lora)
    loaders = [one["inputs"] for one in made.values() if one["class_type"].startswith("LoraLoader")]
    assert [one["lora_name"] for one in loaders] == ["rex.safetensors"]
    assert made["6"]["inputs"]["text"] == start.prompt
    for node in made.values():  # every input that ComfyUI's node has, and no other
        known = NODES[node["class_type"]]
        assert set(known.inputs) <= set(node["inputs"]) <= {*known.inputs, *known.optional}


def test_the_lora_is_sent_to_the_operators_comfyui_and_the_workflow_names_it(lone_api: Api, tmp_path: Path) -> None:
    job_id = ready(lone_api, triggerWord="sks rex", baseModel="sd15")
    signed_in = cookie_of(lone_api)

    def page() -> str:
        return lone_api.call("GET", f"/trainings/{job_id}", headers=signed_in).text

    def lora_of_workflow() -> str:
        answer = lone_api.call("GET", f"/trainings/{job_id}/workflow", headers=signed_in)
        assert answer.headers["content-disposition"].endswith('-workflow.json"')
        [found] = [one["inputs"]["lora_name"] for one in answer.json().values() if "lora_name" in one["inputs"]]
        return str(found)

    assert "send-to-comfyui" not in page()
    assert lora_of_workflow() == lora_files.find(lone_api.services, job_id).name
    assert lone_api.call("POST", f"/trainings/{job_id}/comfyui", headers=signed_in).status_code == 409
    settings = lone_api.services.settings
    with fake_comfyui(tmp_path / "comfyui") as server:
        place = {"comfyui_url": SecretStr(server.url), "comfyui_loras": tmp_path / "not there"}
        object.__setattr__(lone_api.services, "settings", settings.model_copy(update=place))
        assert 'id="send-to-comfyui">' in page()
        assert lone_api.call("POST", f"/trainings/{job_id}/comfyui", headers=signed_in).status_code == 303
        assert 'id="comfyui" data-poll' in page()
        in_comfyui.deliver(lone_api.services, job_id)
        assert "ComfyUI did not take the file" in page()
        place["comfyui_loras"] = server.loras
        object.__setattr__(lone_api.services, "settings", settings.model_copy(update=place))
        lone_api.call("POST", f"/trainings/{job_id}/comfyui", headers=signed_in)
        for _ in range(2):  # a message that came twice
            in_comfyui.deliver(lone_api.services, job_id)
        assert (server.loras / f"{job_id}.safetensors").read_bytes() == written("sd15", "kohya")
    assert "In ComfyUI" in page()
    assert lora_of_workflow() == f"{job_id}.safetensors"
    object.__setattr__(lone_api.services, "settings", settings)
