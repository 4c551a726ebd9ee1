"""How to use a LoRA: what the page says about a program is what the inspector says about the file."""

from core.clock import utcnow
from jobs.specs import spec_columns
from jobs.view import JobView, view_of
from storage.tables.jobs import Job
from training.spec import TrainSpec
from web.pages.usage import usage_of

FILE = "rex-sd15-v3.safetensors"


def _view(base_model: str) -> JobView:
    spec = TrainSpec.model_validate({"base_model": base_model, "trigger_word": "sks", "seed": 0})
    job = Job(id="job_a", owner_id="a", subject_id="rex", request_sha256="", created_at=utcnow(), **spec_columns(spec))
    return view_of(job, [], None)


def test_a_dora_comes_with_warnings() -> None:
    verdicts = {"diffusers": "without its magnitudes", "ComfyUI": "close", "AUTOMATIC1111": "wrongly"}
    found = {one.name: one.warning for one in usage_of(_view("sd15"), verdicts, FILE)}
    assert "ignores the lengths of this DoRA" in found["diffusers"]
    assert "slightly differently" in found["ComfyUI"]
    assert "draws wrong pictures" in found["AUTOMATIC1111"]


def test_programs_that_read_it_whole_come_without_and_others_not_at_all() -> None:
    verdicts = {"diffusers": "whole", "ComfyUI": "in part (3 of 9)", "AUTOMATIC1111": "no (0 of 9)"}
    found = {one.name: one.warning for one in usage_of(_view("sd15"), verdicts, FILE)}
    assert found == {"diffusers": "", "ComfyUI": "ComfyUI reads this file only in part (3 of 9)."}
    # Files of earlier versions were not inspected: what their family is read by.
    assert [one.name for one in usage_of(_view("sd15"), None, FILE)] == ["ComfyUI", "diffusers", "AUTOMATIC1111"]
    assert all(not one.warning for one in usage_of(_view("sd15"), None, FILE))
    lines = {one.name: one.line for one in usage_of(_view("sd15"), None, FILE)}
    assert lines["diffusers"] == 'pipeline.load_lora_weights("rex-sd15-v3.safetensors")'
    assert lines["AUTOMATIC1111"] == "a photo of sks <lora:rex-sd15-v3:1>"
