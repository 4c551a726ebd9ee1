"""The model card of a LoRA: a Markdown page with the fields that Hugging Face reads, for the folder of the file."""

import json
import re
from typing import Any

from sqlmodel import col, func, select

from jobs import service
from jobs.requests.recipe_options import RecipeOption, options_of
from jobs.results import lora_files
from jobs.services import Services
from jobs.view import JobView
from storage.tables.jobs import JobPicture, PictureState
from training.families.registry import BASE_MODELS, FAMILIES
from training.lora.metadata import own_version
from training.spec import licence_of

_ALWAYS = ("rank", "alpha", "optimizer", "learning_rate", "batch_size", "resolution", "seed")  # shown if unchanged too
_NOT_SHOWN = ("checkpoint_every", "keep_checkpoints", "validation.previews")


def build(services: Services, job_id: str, owner_id: str | None = None) -> tuple[str, str]:
    """The name of the card's file, and its text. Raises as `lora_files.find` does."""
    found = lora_files.find(services, job_id, owner_id)
    view = service.get(services, job_id, owner_id)
    with services.database.reading() as session:
        captioned = session.exec(
            select(func.count()).where(col(JobPicture.job_id) == job_id, col(JobPicture.caption).is_not(None))
        ).one()
    parts = (_front(view), _title(view, found), _use(view), _training(view, captioned), _licence(view), _file(found))
    return f"{found.name.removesuffix('.safetensors')}.md", "\n\n".join(parts) + "\n"


def _front(view: JobView) -> str:
    """The fields between dashes. JSON's texts are YAML's."""
    spec = view.spec
    base = BASE_MODELS.get(spec.base_model)
    licence = base.licence if base is not None else "unknown"
    fields: dict[str, Any] = {
        "license": "apache-2.0" if licence.lower().replace(" ", "-") == "apache-2.0" else "other",
        "license_name": licence,
        "base_model": base.location if base is not None else spec.base_model,
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "instance_prompt": spec.trigger_word,
        "tags": ["lora", "diffusers", "text-to-image", spec.family],
    }
    lines = (f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items())
    return "\n".join(("---", *lines, "---"))


def _title(view: JobView, found: lora_files.Download) -> str:
    spec = view.spec
    title = BASE_MODELS[spec.base_model].title if spec.base_model in BASE_MODELS else FAMILIES[spec.family].title
    what = f" ({_line(spec.class_word)})" if spec.class_word else ""
    return (
        f"# {_line(view.subject_id)}\n\n"
        f"A LoRA of {_line(view.subject_id)}{what} for {title}. Trigger word: {_code(spec.trigger_word)}."
    )


def _use(view: JobView) -> str:
    spec = view.spec
    prompt = " ".join(filter(None, ("a photo of", spec.trigger_word, spec.class_word)))
    prompts = [prompt, *(one for one in spec.validation.previews if one != prompt)]
    forms = "\n".join(f"- {', '.join(form.programs)}: the {form.name} form" for form in lora_files.forms(spec.family))
    return (
        "## Use\n\nThe LoRA was trained for strength 1.0. Less gives the prompt more influence.\n\n"
        f"{forms}\n\nPrompts:\n\n" + "\n".join(f"- {_code(one)}" for one in prompts)
    )


def _training(view: JobView, captioned: int) -> str:
    used = sum(picture.state == PictureState.GOOD for picture in view.pictures)
    pictures = f"{used}"
    if left_out := len(view.pictures) - used:
        pictures += f" ({left_out} more left out)"
    rows = [("pictures", pictures), ("with a caption of their own", str(captioned)), ("steps", str(view.step))]
    rows += [("base model", view.spec.base_model)]
    if view.validation_loss is not None:
        rows.append(("loss on held-out pictures", f"{view.validation_loss:.4f}"))
    rows += [(_label(option), option.shown) for option in options_of(view.spec) if _is_shown(option)]
    lines = "\n".join(f"| {_line(name)} | {_line(value)} |" for name, value in rows)
    ended = f", {view.finished_at:%Y-%m-%d}" if view.finished_at else ""
    return f"## Training\n\nMade with Imprint {own_version()}{ended}.\n\n| | |\n| --- | --- |\n{lines}"


def _label(option: RecipeOption) -> str:
    return option.name + ("" if not option.is_changed else f" (default {option.shown_default})")


def _is_shown(option: RecipeOption) -> bool:
    return option.name not in _NOT_SHOWN and (option.name in _ALWAYS or option.is_changed)


def _licence(view: JobView) -> str:
    known = licence_of(view.spec.base_model)
    base = f"The base model's licence is {known}." if known else "The base model's licence is not known to Imprint."
    return f"## Licence\n\n{base} It applies to the LoRA too. Check the rights in the pictures before you share it."


def _file(found: lora_files.Download) -> str:
    return f"## File\n\n{_code(found.name)}, {found.bytes} bytes, SHA-256 {_code(found.sha256)}"


def _line(text: str) -> str:
    """A name in running text: nothing in it is markup."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|&!" else letter for letter in " ".join(text.split()))


def _code(text: str) -> str:
    """A text as code, whatever is in it."""
    flat = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    pad = " " if "`" in flat else ""
    return f"{fence}{pad}{flat}{pad}{fence}"
