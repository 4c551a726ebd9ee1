"""Execute a prompt, node by node from its outputs backwards, on values that describe what would be drawn."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fakes.comfyui import loras
from fakes.comfyui.drawing import Latent, Model, SamplerPass, png
from fakes.comfyui.folders import ComfyUIFolders
from generation.comfyui.nodes import NODES

SendEvent = Callable[[str, dict[str, Any]], None]


class PromptInterrupted(Exception):
    """The prompt was interrupted."""


class NodeFailed(Exception):
    """The node `node_id` raised an error."""

    def __init__(self, node_id: str, error: Exception) -> None:
        super().__init__(str(error))
        self.node_id, self.error = node_id, error


class Execution:
    """The execution of one prompt. `send_event` sends its events; `stopped` returns whether to end."""

    def __init__(
        self,
        prompt: dict[str, Any],
        folders: ComfyUIFolders,
        send_event: SendEvent,
        stopped: Callable[[], bool],
        seconds_per_step: float,
    ) -> None:
        self.prompt, self.folders, self.send_event, self.stopped = prompt, folders, send_event, stopped
        self.seconds_per_step = seconds_per_step
        self.values: dict[str, tuple[Any, ...]] = {}
        self.outputs: dict[str, Any] = {}
        self.at = ""

    def run(self, outputs: list[str]) -> None:
        """Raises Interrupted and NodeFailed."""
        for node_id in outputs:
            self._made(node_id)

    def _made(self, node_id: str) -> tuple[Any, ...]:
        """The outputs of a node, after executing the nodes that it depends on."""
        if node_id in self.values:
            return self.values[node_id]
        node = self.prompt[node_id]
        kind = NODES[node["class_type"]]
        given = {
            name: self._made(value[0])[value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
            if name in kind.inputs or name in kind.optional
        }
        if self.stopped():
            raise PromptInterrupted
        self.at = node_id
        self.send_event("executing", {"node": node_id, "display_node": node_id})
        try:
            made = self._make(node["class_type"], given, node_id)
        except (loras.UnreadableLora, OSError, KeyError, ValueError) as error:
            raise NodeFailed(node_id, error) from error
        self.values[node_id] = made
        return made

    def _make(self, name: str, given: dict[str, Any], node_id: str) -> tuple[Any, ...]:
        if name in _MAKERS:
            return _MAKERS[name](self, given)
        if name in ("SaveImage", "PreviewImage"):
            return self._save(given, node_id, temporary=name == "PreviewImage")
        if name in ("KSampler", "KSamplerAdvanced"):
            seed = given["seed"] if name == "KSampler" else given["noise_seed"]
            return (self._sample(given["latent_image"], given, seed, given["steps"]),)
        if name == "SamplerCustomAdvanced":
            latent = self._sample(given["latent_image"], given["guider"], given["noise"], given["sigmas"])
            return latent, latent
        # Other nodes pass their inputs through, because the picture does not show what they change.
        kinds = NODES[name].inputs
        through = []
        for number, kind in enumerate(NODES[name].outputs):
            alike = [given[key] for key, wanted in kinds.items() if wanted == kind and key in given]
            through.append(alike[min(number, len(alike) - 1)] if alike else None)
        return tuple(through)

    def _sample(self, latent: Latent, given: dict[str, Any], seed: int, steps: int) -> Latent:
        for step in range(1, steps + 1):
            if self.stopped():
                raise PromptInterrupted
            time.sleep(self.seconds_per_step)
            self.send_event("progress", {"value": step, "max": steps, "node": self.at})
        done = SamplerPass(given["model"], given["positive"], given["negative"], seed, steps)
        return replace(latent, passes=(*latent.passes, done))

    def _save(self, given: dict[str, Any], node_id: str, *, temporary: bool) -> tuple[()]:
        kind = "temp" if temporary else "output"
        *below, prefix = str(given.get("filename_prefix", "ComfyUI_temp")).split("/")
        folder = self.folders.within(self.folders.pictures[kind], below)
        if folder is None:
            raise ValueError("Saving image outside the output folder is not allowed.")
        folder.mkdir(parents=True, exist_ok=True)
        images = []
        for number in range(given["images"].batch):
            count = sum(1 for path in folder.glob(f"{prefix}_*_.png")) + 1
            name = f"{prefix}_{count:05}_.png"
            (folder / name).write_bytes(png(given["images"], number, self.prompt))
            images.append({"filename": name, "subfolder": "/".join(below), "type": kind})
        self.outputs[node_id] = {"images": images}
        self.send_event("executed", {"node": node_id, "display_node": node_id, "output": {"images": images}})
        return ()

    def load_lora(self, given: dict[str, Any]) -> tuple[Any, ...]:
        """Load a LoRA. With strength 0 the file is not opened, as in a real server."""
        model: Model = given["model"]
        if given["strength_model"] == 0:
            return model, given.get("clip")
        modules, _ = loras.match_lora_keys(self.folders.models("loras") / given["lora_name"], model.kind)
        return model.with_lora(given["lora_name"], given["strength_model"], modules), given.get("clip")


def _merged(_: Execution, given: dict[str, Any]) -> tuple[Any, ...]:
    one, other = given["model1"], given["model2"]
    return (Model(f"{one.base} + {other.base}", one.kind, (*one.loras, *other.loras)),)


def _unet(_: Execution, given: dict[str, Any]) -> tuple[Any, ...]:
    return (Model(given["unet_name"], _kind(given["unet_name"])),)


def _kind(name: str) -> str:
    """The kind of a model, by its file's name: a real server finds it in the weights."""
    plain = name.lower().replace("_", "-")
    return "z-image" if "z-image" in plain else "sdxl" if "xl" in plain else "sd15"


def _guider(_: Execution, given: dict[str, Any]) -> tuple[Any, ...]:
    texts = given.get("positive", given.get("conditioning"))
    return ({"model": given["model"], "positive": texts, "negative": given.get("negative", ())},)


_MAKERS: dict[str, Callable[[Execution, dict[str, Any]], tuple[Any, ...]]] = {
    "CheckpointLoaderSimple": lambda _, given: (Model(given["ckpt_name"], _kind(given["ckpt_name"])), "clip", "vae"),
    "UNETLoader": _unet,
    "LoraLoader": Execution.load_lora,
    "LoraLoaderModelOnly": Execution.load_lora,
    "ModelMergeSimple": _merged,
    "PrimitiveInt": lambda _, given: (given["value"],),
    "PrimitiveString": lambda _, given: (given["value"],),
    "PrimitiveStringMultiline": lambda _, given: (given["value"],),
    "StringConcatenate": lambda _, given: (given["delimiter"].join((given["string_a"], given["string_b"])),),
    "CLIPTextEncode": lambda _, given: ((given["text"],),),
    "CLIPTextEncodeSDXLRefiner": lambda _, given: ((given["text"],),),
    "CLIPTextEncodeSDXL": lambda _, given: ((given["text_g"], given["text_l"]),),
    "ConditioningCombine": lambda _, given: (given["conditioning_1"] + given["conditioning_2"],),
    "ConditioningConcat": lambda _, given: (given["conditioning_to"] + given["conditioning_from"],),
    "ConditioningAverage": lambda _, given: (given["conditioning_to"] + given["conditioning_from"],),
    "ConditioningZeroOut": lambda _, given: ((),),
    "EmptyLatentImage": lambda _, given: (Latent(given["width"], given["height"], given["batch_size"]),),
    "EmptySD3LatentImage": lambda _, given: (Latent(given["width"], given["height"], given["batch_size"]),),
    "VAEEncodeForInpaint": lambda _, given: (given["pixels"],),
    "VAEEncode": lambda _, given: (given["pixels"],),
    "VAEDecode": lambda _, given: (given["samples"],),
    "LoadImage": lambda _, given: (Latent(512, 512), None),
    "RandomNoise": lambda _, given: (given["noise_seed"],),
    "BasicScheduler": lambda _, given: (given["steps"],),
    "BasicGuider": _guider,
    "CFGGuider": _guider,
}
