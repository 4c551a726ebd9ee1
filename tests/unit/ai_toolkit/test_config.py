"""Our recipe as ai-toolkit's job: golden files, and what must not get through.

After a wanted change: `python -m tests.unit.ai_toolkit.test_config` writes the golden files anew; read the diff.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from core.errors import SpecInvalid
from training.backends.ai_toolkit import cards
from training.backends.ai_toolkit.answers import ServerFolders
from training.backends.ai_toolkit.config import (
    caption_file,
    escape_placeholders,
    find_base_model,
    job_config,
)
from training.backends.ai_toolkit.options import unsupported_options
from training.backends.ai_toolkit.server_errors import error_of
from training.families.record import BaseModel
from training.families.registry import BASE_MODELS, FAMILIES
from training.spec import TrainSpec

GOLDEN = Path(__file__).with_name("golden")
FOLDERS = ServerFolders("/app/ai-toolkit/output", "/app/ai-toolkit/datasets/")
RECOVERY = "uint3|ostris/accuracy_recovery_adapters/{}_torchao_uint3.safetensors"
CASES: dict[str, dict[str, Any]] = {
    "sd15": {"base_model": "sd15", "class_word": "dog", "seed": 2**40 + 7},
    "sdxl": {"base_model": "sdxl", "batch_size": 2, "learning_rate": 3e-4, "epochs": 20, "seed": 0},
    "z-image-turbo": {"base_model": "z-image-turbo", "max_steps": 1500, "seed": 1},
    "z-image": {"base_model": "Tongyi-MAI/Z-Image", "family": "z-image", "rank": 8, "alpha": 8.0, "seed": 2},
    "flux2-klein-4b": {"base_model": "flux2-klein-4b", "seed": 3},
    "qwen-image-2512": {"base_model": "qwen-image-2512", "seed": 4},
    "qwen-image-21": {"base_model": "qwen-image-21", "seed": 8},
    "flux1-schnell": {"base_model": "flux1-schnell", "seed": 7},
    "krea2-turbo": {"base_model": "krea2-turbo", "seed": 5},
    "hidream": {"base_model": "hidream", "seed": 6},
}


def made(case: str, **more: Any) -> dict[str, Any]:
    spec = TrainSpec(trigger_word="sks", **CASES[case])
    base_model = find_base_model(spec, {})
    return job_config(spec, "imprint_job_1", FOLDERS, pictures=7, base_model=base_model, **more)


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    assert made(case) == json.loads((GOLDEN / f"{case}.json").read_text())


def test_the_adapter_is_for_the_distilled_model_only() -> None:
    ours = "me/adapters/turbo_v3.safetensors"
    assert made("z-image-turbo", training_adapter=ours)["config"]["process"][0]["model"]["assistant_lora_path"] == ours
    assert "assistant_lora_path" not in made("z-image")["config"]["process"][0]["model"]
    de_turbo = TrainSpec(base_model="ostris/Z-Image-De-Turbo", family="z-image", trigger_word="sks", seed=0)
    config = job_config(de_turbo, "imprint_x", FOLDERS, pictures=5, base_model=de_turbo.base_model)
    model = config["config"]["process"][0]["model"]
    assert model["arch"] == "zimage:deturbo"
    assert model["extras_name_or_path"] == "Tongyi-MAI/Z-Image-Turbo"  # it has only the denoiser
    assert "assistant_lora_path" not in model
    with pytest.raises(SpecInvalid, match="training_adapter"):
        made("z-image-turbo", training_adapter="/etc/passwd")


@pytest.mark.parametrize(
    "word", ["${HF_TOKEN}", "sks [name]", "[trigger] x", "sks --w 99999 --n x", "$${A}[na[name]me]"]
)
def test_words_that_ai_toolkit_would_act_on(word: str) -> None:
    spec = TrainSpec(base_model="sd15", trigger_word=word, class_word=word, seed=0)
    config = job_config(spec, "imprint_x", FOLDERS, pictures=5, base_model="a/b")
    for text in (json.dumps(config), caption_file(f"a photo of {word}").decode()):
        assert "[name]" not in text
        assert "[trigger]" not in text
        assert not re.search(r"\$\{([^}]+)\}", text)
    for sample in config["config"]["process"][0]["sample"]["samples"]:
        assert "--" not in sample["prompt"]
    assert escape_placeholders(escape_placeholders(word)) == escape_placeholders(word)


def test_a_caption_survives_the_way_the_trainer_joins_it() -> None:
    for caption in ("sks, a dog, on grass", "sks dog", "a,b"):
        stored = caption_file(caption).decode()
        assert ", ".join(stored.split(",")) == caption.replace("a,b", "a, b")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"optimization": {"schedule": "cosine", "weight_decay": 0.1}},
         {"lr_scheduler": "cosine", "optimizer_params": {"weight_decay": 0.1}}),
        ({"optimization": {"schedule": "linear"}},
         {"lr_scheduler": "linear", "lr_scheduler_params": {"start_factor": 1.0, "end_factor": 0.0}}),
        ({"optimization": {"warmup_steps": 50}},
         {"lr_scheduler": "constant_with_warmup", "lr_scheduler_params": {"num_warmup_steps": 50}}),
        ({"optimization": {"ema_decay": 0.999}}, {"ema_config": {"use_ema": True, "ema_decay": 0.999}}),
        ({"optimizer": "adamw8bit"}, {"optimizer": "adamw8bit"}),
        ({"optimizer": "prodigy"}, {"optimizer": "prodigy", "lr": 1.0}),
        ({"objective": {"weighting": "min_snr", "noise_offset": 0.1}}, {"min_snr_gamma": 5.0, "noise_offset": 0.1}),
    ],
)  # fmt: skip
def test_options_that_are_carried_over(asked: dict[str, Any], message: dict[str, Any]) -> None:
    spec = TrainSpec(base_model="sd15", trigger_word="sks", seed=0, **asked)
    assert unsupported_options(spec) == {}
    [process] = job_config(spec, "imprint_x", FOLDERS, pictures=5, base_model="a/b")["config"]["process"]
    assert message.items() <= process["train"].items()


def test_layers_scale_captions_and_prompts_are_carried_over() -> None:
    adapter, prompts = {"targets": "all", "rslora": True}, ("sks dog in a park", "a cat --w 9")
    spec = TrainSpec(base_model="sd15", trigger_word="sks", seed=0, adapter=adapter,
                     data={"caption_dropout": 0.1}, validation={"previews": prompts})  # fmt: skip
    [process] = job_config(spec, "imprint_x", FOLDERS, pictures=5, base_model="a/b")["config"]["process"]
    assert process["network"]["linear_alpha"] == 64.0  # 32 sqrt(4): it divides by the rank
    assert {"ff.net.", "proj_in", "proj_out"} < set(process["network"]["network_kwargs"]["only_if_contains"])
    assert process["datasets"][0]["caption_dropout_rate"] == 0.1
    assert process["sample"]["samples"] == [{"prompt": "sks dog in a park"}, {"prompt": "a cat - -w 9"}]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"adapter": {"dora": True}}, "adapter.dora"),
        ({"adapter": {"targets": "convolutions"}}, "adapter.targets"),
        ({"optimization": {"loraplus_ratio": 4}}, "optimization.loraplus_ratio"),
        ({"optimization": {"schedule": "cosine", "warmup_steps": 5}}, "optimization.warmup_steps"),
        ({"optimizer": "prodigy", "learning_rate": 0.01}, "learning_rate"),
        ({"objective": {"weighting": "debiased"}}, "objective.weighting"),
        ({"validation": {"held_out": 1}}, "validation.held_out"),
    ],
)
def test_options_that_it_cannot_do_are_refused_by_name(asked: dict[str, Any], field: str) -> None:
    spec = TrainSpec(base_model="sd15", trigger_word="sks", seed=0, **asked)
    assert set(unsupported_options(spec)) == {field}
    with pytest.raises(SpecInvalid, match=field):
        job_config(spec, "imprint_x", FOLDERS, pictures=5, base_model="a/b")


def test_masks_and_mirrored_pictures_are_carried_over() -> None:
    spec = TrainSpec(base_model="sd15", trigger_word="sks", seed=0, objective={"masked": True}, data={"flip": True})
    [process] = job_config(spec, "imprint_x", FOLDERS, pictures=5, base_model="a/b")["config"]["process"]
    assert {"alpha_mask": True, "flip_x": True}.items() <= process["datasets"][0].items()
    spec = TrainSpec(base_model="sdxl", trigger_word="sks", seed=0, data={"resolutions": [512, 1024]})
    [process] = job_config(spec, "imprint_x", FOLDERS, pictures=5, base_model="a/b")["config"]["process"]
    assert process["datasets"][0]["resolution"] == [512, 1024]
    plain = made("sd15")["config"]["process"][0]["datasets"][0]
    assert not {"alpha_mask", "flip_x"} & set(plain)


@pytest.mark.parametrize("base", [base for base in BASE_MODELS.values() if FAMILIES[base.family].toolkit], ids=repr)
def test_every_base_model_makes_a_job_by_its_familys_defaults(base: BaseModel) -> None:
    spec = TrainSpec(base_model=base.name, trigger_word="sks", seed=0, backend="ai-toolkit")
    assert unsupported_options(spec) == {}
    location = find_base_model(spec, {})
    [process] = job_config(spec, "imprint_x", FOLDERS, pictures=5, base_model=location)["config"]["process"]
    assert process["model"]["name_or_path"].startswith(base.location)
    known = FAMILIES[base.family].toolkit
    assert known is not None
    assert process["model"]["arch"].split(":")[0] == known.arch


@pytest.mark.parametrize(
    ("base_model", "card_gib", "wanted"),
    [
        ("qwen-image", 80, {"quantize": False, "quantize_te": False, "low_vram": False}),
        ("qwen-image", 48, {"quantize": True, "qtype": "qfloat8", "low_vram": True}),
        ("qwen-image", 24, {"quantize": True, "qtype": RECOVERY.format("qwen_image")}),
        ("qwen-image-2512", 24, {"arch": "qwen_image:2512", "qtype": RECOVERY.format("qwen_image_2512")}),
        ("z-image", 24, {"quantize": True, "qtype": "qfloat8"}),
        ("z-image", 48, {"quantize": False}),
        ("flux2-klein-4b", 24, {"quantize": False}),
        ("sdxl", 80, {"quantize": False}),
        # ai-toolkit takes no recovery adapter beside a training adapter.
        ("krea2-turbo", 12, {"quantize": True, "qtype": "qfloat8"}),
    ],
)  # fmt: skip
def test_the_card_decides_about_quantisation(base_model: str, card_gib: float, wanted: dict[str, Any]) -> None:
    spec = TrainSpec(base_model=base_model, trigger_word="sks", seed=0)
    base = find_base_model(spec, {})
    config = job_config(spec, "imprint_x", FOLDERS, pictures=5, base_model=base, card_gib=card_gib)
    assert wanted.items() <= config["config"]["process"][0]["model"].items()


def test_a_large_family_needs_a_large_card() -> None:
    assert cards.usual_gib("sd15") < cards.usual_gib("z-image") < cards.usual_gib("flux1") < 23.9
    assert 23.9 < cards.usual_gib("qwen-image") < 47.9
    assert cards.least_gib("qwen-image", "Qwen/Qwen-Image") < 23.9  # with its recovery adapter
    assert 47.9 < cards.least_gib("flux2", "black-forest-labs/FLUX.2-dev") < 79.9
    assert cards.disk_gb("flux2") > 100


@pytest.mark.parametrize(
    ("info", "code", "words"),
    [
        ("Cannot access gated repo for url https://huggingface.co/x/y?t=1.", "base_model_unavailable", "gated repo"),
        ("401 Client Error: Unauthorized for url: https://h.co", "base_model_unavailable", "401 Client Error"),
        ("404 Client Error. Repository Not Found", "base_model_unavailable", "Repository Not Found"),
        ("a/b is not a local folder and is not a valid model identifier", "base_model_unavailable", "valid model"),
        ("no images found in /app/ai-toolkit/datasets/imprint_x", "too_few_images", "no images found in (path)"),
        ("name_or_path must be specified", "spec_invalid", "must be specified"),
        ("CUDA out of memory. Tried to allocate 2 GiB", "out_of_memory", "too little memory"),
        ("CUDA error: an illegal memory access", "backend_failed", "illegal memory access"),
        ("token hf_abcdefghij123 is no use\nTraceback", "backend_failed", "token (token) is no use"),
        ("", "backend_failed", "an error on the server"),
    ],
)
def test_an_error_has_its_own_code_and_the_servers_words(info: str, code: str, words: str) -> None:
    error = error_of(info)
    assert error.code == code
    assert words in error.message
    assert not [secret for secret in ("http", "/app", "hf_", "Traceback") if secret in error.message]


def test_a_folder_of_ours_is_refused() -> None:
    named = TrainSpec(base_model="sd15", trigger_word="sks", seed=0)
    assert find_base_model(named, {"sd15": "me/my-sd15"}) == "me/my-sd15"
    with pytest.raises(SpecInvalid, match="hub id"):
        find_base_model(named, {"sd15": "/models/my-sd15"})
    for wrong in ("/models/x", "models", "a/b/c", "../x/y", "a/..", "${A}/b"):
        with pytest.raises(SpecInvalid, match="hub id"):
            job_config(named, "imprint_x", FOLDERS, pictures=5, base_model=wrong)


def test_z_image_at_another_scale_is_refused_before_it_is_trained() -> None:
    spec = TrainSpec(base_model="z-image-turbo", trigger_word="sks", rank=16, alpha=32.0, seed=0)
    assert set(unsupported_options(spec)) == {"alpha"}
    with pytest.raises(SpecInvalid, match="alpha = rank"):
        job_config(spec, "imprint_x", FOLDERS, pictures=5, base_model="Tongyi-MAI/Z-Image-Turbo")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in CASES:
        (GOLDEN / f"{name}.json").write_text(json.dumps(made(name), indent=1) + "\n")
