"""LoRA files of all origins: recognised, checked, and put into other forms with the same weights and strength."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from core.errors import LoraInvalid
from tests.hostile.weights import LORAS
from tests.unit.test_training_lora_file import changed, made, put
from training.lora import formats as lora_formats
from training.lora import names as lora_names
from training.lora.formats import FORMATS, serialize_as
from training.lora.inspect import inspect
from training.lora.reading import ADAPTER, read_lora
from training.lora.safetensor import Tensor, pack, tensor, unpack

HOME = {"sd15": "kohya", "sdxl": "kohya", "z-image": "comfyui"}
TO_Q = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pair(stem: str, ends: tuple[str, str] = (".lora_down.weight", ".lora_up.weight"), **more: Any) -> dict[str, Tensor]:
    """One module's tensors: rank 4, 32 to 48, whatever more it is to have."""
    given = {"rank": 4, "kind": "F32", "alpha": None, "dora": None, **more}
    made_of = {
        stem + ends[0]: tensor(numbers(given["rank"], 32), given["kind"]),
        stem + ends[1]: tensor(numbers(48, given["rank"], seed=1), given["kind"]),
    }
    if given["alpha"] is not None:
        made_of[stem + ".alpha"] = tensor(np.asarray(given["alpha"], np.float32))
    if given["dora"] is not None:
        made_of[stem + ".dora_scale"] = tensor(given["dora"])
    return made_of


def same(one: bytes, other: bytes) -> None:
    """The same tensors to the bit, under the same names, and the same metadata."""
    (held, content), (wanted, asked) = unpack(one), unpack(other)
    assert set(held) == set(wanted)
    for name, part in wanted.items():
        assert held[name].kind == part.kind, name
        assert held[name].shape == part.shape, name
        assert held[name].elements.tobytes() == part.elements.tobytes(), name
    assert content == asked


# ---- names -------------------------------------------------------------------------------------------------------

NAMES = {
    f"lora_unet_{TO_Q}": "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "lora_unet_mid_block_attentions_0_transformer_blocks_9_attn2_to_out_0": (
        "unet.mid_block.attentions.0.transformer_blocks.9.attn2.to_out.0"
    ),
    "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_ff_net_0_proj": (
        "unet.up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj"
    ),
    "lora_unet_down_blocks_0_resnets_1_time_emb_proj": "unet.down_blocks.0.resnets.1.time_emb_proj",
    "lora_unet_down_blocks_0_downsamplers_0_conv": "unet.down_blocks.0.downsamplers.0.conv",
    "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q": (
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"
    ),
    "lora_unet_output_blocks_5_1_proj_out": "unet.up_blocks.1.attentions.2.proj_out",
    "lora_unet_middle_block_1_transformer_blocks_0_ff_net_2": (
        "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2"
    ),
    "lora_te_text_model_encoder_layers_11_self_attn_q_proj": (
        "text_encoder.text_model.encoder.layers.11.self_attn.q_proj"
    ),
    "lora_te2_text_model_encoder_layers_31_mlp_fc2": "text_encoder_2.text_model.encoder.layers.31.mlp.fc2",
    "diffusion_model.layers.3.attention.to_out.0": "transformer.layers.3.attention.to_out.0",
    "diffusion_model.noise_refiner.1.feed_forward.w2": "transformer.noise_refiner.1.feed_forward.w2",
    "lycoris_layers_3_adaLN_modulation_0": "transformer.layers.3.adaLN_modulation.0",
    "unet.mid_block.attentions.0.proj_in": "unet.mid_block.attentions.0.proj_in",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out": (
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    ),
    "base_model.model.up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_k": (
        "unet.up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_k"
    ),
}


@pytest.mark.parametrize("stem", NAMES)
def test_names_of_every_form(stem: str) -> None:
    name = lora_names.parse_module_name(stem)
    assert name is not None
    assert name.full == NAMES[stem]


@pytest.mark.parametrize("stem", ["lora_unet_", "lora_unet_other", "lora_te_conv_in", "x", "unet.", "../../etc/passwd",
                                  "lora_unet_down_blocks_0_", "transformer.single_blocks.1.attn"])  # fmt: skip
def test_names_of_none(stem: str) -> None:
    assert lora_names.parse_module_name(stem) is None


# ---- converting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", HOME)
def test_our_file_comes_back_to_the_byte(family: str) -> None:
    ours = made(family)
    for to in FORMATS:
        if (to, family) != ("kohya", "z-image"):
            other = serialize_as(read_lora(ours), to)
            assert inspect(other).scales == [8.0]
            assert serialize_as(read_lora(other), HOME[family]) == ours


def several() -> dict[str, Tensor]:
    """Modules of different rank, alpha, kind and shape, text encoders among them, one of them a DoRA."""
    return {
        **pair(f"lora_unet_{TO_Q}", alpha=32.0),
        **pair("lora_unet_up_blocks_0_attentions_0_proj_in", alpha=2.5, rank=8, kind="F16"),
        **pair("lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2", alpha=0.1, kind="BF16"),
        **pair("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", alpha=1.0, rank=2),
        **pair("lora_te2_text_model_encoder_layers_0_mlp_fc1", alpha=4.0, dora=numbers(48, 1)),
        "lora_unet_up_blocks_0_attentions_0_proj_out.lora_down.weight": tensor(numbers(4, 32, 1, 1)),
        "lora_unet_up_blocks_0_attentions_0_proj_out.lora_up.weight": tensor(numbers(48, 4, 1, 1)),
        "lora_unet_up_blocks_0_attentions_0_proj_out.alpha": tensor(np.asarray(16.0)),
    }


def test_ranks_alphas_text_encoders_dora_and_convolutions_survive() -> None:
    first = serialize_as(read_lora(pack(several(), {"ss_network_dim": "Dynamic", "note": "mine"})), "kohya")
    peft = serialize_as(read_lora(first), "peft")
    content = json.loads(unpack(peft)[1][ADAPTER])
    assert content["unet.rank_pattern"] == {"up_blocks.0.attentions.0.proj_in": 8}
    assert content["text_encoder.lora_alpha"] == 1.0
    assert content["text_encoder_2.use_dora"] is True
    assert "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_magnitude_vector" in unpack(peft)[0]
    report = inspect(peft)
    assert report.problems == []
    assert report.scales == pytest.approx([0.025, 0.3125, 0.5, 1.0, 4.0, 8.0])
    same(serialize_as(read_lora(peft), "kohya"), first)
    assert {name: part.shape for name, part in unpack(first)[0].items()} == {
        name: part.shape for name, part in several().items()
    }


def test_without_an_alpha_the_scale_is_one() -> None:
    theirs = pair("diffusion_model.layers.0.attention.to_q", (".lora_A.weight", ".lora_B.weight"))
    report = inspect(pack(theirs, {}))
    assert (report.scales, report.alphas, report.problems) == ([1.0], [], [])
    assert "have no alpha" in report.warnings[0]
    ours = serialize_as(read_lora(pack(theirs, {})), "comfyui")
    assert unpack(ours)[0]["diffusion_model.layers.0.attention.to_q.alpha"].floats() == 4.0
    assert inspect(ours).scales == [1.0]


@pytest.mark.parametrize(("content", "scale"), [
    ({"unet.r": 4, "unet.lora_alpha": 32}, 8.0),
    ({"unet.r": 4, "unet.lora_alpha": 32, "unet.use_rslora": True}, 16.0),
    ({"unet.r": 8, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 2}}, 0.5),
    ({"unet.r": 8, "unet.lora_alpha": 8, "unet.alpha_pattern": {"to_k": 2}}, 2.0),
    ({"transformer.lora_alpha": 8}, 1.0),
])  # fmt: skip
def test_the_scale_that_pefts_metadata_tells(content: dict[str, Any], scale: float) -> None:
    ends = (".lora_A.weight", ".lora_B.weight")
    stem = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    assert inspect(pack(pair(stem, ends), {ADAPTER: json.dumps(content)})).scales == [scale]


@pytest.mark.parametrize(("tensors", "to", "why"), [
    (pair("diffusion_model.layers.0.attention.to_q", alpha=4.0), "kohya", "only in part"),
    ({"diffusion_model.layers.0.attention.qkv.lora_A.weight": tensor(numbers(4, 32)),
      "diffusion_model.layers.0.attention.qkv.lora_B.weight": tensor(numbers(50, 4))}, "comfyui",
     "no 3 matrices of one size"),
    (pair("base_model.model.mid_block.attentions.0.proj_in"), "kohya", "family of the LoRA file is unknown"),
    ({f"lora_unet_{TO_Q}.hada_w1_a": tensor(numbers(2, 2))}, "peft", "LoHa"),
    ({**pair(f"lora_unet_{TO_Q}"), "x.y": tensor(numbers(2))}, "peft", r"unknown tensors \(1\)"),
    (pair("lora_unet_up_blocks_3_attentions_0_proj_in", alpha=4.0, dora=numbers(1, 32)), "peft",
     "one DoRA length per input"),
    ({**pair(f"lora_unet_{TO_Q}"), f"lora_unet_{TO_Q}.lora_up.weight": tensor(np.full((48, 4), np.nan))}, "kohya",
     "not finite"),
    ({**pair(f"lora_unet_{TO_Q}"), f"lora_unet_{TO_Q}.lora_up.weight": tensor(numbers(48, 8))}, "kohya",
     "which do not fit"),
    (pair("lora_unet_double_blocks_0_img_attn_qkv"), "kohya", "a LoRA of FLUX.1"),
    ({}, "peft", "contains no LoRA"),
])  # fmt: skip
def test_what_cannot_be_converted_is_refused(tensors: Mapping[str, Tensor], to: str, why: str) -> None:
    with pytest.raises(LoraInvalid, match=why):
        serialize_as(read_lora(pack(tensors, {})), to)


# ---- inspecting --------------------------------------------------------------------------------------------------


def test_a_sound_file_and_what_is_told_of_it() -> None:
    report = inspect(made())
    assert (report.family, report.format, report.ranks, report.alphas) == ("sd15", "kohya", [4], [32.0])
    assert report.trigger_word == "sks dog"
    assert report.recipe is not None
    assert report.recipe["rank"] == 4
    assert (report.problems, report.warnings) == ([], [])
    held, _ = unpack(made())
    down, up = (part.floats().astype(np.float64) for name, part in sorted(held.items()) if "lora" in name[-20:])
    norm = np.linalg.norm(8.0 * up @ down)
    assert report.kinds["self-attention"]["norm_mean"] == pytest.approx(norm)
    assert set(report.readers.values()) == {"whole"}


BROKEN: list[tuple[dict[str, Tensor], str]] = [
    ({}, "it contains no LoRA"),
    ({f"lora_unet_{TO_Q}.lora_down.weight": tensor(numbers(4, 4))}, "lacks its other matrix"),
    ({**pair(f"lora_unet_{TO_Q}"), f"lora_unet_{TO_Q}.alpha": tensor(np.asarray([1.0, 2.0]))}, "not a single number"),
    ({**pair(f"lora_unet_{TO_Q}"), f"lora_unet_{TO_Q}.lora_up.weight": tensor(numbers(48, 8))}, "which do not fit"),
    (pair(f"lora_unet_{TO_Q}", alpha=np.nan), "has alpha nan"),
    (pair(f"lora_unet_{TO_Q}", alpha=4.0, dora=numbers(9)), "DoRA lengths of shape [9] for 48 outputs and 32 inputs"),
    ({**pair(f"lora_unet_{TO_Q}"), f"lora_unet_{TO_Q}.lora_up.weight": tensor(np.full((48, 4), np.inf))}, "not finite"),
    ({**pair(f"lora_unet_{TO_Q}"), **pair(f"unet.{NAMES[f'lora_unet_{TO_Q}'][5:]}")}, "occurs twice"),
    ({f"lora_unet_{TO_Q}.lokr_w1": tensor(np.full((2, 2), np.nan))}, "not finite"),
    ({"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": tensor(numbers(4, 4))}, "lacks its other matrix"),
    ({"first_stage_model.encoder.conv_in.weight": tensor(numbers(4, 4))}, "it contains no LoRA"),
]


@pytest.mark.parametrize(("tensors", "content"), BROKEN, ids=[content for _, content in BROKEN])
def test_broken_files_are_told(tensors: dict[str, Tensor], content: str) -> None:
    report = inspect(pack(tensors, {}))
    assert any(content in problem for problem in report.problems), report.problems
    assert report.verdict == "broken"
    with pytest.raises(LoraInvalid, match="is broken"):  # the same check stands before every conversion
        serialize_as(read_lora(pack(tensors, {})), "kohya")
    json.dumps(report.to_dict(), allow_nan=False)


def test_lengths_per_input_keep_their_axis() -> None:
    """As LyCORIS trains them with `wd_on_output=False`; a square layer's are told by their shape."""
    theirs = {
        **pair("lora_unet_up_blocks_3_attentions_0_proj_in", alpha=4.0, dora=numbers(1, 32)),
        **pair("lora_te_text_model_encoder_layers_0_mlp_fc1", alpha=4.0, dora=numbers(48, 1)),
        **square("lora_unet_mid_block_attentions_0_proj_in", (1, 32)),
        **square("lora_unet_mid_block_attentions_0_proj_out", (32, 1)),
    }
    report = inspect(pack(theirs, {}))
    assert (report.verdict, report.problems, report.is_dora) == ("sound", [], True)
    for to in ("kohya", "comfyui"):
        made_of, _ = unpack(serialize_as(read_lora(pack(theirs, {})), to))
        for name, part in theirs.items():
            assert (name, made_of[name].shape) == (name, part.shape)


def square(stem: str, lengths: tuple[int, int]) -> dict[str, Tensor]:
    return {
        f"{stem}.lora_down.weight": tensor(numbers(4, 32)),
        f"{stem}.lora_up.weight": tensor(numbers(32, 4)),
        f"{stem}.dora_scale": tensor(numbers(*lengths)),
    }


def test_changed_tensors_and_a_broken_adapter_are_noted() -> None:
    edited = changed(put("lora_unet_x.alpha", 1.0), rehash=False)
    assert any("does not match its tensors" in warning for warning in inspect(edited).warnings)
    stem = "unet.mid_block.attentions.0.proj_in"
    assert any("cannot be parsed" in problem for problem in inspect(pack(pair(stem), {ADAPTER: "[" * 9})).problems)


@pytest.mark.parametrize("name", LORAS)
def test_hostile_files_are_told_or_refused_in_our_own_words(name: str) -> None:
    data = LORAS[name][0]()
    try:
        report = inspect(data)
    except LoraInvalid as error:
        longest = error.message
    else:
        json.dumps(report.to_dict(), allow_nan=False)
        longest = max(report.problems, key=len, default="")
    assert len(longest) < 500


# ---- the commands ------------------------------------------------------------------------------------------------


def run(*arguments: Any) -> Any:
    from cli.main import imprint

    return CliRunner().invoke(imprint, [str(argument) for argument in arguments])


def test_the_commands(tmp_path: Path) -> None:
    ours, peft, back = (tmp_path / f"{name}.safetensors" for name in ("ours", "peft", "back"))
    ours.write_bytes(made())
    shown = run("inspect", ours)
    assert shown.exit_code == 0
    assert all(word in shown.output for word in ("sd15", "kohya", "sks dog", "self-attention", "AUTOMATIC1111: whole"))
    content = json.loads(run("inspect", ours, "--json").output)
    assert (content["scales"], content["problems"]) == ([8.0], [])
    assert run("convert", ours, peft, "--to", "peft").exit_code == 0
    assert json.loads(run("inspect", peft, "--json").output)["format"] == "peft"
    refused = run("convert", ours, peft, "--to", "peft")
    assert (refused.exit_code, "--force" in refused.output) == (2, True)
    assert run("convert", ours, peft, "--to", "peft", "--force").exit_code == 0
    assert json.loads(run("convert", peft, back, "--to", "kohya", "--json").output)["scales"] == [8.0]
    assert back.read_bytes() == made()
    ours.write_bytes(changed(put("x", 1.0)))
    assert run("inspect", ours).exit_code == 1
    ours.write_bytes(b"no file")
    assert run("inspect", ours).exit_code == 1
    assert run("convert", tmp_path / "none", back, "--to", "peft", "--force").exit_code == 1
    assert back.read_bytes() == made()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.safetensors" for name in ("back", "ours", "peft")
    ]


def test_no_torch_is_needed() -> None:
    import subprocess

    code = "import sys; from training.lora import inspect, formats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert lora_formats.FORMATS
