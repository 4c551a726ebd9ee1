"""Whether a UNet has only parts that our own pass through it knows. Anything else runs through diffusers' module."""

from typing import Any

from training.engine.adapters import _Port

_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "UpBlock2D", "CrossAttnUpBlock2D"}
_PARTS = {
    *_BLOCKS,
    "UNet2DConditionModel", "Timesteps", "TimestepEmbedding", "ResnetBlock2D", "Transformer2DModel",
    "BasicTransformerBlock", "Attention", "FeedForward", "GEGLU", "Downsample2D", "Upsample2D",
    "ModuleList", "Linear", "Conv2d", "GroupNorm", "LayerNorm", "SiLU", "Dropout", "Identity",
}  # fmt: skip
# What a part may be asked to do that we do not: by its class, the attributes and the only values that are known.
_PLAIN: dict[str, dict[str, tuple[Any, ...]]] = {
    "ResnetBlock2D": {
        "time_embedding_norm": ("default",), "output_scale_factor": (1, 1.0), "skip_time_act": (False,),
        "upsample": (None,), "downsample": (None,), "pre_norm": (True,),
    },
    "Transformer2DModel": {"is_input_continuous": (True,), "caption_projection": (None,)},
    "BasicTransformerBlock": {
        "norm_type": ("layer_norm",), "only_cross_attention": (False,), "pos_embed": (None,), "_chunk_size": (None,),
    },
    "Attention": {
        "group_norm": (None,), "spatial_norm": (None,), "norm_q": (None,), "norm_k": (None,), "norm_cross": (None,),
        "added_kv_proj_dim": (None,), "residual_connection": (False,), "rescale_output_factor": (1, 1.0),
        "upcast_attention": (False,), "upcast_softmax": (False,), "only_cross_attention": (False,),
        "fused_projections": (False,), "is_causal": (False,),
    },
    "Downsample2D": {"use_conv": (True,), "norm": (None,), "padding": (1,)},
    "Upsample2D": {"use_conv": (True,), "norm": (None,), "use_conv_transpose": (False,), "interpolate": (True,)},
}  # fmt: skip
_CONFIG: dict[str, tuple[Any, ...]] = {
    "addition_embed_type": (None, "text_time"),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "center_input_sample": (False,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "dual_cross_attention": (False,),
    "act_fn": ("silu", "swish"),
}


def why_unknown(denoiser: Any) -> str | None:
    """The first thing in a denoiser that our pass does not know, in words; None if it knows all."""
    if type(denoiser).__name__ != "UNet2DConditionModel":
        return type(denoiser).__name__
    for name, values in _CONFIG.items():
        if denoiser.config.get(name) not in values:
            return f"{name} {denoiser.config.get(name)!r}"
    for path, module in denoiser.named_modules():
        if isinstance(module, _Port):
            continue
        reason = _why_unknown_part(module)
        if reason is not None:
            return f"{path}: {reason}"
    return None


def _why_unknown_part(module: Any) -> str | None:
    kind = type(module).__name__
    if kind not in _PARTS:
        return kind
    for name, values in _PLAIN.get(kind, {}).items():
        if getattr(module, name, values[0]) not in values:
            return f"{name} {getattr(module, name)!r}"
    if kind == "Dropout" and module.p > 0:
        return "dropout"
    if kind == "Conv2d" and (
        module.groups != 1
        or set(module.dilation) != {1}
        or module.padding_mode != "zeros"
        or isinstance(module.padding, str)
    ):
        return "a convolution of another kind"
    if kind == "Attention":
        return _why_unknown_attention(module)
    return None


def _why_unknown_attention(module: Any) -> str | None:
    width = module.to_q.out_features
    if type(module.processor).__name__ != "AttnProcessor2_0":
        return type(module.processor).__name__
    if abs(module.scale - (width // module.heads) ** -0.5) > 1e-9:
        return f"scale {module.scale}"
    return None
