"""The shapes of ten of ComfyUI's own workflow templates, rebuilt by hand: as an API export has them.

Nodes inside a subgraph have ids such as `57:3`, and their numbers often come from a `PrimitiveInt`.
"""

from dataclasses import dataclass, field
from typing import Any

Nodes = dict[str, Any]


@dataclass(frozen=True)
class Template:
    """A workflow, and what patching it with a seed must change."""

    nodes: Nodes
    seeds: dict[str, str]  # the node that holds the seed, and the name of its input
    words: list[str]  # the nodes that get the trigger word
    after: list[str]  # the loaders that the LoRA follows
    samplers: list[str] = field(default_factory=list)  # whose model must come through the LoRA


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def link(node_id: str, slot: int = 0) -> list[Any]:
    return [node_id, slot]


def checkpoint(node_id: str = "4", file: str = "sd15.safetensors") -> Nodes:
    return {node_id: node("CheckpointLoaderSimple", ckpt_name=file)}


def text(words: Any, clip: list[Any]) -> dict[str, Any]:
    return node("CLIPTextEncode", text=words, clip=clip)


def sampler(
    model: list[Any], positive: list[Any], negative: list[Any], latent: list[Any], **more: Any
) -> dict[str, Any]:
    inputs = {"seed": 11, "steps": 4, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0} | more
    return node("KSampler", model=model, positive=positive, negative=negative, latent_image=latent, **inputs)


def saved(latent: list[Any], vae: list[Any], prefix: str = "") -> Nodes:
    return {
        f"{prefix}8": node("VAEDecode", samples=latent, vae=vae),
        "9": node("SaveImage", images=link(f"{prefix}8"), filename_prefix="imprint"),
    }


def empty(width: int = 256, kind: str = "EmptyLatentImage") -> dict[str, Any]:
    return node(kind, width=width, height=256, batch_size=1)


def default() -> Template:
    """Text to image with one checkpoint."""
    nodes = {
        **checkpoint(),
        "5": empty(),
        "6": text("a castle in a bottle", link("4", 1)),
        "7": text("text, watermark", link("4", 1)),
        "3": sampler(link("4"), link("6"), link("7"), link("5")),
        **saved(link("3"), link("4", 2)),
    }
    return Template(nodes, {"3": "seed"}, ["6"], ["4"], ["3"])


def hires_fix() -> Template:
    """A second sampler on the enlarged latent, with the same texts and one seed for both."""
    nodes = default().nodes
    nodes |= {
        "20": node("PrimitiveInt", value=42),
        "10": node("LatentUpscaleBy", samples=link("3"), upscale_method="bilinear", scale_by=1.5),
        "11": sampler(link("4"), link("6"), link("7"), link("10"), denoise=0.5, seed=link("20")),
        **saved(link("11"), link("4", 2)),
    }
    nodes["3"]["inputs"]["seed"] = link("20")
    return Template(nodes, {"20": "value"}, ["6"], ["4"], ["3", "11"])


def lora_multiple() -> Template:
    nodes = default().nodes
    nodes |= {
        "10": node("LoraLoader", model=link("4"), clip=link("4", 1), lora_name="detail.safetensors",
                   strength_model=0.8, strength_clip=1.0),
        "11": node("LoraLoader", model=link("10"), clip=link("10", 1), lora_name="styles/ink.safetensors",
                   strength_model=0.5, strength_clip=0.5),
    }  # fmt: skip
    nodes["3"]["inputs"]["model"] = link("11")
    nodes["6"]["inputs"]["clip"] = nodes["7"]["inputs"]["clip"] = link("11", 1)
    return Template(nodes, {"3": "seed"}, ["6"], ["4"], ["3"])


def inpaint() -> Template:
    nodes = default().nodes
    del nodes["5"]
    nodes |= {
        "20": node("LoadImage", image="pose.png"),
        "26": node("VAEEncodeForInpaint", pixels=link("20"), vae=link("4", 2), mask=link("20", 1), grow_mask_by=6),
    }
    nodes["3"]["inputs"]["latent_image"] = link("26")
    return Template(nodes, {"3": "seed"}, ["6"], ["4"], ["3"])


def area_composition() -> Template:
    """Six regions of the sky and the ground, and a text for the whole."""
    nodes = default().nodes
    places = ("night", "evening", "day", "morning", "sea", "meadow")
    whole = link("6")
    for number, place in enumerate(places):
        nodes[f"2{number}"] = text(f"({place}) sky, dark", link("4", 1))
        nodes[f"3{number}"] = node("ConditioningSetArea", conditioning=link(f"2{number}"), width=256, height=64,
                                   x=0, y=64 * number, strength=1.0)  # fmt: skip
        nodes[f"4{number}"] = node("ConditioningCombine", conditioning_1=link(f"3{number}"), conditioning_2=whole)
        whole = link(f"4{number}")
    nodes["3"]["inputs"]["positive"] = whole
    return Template(nodes, {"3": "seed"}, ["25"], ["4"], ["3"])


def controlnet_two() -> Template:
    nodes = default().nodes
    nodes |= {
        "20": node("LoadImage", image="pose.png"),
        "21": node("ControlNetLoader", control_net_name="canny.safetensors"),
        **{
            number: node("ControlNetApplyAdvanced", positive=link(before), negative=link(other, slot),
                         control_net=link("21"), image=link("20"), strength=1.0, start_percent=0.0, end_percent=1.0)
            for number, before, other, slot in (("22", "6", "7", 0), ("23", "22", "22", 1))
        },
    }  # fmt: skip
    nodes["3"]["inputs"] |= {"positive": link("23"), "negative": link("23", 1)}
    return Template(nodes, {"3": "seed"}, ["6"], ["4"], ["3"])


def sdxl_refiner() -> Template:
    """Base and refiner, whose prompts and numbers come from the same nodes."""

    def half(model: str, positive: str, negative: str, latent: str, **more: Any) -> dict[str, Any]:
        return node("KSamplerAdvanced", model=link(model), noise_seed=link("45"), steps=link("46"), cfg=8.0,
                    sampler_name="euler", scheduler="normal", positive=link(positive), negative=link(negative),
                    latent_image=link(latent), **more)  # fmt: skip

    first = {"add_noise": "enable", "start_at_step": 0, "end_at_step": 3, "return_with_leftover_noise": "enable"}
    second = {"add_noise": "disable", "start_at_step": 3, "end_at_step": 99, "return_with_leftover_noise": "disable"}
    nodes = {
        **checkpoint("4", "sd_xl_base_1.0.safetensors"),
        **checkpoint("12", "sd_xl_refiner_1.0.safetensors"),
        "45": node("PrimitiveInt", value=721897303308196),
        "46": node("PrimitiveInt", value=4),
        "50": node("PrimitiveStringMultiline", value="sunset over a lake"),
        "5": empty(),
        "6": text(link("50"), link("4", 1)),
        "7": text("watermark", link("4", 1)),
        "15": text(link("50"), link("12", 1)),
        "16": text("watermark", link("12", 1)),
        "10": half("4", "6", "7", "5", **first),
        "11": half("12", "15", "16", "10", **second),
        **saved(link("11"), link("12", 2)),
    }
    # 52 is a copy of 50: the refiner, which does not know the LoRA, keeps the prompt as it was.
    return Template(nodes, {"45": "value"}, ["52"], ["4"], ["10"])


def flux_dev() -> Template:
    nodes = {
        "12": node("UNETLoader", unet_name="z_image_turbo_bf16.safetensors", weight_dtype="default"),
        "11": node("DualCLIPLoader", clip_name1="qwen_3_4b.safetensors", clip_name2="qwen_3_4b.safetensors",
                   type="flux"),
        "10": node("VAELoader", vae_name="ae.safetensors"),
        "6": text("an anime girl with a fox", link("11")),
        "26": node("FluxGuidance", conditioning=link("6"), guidance=3.5),
        "30": node("ModelSamplingSD3", model=link("12"), shift=1.15),
        "22": node("BasicGuider", model=link("30"), conditioning=link("26")),
        "25": node("RandomNoise", noise_seed=219670278747233),
        "16": node("KSamplerSelect", sampler_name="euler"),
        "17": node("BasicScheduler", model=link("30"), scheduler="simple", steps=4, denoise=1.0),
        "27": empty(kind="EmptySD3LatentImage"),
        "13": node("SamplerCustomAdvanced", noise=link("25"), guider=link("22"), sampler=link("16"), sigmas=link("17"),
                   latent_image=link("27")),
        **saved(link("13"), link("10")),
    }  # fmt: skip
    return Template(nodes, {"25": "noise_seed"}, ["6"], ["12"], ["22"])


def z_image_turbo() -> Template:
    """One subgraph, as its API export has it, with the prompt and the seed outside."""
    nodes = {
        "58": node("PrimitiveStringMultiline", value="a fox in the snow"),
        "59": node("PrimitiveInt", value=7),
        "57:28": node("UNETLoader", unet_name="z_image_turbo_bf16.safetensors", weight_dtype="default"),
        "57:30": node("CLIPLoader", clip_name="qwen_3_4b.safetensors", type="lumina2", device="default"),
        "57:29": node("VAELoader", vae_name="ae.safetensors"),
        "57:27": text(link("58"), link("57:30")),
        "57:33": node("ConditioningZeroOut", conditioning=link("57:27")),
        "57:11": node("ModelSamplingAuraFlow", model=link("57:28"), shift=3.0),
        "57:13": empty(kind="EmptySD3LatentImage"),
        "57:3": sampler(link("57:11"), link("57:27"), link("57:33"), link("57:13"), seed=link("59"), cfg=1.0),
        **saved(link("57:3"), link("57:29"), "57:"),
    }
    return Template(nodes, {"59": "value"}, ["58"], ["57:28"], ["57:3"])


def z_image_two_subgraphs() -> Template:
    """A subgraph in a subgraph: one seed for two samplers, whose number another node needs too."""
    nodes = z_image_turbo().nodes
    nodes |= {
        "60:57:10": node("LatentUpscaleBy", samples=link("57:3"), upscale_method="bilinear", scale_by=1.5),
        "60:57:3": sampler(link("57:11"), link("57:27"), link("57:33"), link("60:57:10"), seed=link("59"), denoise=0.4),
        "61": empty(),
        **saved(link("60:57:3"), link("57:29"), "57:"),
    }
    nodes["61"]["inputs"]["batch_size"] = link("59")
    return Template(nodes, {"57:3": "seed", "60:57:3": "seed"}, ["58"], ["57:28"], ["57:3", "60:57:3"])


TEMPLATES = {
    made.__name__: made
    for made in (
        default, hires_fix, lora_multiple, inpaint, area_composition, controlnet_two, sdxl_refiner, flux_dev,
        z_image_turbo, z_image_two_subgraphs,
    )
}  # fmt: skip


# ---- as the editor saves it -------------------------------------------------------------------------------------


def edited(prompt: str = "a fox in the snow") -> dict[str, Any]:
    """Z-Image's workflow in the editor's format: a subgraph, with prompt and seed as its inputs."""
    inner = [
        _edited(28, "UNETLoader", [], ["z_image_turbo_bf16.safetensors", "default"],
                models=[{"name": "z_image_turbo_bf16.safetensors", "directory": "diffusion_models",
                         "url": "https://huggingface.co/Comfy-Org/z_image_turbo/resolve/main/z_image_turbo_bf16.safetensors"}]),
        _edited(30, "CLIPLoader", [], ["qwen_3_4b.safetensors", "lumina2", "default"]),
        _edited(29, "VAELoader", [], ["ae.safetensors"]),
        _edited(27, "CLIPTextEncode", [("clip", 1), ("text", 2)], ["not used: the text is linked"]),
        _edited(33, "ConditioningZeroOut", [("conditioning", 3)], []),
        _edited(11, "ModelSamplingAuraFlow", [("model", 4)], [3]),
        _edited(13, "EmptySD3LatentImage", [], [256, 256, 1]),
        _edited(3, "KSampler", [("model", 5), ("positive", 6), ("negative", 7), ("latent_image", 8), ("seed", 9)],
                [0, "randomize", 4, 1.0, "euler", "simple", 1.0]),
        _edited(8, "VAEDecode", [("samples", 10), ("vae", 11)], []),
    ]  # fmt: skip
    ends = [(1, 30, 0, 27, 0), (2, -10, 0, 27, 1), (3, 27, 0, 33, 0), (4, 28, 0, 11, 0), (5, 11, 0, 3, 0),
            (6, 27, 0, 3, 1), (7, 33, 0, 3, 2), (8, 13, 0, 3, 3), (9, -10, 1, 3, 4), (10, 3, 0, 8, 0),
            (11, 29, 0, 8, 1), (12, 8, 0, -20, 0)]  # fmt: skip
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    subgraph = {"id": _SUBGRAPH, "name": "Text to Image (Z-Image-Turbo)", "nodes": inner,
                "links": [dict(zip(names, end, strict=True)) for end in ends]}  # fmt: skip
    return {
        "id": "0", "version": 0.4, "last_node_id": 60, "last_link_id": 3,
        "nodes": [
            _edited(57, _SUBGRAPH, [("text", 1), ("seed", 2)], []),
            _edited(58, "PrimitiveStringMultiline", [], [prompt]),
            _edited(59, "PrimitiveInt", [], [7, "fixed"]),
            _edited(9, "SaveImage", [("images", 3)], ["imprint"]),
            _edited(60, "MarkdownNote", [], ["how to use this"]),
        ],
        "links": [[1, 58, 0, 57, 0, "STRING"], [2, 59, 0, 57, 1, "INT"], [3, 57, 0, 9, 0, "IMAGE"]],
        "definitions": {"subgraphs": [subgraph]},
    }  # fmt: skip


_SUBGRAPH = "f2fdebf6-dfaf-43b6-9eb2-7f70613cfdc1"


def _edited(number: int, kind: str, links: list[tuple[str, int]], values: list[Any], **about: Any) -> dict[str, Any]:
    inputs = [{"name": name, "type": "*", "link": at} for name, at in links]
    return {"id": number, "type": kind, "mode": 0, "inputs": inputs, "widgets_values": values,
            "properties": {"cnr_id": "comfy-core", **about}}  # fmt: skip
