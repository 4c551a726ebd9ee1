"""Sound files of others are told as what they are: another method, another family, or a LoRA with more beside it."""

import json
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from core.errors import LoraInvalid
from jobs.subjects import lora_weights
from tests.lora_layouts import MODULES, written
from training.lora.formats import serialize_as
from training.lora.inspect import inspect
from training.lora.reading import read_lora
from training.lora.safetensor import Tensor, pack, tensor, unpack

UNET = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
CONTEXT = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def t(*shape: int) -> Tensor:
    return tensor(np.ones(shape, np.float32))


def pair(stem: str, width: int = 32, form: str = "kohya") -> dict[str, Tensor]:
    down, up = (".lora_down.weight", ".lora_up.weight") if form == "kohya" else (".lora_A.weight", ".lora_B.weight")
    return {stem + down: t(4, width), stem + up: t(48, 4)}


def peft(*stems: str, width: int = 32) -> dict[str, Tensor]:
    return {name: part for stem in stems for name, part in pair(stem, width, "peft").items()}


OTHERS: dict[str, tuple[dict[str, Tensor], dict[str, str], str, str | None]] = {
    # ---- other methods ----
    "LoHa": ({f"{UNET}.{name}": t(4, 4) for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}
             | {f"{UNET}.alpha": t(1)}, {}, "LoHa", None),
    "LoKr": ({f"{UNET}.lokr_w1": t(2, 2), f"{UNET}.lokr_w2": t(9, 9), f"{UNET}.alpha": t(1)}, {}, "LoKr", None),
    "GLoRA": ({f"{UNET}.{name}.weight": t(4, 4) for name in ("a1", "a2", "b1", "b2")}, {}, "GLoRA", None),
    "OFT": ({f"{UNET}.oft_blocks": t(4, 8, 8)}, {}, "OFT", None),
    "LoKr of FLUX.1": ({"lora_unet_double_blocks_0_img_attn_qkv.lokr_w1": t(2, 2)}, {}, "LoKr", "FLUX.1"),
    "Tucker": (pair(UNET) | {f"{UNET}.lora_mid.weight": t(4, 4, 3, 3)}, {}, "Tucker", None),
    # ---- more beside a LoRA ----
    "bundled embeddings": (pair(UNET) | {"bundle_emb.my_word.string_to_param.*": t(2, 768)}, {}, "text embeddings (1)",
                           None),
    "norm weights": (pair(UNET) | {"lora_unet_down_blocks_1_attentions_0_norm.w_norm": t(9),
                                   "lora_unet_down_blocks_1_attentions_0_norm.b_norm": t(9)}, {}, "norm weights (2)",
                     None),
    "bias weights": (pair(UNET) | {f"{UNET}.diff_b": t(9)}, {}, "full differences", None),
    "LoRA biases": (pair(UNET) | {f"{UNET}.lora_up.bias": t(48)}, {}, "bias weights (1)", None),
    "modules saved whole": (peft("transformer.layers.0.attention.to_q")
                            | {"transformer.x_embedder.weight": t(9, 9)}, {}, "whole weights (1)", None),
    "a name of no program": (pair(UNET) | {"x.y": t(1)}, {}, "unknown tensors (1)", None),
    # ---- other families, by names ----
    "FLUX.1, kohya": (pair("lora_unet_double_blocks_0_img_attn_qkv") | pair("lora_unet_single_blocks_0_linear1"), {},
                      "a LoRA of FLUX.1", "FLUX.1"),
    "FLUX.1, diffusers": (peft("transformer.single_transformer_blocks.0.attn.to_q", "transformer.x_embedder"), {},
                          "a LoRA of FLUX.1", "FLUX.1"),
    "FLUX.2": (peft("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"), {}, "FLUX.2", "FLUX.2"),
    "SD3": (peft("transformer.transformer_blocks.0.attn.add_q_proj", width=1536), {}, "Stable Diffusion 3",
            "Stable Diffusion 3"),
    "SD3, kohya": (pair("lora_unet_joint_blocks_0_x_block_attn_qkv"), {}, "Stable Diffusion 3", "Stable Diffusion 3"),
    "Qwen-Image": (peft("transformer_blocks.0.img_mlp.net.2"), {}, "Qwen-Image", "Qwen-Image"),
    "Wan": (peft("diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.0.ffn.0"), {}, "Wan", "Wan"),
    "HunyuanVideo": (peft("diffusion_model.double_blocks.0.img_mlp.fc1"), {}, "HunyuanVideo", "HunyuanVideo"),
    "a model of next year": (peft("diffusion_model.hyper_blocks.0.mixer"), {}, "a model that Imprint does not know",
                             None),
    # ---- by shapes, by metadata ----
    "SD 2 by its captions": (pair(CONTEXT, 1024), {}, "Stable Diffusion 2", "Stable Diffusion 2"),
    "SD 2 by its metadata": (pair(UNET), {"ss_base_model_version": "sd_v2_768_v"}, "Stable Diffusion 2",
                             "Stable Diffusion 2"),
    "SD3 by its metadata": (pair("lora_te1_text_model_encoder_layers_0_mlp_fc1"), {"ss_base_model_version": "sd3"},
                            "Stable Diffusion 3", "Stable Diffusion 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_sound_files_of_others(name: str, tmp_path: Any) -> None:
    tensors, metadata, contains, family = OTHERS[name]
    data = pack(tensors, metadata)
    report = inspect(data)
    assert (report.verdict, report.problems) == ("other", [])
    assert any(contains in what for what in report.contains), report.contains
    assert any("neither converts nor draws" in warning for warning in report.warnings)
    if family is not None:
        assert (report.family, report.readers) == (family, {})
    json.dumps(report.to_dict(), allow_nan=False)
    with pytest.raises(LoraInvalid, match="only LoRA and DoRA can be converted"):
        serialize_as(read_lora(data), "kohya")
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(data)
    weights = lora_weights.inspect_weights(path)  # ComfyUI gets it
    assert any(contains in what for what in weights.contains)
    with pytest.raises(LoraInvalid, match="draws only with LoRA and DoRA"):
        lora_weights.require_lora(weights)
    from cli.main import imprint

    shown = CliRunner().invoke(imprint, ["inspect", str(path)])
    assert (shown.exit_code, contains in shown.output.replace("\n", " ")) == (0, True)


def test_our_own_files_hold_nothing_else() -> None:
    data = pack(pair(UNET) | {"x.y": t(1)}, {"imprint_version": "1"})
    assert "the tensor 'x.y' is unknown" in inspect(data).problems


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
def test_eight_bits_are_weights(kind: str) -> None:
    tensors, _ = unpack(written("sd15", "kohya"))
    shrunk = {
        name: part if name.endswith("alpha") else Tensor(kind, np.full(part.shape, 0x38, np.uint8))
        for name, part in tensors.items()
    }
    data = pack(shrunk, {})
    report = inspect(data)
    assert (report.verdict, report.precision, report.modules) == ("sound", [kind], len(MODULES["sd15"]))
    again, _ = unpack(serialize_as(read_lora(data), "kohya"))
    assert {name: (part.kind, part.elements.tobytes()) for name, part in again.items()} == {
        name: (part.kind, part.elements.tobytes()) for name, part in shrunk.items()
    }
    value = {"F8_E4M3": 1.0, "F8_E5M2": 0.5}[kind]
    assert set(next(part for part in shrunk.values() if part.kind == kind).floats().flat) == {value}
    shrunk[f"{next(iter(tensors)).partition('.')[0]}.lora_up.weight"] = Tensor(kind, np.full((32, 4), 0x7F, np.uint8))
    assert inspect(pack(shrunk, {})).verdict == "broken"


@pytest.mark.parametrize(("data", "content"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "Git LFS pointer"),
    (b"<!DOCTYPE html>\n<html><head><title>Sign in", "a web page"),
    (b"\xef\xbb\xbf  <html lang=en>" + bytes(40), "a web page"),
])  # fmt: skip
def test_what_downloads_leave_in_the_place_of_weights(data: bytes, content: str) -> None:
    with pytest.raises(LoraInvalid, match=content):
        inspect(data)


def test_a_change_that_is_nearly_nothing_is_noted() -> None:
    tensors, metadata = unpack(written("sd15", "kohya"))
    tiny = {name: tensor(part.floats() * 1e-5) if "lora" in name[9:] else part for name, part in tensors.items()}
    assert any("changes almost nothing" in warning for warning in inspect(pack(tiny, metadata)).warnings)
    assert not any("almost nothing" in warning for warning in inspect(pack(tensors, metadata)).warnings)


# ---- families of ours that share names with others -------------------------------------------------------------------

KLEIN = {
    "diffusion_model.double_blocks.0.img_attn.qkv": 0, "diffusion_model.double_blocks.0.txt_mlp.0": 0,
    "diffusion_model.single_blocks.3.linear1": 0, "diffusion_model.single_blocks.3.linear2": 1,
}  # fmt: skip


@pytest.mark.parametrize(("width", "block", "ratio", "family"), [
    (3072, 0, 4, "flux2-klein-4b"), (4096, 7, 4, "flux2-klein-9b"), (6144, 0, 4, "FLUX.1"),
    (3072, 9, 4, "FLUX.1"),  # the smaller one has five such blocks
    (3072, 0, 5, "flux1"),  # which has wider feed-forward layers
])  # fmt: skip
def test_flux2_in_the_names_of_its_own_code(width: int, block: int, ratio: int, family: str) -> None:
    """As ai-toolkit writes them. FLUX.1 has the same names: widths and the number of blocks tell them apart."""
    tensors: dict[str, Tensor] = {}
    for stem, is_wide in KLEIN.items():
        tensors |= pair(
            stem.replace("double_blocks.0", f"double_blocks.{block}"), width * (ratio if is_wide else 1), "peft"
        )
    report = inspect(pack(tensors, {}))
    assert report.family == family
    assert (report.verdict == "sound") is family.startswith("flux")
    if report.verdict == "sound":
        diffusers = "whole" if family.startswith("flux2") else "no (0 of 4)"
        assert report.readers == {"diffusers": diffusers, "ComfyUI": "whole", "AUTOMATIC1111": "no (0 of 4)"}


def test_a_few_layers_that_two_families_have_are_of_neither() -> None:
    """The attention of a FLUX.1 block has the names and the widths of FLUX.2 klein 4B."""
    block = pair("lora_unet_double_blocks_0_img_attn_qkv", 3072)
    report = inspect(pack(block, {}))
    assert (report.family, report.verdict) == (None, "other")
    assert any("flux1 or flux2-klein-4b" in one or "flux2-klein-4b or flux1" in one for one in report.warnings)
    for version, family in (("flux1", "flux1"), ("flux2_klein_4b", "flux2-klein-4b")):
        assert inspect(pack(block, {"ss_base_model_version": version})).family == family
    assert inspect(pack(block | pair("lora_unet_double_blocks_7_img_attn_qkv", 3072), {})).family == "flux1"


def test_the_fused_names_of_flux2_become_those_of_diffusers() -> None:
    tensors = {name: part for stem in KLEIN for name, part in pair(stem, 3072 * (1 + 3 * KLEIN[stem]), "peft").items()}
    made, metadata = unpack(serialize_as(read_lora(pack(tensors, {"ss_base_model_version": "flux2_klein_4b"})), "peft"))
    block = "transformer.transformer_blocks.0"
    assert {name.rsplit(".", 2)[0] for name in made} == {
        *(f"{block}.attn.to_{part}" for part in "qkv"), f"{block}.ff_context.linear_in",
        "transformer.single_transformer_blocks.3.attn.to_qkv_mlp_proj",
        "transformer.single_transformer_blocks.3.attn.to_out",
    }  # fmt: skip
    assert made[f"{block}.attn.to_k.lora_B.weight"].shape == (16, 4)
    assert "lora_adapter_metadata" not in metadata


def test_a_scale_is_folded_into_the_matrices_where_programs_refuse_an_alpha() -> None:
    stem = "transformer.transformer_blocks.0.attn.add_q_proj"
    tensors = pair(stem, 3072, "peft") | {f"{stem}.alpha": tensor(np.asarray(8.0, np.float32))}
    lora = read_lora(pack(tensors, {}))
    assert (lora.family, next(iter(lora.modules.values())).scale) == ("qwen-image", 2.0)
    made, _ = unpack(serialize_as(lora, "peft"))
    assert set(made) == {f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"}
    assert (made[f"{stem}.lora_B.weight"].floats() == 2.0).all()
