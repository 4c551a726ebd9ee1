"""What a workflow for ComfyUI names of a family: the model files of ComfyUI's own templates, and how they draw."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Workflow:
    """The files of a base model for ComfyUI, and what differs in its workflow. Without `unet`, `file` has all parts."""

    file: str = ""
    unet: str = ""
    few_steps: str = ""  # of the family's few-step models, instead of `unet`
    clips: tuple[str, ...] = ()  # the text encoders
    clip_type: str = ""
    vae: str = ""
    latent: str = "EmptySD3LatentImage"  # the node that makes empty latents
    sampler: str = "euler"
    scheduler: str = "simple"
    shift: float | None = None  # of the noise schedule, if a node of its own shifts it
    more_guidance: float = 0.0  # ComfyUI's guidance scale minus the family's
    embeds_guidance: bool = False  # whether the network takes the scale, by a node of its own
