"""A workflow to begin with: text to image with one base model, in API format, which ComfyUI's editor opens too.

The names of the model files are those under which ComfyUI's own templates download them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from generation.comfyui.patch import WorkflowLora, patch

Nodes = dict[str, Any]


@dataclass(frozen=True)
class Start:
    """What the workflow draws. `size`: pixels of a side; `guidance`: of the sampler, or of FLUX.1's own node."""

    prompt: str
    size: int
    steps: int
    guidance: float


def starter_workflow(base_model: str, family: str, start: Start, lora: WorkflowLora) -> Nodes | None:
    """The workflow with a LoRA in it; None for a family that has none here."""
    make = _FAMILIES.get(family)
    return None if make is None else patch(make(base_model, start), lora).workflow


def has_starter(family: str) -> bool:
    """Whether there is a workflow for a family."""
    return family in _FAMILIES


def _node(class_type: str, **inputs: Any) -> Nodes:
    return {"class_type": class_type, "inputs": inputs}


def _graph(start: Start, loaders: Nodes, model: list[Any], clip: list[Any], vae: list[Any], **more: Any) -> Nodes:
    """Loaders, prompts, sampler and picture. `more`: inputs of the sampler that differ."""
    latent = "EmptyLatentImage" if vae[0] == "4" else "EmptySD3LatentImage"
    sampler = {
        "seed": 1, "steps": start.steps, "cfg": start.guidance, "sampler_name": "euler", "scheduler": "normal",
        "denoise": 1.0, "model": model, "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
    }  # fmt: skip
    return {
        **loaders,
        "5": _node(latent, width=start.size, height=start.size, batch_size=1),
        "6": {**_node("CLIPTextEncode", text=start.prompt, clip=clip), "_meta": {"title": "Prompt"}},
        "7": {**_node("CLIPTextEncode", text="", clip=clip), "_meta": {"title": "Negative prompt"}},
        "3": _node("KSampler", **(sampler | more)),
        "8": _node("VAEDecode", samples=["3", 0], vae=vae),
        "9": _node("SaveImage", images=["8", 0], filename_prefix="imprint"),
    }


def _checkpoint(file: str) -> Callable[[str, Start], Nodes]:
    def make(_: str, start: Start) -> Nodes:
        return _graph(start, {"4": _node("CheckpointLoaderSimple", ckpt_name=file)}, ["4", 0], ["4", 1], ["4", 2])

    return make


def _parts(unet: str, clip: Nodes, vae: str) -> Nodes:
    return {
        "10": _node("UNETLoader", unet_name=unet, weight_dtype="default"),
        "11": clip,
        "12": _node("VAELoader", vae_name=vae),
    }


def _shifted(start: Start, loaders: Nodes, shift: float, **more: Any) -> Nodes:
    """A flow model, whose noise schedule is shifted."""
    shifted = {"13": _node("ModelSamplingAuraFlow", model=["10", 0], shift=shift)}
    return _graph(start, loaders | shifted, ["13", 0], ["11", 0], ["12", 0], scheduler="simple", **more)


def _z_image(base_model: str, start: Start) -> Nodes:
    unet = "z_image_turbo_bf16.safetensors" if "turbo" in base_model else "z_image_bf16.safetensors"
    clip = _node("CLIPLoader", clip_name="qwen_3_4b.safetensors", type="lumina2", device="default")
    # diffusers counts the guidance of z-image from 0, ComfyUI from 1.
    cfg = 1.0 + start.guidance
    return _shifted(start, _parts(unet, clip, "ae.safetensors"), 3.0, sampler_name="res_multistep", cfg=cfg)


def _qwen_image(_: str, start: Start) -> Nodes:
    clip = _node("CLIPLoader", clip_name="qwen_2.5_vl_7b_fp8_scaled.safetensors", type="qwen_image", device="default")
    return _shifted(start, _parts("qwen_image_fp8_e4m3fn.safetensors", clip, "qwen_image_vae.safetensors"), 3.1)


def _flux1(base_model: str, start: Start) -> Nodes:
    unet = "flux1-schnell.safetensors" if "schnell" in base_model else "flux1-dev.safetensors"
    clip = _node(
        "DualCLIPLoader", clip_name1="clip_l.safetensors", clip_name2="t5xxl_fp16.safetensors", type="flux",
        device="default",
    )  # fmt: skip
    loaders = _parts(unet, clip, "ae.safetensors")
    guidance = {"14": _node("FluxGuidance", conditioning=["6", 0], guidance=start.guidance)}
    return _graph(
        start, loaders | guidance, ["10", 0], ["11", 0], ["12", 0], cfg=1.0, scheduler="simple", positive=["14", 0]
    )


_FAMILIES: dict[str, Callable[[str, Start], Nodes]] = {
    "sd15": _checkpoint("v1-5-pruned-emaonly-fp16.safetensors"),
    "sdxl": _checkpoint("sd_xl_base_1.0.safetensors"),
    "z-image": _z_image,
    "qwen-image": _qwen_image,
    "flux1": _flux1,
}
