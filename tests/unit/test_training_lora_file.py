"""The check of LoRA files: sound ones pass with their facts, every kind of unsound one is refused for what it is."""

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import FailureCode, LoraInvalid
from training.lora import file as lora_file
from training.lora import metadata as lora_metadata
from training.lora.file import check_lora_file
from training.lora.safetensor import Tensor, data_offset, pack, tensor, unpack
from training.ports import Example
from training.spec import TrainSpec

MODULE = {
    "sd15": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "sdxl": "mid_block.attentions.0.transformer_blocks.3.attn2.to_out.0",
    "z-image": "layers.11.attention.to_out.0",
}
STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def described(family: str = "sd15", **given: Any) -> dict[str, str]:
    base = {"sd15": "sd15", "sdxl": "sdxl", "z-image": "z-image-turbo"}[family]
    spec = TrainSpec(base_model=base, trigger_word="sks dog", rank=4, alpha=32.0, seed=7, **given)
    examples = [Example(Path("a.png"), "a photo of sks dog, standing", "a" * 64, 512, 512)]
    return lora_metadata.build_metadata(
        spec, examples, steps=10, dataset_sha256="d" * 64, base_sha256="b" * 64, prediction="epsilon"
    )


def made(family: str = "sd15") -> bytes:
    chance = np.random.default_rng(0)
    pair = chance.normal(size=(4, 32)), chance.normal(size=(48, 4))
    return lora_file.serialize_lora(family, {MODULE[family]: pair}, 32.0, described(family))


@pytest.mark.parametrize("family", ["sd15", "sdxl", "z-image"])
def test_a_sound_file(family: str, tmp_path: Path) -> None:
    data = made(family)
    path = tmp_path / "deep" / "lora.safetensors"
    lora_file.write_file(path, data)
    for given in (data, path, str(path)):
        report = check_lora_file(given, family=family, rank=4)
        assert (report.rank, report.alpha, report.modules, report.parameters) == (4, 32.0, 1, 4 * 32 + 48 * 4)
        assert report.sha256 == hashlib.sha256(data).hexdigest()
        assert report.size_bytes == len(data)
    assert report.metadata["imprint_trigger_word"] == "sks dog"
    assert json.loads(report.metadata["imprint_recipe"])["rank"] == 4
    assert json.loads(json.dumps(report.to_dict()))["alpha"] == 32.0
    assert [held.name for held in path.parent.iterdir()] == ["lora.safetensors"]


def test_the_same_training_gives_the_same_bytes() -> None:
    assert made() == made()


def test_metadata_that_uis_read() -> None:
    held = described()
    assert held["ss_network_dim"] == "4"
    assert held["ss_network_alpha"] == "32.0"
    assert held["ss_base_model_version"] == "sd_v1"
    assert held["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert held["modelspec.trigger_phrase"] == "sks dog"
    assert held["ss_optimizer"] == "torch.optim.adamw.AdamW(weight_decay=0.01)"
    assert json.loads(held["ss_dataset_dirs"]) == {"sks dog": {"n_repeats": 1, "img_count": 1}}
    assert json.loads(held["ss_bucket_info"])["buckets"] == {"0": {"resolution": [512, 512], "count": 1}}
    asked = described(objective={"weighting": "min_snr"}, optimization={"schedule": "cosine", "warmup_steps": 5})
    assert (asked["ss_min_snr_gamma"], asked["ss_lr_scheduler"], asked["ss_lr_warmup_steps"]) == ("5.0", "cosine", "5")
    assert json.loads(held["ss_tag_frequency"]) == {"sks dog": {"a photo of sks dog": 1, "standing": 1}}
    assert all(isinstance(value, str) for value in held.values())


def test_a_base_model_in_a_folder_is_told_by_its_last_name() -> None:
    spec = TrainSpec(base_model="/srv/secret/model-7", family="sd15", trigger_word="x", seed=0)
    recipe = lora_metadata.recipe_json(spec)
    assert "secret" not in recipe
    assert json.loads(recipe)["base_model"] == "model-7"


def test_model_hash_is_kohyas() -> None:
    """kohya's addnet_hash_safetensors: SHA-256 of what follows the header; it survives an edit of the metadata."""
    data = made()
    tensors, metadata = unpack(data)
    stream = io.BytesIO(data)
    length = int.from_bytes(stream.read(8), "little")
    stream.seek(8 + length)
    assert metadata["sshs_model_hash"] == hashlib.sha256(stream.read()).hexdigest()
    edited = pack(tensors, {**metadata, "note": "edited"})
    assert check_lora_file(edited, family="sd15", rank=4).metadata["note"] == "edited"


# ---- refusals ----------------------------------------------------------------------------------------------------


def changed(
    tensors: Callable[[dict[str, Tensor]], object] | None = None,
    metadata: Callable[[dict[str, str]], object] | None = None,
    rehash: bool = True,
) -> bytes:
    """A sound sd15 file with something changed, its hash made right again unless said."""
    held, content = unpack(made())
    if tensors is not None:
        tensors(held)
    if rehash:
        plain = pack(held, {})
        content["sshs_model_hash"] = hashlib.sha256(plain[data_offset(plain) :]).hexdigest()
    if metadata is not None:
        metadata(content)
    return pack(held, content)


def put(name: str, values: Any, kind: str = "F32") -> Callable[[dict[str, Tensor]], object]:
    return lambda held: held.update({name: tensor(np.asarray(values), kind)})


def twice() -> bytes:
    data = made()
    start = data_offset(data)
    header = data[8:start].rstrip().removesuffix(b"}") + b',"__metadata__":{}}'
    return len(header).to_bytes(8, "little") + header + data[start:]


NAN = np.full((4, 32), np.nan)
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "not finite": (lambda: changed(put(f"{STEM}.lora_down.weight", NAN)), "not finite"),
    "not finite, bf16": (lambda: changed(put(f"{STEM}.lora_down.weight", NAN, "BF16")), "not finite"),
    "infinite alpha": (lambda: changed(put(f"{STEM}.alpha", np.inf)), "not finite"),
    "negative alpha": (lambda: changed(put(f"{STEM}.alpha", -1.0)), "alpha is -1"),
    "an alpha of many numbers": (lambda: changed(put(f"{STEM}.alpha", [1.0, 2.0])), "not a single number"),
    "another rank": (lambda: changed(put(f"{STEM}.lora_down.weight", np.ones((8, 32)))), "rank 8"),
    "transposed": (lambda: changed(put(f"{STEM}.lora_up.weight", np.ones((4, 48)))), "rank 4 and 48"),
    "flat": (lambda: changed(put(f"{STEM}.lora_down.weight", np.ones(128))), "which do not fit"),
    "three dimensions": (lambda: changed(put(f"{STEM}.lora_down.weight", np.ones((4, 8, 4)))), "which do not fit"),
    "empty": (lambda: changed(put(f"{STEM}.lora_down.weight", np.ones((4, 0)))), "is empty"),
    "no alpha": (lambda: changed(lambda held: held.pop(f"{STEM}.alpha")), r"lacks .*\.alpha"),
    "no up": (lambda: changed(lambda held: held.pop(f"{STEM}.lora_up.weight")), r"lacks .*lora_up"),
    "no tensors": (lambda: changed(lambda held: held.clear()), "no tensors"),
    "a strange tensor": (lambda: changed(put("lora_unet_other.lora_down.weight", 1.0)), "no sd15 LoRA has"),
    "a path as a name": (lambda: changed(put("../../etc/passwd", 1.0)), "no sd15 LoRA has"),
    "diffusers' keys": (lambda: changed(put("unet.mid_block.attn1.to_q.lora_A.weight", 1.0)), "no sd15 LoRA has"),
    "no metadata": (lambda: changed(metadata=lambda found: found.clear()), "metadata lacks"),
    "no trigger word": (lambda: changed(metadata=lambda found: found.pop("imprint_trigger_word")), "trigger_word"),
    "metadata of rank 8": (lambda: changed(metadata=lambda found: found.update(ss_network_dim="8")), "names rank 8"),
    "another alpha": (lambda: changed(metadata=lambda found: found.update(ss_network_alpha="4")), "names alpha"),
    "alpha of text": (lambda: changed(metadata=lambda found: found.update(ss_network_alpha="x")), "cannot be read"),
    "a broken recipe": (lambda: changed(metadata=lambda found: found.update(imprint_recipe="{")), "cannot be read"),
    "other tensors": (
        lambda: changed(put(f"{STEM}.lora_up.weight", np.ones((48, 4))), rehash=False), "do not match the hash",
    ),
    "a pickle": (lambda: pickle.dumps({"a": 1}), "pickle"),
    "a torch file": (lambda: b"PK\x03\x04" + b"\x00" * 100, "pickle"),
    "the same name twice": (twice, "twice"),
    "an oversize header": (lambda: (2**40).to_bytes(8, "little") + b"{}", "header has"),
    "cut off": (lambda: made()[:-10], "exceeds the file"),
    "nothing": (lambda: b"", "shorter"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_unsound_files_are_refused(what: str) -> None:
    make, content = REFUSED[what]
    with pytest.raises(LoraInvalid, match=content) as caught:
        check_lora_file(make(), family="sd15", rank=4)
    assert caught.value.code is FailureCode.LORA_INVALID


def test_of_another_family_or_rank() -> None:
    with pytest.raises(LoraInvalid, match="no z-image LoRA has"):
        check_lora_file(made("sd15"), family="z-image", rank=4)
    with pytest.raises(LoraInvalid, match="8 was asked for"):
        check_lora_file(made("sd15"), family="sd15", rank=8)


def test_too_large_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoraInvalid, match="at most 100"):
        check_lora_file(made(), family="sd15", rank=4, max_bytes=100)
    lora_file.write_file(tmp_path / "a.safetensors", made())
    with pytest.raises(LoraInvalid, match="at most 100"):
        check_lora_file(tmp_path / "a.safetensors", family="sd15", rank=4, max_bytes=100)
    with pytest.raises(LoraInvalid, match="cannot be read"):
        check_lora_file(tmp_path / "none.safetensors", family="sd15", rank=4)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    lora_file.write_file(path, b"before")

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        lora_file.write_file(path, b"after")
    assert path.read_bytes() == b"before"
    assert [held.name for held in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_recipe_without_options_is_what_it_was_before_there_were_any() -> None:
    """Its hash is in checkpoints and files of trainings that began before."""
    spec = TrainSpec(base_model="sd15", trigger_word="x", seed=1)  # type: ignore[call-arg]
    assert lora_metadata.recipe_json(spec) == (
        '{"alpha":32.0,"aspect_buckets":false,"backend":"local","base_model":"sd15","batch_size":1,"class_word":"",'
        '"epochs":100,"family":"sd15","learning_rate":0.0001,"max_steps":null,"optimizer":"adamw","rank":4,'
        '"resolution":512,"seed":1,"trigger_word":"x"}'
    )
    spelled_out = TrainSpec.model_validate(spec.model_dump() | {"adapter": {"targets": "all", "dora": False}})
    assert json.loads(lora_metadata.recipe_json(spelled_out))["adapter"] == {"targets": "all"}
