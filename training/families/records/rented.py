"""The records of families that Imprint does not train itself: only ai-toolkit, on a rented server, does.

Architectures, hub ids and settings are those of ai-toolkit's web page (ui/src/app/jobs/new/options.tsx, August 2026).
A LoRA file keeps the names that ai-toolkit writes, which are those of the model's own code.
"""

import re
from collections.abc import Mapping
from typing import Any

from training.families.record import AiToolkit, BaseModel, Drawing, Family, LoraNames, Naming, Price, Variant
from training.families.records.toolkit import FLOW, FLOW_SAMPLE, QUANTISED

_PLAIN = {"quantize": False, "quantize_te": False}
_SMALL = QUANTISED | {"quantize": False}  # only the text encoder
_LOW = QUANTISED | {"low_vram": True}
_UNREAD = "see its page on the hub"
_BLOCKS, _LAYERS, _DOUBLE = ("blocks",), ("layers",), ("double_blocks", "single_blocks")
_FLUX = ("transformer_blocks", "single_transformer_blocks")
_FLUX_TERMS = "not for commercial use"


def _rented(
    name: str, title: str, arch: str, location: str, about: str, blocks: tuple[str, ...],
    billions: tuple[float, float] | None, *,
    licence: str = _UNREAD, terms: str = "", gated: bool = False, more: tuple[BaseModel, ...] = (),
    prefix: str = "diffusion_model.", model: Mapping[str, Any] = _LOW, times: str = "linear",
    train: Mapping[str, Any] | None = None, sample: Mapping[str, Any] | None = None, side: int = 1024,
    recipe: Mapping[str, Any] | None = None, skipped: tuple[str, ...] = (), variants: tuple[Variant, ...] = (),
    recovery: str = "", modules: int | None = None,
) -> Family:  # fmt: skip
    """A family from what is particular about it.

    blocks: the lists of blocks whose layers ai-toolkit trains. times: how it draws noise levels.
    """
    drawn = FLOW_SAMPLE | {"width": side, "height": side} | dict(sample or {})
    size = billions[0] if billions is not None else 8.0
    return Family(
        name=name,
        title=title,
        base_models=(BaseModel(name, name, location, title, about, licence, terms, gated), *more),
        recipe={"rank": 32, "alpha": 32.0, "optimizer": "adamw8bit", "learning_rate": 1e-4, "resolution": 1024,
                "epochs": 100} | dict(recipe or {}),
        price=Price(max(300, round(140 * size / 100) * 100), 1024),
        seconds_per_step=round(0.2 + 0.2 * size, 1),
        drawing=Drawing(drawn["sample_steps"], drawn["guidance_scale"], side),
        previews=(drawn["sample_steps"], drawn["guidance_scale"]),
        lora=_lora_names(name, title, blocks, prefix),
        caption_tokens=512,
        shares_steps=False,
        toolkit=AiToolkit(
            arch=arch,
            precision="bf16",
            prediction="flow",
            version=arch,
            model=model,
            train=FLOW | {"timestep_type": times} | dict(train or {}),
            sample=drawn,
            skipped=skipped,
            prefix=prefix,
            modules=modules,
            billions=billions,
            variants=variants,
            recovery=recovery,
        ),
        refused={"adapter.targets": "ai-toolkit trains all linear layers of its blocks"},
    )  # fmt: skip


def _lora_names(name: str, title: str, blocks: tuple[str, ...], prefix: str) -> LoraNames:
    form = "peft" if prefix == "transformer." else "comfyui"
    names = re.compile(rf"(?:{'|'.join(map(re.escape, blocks))})\.\d+\.[\w.]+")
    return LoraNames(
        naming=Naming(prefix, ".lora_A.weight", ".lora_B.weight", False, names, "BF16", alpha=False),
        form=form,  # type: ignore[arg-type]
        is_of=lambda _: False,  # only its metadata tells
        example={f"{block}.0.{layer}": 64 for block in blocks for layer in ("attn.to_q", "attn.to_k")},
        kind=title,
        refused={
            other: f"{title} is trained on ai-toolkit, whose names its programs read: leave the file as it is"
            for other in ("kohya", "peft", "comfyui")
            if other != form
        },
        architecture=f"{name}/lora",
        version=name.replace("-", "_"),
    )


FAMILIES = (
    _rented(
        "flux2", "FLUX.2", "flux2", "black-forest-labs/FLUX.2-dev", "The largest: for cards with 80 GB and more.",
        _DOUBLE, (32.2, 24.0), licence="FLUX Non-Commercial License", terms=_FLUX_TERMS, gated=True,
        model=_LOW | {"model_kwargs": {"match_target_res": False}}, times="weighted", modules=160,
    ),
    _rented(
        "flex1", "Flex.1", "flex1", "ostris/Flex.1-alpha", "FLUX.1 with fewer layers, free to use.", _FLUX, (8.2, 4.9),
        licence="Apache-2.0", prefix="transformer.", model=QUANTISED, times="sigmoid",
        train={"bypass_guidance_embedding": True},
    ),
    _rented(
        "flex2", "Flex.2", "flex2", "ostris/Flex.2-preview", "Flex.1 that also takes controls and masks.", _FLUX,
        (8.2, 4.9), licence="Apache-2.0", prefix="transformer.", times="sigmoid",
        train={"bypass_guidance_embedding": True},
        model=QUANTISED | {
            "model_kwargs": {
                "invert_inpaint_mask_chance": 0.2, "inpaint_dropout": 0.5, "control_dropout": 0.5,
                "inpaint_random_chance": 0.2, "do_random_inpainting": True, "random_blur_mask": True,
                "random_dialate_mask": True,
            }
        },
    ),
    _rented(
        "lumina2", "Lumina 2", "lumina2", "Alpha-VLLM/Lumina-Image-2.0", "Small.",
        ("layers", "noise_refiner", "context_refiner"), (2.6, 2.6), licence="Apache-2.0", prefix="transformer.",
        model=_SMALL, times="sigmoid",
    ),
    _rented(
        "hidream", "HiDream I1", "hidream", "HiDream-ai/HiDream-I1-Full", "Very large, with four text encoders.",
        ("double_stream_blocks", "single_stream_blocks"), (17.0, 13.7), licence="MIT", model=QUANTISED, times="shift",
        recipe={"learning_rate": 2e-4}, skipped=("ff_i.experts", "ff_i.gate"),
        recovery="uint3|ostris/accuracy_recovery_adapters/hidream_i1_full_torchao_uint3.safetensors",
    ),
    _rented(
        "hidream-o1", "HiDream O1", "hidream_o1", "HiDream-ai/HiDream-O1-Image", "A language model that draws.",
        ("language_model.layers",), (8.8, 0.0), side=2048, skipped=("lm_head", "patch_embed", "visual"),
        model=QUANTISED | {"quantize_te": False, "model_kwargs": {"noise_scale_inference": 8.0, "noise_scale": 8.0}},
        train={"max_loss": 1.0},
    ),
    _rented(
        "omnigen2", "OmniGen2", "omnigen2", "OmniGen2/OmniGen2", "Also edits pictures.",
        ("noise_refiner", "context_refiner", "layers"), (4.0, 3.8), licence="Apache-2.0", model=_SMALL,
        times="sigmoid",
    ),
    _rented(
        "ernie-image", "ERNIE-Image", "ernie_image", "baidu/ERNIE-Image", "Baidu's.", _LAYERS, None, times="weighted",
    ),
    _rented(
        "nucleus-image", "Nucleus-Image", "nucleus_image", "NucleusAI/Nucleus-Image", "A mixture of experts.",
        ("transformer_blocks",), None, model=QUANTISED, recipe={"rank": 128, "alpha": 128.0},
        skipped=("img_mlp.experts", "img_mlp.gate"),
    ),
    _rented(
        "z-image-l2p", "Z-Image L2P", "zimage_l2p", "zhen-nan/L2P", "Z-Image without an autoencoder.", _LAYERS,
        (6.2, 4.0), model=_LOW | {"extras_name_or_path": "Tongyi-MAI/Z-Image-Turbo"},
        variants=(Variant(re.compile("^l2p$"), {"name_or_path": "zhen-nan/L2P/model-1k-merge.safetensors"}),),
    ),
    _rented(
        "prx-pixel", "PRXPixel", "prx_pixel", "Photoroom/prxpixel-t2i", "Without an autoencoder.", _BLOCKS, (7.0, 4.0)
    ),
    _rented(
        "krea2", "Krea 2", "krea2", "krea/Krea-2-Raw", "Large; trains best.", _BLOCKS, (12.8, 4.4), gated=True,
        more=(
            BaseModel("krea2-turbo", "krea2", "krea/Krea-2-Turbo", "Krea 2 Turbo", "Draws in few steps.", _UNREAD,
                      is_gated=True),
        ),
        variants=(
            Variant(
                re.compile("turbo"),
                {
                    "arch": "krea2:turbo",
                    "assistant_lora_path": (
                        "ostris/krea2_turbo_training_adapter/krea2_turbo_training_adapter_v1.safetensors"
                    ),
                },
                {"guidance_scale": 1.0, "sample_steps": 9},
            ),
        ),
    ),
    _rented(
        "mage-flow", "Mage-Flow", "mageflow", "microsoft/Mage-Flow-Base", "Small.", ("transformer_blocks",), (4.0, 4.4)
    ),
    _rented(
        "boogu-image", "Boogu Image", "boogu_image", "Boogu/Boogu-Image-0.1-Base", "Its first version.",
        ("double_stream_layers", "single_stream_layers"), None,
    ),
    _rented(
        "anima", "Anima", "anima", "circlestone-labs/Anima-Base-v1.0-Diffusers", "Small; for drawn pictures.",
        _BLOCKS, (2.0, 0.6), model=_PLAIN, times="weighted",
        sample={
            "neg": "worst quality, low quality, score_1, score_2, score_3, blurry, jpeg artifacts, sepia, signature, "
            "artist name"
        },
    ),
)  # fmt: skip
