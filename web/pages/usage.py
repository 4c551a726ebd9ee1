"""How to use a LoRA file in each program that reads it, and what to know about those that do not read it whole."""

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.view import JobView
from training.families.registry import FAMILIES
from training.lora import readers as words
from web.pages.texts import gettext


@dataclass(frozen=True)
class Usage:
    """A program: what to do with the file there, a line to copy, and a warning if it does not read the file whole."""

    name: str
    how: str
    line: str
    warning: str = ""


def usage_of(view: JobView, verdicts: Mapping[str, str] | None, file: str) -> list[Usage]:
    """The programs that read the LoRA in `file`. `verdicts`: the inspector's, by program; None: not inspected."""
    spec, name = view.spec, file.removesuffix(".safetensors")
    prompt = " ".join(filter(None, ("a photo of", spec.trigger_word, spec.class_word)))
    in_comfyui = gettext("Put the file into models/loras, add a Load LoRA node with strength 1.0, and use this prompt:")
    found = [
        ("ComfyUI", in_comfyui, prompt),
        ("diffusers", gettext("With the base model's pipeline:"), f'pipeline.load_lora_weights("{file}")'),
    ]
    reads_it = FAMILIES[spec.family].lora.form == "kohya" if verdicts is None else "AUTOMATIC1111" in verdicts
    if reads_it:
        place = gettext("Put the file into models/Lora, and use this prompt:")
        found.append(("AUTOMATIC1111", place, f"{prompt} <lora:{name}:1>"))
    verdicts = verdicts or {}
    usages = [Usage(*one, warning=_warning(one[0], verdicts.get(one[0], words.WHOLE))) for one in found]
    return [one for one in usages if not verdicts.get(one.name, "").startswith(words.NO)]


def _warning(program: str, verdict: str) -> str:
    if verdict == words.WHOLE:
        return ""
    if verdict.startswith("in part"):
        return f"{program} reads this file only {verdict}."
    if words.WRONG in verdict:
        return f"{program} reads the lengths of this DoRA along the wrong axis and draws wrong pictures."
    if words.WITHOUT_LENGTHS in verdict:
        return f"{program} ignores the lengths of this DoRA, so its pictures differ: download the form for it."
    if words.CLOSE in verdict:
        return f"{program} computes the lengths of this DoRA slightly differently, so pictures may differ a little."
    if words.WITHOUT_SCALE in verdict:
        return f"{program} loads this file without its scale."
    return f"{program} reads this file {verdict}."
