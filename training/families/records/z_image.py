"""The record of Z-Image, and of its few-step variant Z-Image-Turbo."""

import re
from collections.abc import Callable, Mapping, Sequence

from training.families.record import (
    AiToolkit,
    BaseModel,
    Config,
    Drawing,
    Family,
    LoraNames,
    Naming,
    Price,
    SingleFile,
    Sizes,
    Source,
    Variant,
    WrittenModule,
)
from training.families.records.encoder_configs import FLUX_AUTOENCODER, QWEN3_4B
from training.families.records.lora_files import KOHYA, PEFT, alike, underscored
from training.families.weights import checkpoint_names
from training.families.workflow import Workflow

_TRAINED = r"attention\.to_(q|k|v|out\.0)|feed_forward\.w[123]"
_MODULES = re.compile(
    r"(layers|noise_refiner|context_refiner)\.\d+\.(attention|feed_forward|adaLN_modulation)\b.*|"
    r"(all_)?(x_embedder|final_layer)\b.*|cap_embedder\.\d|t_embedder\.mlp\.\d"
)
_PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model.", ""),
    "vae": ("vae.", "first_stage_model."),
    "text_encoder": ("text_encoders.qwen3_4b.transformer.model.",),
}
_MARK = "cap_embedder.0.weight"


def _is_z_image(inputs: Mapping[str, int]) -> bool:
    """No other family has such names: `layers` alone would be a text encoder's."""
    return any(name.startswith("transformer.") and _MODULES.fullmatch(name, len("transformer.")) for name in inputs)


_DOTTED, _DEFAULT_ADAPTER = ".lora.down.weight", ".lora_A.default.weight"
# Names that only Z-Image's own code has; the others are the same in diffusers.
_QKV, _OUT = re.compile(r".*\.attention\.qkv"), re.compile(r".*\.attention\.out")
_EMBEDDER = re.compile(r"x_embedder|final_layer\..*")


def _diffusers(modules: Sequence[WrittenModule]) -> Callable[[WrittenModule], bool]:
    """It refuses some files whole."""
    prefix, suffix = alike(modules)
    if prefix is None or suffix is None:
        return lambda _: False
    has_alphas = any(module.has_alpha for module in modules)
    # With one of these, its converter works on the file; without, only diffusers' own names are read.
    if not (prefix in ("lora_unet_", "diffusion_model.") or suffix == _DEFAULT_ADAPTER or has_alphas):
        fits = prefix == "transformer." and suffix in (PEFT, _DOTTED)
        return lambda module: fits and not any(one.fullmatch(module.name.written) for one in (_QKV, _OUT, _EMBEDDER))
    is_peft = suffix in (PEFT, _DEFAULT_ADAPTER)
    # Its converter cannot place the alpha of `out` beside lora_A, nor lora_A under underscores.
    fails = is_peft and (
        prefix == "lora_unet_" or (has_alphas and any(_OUT.fullmatch(module.name.written) for module in modules))
    )
    known = prefix in ("lora_unet_", "diffusion_model.", "") and (is_peft or suffix in (KOHYA, _DOTTED))

    def reads(module: WrittenModule) -> bool:
        if fails or not known:
            return False
        if _QKV.fullmatch(module.name.written):
            return not is_peft and (prefix == "lora_unet_" or suffix == _DOTTED)
        if _OUT.fullmatch(module.name.written):
            return not is_peft
        return not _EMBEDDER.fullmatch(module.name.written)

    return reads


def _comfyui() -> re.Pattern[str]:
    """ComfyUI's key map, recorded from its `z_image_to_diffusers`, in versions since December 2025."""
    layer = r"(layers|context_refiner|noise_refiner)\.\d+\."
    shared = r"attention_norm[12]|ffn_norm[12]|feed_forward\.w[123]|adaLN_modulation\.0"
    embedders = r"cap_embedder\.[01]|t_embedder\.mlp\.[02]"
    diffusers = (
        rf"{layer}(attention\.(norm_[qk]|to_(q|k|v|out\.0))|{shared})|{embedders}|"
        r"all_final_layer\.2-1\.(linear|adaLN_modulation\.1)|all_x_embedder\.2-1"
    )
    own = (
        rf"{layer}(attention\.([qk]_norm|qkv|out)|{shared})|{embedders}|"
        r"final_layer\.(linear|adaLN_modulation\.1)|x_embedder"
    )
    return re.compile(
        rf"(diffusion_model\.|transformer\.)?({diffusers})|lycoris_({underscored(diffusers)})|"
        rf"diffusion_model\.({own})|lora_unet_({underscored(own)})"
    )


def _source(name: str, _config: Config) -> Source:
    if found := re.fullmatch(r"(.+\.attention)\.to_([qkv])\.weight", name):
        return Source(f"{found[1]}.qkv.weight", rows=checkpoint_names.third(found[2]))
    for ours, theirs in (
        ("all_final_layer.2-1.", "final_layer."),
        ("all_x_embedder.2-1.", "x_embedder."),
        (".attention.to_out.0.", ".attention.out."),
        (".attention.norm_k.", ".attention.k_norm."),
        (".attention.norm_q.", ".attention.q_norm."),
    ):
        name = name.replace(ours, theirs)
    return Source(name)  # fmt: skip


def _is_file(kinds: Mapping[str, str]) -> bool:
    return any(prefix + _MARK in kinds for prefix in _PREFIXES["transformer"])


FAMILY = Family(
    name="z-image",
    title="Z-Image",
    base_models=(
        BaseModel(
            "z-image-turbo", "z-image", "Tongyi-MAI/Z-Image-Turbo", "Z-Image Turbo", "Draws in eight steps.",
            "Apache-2.0",
        ),
        BaseModel(
            "z-image", "z-image", "Tongyi-MAI/Z-Image", "Z-Image",
            "Z-Image before distillation: draws more slowly, trains best.", "Apache-2.0",
        ),
    ),
    # Prodigy: with AdamW at 1e-4 Z-Image did not converge in a comparison of models on 24 photos (modl.run, 2026-03).
    recipe={
        "rank": 16,
        "alpha": 16.0,
        "optimizer": "prodigy",
        "learning_rate": 1.0,
        "resolution": 1024,
        "epochs": 100,
    },
    price=Price(800, 1024),
    seconds_per_step=1.1,
    drawing=Drawing(28, 4.0, 1024),
    few_steps=Drawing(9, 0.0, 1024),
    previews=(28, 5.0),
    lora=LoraNames(
        naming=Naming(
            "diffusion_model.",
            ".lora_A.weight",
            ".lora_B.weight",
            False,
            re.compile(rf"layers\.\d+\.({_TRAINED}|adaLN_modulation\.0)"),
            "BF16",
        ),
        form="comfyui",
        diffusers=_diffusers,
        comfyui=_comfyui(),
        is_of=_is_z_image,
        example={f"layers.0.attention.{part}": 3840 for part in ("to_q", "to_k", "to_v", "to_out.0")},
        modules=_MODULES,
        original=(
            (r"(.*\.attention)\.qkv", (r"\1.to_q", r"\1.to_k", r"\1.to_v")),
            (r"(.*\.attention)\.out", (r"\1.to_out.0",)),
            (r"(x_embedder|final_layer)((?:\..*)?)", (r"all_\1.2-1\2",)),
        ),
        words=(
            "attention", "qkv", "feed_forward", "w1", "w2", "w3", "adaLN_modulation", "noise_refiner",
            "context_refiner", "cap_embedder", "t_embedder", "x_embedder", "final_layer", "all_x_embedder",
            "all_final_layer", "linear", "2-1",
        ),
        declared=("z_image", "z-image", "zimage"),
        refused={
            "kohya": "ComfyUI reads kohya's names of z-image only in part: convert to comfyui or peft instead",
        },
        architecture="z-image/lora",
        version="z_image",
    ),
    classes={
        "transformer": "diffusers.ZImageTransformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.Qwen3Model",
        "tokenizer": "transformers.Qwen2Tokenizer",
        "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    },
    pipeline="ZImagePipeline",
    configs={
        "transformer": {},  # diffusers' defaults are the published model
        "vae": FLUX_AUTOENCODER | {"sample_size": 1024},
        "text_encoder": QWEN3_4B,
        "scheduler": {"num_train_timesteps": 1000, "shift": 3.0},
    },
    workflow=Workflow(
        unet="z_image_bf16.safetensors",
        few_steps="z_image_turbo_bf16.safetensors",
        clips=("qwen_3_4b.safetensors",),
        clip_type="lumina2",
        vae="ae.safetensors",
        sampler="res_multistep",
        shift=3.0,
        more_guidance=1.0,  # diffusers counts from 0, ComfyUI from 1
    ),
    home="Tongyi-MAI/Z-Image-Turbo",
    code="training.families.z_image",
    # The linears of the main blocks, without the two refiners before them, as in ai-toolkit's LoRAs.
    targets={
        "attention": rf"layers\.\d+\.({_TRAINED})",
        "all": rf"layers\.\d+\.({_TRAINED}|adaLN_modulation\.0)",
    },
    quantised=rf"(layers|noise_refiner|context_refiner)\.\d+\.({_TRAINED})",
    shares_steps=False,
    latent_channels=16,
    caption_tokens=512,
    encoder_weight_bytes=2,
    sizes=Sizes(
        parameters=6154908736,
        quantised=(6016204800, 39321600),
        encoders=8044936192,
        lora={"attention": 2188800, "all": 2657280},
        modules={"attention": 210, "all": 240},
        sample=(2137366528, 2069286),
        checkpointed=(162610176, 141675),
    ),
    single_file=SingleFile(
        prefixes=_PREFIXES,
        marks={
            "transformer": (_MARK,),
            "vae": ("encoder.conv_in.weight",),
            "text_encoder": ("embed_tokens.weight",),
        },
        sources={
            "transformer": _source,
            "vae": checkpoint_names.vae,
            "text_encoder": checkpoint_names.same,
        },
        is_of=_is_file,
        left_over=re.compile(r"text_encoders\.qwen3_4b\.(transformer\.lm_head\.weight|logit_scale)"),
    ),
    toolkit=AiToolkit(
        arch="zimage",
        precision="bf16",
        prediction="flow",
        version="zimage",
        model={"quantize": True, "qtype": "qfloat8", "quantize_te": True, "qtype_te": "qfloat8", "low_vram": True},
        train={
            "noise_scheduler": "flowmatch",
            "timestep_type": "weighted",
            "content_or_style": "balanced",
            "cache_text_embeddings": True,
        },
        sample={"sampler": "flowmatch", "guidance_scale": 4.0, "sample_steps": 30},
        variants=(
            Variant(
                re.compile(r"de-?turbo"),
                # It has only the denoiser.
                {"arch": "zimage:deturbo", "extras_name_or_path": "Tongyi-MAI/Z-Image-Turbo"},
                {"guidance_scale": 3.0, "sample_steps": 25},
            ),
            Variant(
                re.compile("turbo"),
                {
                    "arch": "zimage:turbo",
                    "assistant_lora_path": (
                        "ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors"
                    ),
                },
                {"guidance_scale": 1.0, "sample_steps": 9},
            ),
        ),
        # Its own default is all linear layers of these blocks.
        layers={"attention": ("attention.", "feed_forward."), "all": ("layers.",)},
        billions=(6.2, 4.0),
    ),
)  # fmt: skip
