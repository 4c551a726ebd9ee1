"""Maps the names of weights in diffusers' modules to the tensors of single checkpoint files.

Such files have the names of the original training code of Stable Diffusion: blocks are numbered consecutively,
attention in the VAE is a 1 x 1 convolution, and OpenCLIP has query, key and value in one matrix. This module reads no
file: its functions only find, for a weight of a module, the tensor that it comes from and how to convert it. The
families' records name the function for each of their parts.
"""

import re
from collections.abc import Mapping
from typing import Any

from training.families.record import Source

# Tensors in files besides the weights: averaged copies, tables that are computed, and heads that are not used.
LEFT_OVER = re.compile(
    r"model_ema\..*|first_stage_model\.loss\..*|(.*\.)?(position_ids|logit_scale|norm_final\.weight)|"
    r"(cond_stage_model|conditioner\.embedders\.0)\.transformer\.(text_projection\.weight|text_projection)|"
    r"(model\.)?(betas|(sqrt_|log_)?(one_minus_)?(recip_|recipm1_)?alphas_cumprod(_prev)?|sqrt_recipm1?_alphas_cumprod|"
    r"posterior_\w+|lvlb_weights|logvar|scale_factor)|denoiser\.(sigmas|log_sigmas)|v_pred|ztsnr|"
    r"text_encoders\.qwen3_4b\.(transformer\.lm_head\.weight|logit_scale)"
)

_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
_UNET = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
         "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
         "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
              "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
_Z_IMAGE = (("all_final_layer.2-1.", "final_layer."), ("all_x_embedder.2-1.", "x_embedder."),
            (".attention.to_out.0.", ".attention.out."), (".attention.norm_k.", ".attention.k_norm."),
            (".attention.norm_q.", ".attention.q_norm."))  # fmt: skip


def _end(name: str) -> tuple[str, str]:
    stem, _, end = name.rpartition(".")
    return stem, end


def _third(letter: str) -> tuple[int, int, int]:
    """The rows of query, key or value in a matrix of all three."""
    place = "qkv".index(letter)
    return place, place + 1, 3


def unet(name: str, config: Mapping[str, Any]) -> Source:
    """The UNet of Stable Diffusion."""
    stem, end = _end(name)
    if stem in _UNET:
        return Source(f"{_UNET[stem]}.{end}")
    layers = int(config["layers_per_block"]) + 1  # a down block also has a downsampler, an up block one more layer
    found = re.fullmatch(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(\w+)\.(\d+)\.(.+)", stem)
    if not found:
        raise KeyError(name)
    where, kind, rest = found[1], found[3], found[5]
    block, layer = int(found[2] or 0), int(found[4])
    inside = {"resnets": _RESNET.get(rest, rest), "attentions": rest, "downsamplers": "op", "upsamplers": "conv"}[kind]
    if where == "mid":
        return Source(f"middle_block.{2 * layer if kind == 'resnets' else 1}.{inside}.{end}")
    if where == "down":
        if kind == "downsamplers":
            return Source(f"input_blocks.{(block + 1) * layers}.0.op.{end}")
        return Source(f"input_blocks.{1 + block * layers + layer}.{int(kind == 'attentions')}.{inside}.{end}")
    if kind == "upsamplers":
        place = 2 if "CrossAttn" in config["up_block_types"][block] else 1
        return Source(f"output_blocks.{block * layers + layers - 1}.{place}.conv.{end}")
    return Source(f"output_blocks.{block * layers + layer}.{int(kind == 'attentions')}.{inside}.{end}")


def vae(name: str, config: Mapping[str, Any]) -> Source:
    """diffusers' AutoencoderKL."""
    name = name.replace(".conv_norm_out.", ".norm_out.").replace(".conv_shortcut.", ".nin_shortcut.")
    if found := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)\.(\w+)", name):
        return Source(f"{found[1]}.mid.attn_1.{_VAE_ATTENTION[found[2]]}.{found[3]}")
    if found := re.fullmatch(r"(\w+)\.mid_block\.resnets\.(\d)\.(.+)", name):
        return Source(f"{found[1]}.mid.block_{int(found[2]) + 1}.{found[3]}")
    if found := re.fullmatch(r"encoder\.down_blocks\.(\d+)\.(?:resnets\.(\d+)|downsamplers\.0)\.(.+)", name):
        inside = f"block.{found[2]}" if found[2] else "downsample"
        return Source(f"encoder.down.{found[1]}.{inside}.{found[3]}")
    if found := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.(?:resnets\.(\d+)|upsamplers\.0)\.(.+)", name):
        inside = f"block.{found[2]}" if found[2] else "upsample"
        return Source(f"decoder.up.{len(config['up_block_types']) - 1 - int(found[1])}.{inside}.{found[3]}")
    return Source(name)


def text(name: str, _config: Mapping[str, Any]) -> Source:
    """CLIP, as the text encoder of Stable Diffusion."""
    return Source(name.removeprefix("text_model."))


def open_clip(name: str, _config: Mapping[str, Any]) -> Source:
    """OpenCLIP, as SDXL's second text encoder."""
    name = name.removeprefix("text_model.")
    if name == "text_projection.weight":
        return Source("text_projection", is_transposed=True)
    if name == "embeddings.position_embedding.weight":
        return Source("positional_embedding")
    if found := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(\w+)", name):
        return Source(f"transformer.resblocks.{found[1]}.attn.in_proj_{found[3]}", rows=_third(found[2]))
    if found := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(\w+)", name):
        return Source(f"transformer.resblocks.{found[1]}.{_OPEN_CLIP[found[2]]}.{found[3]}")
    return Source(name.replace("embeddings.token_embedding", "token_embedding").replace("final_layer_norm", "ln_final"))


def z_image(name: str, _config: Mapping[str, Any]) -> Source:
    """The transformer of Z-Image."""
    if found := re.fullmatch(r"(.+\.attention)\.to_([qkv])\.weight", name):
        return Source(f"{found[1]}.qkv.weight", rows=_third(found[2]))
    for ours, theirs in _Z_IMAGE:
        name = name.replace(ours, theirs)
    return Source(name)


def same(name: str, _config: Mapping[str, Any]) -> Source:
    """A part whose names are the same in the file."""
    return Source(name)


_FLUX2 = (
    (r"x_embedder", "img_in"),
    (r"context_embedder", "txt_in"),
    (r"proj_out", "final_layer.linear"),
    (r"norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"(\w+_stream_modulation\w*)\.linear", r"\1.lin"),
    (r"time_guidance_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"time_guidance_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj", r"single_blocks.\1.linear1"),
    (r"single_transformer_blocks\.(\d+)\.attn\.to_out", r"single_blocks.\1.linear2"),
    (r"single_transformer_blocks\.(\d+)\.attn\.norm_q", r"single_blocks.\1.norm.query_norm"),
    (r"single_transformer_blocks\.(\d+)\.attn\.norm_k", r"single_blocks.\1.norm.key_norm"),
    (r"transformer_blocks\.(\d+)\.attn\.to_[qkv]", r"double_blocks.\1.img_attn.qkv"),
    (r"transformer_blocks\.(\d+)\.attn\.add_[qkv]_proj", r"double_blocks.\1.txt_attn.qkv"),
    (r"transformer_blocks\.(\d+)\.attn\.to_out\.0", r"double_blocks.\1.img_attn.proj"),
    (r"transformer_blocks\.(\d+)\.attn\.to_add_out", r"double_blocks.\1.txt_attn.proj"),
    (r"transformer_blocks\.(\d+)\.attn\.norm_q", r"double_blocks.\1.img_attn.norm.query_norm"),
    (r"transformer_blocks\.(\d+)\.attn\.norm_k", r"double_blocks.\1.img_attn.norm.key_norm"),
    (r"transformer_blocks\.(\d+)\.attn\.norm_added_q", r"double_blocks.\1.txt_attn.norm.query_norm"),
    (r"transformer_blocks\.(\d+)\.attn\.norm_added_k", r"double_blocks.\1.txt_attn.norm.key_norm"),
    (r"transformer_blocks\.(\d+)\.ff\.linear_in", r"double_blocks.\1.img_mlp.0"),
    (r"transformer_blocks\.(\d+)\.ff\.linear_out", r"double_blocks.\1.img_mlp.2"),
    (r"transformer_blocks\.(\d+)\.ff_context\.linear_in", r"double_blocks.\1.txt_mlp.0"),
    (r"transformer_blocks\.(\d+)\.ff_context\.linear_out", r"double_blocks.\1.txt_mlp.2"),
)


# Of FLUX.1, beside those that FLUX.2 has too.
_FLUX1 = (
    (r"time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
    (r"time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
    (r"time_text_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
    (r"time_text_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
    (r"transformer_blocks\.(\d+)\.norm1\.linear", r"double_blocks.\1.img_mod.lin"),
    (r"transformer_blocks\.(\d+)\.norm1_context\.linear", r"double_blocks.\1.txt_mod.lin"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj", r"double_blocks.\1.img_mlp.0"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2", r"double_blocks.\1.img_mlp.2"),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj", r"double_blocks.\1.txt_mlp.0"),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.2", r"double_blocks.\1.txt_mlp.2"),
    (r"single_transformer_blocks\.(\d+)\.norm\.linear", r"single_blocks.\1.modulation.lin"),
    (r"single_transformer_blocks\.(\d+)\.(?:attn\.to_[qkv]|proj_mlp)", r"single_blocks.\1.linear1"),
    (r"single_transformer_blocks\.(\d+)\.proj_out", r"single_blocks.\1.linear2"),
)


def flux1(name: str, config: Mapping[str, Any]) -> Source:
    """The transformer of FLUX.1. Raises KeyError for an unknown name."""
    stem, end = _end(name)
    for pattern, theirs in _FLUX1:
        if (found := re.fullmatch(pattern, stem)) is not None:
            written = found.expand(theirs)
            if not written.endswith("linear1"):
                return Source(f"{written}.{end}")
            # Query, key, value, and the feed-forward layer, which has four times as many rows as each of them.
            place = 3 if stem.endswith("proj_mlp") else "qkv".index(stem[-1])
            return Source(f"{written}.{end}", rows=(place, 7 if place == 3 else place + 1, 7))
    return flux2(name, config)


def flux2(name: str, _config: Mapping[str, Any]) -> Source:
    """The transformer of FLUX.2. Raises KeyError for an unknown name."""
    stem, end = _end(name)
    for pattern, theirs in _FLUX2:
        if (found := re.fullmatch(pattern, stem)) is not None:
            written = found.expand(theirs)
            end = "scale" if written.endswith("_norm") else end
            rows = _third(re.sub(r".*(to|add)_([qkv])(_proj)?", r"\2", stem)) if written.endswith(".qkv") else None
            return Source(f"{written}.{end}", rows=rows, is_swapped=stem == "norm_out.linear")
    raise KeyError(name)
