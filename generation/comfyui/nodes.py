"""The inputs and outputs of ComfyUI's own nodes. A server lists all of its nodes under `/object_info`.

`patch` reads the outputs; the fake server validates prompts by the inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Kind = str | tuple[str, dict[str, Any]] | list[str]


@dataclass(frozen=True)
class NodeClass:
    """One node class. An input is a type, a type with bounds, or a list of choices; `@loras` lists a folder."""

    inputs: dict[str, Kind]
    outputs: tuple[str, ...]
    optional: dict[str, Kind] = field(default_factory=dict)
    saves: bool = False  # an output node: prompts are executed for these


_SEED: Kind = ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF})
_WHOLE: Kind = ("INT", {"min": -0x7FFFFFFFFFFFFFFF, "max": 0x7FFFFFFFFFFFFFFF})
_STEPS: Kind = ("INT", {"default": 20, "min": 1, "max": 10_000})
_SIDE: Kind = ("INT", {"default": 512, "min": 16, "max": 16_384, "step": 8})
_BATCH: Kind = ("INT", {"default": 1, "min": 1, "max": 4096})
_CFG: Kind = ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0})
_SHARE: Kind = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0})
_STRENGTH: Kind = ("FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0})
_GAIN: Kind = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0})
_TEXT: Kind = ("STRING", {"multiline": True})
_WIDTH: Kind = ("INT", {"default": 1024, "min": 0, "max": 16_384})
_SCORE: Kind = ("FLOAT", {"default": 6.0, "min": 0.0, "max": 1000.0})
_SAMPLERS: Kind = ["euler", "euler_ancestral", "heun", "dpm_2", "lms", "dpmpp_2m", "dpmpp_2m_sde", "ddim", "uni_pc",
                   "res_multistep"]  # fmt: skip
_SCHEDULERS: Kind = ["simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal"]
_SWITCH: Kind = ["enable", "disable"]
_CLIP_TYPES: Kind = ["stable_diffusion", "stable_cascade", "sd3", "stable_audio", "lumina2", "qwen_image"]
_SAMPLING: dict[str, Kind] = {"steps": _STEPS, "cfg": _CFG, "sampler_name": _SAMPLERS, "scheduler": _SCHEDULERS}
_GUIDED: dict[str, Kind] = {"positive": "CONDITIONING", "negative": "CONDITIONING"}

NODES: dict[str, NodeClass] = {
    # ---- files ----
    "CheckpointLoaderSimple": NodeClass({"ckpt_name": "@checkpoints"}, ("MODEL", "CLIP", "VAE")),
    "UNETLoader": NodeClass(
        {"unet_name": "@diffusion_models", "weight_dtype": ["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"]},
        ("MODEL",),
    ),
    "CLIPLoader": NodeClass(
        {"clip_name": "@text_encoders", "type": _CLIP_TYPES}, ("CLIP",), {"device": ["default", "cpu"]}
    ),
    "DualCLIPLoader": NodeClass(
        {"clip_name1": "@text_encoders", "clip_name2": "@text_encoders", "type": ["sdxl", "sd3", "flux"]},
        ("CLIP",),
        {"device": ["default", "cpu"]},
    ),
    "VAELoader": NodeClass({"vae_name": "@vae"}, ("VAE",)),
    "ControlNetLoader": NodeClass({"control_net_name": "@controlnet"}, ("CONTROL_NET",)),
    "LoadImage": NodeClass({"image": "@input"}, ("IMAGE", "MASK")),
    "LoraLoader": NodeClass(
        {"model": "MODEL", "clip": "CLIP", "lora_name": "@loras", "strength_model": _STRENGTH,
         "strength_clip": _STRENGTH},
        ("MODEL", "CLIP"),
    ),
    "LoraLoaderModelOnly": NodeClass(
        {"model": "MODEL", "lora_name": "@loras", "strength_model": _STRENGTH}, ("MODEL",)
    ),
    # ---- models ----
    "CLIPSetLastLayer": NodeClass(
        {"clip": "CLIP", "stop_at_clip_layer": ("INT", {"default": -1, "min": -24, "max": -1})}, ("CLIP",)
    ),
    "ModelSamplingDiscrete": NodeClass(
        {"model": "MODEL", "sampling": ["eps", "v_prediction", "lcm", "x0"], "zsnr": ("BOOLEAN", {"default": False})},
        ("MODEL",),
    ),
    "ModelSamplingSD3": NodeClass({"model": "MODEL", "shift": _CFG}, ("MODEL",)),
    "ModelSamplingAuraFlow": NodeClass({"model": "MODEL", "shift": _CFG}, ("MODEL",)),
    "FreeU_V2": NodeClass({"model": "MODEL", "b1": _GAIN, "b2": _GAIN, "s1": _GAIN, "s2": _GAIN}, ("MODEL",)),
    "ModelMergeSimple": NodeClass({"model1": "MODEL", "model2": "MODEL", "ratio": _SHARE}, ("MODEL",)),
    # ---- texts and numbers ----
    "PrimitiveInt": NodeClass({"value": _WHOLE}, ("INT",)),
    "PrimitiveString": NodeClass({"value": ("STRING", {})}, ("STRING",)),
    "PrimitiveStringMultiline": NodeClass({"value": _TEXT}, ("STRING",)),
    "StringConcatenate": NodeClass({"string_a": _TEXT, "string_b": _TEXT, "delimiter": ("STRING", {})}, ("STRING",)),
    "CLIPTextEncode": NodeClass({"text": _TEXT, "clip": "CLIP"}, ("CONDITIONING",)),
    "CLIPTextEncodeSDXL": NodeClass(
        {"clip": "CLIP", "width": _WIDTH, "height": _WIDTH, "crop_w": _WIDTH, "crop_h": _WIDTH, "target_width": _WIDTH,
         "target_height": _WIDTH, "text_g": _TEXT, "text_l": _TEXT},
        ("CONDITIONING",),
    ),
    "CLIPTextEncodeSDXLRefiner": NodeClass(
        {"ascore": _SCORE, "width": _WIDTH, "height": _WIDTH, "text": _TEXT, "clip": "CLIP"}, ("CONDITIONING",)
    ),
    # ---- conditioning ----
    "ConditioningCombine": NodeClass(
        {"conditioning_1": "CONDITIONING", "conditioning_2": "CONDITIONING"}, ("CONDITIONING",)
    ),
    "ConditioningConcat": NodeClass(
        {"conditioning_to": "CONDITIONING", "conditioning_from": "CONDITIONING"}, ("CONDITIONING",)
    ),
    "ConditioningAverage": NodeClass(
        {"conditioning_to": "CONDITIONING", "conditioning_from": "CONDITIONING",
         "conditioning_to_strength": _SHARE},
        ("CONDITIONING",),
    ),
    "ConditioningSetArea": NodeClass(
        {"conditioning": "CONDITIONING", "width": _SIDE, "height": _SIDE, "x": _WIDTH, "y": _WIDTH,
         "strength": _GAIN},
        ("CONDITIONING",),
    ),
    "ConditioningSetMask": NodeClass(
        {"conditioning": "CONDITIONING", "mask": "MASK", "strength": _GAIN,
         "set_cond_area": ["default", "mask bounds"]},
        ("CONDITIONING",),
    ),
    "FluxGuidance": NodeClass({"conditioning": "CONDITIONING", "guidance": _CFG}, ("CONDITIONING",)),
    "ConditioningZeroOut": NodeClass({"conditioning": "CONDITIONING"}, ("CONDITIONING",)),
    "ConditioningSetTimestepRange": NodeClass(
        {"conditioning": "CONDITIONING", "start": _SHARE, "end": _SHARE}, ("CONDITIONING",)
    ),
    "ControlNetApplyAdvanced": NodeClass(
        {**_GUIDED, "control_net": "CONTROL_NET", "image": "IMAGE", "strength": _GAIN, "start_percent": _SHARE,
         "end_percent": _SHARE},
        ("CONDITIONING", "CONDITIONING"),
        {"vae": "VAE"},
    ),
    # ---- sampling ----
    "EmptyLatentImage": NodeClass({"width": _SIDE, "height": _SIDE, "batch_size": _BATCH}, ("LATENT",)),
    "EmptySD3LatentImage": NodeClass({"width": _SIDE, "height": _SIDE, "batch_size": _BATCH}, ("LATENT",)),
    "LatentUpscaleBy": NodeClass(
        {"samples": "LATENT", "upscale_method": ["nearest-exact", "bilinear", "area", "bicubic", "bislerp"],
         "scale_by": ("FLOAT", {"default": 1.5, "min": 0.01, "max": 8.0})},
        ("LATENT",),
    ),
    "KSampler": NodeClass(
        {"model": "MODEL", "seed": _SEED, **_SAMPLING, **_GUIDED, "latent_image": "LATENT", "denoise": _SHARE},
        ("LATENT",),
    ),
    "KSamplerAdvanced": NodeClass(
        {"model": "MODEL", "add_noise": _SWITCH, "noise_seed": _SEED, **_SAMPLING, **_GUIDED, "latent_image": "LATENT",
         "start_at_step": ("INT", {"default": 0, "min": 0, "max": 10_000}),
         "end_at_step": ("INT", {"default": 10_000, "min": 0, "max": 10_000}), "return_with_leftover_noise": _SWITCH},
        ("LATENT",),
    ),
    "RandomNoise": NodeClass({"noise_seed": _SEED}, ("NOISE",)),
    "KSamplerSelect": NodeClass({"sampler_name": _SAMPLERS}, ("SAMPLER",)),
    "BasicScheduler": NodeClass(
        {"model": "MODEL", "scheduler": _SCHEDULERS, "steps": _STEPS, "denoise": _SHARE}, ("SIGMAS",)
    ),
    "BasicGuider": NodeClass({"model": "MODEL", "conditioning": "CONDITIONING"}, ("GUIDER",)),
    "CFGGuider": NodeClass({"model": "MODEL", **_GUIDED, "cfg": _CFG}, ("GUIDER",)),
    "SamplerCustomAdvanced": NodeClass(
        {"noise": "NOISE", "guider": "GUIDER", "sampler": "SAMPLER", "sigmas": "SIGMAS", "latent_image": "LATENT"},
        ("LATENT", "LATENT"),
    ),
    # ---- pictures ----
    "VAEDecode": NodeClass({"samples": "LATENT", "vae": "VAE"}, ("IMAGE",)),
    "VAEEncodeForInpaint": NodeClass(
        {"pixels": "IMAGE", "vae": "VAE", "mask": "MASK", "grow_mask_by": ("INT", {"default": 6, "min": 0, "max": 64})},
        ("LATENT",),
    ),
    "VAEEncode": NodeClass({"pixels": "IMAGE", "vae": "VAE"}, ("LATENT",)),
    "SaveImage": NodeClass({"images": "IMAGE", "filename_prefix": ("STRING", {"default": "ComfyUI"})}, (), saves=True),
    "PreviewImage": NodeClass({"images": "IMAGE"}, (), saves=True),
}  # fmt: skip


class Catalogue:
    """The output types of node classes."""

    def __init__(self, outputs: Mapping[str, Sequence[str]] | None = None) -> None:
        self._outputs = {name: node.outputs for name, node in NODES.items()} | {
            name: tuple(str(kind) for kind in kinds) for name, kinds in (outputs or {}).items()
        }

    @classmethod
    def of(cls, object_info: Mapping[str, Any]) -> "Catalogue":
        """From a server's `/object_info`, which includes its custom nodes."""
        outputs = {name: info.get("output") for name, info in object_info.items() if isinstance(info, dict)}
        return cls({name: kinds for name, kinds in outputs.items() if isinstance(kinds, list)})

    def outputs(self, class_type: str) -> Sequence[str] | None:
        """The output types of a class; None for an unknown class."""
        return self._outputs.get(class_type)
