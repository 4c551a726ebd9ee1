"""A workflow to begin with: text to image with one base model, in API format, which ComfyUI's editor opens too."""

from dataclasses import dataclass
from typing import Any

from generation.comfyui.patch import WorkflowLora, patch
from training.families.workflow import Workflow

Nodes = dict[str, Any]


@dataclass(frozen=True)
class Start:
    """What the workflow draws. `size`: pixels of a side; `guidance`: as the family counts it."""

    prompt: str
    size: int
    steps: int
    guidance: float


def starter_workflow(model: Workflow, start: Start, lora: WorkflowLora, *, is_few_step: bool = False) -> Nodes:
    """The workflow with a LoRA in it."""
    loaders, source, clip, vae = _one_file(model) if model.file else _parts(model, is_few_step)
    positive, cfg = ["6", 0], start.guidance + model.more_guidance
    if model.shift is not None:
        loaders["13"] = _node("ModelSamplingAuraFlow", model=source, shift=model.shift)
        source = ["13", 0]
    if model.embeds_guidance:
        loaders["14"] = _node("FluxGuidance", conditioning=positive, guidance=cfg)
        positive, cfg = ["14", 0], 1.0
    nodes = {
        **loaders,
        "5": _node(model.latent, width=start.size, height=start.size, batch_size=1),
        "6": {**_node("CLIPTextEncode", text=start.prompt, clip=clip), "_meta": {"title": "Prompt"}},
        "7": {**_node("CLIPTextEncode", text="", clip=clip), "_meta": {"title": "Negative prompt"}},
        "3": _node(
            "KSampler", seed=1, steps=start.steps, cfg=cfg, sampler_name=model.sampler, scheduler=model.scheduler,
            denoise=1.0, model=source, positive=positive, negative=["7", 0], latent_image=["5", 0],
        ),
        "8": _node("VAEDecode", samples=["3", 0], vae=vae),
        "9": _node("SaveImage", images=["8", 0], filename_prefix="imprint"),
    }  # fmt: skip
    return patch(nodes, lora).workflow


def _node(class_type: str, **inputs: Any) -> Nodes:
    return {"class_type": class_type, "inputs": inputs}


def _one_file(model: Workflow) -> tuple[Nodes, list[Any], list[Any], list[Any]]:
    """The loader, and its outputs: model, text encoder and VAE."""
    return {"4": _node("CheckpointLoaderSimple", ckpt_name=model.file)}, ["4", 0], ["4", 1], ["4", 2]


def _parts(model: Workflow, is_few_step: bool) -> tuple[Nodes, list[Any], list[Any], list[Any]]:
    unet = model.few_steps if is_few_step and model.few_steps else model.unet
    numbered = (
        {"clip_name": model.clips[0]}
        if len(model.clips) == 1
        else {f"clip_name{number}": name for number, name in enumerate(model.clips, 1)}
    )
    loader = "CLIPLoader" if len(model.clips) == 1 else "DualCLIPLoader"
    loaders = {
        "10": _node("UNETLoader", unet_name=unet, weight_dtype="default"),
        "11": _node(loader, **numbered, type=model.clip_type, device="default"),
        "12": _node("VAELoader", vae_name=model.vae),
    }
    return loaders, ["10", 0], ["11", 0], ["12", 0]
