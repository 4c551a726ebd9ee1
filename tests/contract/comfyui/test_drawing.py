"""`imprint.generate`: from a subject to pictures in the store; and the command, from a file to a folder."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from pydantic import SecretStr
from sqlmodel import col

from cli import generate as generate_commands
from cli.main import imprint
from core.errors import GeneratorError, LoraNotReady, SpecInvalid, WorkflowInvalid
from core.settings import Settings
from jobs import keys, service
from jobs.owners import accounts
from jobs.services import Services
from jobs.subjects import comfyui_drawing, drawing
from jobs.subjects.lora_weights import inspect_weights
from storage.tables.jobs import Job, Status
from tasks import ingress
from tests.contract.comfyui.conftest import URL
from tests.contract.comfyui.test_fake import stated
from tests.contract.jobs import request
from tests.generation.workflows import workflow
from tests.servers.fake_comfyui import FakeComfyUI
from training.lora import formats as lora_formats
from training.lora.file import serialize_lora
from training.lora.reading import read_lora

pytestmark = pytest.mark.skipif(bool(URL), reason="runs on the fake alone")


@pytest.fixture
def services(tmp_path: Path, fake: FakeComfyUI) -> Iterator[Services]:
    made = Services(
        Settings(_env_file=None, home=tmp_path / "home", comfyui_url=SecretStr(fake.url), comfyui_loras=fake.loras)
    )
    accounts.grant(made, "ada", 1000, key="welcome")
    yield made
    made.database.close()


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A file as ours are, that says its trigger word."""
    modules = [f"down_blocks.0.attentions.0.transformer_blocks.0.{name}" for name in ("attn1.to_q", "ff.net.2")]
    pair = (np.ones((4, 8), np.float32), np.ones((8, 4), np.float32))
    recipe = json.dumps({"base_model": "sd15", "family": "sd15"})
    metadata = {"imprint_trigger_word": "sks dog", "imprint_recipe": recipe, "imprint_family": "sd15"}
    path = tmp_path / "my dog, first.safetensors"
    path.write_bytes(serialize_lora("sd15", dict.fromkeys(modules, pair), 4.0, metadata))
    return path


@pytest.fixture
def job_id(services: Services, lora: Path) -> str:
    """A training of Ada's dog that is ready."""
    found = str(service.submit(services, request(services)).job_id)
    services.store.put(keys.lora(found), lora.read_bytes())
    ready = {"status": Status.READY, "lora_key": keys.lora(found), "lora_sha256": "ab" * 32, "lora_bytes": 9}
    with services.database.writing() as session:
        session.execute(sa.update(Job).where(col(Job.id) == found).values(**ready))
    return found


def test_a_subject_is_drawn_once_for_each_key(services: Services, fake: FakeComfyUI, job_id: str) -> None:
    given = {"owner_id": "ada", "subject_id": "dog", "workflow": workflow("sd15"), "seed": 3, "strength": 0.7}
    content = drawing.generate(services, given, "task-1")
    assert content.job_id == job_id
    [picture] = content.pictures
    data = services.store.get(picture.key)
    assert Path(unquote(urlsplit(picture.url).path)).read_bytes() == data
    [one] = stated(data)["passes"]
    assert one["model"]["loras"] == [[f"{job_id}.safetensors", 0.7, 2]]
    assert (one["seed"], one["positive"][0][:4]) == (3, "sks,")
    assert (fake.loras / f"{job_id}.safetensors").is_file()
    assert list(services.work_dir.glob("*")) == []
    saved = sorted((fake.folder / "output").iterdir())
    assert drawing.generate(services, given, "task-1") == content  # a message that came twice
    assert sorted((fake.folder / "output").iterdir()) == saved
    assert drawing.generate(services, given | {"prompt": "on a boat"}, "task-2").prompt_id != content.prompt_id


def test_the_task_draws_under_its_own_id(services: Services, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "services", lambda: services)
    given = {"owner_id": "ada", "subject_id": "dog", "workflow": workflow("sd15")}
    content = [ingress.generate.apply(kwargs=given, task_id=id_).get() for id_ in ("one", "one", "two")]
    assert content[0] == content[1] != content[2]
    assert ingress.resolve.apply(args=("ada", "dog", "sd15")).get()["job_id"] == job_id
    with pytest.raises(LoraNotReady):
        ingress.resolve.apply(args=("bob", "dog")).get()


def test_what_it_refuses(services: Services, job_id: str) -> None:
    good = {"owner_id": "ada", "subject_id": "dog", "workflow": workflow("sd15")}
    with pytest.raises(SpecInvalid) as faults:
        drawing.generate(services, {"owner_id": "", "workflow": [], "seed": -1, "comfyui": "http://127.0.0.1:1"}, "k")
    assert set(faults.value.faults) == {"owner_id", "subject_id", "workflow", "seed", "comfyui"}
    with pytest.raises(LoraNotReady):
        drawing.generate(services, good | {"owner_id": "bob"}, "k")
    with pytest.raises(WorkflowInvalid, match="editor"):
        drawing.generate(services, good | {"workflow": {"nodes": [], "links": []}}, "k")
    nowhere = Services(services.settings.model_copy(update={"comfyui_url": None}))
    with pytest.raises(GeneratorError, match="IMPRINT_COMFYUI_URL"):
        drawing.generate(nowhere, good, "k")


@pytest.mark.drawn
def test_a_form_that_comfyui_loads_in_part_is_brought_in_another(
    services: Services, fake: FakeComfyUI, lora: Path
) -> None:
    peft = lora.with_name("peft.safetensors")
    peft.write_bytes(lora_formats.serialize_as(read_lora(lora), "peft"))
    done = comfyui_drawing.draw_on_comfyui(
        comfyui_drawing.comfyui_target(services),
        workflow("sd15"),
        inspect_weights(peft),
        trigger_word="hush",
    )
    [one] = stated(done.pictures[0][1])["passes"]
    assert one["model"]["loras"][0][2] == 2  # both modules, not the feed-forward one alone
    assert one["positive"][0].startswith("hush, ")
    assert any("converted to kohya" in note for note in done.notes)


class TestTheCommand:
    @pytest.fixture(autouse=True)
    def _here(self, services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(generate_commands, "services", lambda: services)
        monkeypatch.chdir(tmp_path)
        Path("workflow.json").write_text(json.dumps(workflow("tangled")))

    def run(self, *arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(imprint, arguments)
        assert done.exit_code == code, done.output
        return done.output

    def test_a_file_and_a_folder_of_pictures(self, fake: FakeComfyUI, lora: Path) -> None:
        common = ("generate", "--comfyui", fake.url, "--workflow", "workflow.json", "--out", "drawn")
        content = json.loads(self.run(*common, "--lora", str(lora), "--strength", "0.5", "--seed", "9", "--json"))
        assert (content["loaders"], content["added"], content["texts"]) == (["1"], ["30"], ["8", "9"])
        assert content["prompted"] == ["8", "9"]
        assert (content["seeds"], content["strengths"]) == (["19", "22"], ["30"])
        assert any("cannot say which family" in note for note in content["notes"])
        [path] = content["pictures"]
        first, second = stated(Path(path).read_bytes())["passes"]
        assert first["model"]["loras"] == second["model"]["loras"]
        [[file, strength, _]] = first["model"]["loras"]
        assert re.fullmatch(r"[0-9a-f]{64}\.safetensors", file)  # the assets API names files by their content
        assert (strength, first["seed"], second["seed"]) == (0.5, 9, 9)
        assert json.loads(Path("drawn/workflow.json").read_text())["30"]["inputs"]["lora_name"] == file
        shown = self.run(*common, "--lora", str(lora), "--trigger", "", "--loras", str(fake.loras), "--seed", "9")
        assert "drawn/imprint_" in shown
        assert "changed: LoRA in node 30; seed in node 19, 22" in " ".join(shown.split())

    def test_a_subject(self, fake: FakeComfyUI, job_id: str) -> None:
        shown = self.run("resolve", "dog", "--owner", "ada")
        assert f"{job_id}.safetensors" in shown
        assert json.loads(self.run("resolve", "dog", "--owner", "ada", "--json"))["strength"] == 1.0
        assert "never trained" in self.run("resolve", "dog", "--owner", "bob", code=1)
        common = ("generate", "--comfyui", fake.url, "--workflow", "workflow.json", "--subject", "dog", "--owner")
        assert "pictures-drawn/imprint_" in self.run(*common, "ada")
        assert "never trained" in self.run(*common, "bob", code=1)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["--workflow", "workflow.json"], ["--workflow", "--prompt"]),
            (["--comfyui", "http://x"], ["--workflow"]),
            (["--comfyui", "http://x", "--workflow", "workflow.json", "--steps", "5", "--size", "8x8"],
             ["--steps", "--size"]),
            (["--comfyui", "http://x", "--workflow", "workflow.json", "--count", "2", "--device", "cpu"],
             ["--count", "--device"]),
            (["--prompt", "x", "--strength", "0.5", "--trigger", "y"], ["--strength", "--trigger"]),
            (["--prompt", "x", "--base-model", "sd15", "--size", "wide"], ["--size"]),
            (["--prompt", "x"], ["base_model"]),
        ],
    )  # fmt: skip
    def test_what_does_not_go_together(self, arguments: list[str], named: list[str]) -> None:
        text = self.run("generate", *arguments, code=2)
        assert all(f"{name}:" in text for name in named), text

    def test_failures_have_a_code_and_a_sentence(
        self, fake: FakeComfyUI, lora: Path, make: Callable[..., Path]
    ) -> None:
        Path("odd.json").write_text("{")
        assert "not a JSON file" in self.run("generate", "--comfyui", fake.url, "--workflow", "odd.json", code=1)
        gone = ("generate", "--comfyui", "http://127.0.0.1:9", "--workflow", "workflow.json")
        assert "backend_unreachable: the ComfyUI server at 127.0.0.1:9 cannot be reached" in self.run(*gone, code=1)
        torn = make()
        torn.write_bytes(b"torn")
        assert "lora_invalid" in self.run(*gone, "--lora", str(torn), code=1)
