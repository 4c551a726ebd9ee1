"""A family that no other file names, in one file: AuraFlow, whose classes diffusers has.

A record that is imported without torch, and the code that trains, which imports it. Real families have a module for
each, because a worker that does not train never imports torch.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from training.families import registry
from training.families.record import (
    AiToolkit,
    BaseModel,
    Drawing,
    Family,
    LoraNames,
    Naming,
    Price,
    SingleFile,
    WrittenModule,
)
from training.families.records.lora_files import PEFT, alike
from training.families.weights import checkpoint_names
from training.families.workflow import Workflow

_ATTENTION = r"(joint|single)_transformer_blocks\.\d+\.attn\.(to_(q|k|v|out\.0)|add_(q|k|v)_proj|to_add_out)"
_ALL = _ATTENTION + r"|(joint|single)_transformer_blocks\.\d+\.ff(_context)?\.(linear_1|linear_2|out_projection)"
_MARK = "joint_transformer_blocks.0.attn.to_q.weight"


def _diffusers(modules: Sequence[WrittenModule]) -> Callable[[WrittenModule], bool]:
    fits = alike(modules) == ("transformer.", PEFT) and not any(module.has_alpha for module in modules)
    return lambda _: fits


def _is_of(inputs: Mapping[str, int]) -> bool:
    return any(name.startswith("transformer.joint_transformer_blocks.") for name in inputs)


MADE_UP = Family(
    name="made-up",
    title="Made up",
    base_models=(
        BaseModel("made-up-1", "made-up", "nobody/made-up", "Made up 1", "It is not there.", "MUP-1.0", "no cats"),
    ),
    recipe={"rank": 6, "alpha": 6.0, "learning_rate": 1e-2, "resolution": 64, "epochs": 10},
    price=Price(77, 64),
    seconds_per_step=0.1,
    drawing=Drawing(2, 3.5, 64),
    previews=(2, 3.5),
    lora=LoraNames(
        naming=Naming("transformer.", ".lora_A.weight", ".lora_B.weight", False, re.compile(_ALL), "BF16", alpha=False),
        form="peft",
        is_of=_is_of,
        example={f"joint_transformer_blocks.0.attn.to_{part}": 64 for part in "qkv"},
        diffusers=_diffusers,
        comfyui=re.compile(rf"transformer\.({_ALL})"),
        modules=re.compile(_ALL),
        words=("joint_transformer_blocks", "single_transformer_blocks", "attn", "ff_context", "out_projection"),
        declared=("made-up",),
        kind="AuraFlow",
        refused={"kohya": "no program reads kohya's names of it"},
        architecture="made-up/lora",
        version="made-up-1",
    ),
    classes={
        "transformer": "diffusers.AuraFlowTransformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.T5EncoderModel",
        "tokenizer": "transformers.T5Tokenizer",
        "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    },
    pipeline="AuraFlowPipeline",
    configs={"transformer": {}},
    home="nobody/made-up",
    workflow=Workflow(unet="made_up.safetensors", clips=("t5.safetensors",), clip_type="made_up", vae="ae.safetensors"),
    code=__name__,
    targets={"attention": _ATTENTION, "all": _ALL},
    quantised=_ALL,
    shares_steps=False,
    caption_tokens=32,
    call={"max_sequence_length": 32},
    single_file=SingleFile(
        prefixes={"transformer": ("made.up.",)},
        marks={"transformer": (_MARK,)},
        sources={"transformer": checkpoint_names.same},
        is_of=lambda kinds: "made.up." + _MARK in kinds,
    ),
)
# Without code it trains only on rented GPUs.
FAR_AWAY = replace(MADE_UP, code=None, toolkit=AiToolkit("made_up", "bf16", "flow"))


def family(record: Family) -> Any:
    """The code of the family."""
    import torch
    from diffusers import AuraFlowTransformer2DModel, AutoencoderKL
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    from training.families import flow
    from training.families.encoders import Encoders
    from training.families.family import Base, Draw, FamilyCode
    from training.families.latents import encode_pictures, sample, vae_decode
    from training.families.weights.parts import load_part, vae_number
    from training.families.weights.quantised import place
    from training.tiny import parts as tiny_parts
    from training.tiny.words import t5_vocabulary

    def load(where: Any) -> Any:
        def transformer() -> Any:
            loaded = load_part(AuraFlowTransformer2DModel, where.folder, "transformer", where.dtype)
            return place(loaded, record.quantised, where.quantisation, where.device)

        encoders = {
            "tokenizer": partial(load_part, T5Tokenizer, where.folder, "tokenizer"),
            "text_encoder": partial(load_part, T5EncoderModel, where.folder, "text_encoder", where.dtype),
            "vae": partial(load_part, AutoencoderKL, where.folder, "vae", where.vae_dtype),
        }
        return Base(
            transformer, Encoders(encoders, where.device), vae_number(where.folder, "scaling_factor"), where.device,
            where.dtype, "flow", drawing=record.previews, quantisation=where.quantisation,
        )  # fmt: skip

    def encode_captions(base: Any, examples: Any) -> Any:
        made = {}
        with base.encoders.awake("text_encoder"), torch.no_grad():
            for caption in {example.caption for example in examples}:
                tokens = base.encoders["tokenizer"](
                    caption, padding="max_length", max_length=32, truncation=True, return_tensors="pt"
                ).to(base.device)
                states = base.encoders["text_encoder"](**tokens)[0] * tokens.attention_mask.unsqueeze(-1)
                made[caption] = {"context": states[0].to(base.dtype)}
        return [made[example.caption] for example in examples]

    def reads_whole(base: Any, caption: str) -> bool:
        return len(base.encoders["tokenizer"](caption, verbose=False).input_ids) <= 32

    def draw(base: Any, moments: Any, generator: Any) -> Any:
        latents = sample(moments, generator) * base.schedule
        noise = torch.randn(latents.shape, generator=generator)
        return Draw.plain(latents, noise, flow.logit_normal(len(latents), generator, 1.73))

    def predict(base: Any, mixed: Any, times: Any, conditions: Any) -> Any:
        context = torch.stack([condition["context"] for condition in conditions])
        given = {"encoder_hidden_states": context, "timestep": times.to(base.dtype), "return_dict": False}
        return base.denoiser(mixed.to(base.dtype), **given)[0]

    def stand_in(transformer: Any, _tokens: int) -> Any:
        return 1.0, {"context": torch.zeros(32, transformer.config.joint_attention_dim, dtype=transformer.dtype)}

    def tiny(_prediction: str) -> Any:
        tokenizer = T5Tokenizer(vocab=t5_vocabulary(), extra_ids=0, model_max_length=32)
        transformer = tiny_parts.lib.AuraFlowTransformer2DModel(
            sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=32, num_attention_heads=2,
            joint_attention_dim=32, caption_projection_dim=64, pos_embed_max_size=64,
        )  # fmt: skip
        text = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
        return tiny_parts.lib.AuraFlowPipeline(
            tokenizer=tokenizer, text_encoder=T5EncoderModel(text), vae=tiny_parts.autoencoder(4, 0.13025),
            transformer=transformer, scheduler=tiny_parts.flow_scheduler(shift=1.73),
        )  # fmt: skip

    return FamilyCode(
        record, load=load, denoiser=AuraFlowTransformer2DModel, stand_in=stand_in, tiny=tiny,
        encode_pictures=encode_pictures, encode_captions=encode_captions, reads_whole=reads_whole, draw=draw,
        mix=flow.mix, predict=predict, target=flow.target, weigh=flow.weigh,
        levels=lambda _base, count, _size: flow.shifted(1 - torch.arange(count) / count, 1.73), denoise=flow.denoise,
        decode=lambda base, latents: vae_decode(base, latents / base.schedule),
    )  # fmt: skip


@contextmanager
def registered(made: Family) -> Iterator[None]:
    """Inside, the family is known."""
    registry.register(made)
    try:
        yield
    finally:
        del registry.FAMILIES[made.name]
        for base in made.base_models:
            del registry.BASE_MODELS[base.name]
