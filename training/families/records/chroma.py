"""The record of Chroma: FLUX.1 without the modulation of its blocks, whose LoRAs have FLUX.1's names."""

import re
from collections.abc import Mapping

from training.families.record import AiToolkit, BaseModel, Drawing, Family, LoraNames, Naming, Price, SingleFile, Sizes
from training.families.records import flux1
from training.families.records.encoder_configs import FLUX_AUTOENCODER, FLUX_SCHEDULER, T5_XXL
from training.families.records.lora_files import NO_DORA
from training.families.records.toolkit import FLOW, FLOW_SAMPLE, QUANTISED
from training.families.weights import checkpoint_names

# With the feed-forward inputs of the single blocks: in the model's own code these are one layer with query, key and
# value, which ai-toolkit trains whole.
_ATTENTION = flux1.ATTENTION + r"|single_transformer_blocks\.\d+\.proj_mlp"
_MODULES = re.compile(flux1.ALL + r"|x_embedder|context_embedder|proj_out|distilled_guidance_layer\..+")
_MARK = "distilled_guidance_layer.in_proj.weight"  # computes the modulation
_WIDTH = 3072
_WEIGHTS = (
    *flux1.LAYERS, *checkpoint_names.FLUX,
    *((rf"distilled_guidance_layer\.{one}", (f"distilled_guidance_layer.{one}",)) for one in ("in_proj", "out_proj")),
    *checkpoint_names.embedder(r"distilled_guidance_layer\.layers\.(\d+)", r"distilled_guidance_layer.layers.\1"),
    (r"distilled_guidance_layer\.norms\.(\d+)", (r"distilled_guidance_layer.norms.\1",)),
)  # fmt: skip


def _is_file(kinds: Mapping[str, str]) -> bool:
    return any(prefix + _MARK in kinds for prefix in flux1.PREFIXES)


FAMILY = Family(
    name="chroma",
    title="Chroma",
    base_models=(
        BaseModel(
            "chroma", "chroma", "lodestones/Chroma1-Base", "Chroma", "FLUX.1 without its distillation.", "Apache-2.0"
        ),
    ),
    recipe={
        "rank": 32, "alpha": 32.0, "optimizer": "adamw8bit", "learning_rate": 1e-4, "resolution": 1024, "epochs": 100,
    },
    price=Price(1500, 1024),
    seconds_per_step=2.4,
    drawing=Drawing(40, 3.0, 1024),
    previews=(28, 3.0),
    lora=LoraNames(
        naming=Naming(
            "transformer.", ".lora_A.weight", ".lora_B.weight", False, re.compile(flux1.ALL), "BF16", alpha=False
        ),
        form="peft",
        diffusers=flux1.diffusers_reads,
        comfyui=flux1.COMFYUI,  # with the modulations of FLUX.1, which no file of Chroma has
        is_of=lambda _: False,  # the names and the widths are FLUX.1's: only metadata tells
        example={
            **{f"single_transformer_blocks.0.attn.to_{part}": _WIDTH for part in "qkv"},
            **{f"transformer_blocks.0.attn.to_{part}": _WIDTH for part in ("q", "k", "v", "out.0")},
        },
        modules=_MODULES,
        original=flux1.LAYERS,
        shares=flux1.SHARES,
        words=(*flux1.WORDS, "distilled_guidance_layer"),
        declared=("chroma",),
        kind="Chroma",
        is_fused=True,
        architecture="chroma/lora",
        version="chroma",
    ),
    classes={
        "transformer": "diffusers.ChromaTransformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.T5EncoderModel",
        "tokenizer": "transformers.T5Tokenizer",
        "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    },
    pipeline="ChromaPipeline",
    configs={
        "transformer": {},  # diffusers' defaults are the published model
        "vae": FLUX_AUTOENCODER,
        "text_encoder": T5_XXL,
        "scheduler": FLUX_SCHEDULER,
    },
    home="lodestones/Chroma1-Base",
    code="training.families.chroma",
    targets={"attention": _ATTENTION, "all": flux1.ALL},
    quantised=flux1.ALL,
    shares_steps=False,
    latent_channels=16,
    caption_tokens=512,
    encoder_weight_bytes=2,
    sizes=Sizes(
        parameters=8899983424,
        quantised=(8606711808, 47185920),
        encoders=9524621312,
        lora={"attention": 2217984, "all": 4085760},
        modules={"attention": 304, "all": 418},
        sample=(1362344960, 1308982),
        checkpointed=(153682944, 129314),
    ),
    single_file=SingleFile(
        prefixes={"transformer": flux1.PREFIXES},
        marks={"transformer": (_MARK,)},
        sources={"transformer": checkpoint_names.own_code(_WEIGHTS, flux1.SHARES)},
        is_of=_is_file,
    ),
    toolkit=AiToolkit(
        arch="chroma",
        precision="bf16",
        prediction="flow",
        version="chroma",
        model=QUANTISED,
        train=FLOW | {"timestep_type": "sigmoid"},
        sample=FLOW_SAMPLE,
        layers={"attention": ("img_attn", "txt_attn", "linear1"), "all": ("double_blocks", "single_blocks")},
        billions=(8.9, 4.8),
    ),
    refused=NO_DORA,
)  # fmt: skip
