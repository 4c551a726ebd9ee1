"""Maps the names of weights in diffusers' modules to the tensors of single checkpoint files.

Such files have the names of the original training code of Stable Diffusion: blocks are numbered consecutively,
attention in the VAE is a 1 x 1 convolution, and OpenCLIP has query, key and value in one matrix. This module reads no
file: its functions only find, for a weight of a module, the tensor that it comes from and how to convert it. The
families' records name the function for each of their parts.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from training.families.record import Finder, Source, own_name

# Tensors in files besides the weights: averaged copies, tables that are computed, and heads that are not used.
LEFT_OVER = re.compile(
    r"model_ema\..*|first_stage_model\.loss\..*|(.*\.)?(position_ids|logit_scale|norm_final\.weight)|"
    r"(cond_stage_model|conditioner\.embedders\.0)\.transformer\.(text_projection\.weight|text_projection)|"
    r"(model\.)?(betas|(sqrt_|log_)?(one_minus_)?(recip_|recipm1_)?alphas_cumprod(_prev)?|sqrt_recipm1?_alphas_cumprod|"
    r"posterior_\w+|lvlb_weights|logvar|scale_factor)|denoiser\.(sigmas|log_sigmas)|v_pred|ztsnr"
)

_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
_UNET = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
         "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
         "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
              "self_attn.out_proj": "attn.out_proj"}  # fmt: skip


def _end(name: str) -> tuple[str, str]:
    stem, _, end = name.rpartition(".")
    return stem, end


def third(letter: str) -> tuple[int, int, int]:
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
        return Source(f"transformer.resblocks.{found[1]}.attn.in_proj_{found[3]}", rows=third(found[2]))
    if found := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(\w+)", name):
        return Source(f"transformer.resblocks.{found[1]}.{_OPEN_CLIP[found[2]]}.{found[3]}")
    return Source(name.replace("embeddings.token_embedding", "token_embedding").replace("final_layer_norm", "ln_final"))


def same(name: str, _config: Mapping[str, Any]) -> Source:
    """A part whose names are the same in the file."""
    return Source(name)


# Of FLUX.1 and its relatives, beside the layers that get a LoRA.
FLUX = (
    (r"img_in", ("x_embedder",)),
    (r"txt_in", ("context_embedder",)),
    (r"final_layer\.linear", ("proj_out",)),
    (r"final_layer\.adaLN_modulation\.1", ("norm_out.linear",)),
    *(
        (
            rf"double_blocks\.(\d+)\.{stream}_attn\.norm\.{name}_norm",
            (rf"transformer_blocks.\1.attn.norm_{added}{name[0]}",),
        )
        for stream, added in (("img", ""), ("txt", "added_"))
        for name in ("query", "key")
    ),
    *(
        (rf"single_blocks\.(\d+)\.norm\.{name}_norm", (rf"single_transformer_blocks.\1.attn.norm_{name[0]}",))
        for name in ("query", "key")
    ),
)


def embedder(own: str, diffusers: str) -> tuple[tuple[str, tuple[str]], ...]:
    """The two linears of an embedder in such a model."""
    return tuple((rf"{own}\.{end}_layer", (f"{diffusers}.linear_{number}",)) for number, end in ((1, "in"), (2, "out")))


def own_code(table: Sequence[tuple[str, tuple[str, ...]]], shares: Mapping[str, int] | None = None) -> Finder:
    """Finds weights by a table such as `LoraNames.original`; `shares` as there."""

    def source(name: str, _config: Mapping[str, Any]) -> Source:
        stem, end = _end(name)
        found = own_name(stem, table)
        if found is None:
            raise KeyError(name)
        written, place, names = found
        counts = [(shares or {}).get(part.rpartition(".")[2], 1) for part in names]
        rows = (sum(counts[:place]), sum(counts[: place + 1]), sum(counts)) if len(names) > 1 else None
        # The last modulation has its scale before its shift in diffusers.
        end = "scale" if re.search(r"(_norm|norms\.\d+)$", written) else end
        return Source(f"{written}.{end}", rows=rows, is_swapped=stem == "norm_out.linear")

    return source
