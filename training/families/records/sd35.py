"""The records of Stable Diffusion 3.5 Large and Medium: two sizes, whose LoRAs do not fit each other."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from training.families.record import (
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
    WrittenModule,
)
from training.families.records.encoder_configs import CLIP_BIG_G, CLIP_L, T5_XXL, autoencoder
from training.families.records.lora_files import NO_DORA, PEFT, alike, underscored
from training.families.weights import checkpoint_names

_BLOCK = r"transformer_blocks\.\d+\."
_ATTENTION = _BLOCK + r"(attn\.(to_(q|k|v|out\.0)|add_(q|k|v)_proj|to_add_out)|attn2\.to_(q|k|v|out\.0))"
_ALL = _ATTENTION + rf"|{_BLOCK}ff(_context)?\.net\.(0\.proj|2)"
_OTHERS = (
    rf"{_BLOCK}norm1(_context)?\.linear|context_embedder|proj_out|norm_out\.linear|"
    r"time_text_embed\.(timestep|text)_embedder\.linear_[12]|pos_embed\.proj"
)
_MODULES = re.compile(f"{_ALL}|{_OTHERS}")
_JOINT = r"joint_blocks\.(\d+)\."
_OURS = r"transformer_blocks.\1."
# The names of the makers' own code, which kohya's trainer and ComfyUI use, without modulations: the halves of the last
# one change places.
_ORIGINAL: tuple[tuple[str, tuple[str, ...]], ...] = (
    (_JOINT + r"x_block\.attn\.qkv", tuple(f"{_OURS}attn.to_{part}" for part in "qkv")),
    (_JOINT + r"context_block\.attn\.qkv", tuple(f"{_OURS}attn.add_{part}_proj" for part in "qkv")),
    (_JOINT + r"x_block\.attn2\.qkv", tuple(f"{_OURS}attn2.to_{part}" for part in "qkv")),
    *(
        (_JOINT + own, (_OURS + diffusers,))
        for own, diffusers in (
            (r"x_block\.attn\.proj", "attn.to_out.0"), (r"context_block\.attn\.proj", "attn.to_add_out"),
            (r"x_block\.attn2\.proj", "attn2.to_out.0"), (r"x_block\.mlp\.fc1", "ff.net.0.proj"),
            (r"x_block\.mlp\.fc2", "ff.net.2"), (r"context_block\.mlp\.fc1", "ff_context.net.0.proj"),
            (r"context_block\.mlp\.fc2", "ff_context.net.2"),
        )
    ),
)  # fmt: skip
_WEIGHTS = (
    *_ORIGINAL,
    *(
        (_JOINT + own, (_OURS + diffusers,))
        for own, diffusers in (
            *((rf"x_block\.{part}\.ln_{one}", f"{part}.norm_{one}") for part in ("attn", "attn2") for one in "qk"),
            *((rf"context_block\.attn\.ln_{one}", f"attn.norm_added_{one}") for one in "qk"),
            (r"x_block\.adaLN_modulation\.1", "norm1.linear"),
            (r"context_block\.adaLN_modulation\.1", "norm1_context.linear"),
        )
    ),
    *(
        (own, (diffusers,))
        for own, diffusers in (
            (r"x_embedder\.proj", "pos_embed.proj"), ("context_embedder", "context_embedder"),
            (r"final_layer\.linear", "proj_out"), (r"final_layer\.adaLN_modulation\.1", "norm_out.linear"),
            *((rf"{own}\.mlp\.{2 * number - 2}", f"time_text_embed.{ours}_embedder.linear_{number}")
              for own, ours in (("t_embedder", "timestep"), ("y_embedder", "text")) for number in (1, 2)),
        )
    ),
)  # fmt: skip
_NORMS = r"transformer_blocks\.\d+\.(attn\.norm_(added_)?[qk]|attn2\.norm_[qk])"
# ComfyUI's key map: its `mmdit_to_diffusers`, and the names of the own code.
_MAPPED = f"{_ALL}|{_NORMS}|{_OTHERS}"
_OWN = "|".join(pattern.replace(r"(\d+)", r"\d+") for pattern, _ in _WEIGHTS)
_COMFYUI = re.compile(
    rf"diffusion_model\.({_OWN})|lora_unet_({underscored(_OWN)})|(transformer\.|base_model\.model\.)({_MAPPED})|"
    rf"(lora_transformer_|lycoris_)({underscored(_MAPPED)})"
)
_PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model.", ""),
    "vae": ("first_stage_model.", "vae."),
}
_MARK = "joint_blocks.0.x_block.attn.ln_q.weight"  # Stable Diffusion 3 has no norms there
_DUAL = "joint_blocks.0.x_block.attn2.qkv.weight"  # only Medium
_TERMS = "commercial use only below one million US dollars of revenue a year"
_WORDS = (
    "joint_blocks", "x_block", "context_block", "attn", "attn2", "qkv", "proj", "mlp", "fc1", "fc2",
    "adaLN_modulation", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context", "norm1_context", "norm1",
    "linear", "context_embedder", "proj_out", "norm_out",
)  # fmt: skip


def _source(name: str, config: Config) -> Source:
    """In the last block the scale of the captions' modulation stands before its shift, unlike in the file."""
    if name == "pos_embed.pos_embed":
        return Source("pos_embed")
    found = checkpoint_names.own_code(_WEIGHTS)(name, config)
    last = f"transformer_blocks.{int(config.get('num_layers', 18)) - 1}.norm1_context.linear."
    return Source(found.name, found.rows, is_swapped=found.is_swapped or name.startswith(last))


def _is_of(width: int, has_dual: bool) -> Callable[[Mapping[str, int]], bool]:
    """Stable Diffusion 3 has the names and the width of Medium, but no second attention."""

    def is_of(inputs: Mapping[str, int]) -> bool:
        names = {name.removeprefix("transformer."): count for name, count in inputs.items()}
        stream = {count for name, count in names.items() if re.search(r"\.(attn2?\.(to|add)_[qkv]|attn2?\.qkv)", name)}
        has_own = any(re.search(r"add_[qkv]_proj|to_add_out|\.ff(_context)?\.|_block\.", name) for name in names)
        fits = all(_MODULES.fullmatch(name) or name.startswith("joint_blocks.") for name in names)
        return stream == {width} and has_own and fits and has_dual is any(".attn2." in name for name in names)

    return is_of


def _diffusers(modules: Sequence[WrittenModule]) -> Callable[[WrittenModule], bool]:
    """Its own names alone. It fails on an alpha beside them."""
    fits = alike(modules) == ("transformer.", PEFT) and not any(module.has_alpha for module in modules)
    return lambda module: fits and not module.name.written.startswith("joint_blocks.")


def _is_file(has_dual: bool) -> Callable[[Mapping[str, str]], bool]:
    def is_file(kinds: Mapping[str, str]) -> bool:
        prefix = next((prefix for prefix in _PREFIXES["transformer"] if prefix + _MARK in kinds), None)
        return prefix is not None and has_dual is (prefix + _DUAL in kinds)

    return is_file


def _sd35(size: str, config: Mapping[str, Any], about: str, **more: Any) -> Family:
    name, title = f"sd35-{size.lower()}", f"Stable Diffusion 3.5 {size}"
    location, has_dual = f"stabilityai/stable-diffusion-3.5-{size.lower()}", "dual_attention_layers" in config
    width = int(config["caption_projection_dim"])
    return Family(
        name=name,
        title=title,
        base_models=(
            BaseModel(name, name, location, title, about, "Stability AI Community License", _TERMS, is_gated=True),
        ),
        recipe={"rank": 16, "alpha": 16.0, "learning_rate": 1e-4, "resolution": 1024, "epochs": 100},
        lora=LoraNames(
            naming=Naming(
                "transformer.", ".lora_A.weight", ".lora_B.weight", False, re.compile(_ALL), "BF16", alpha=False
            ),
            form="peft",
            diffusers=_diffusers,
            comfyui=_COMFYUI,
            is_of=_is_of(width, has_dual),
            example={
                **{f"transformer_blocks.0.attn.{part}": width for part in ("to_q", "to_k", "to_v", "add_q_proj")},
                **({"transformer_blocks.0.attn2.to_q": width} if has_dual else {}),
            },
            modules=_MODULES,
            original=_ORIGINAL,
            words=_WORDS,
            declared=tuple(f"{family}{size.lower()}" for family in ("sd35-", "sd35_", "stable-diffusion-3.5-")),
            kind="Stable Diffusion 3",
            is_fused=True,
            architecture=f"stable-diffusion-3.5-{size.lower()}/lora",
            version=f"sd35_{size.lower()}",
        ),
        classes={
            "transformer": "diffusers.SD3Transformer2DModel",
            "vae": "diffusers.AutoencoderKL",
            "text_encoder": "transformers.CLIPTextModelWithProjection",
            "text_encoder_2": "transformers.CLIPTextModelWithProjection",
            "text_encoder_3": "transformers.T5EncoderModel",
            "tokenizer": "transformers.CLIPTokenizer",
            "tokenizer_2": "transformers.CLIPTokenizer",
            "tokenizer_3": "transformers.T5Tokenizer",
            "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
        },
        pipeline="StableDiffusion3Pipeline",
        configs={
            "transformer": {"attention_head_dim": 64, "qk_norm": "rms_norm", **config},
            "vae": autoencoder(
                16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
            ),
            "text_encoder": CLIP_L,
            "text_encoder_2": CLIP_BIG_G,
            "text_encoder_3": T5_XXL,
            "scheduler": {"num_train_timesteps": 1000, "shift": 3.0},
        },
        home=location,
        code="training.families.sd35",
        targets={"attention": _ATTENTION, "all": _ALL},
        quantised=_ALL,
        shares_steps=False,
        latent_channels=16,
        caption_tokens=256,
        encoder_weight_bytes=2,
        single_file=SingleFile(
            prefixes=_PREFIXES,
            marks={"transformer": (_MARK,), "vae": ("encoder.conv_in.weight",)},
            sources={"transformer": _source, "vae": checkpoint_names.vae},
            is_of=_is_file(has_dual),
            left_over=re.compile(r"text_encoders\..*"),
        ),
        refused=NO_DORA,
        **more,
    )  # fmt: skip


LARGE = _sd35(
    "Large",
    {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192},
    "Stability AI's largest: free of charge for most.",
    price=Price(800, 1024),
    seconds_per_step=1.2,
    drawing=Drawing(28, 3.5, 1024),
    previews=(28, 3.5),
    sizes=Sizes(
        parameters=8056627520,
        quantised=(5340905472, 23658496),
        encoders=11161241600,
        lora={"attention": 1473792, "all": 3297792},
        modules={"attention": 303, "all": 453},
        sample=(1119474176, 846258),
        checkpointed=(93002752, 77950),
    ),
)
MEDIUM = _sd35(
    "Medium",
    {
        "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
    },
    "Its smaller one, for cards as SDXL needs.",
    price=Price(300, 1024),
    seconds_per_step=0.5,
    drawing=Drawing(40, 4.5, 1024),
    previews=(28, 4.5),
    sizes=Sizes(
        parameters=2243171520,
        quantised=(1460404224, 9437184),
        encoders=11161241600,
        lora={"attention": 746496, "all": 1468416},
        modules={"attention": 243, "all": 337},
        sample=(445825024, 460782),
        checkpointed=(40653653, 39042),
    ),
)  # fmt: skip
