"""`imprint resolve` and `imprint generate`: find the LoRA of a subject, and draw with it."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.progress import Progress as Bar
from rich.progress import TextColumn, TimeElapsedColumn

from cli import drawings
from cli.operations.owners import OWNER
from cli.output.terminal import answers, err, out, print_json
from core.errors import SpecInvalid, StoreUnavailable, WorkflowInvalid
from generation.comfyui.follow import PromptProgress
from jobs.services import services
from jobs.subjects import drawing, lora_weights, loras
from jobs.subjects.comfyui_drawing import ComfyUITarget, draw_on_comfyui
from jobs.subjects.drawing import LocalDrawing
from jobs.subjects.lora_weights import LoraWeights
from training.families.registry import FAMILIES

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("subject_id")
@click.option("--owner", "owner_id", type=OWNER, default="me", show_default=True, help="The owner of the subject.")
@click.option("--base-model", help="Only a LoRA for this base model.")
@answers
def resolve(subject_id: str, *, owner_id: str, base_model: str | None, as_json: bool) -> None:
    """Show the newest finished LoRA of SUBJECT_ID."""
    found = loras.resolve(services(), owner_id, subject_id, base_model)
    if as_json:
        print_json(found.to_dict())
        return
    for name in ("job_id", "base_model", "trigger_word", "strength", "file", "sha256", "bytes", "url"):
        out.print(f"{name:13}{getattr(found, name)}", highlight=False, markup=False)


@click.command()
@click.option("--lora", "file", type=_FILE, help="A LoRA file.")
@click.option("--subject", "subject_id", help="Use the newest finished LoRA of this subject instead.")
@click.option("--owner", "owner_id", type=OWNER, default="me", show_default=True, help="The owner of the subject.")
@click.option("--base-model", help="Name, folder or hub id. Default: the base model of the LoRA.")
@click.option("--family", help=f"{', '.join(FAMILIES)}; needed for a hub id.")
@click.option("--prompt", help="What to draw, after the trigger word. ComfyUI: replaces the workflow's prompt.")
@click.option("--trigger", "trigger_word", help='Replaces the trigger word of the LoRA; "" for none.')
@click.option("--strength", type=float, help="Default: 1, what it was trained for. 0 has no effect.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Default: random. ComfyUI: the workflow's.")
@click.option("--out", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path("pictures-drawn"),
              show_default=True, help="Folder for the pictures.")  # fmt: skip
@click.option("--comfyui", "url", help="Address of a ComfyUI server. Default: draw on this machine.")
@click.option("--workflow", "workflow_file", type=_FILE,
              help="ComfyUI: a workflow in API format, or the editor's if the server converts it.")  # fmt: skip
@click.option("--loras", "shared", type=click.Path(file_okay=False, path_type=Path),
              help="ComfyUI: path of its models/loras on this machine. Default: upload by its assets API.")  # fmt: skip
@click.option("--loader", "loaders", multiple=True, help="ComfyUI: the model loader node that the LoRA follows.")
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="ComfyUI: seconds to wait.")
@click.option("--steps", type=click.IntRange(1, 1000), help="This machine: sampling steps.")
@click.option("--guidance", type=float, help="This machine: guidance scale.")
@click.option("--size", metavar="WxH", help="This machine: size in pixels, such as 768x512.")
@click.option("--count", type=click.IntRange(1, 100), help="This machine: how many pictures. Default: 1.")
@click.option("--device", help="This machine: auto, cpu, cuda. Default: auto.")
@click.option(
    "--queue", is_flag=True, help="A worker draws, for the owner's credits. Prints the drawing's id and ends."
)
@click.option("--wait", is_flag=True, help="As --queue, and wait for the pictures. Ctrl-C cancels the drawing.")
@click.option("--compare", is_flag=True, help="With --queue or --wait: each seed without the LoRA too.")
@answers
def generate(folder: Path, *, url: str | None, queue: bool, wait: bool, as_json: bool, **given: Any) -> None:
    """Draw with a LoRA: here, on a worker (--wait, --queue), or on a ComfyUI server.

    This machine and workers draw with diffusers. A ComfyUI server draws the workflow of --workflow.
    """
    _check(url, given, for_worker=queue or wait)
    if queue or wait:
        drawings.draw(folder, given, _size(given["size"]), wait=wait, as_json=as_json)
        return
    with _weights(given) as weights:
        result = _here(folder, weights, given) if url is None else _on_comfyui(folder, url, weights, given, as_json)
    if as_json:
        print_json(result)
        return
    for path in result["pictures"]:
        out.print(path, highlight=False, markup=False)
    if "loaders" in result:
        err.print(f"[dim]{escape(_changed(result))}[/]", highlight=False)
    for note in result.get("notes", []):
        err.print(f"[yellow]note[/]: {escape(note)}", highlight=False)


def _check(url: str | None, given: dict[str, Any], *, for_worker: bool) -> None:
    faults = drawings.check(given) if for_worker else {}
    if for_worker and url is not None:
        faults["--comfyui"] = "cannot be used with --queue or --wait"
    if given["compare"] and not for_worker:
        faults["--compare"] = "needs --queue or --wait"
    if given["file"] is not None and given["subject_id"] is not None:
        faults["--subject"] = "cannot be used with --lora"
    if given["file"] is None and given["subject_id"] is None and not for_worker:
        faults |= {
            f"--{name}": "changes nothing without --lora or --subject"
            for name, value in (("strength", given["strength"]), ("trigger", given["trigger_word"]))
            if value is not None
        }
    only_there = ("workflow_file", "shared", "loaders")
    only_here = ("steps", "guidance", "size", "family", "count", "device")
    if url is None:
        faults |= {f"--{name.split('_')[0]}": "needs --comfyui" for name in only_there if given[name]}
        if given["prompt"] is None:
            faults["--prompt"] = "is required without --comfyui"
    else:
        faults |= {
            f"--{name}": "cannot be used with --comfyui; set it in the workflow"
            for name in only_here
            if given[name] is not None
        }
        if given["workflow_file"] is None:
            faults["--workflow"] = "is required with --comfyui: a workflow file in API format"
    if faults:
        raise SpecInvalid.of(faults)


@contextmanager
def _weights(given: dict[str, Any]) -> Iterator[LoraWeights | None]:
    if given["subject_id"] is not None:
        base_model = given["base_model"]
        with lora_weights.subject_weights(services(), given["owner_id"], given["subject_id"], base_model) as weights:
            yield weights
    else:
        yield lora_weights.inspect_weights(given["file"]) if given["file"] is not None else None


def _on_comfyui(
    folder: Path, url: str, weights: LoraWeights | None, given: dict[str, Any], as_json: bool
) -> dict[str, Any]:
    place = ComfyUITarget(url, given["shared"], given["timeout_s"])
    columns = (TextColumn("{task.description}"), *Bar.get_default_columns()[1:3], TimeElapsedColumn())
    with Bar(*columns, console=err, transient=True, disable=as_json or not err.is_terminal) as bar:
        line = bar.add_task("connecting", total=None)

        def report(progress: PromptProgress) -> None:
            what = "waiting in the queue" if progress.node_id is None else f"node {progress.node_id}"
            bar.update(line, description=what, completed=progress.step, total=progress.total or None)

        def say(what: str) -> None:
            bar.update(line, description=what, completed=0, total=None)

        done = draw_on_comfyui(
            place,
            _workflow(given["workflow_file"]),
            weights,
            strength=_strength(given),
            trigger_word=given["trigger_word"],
            prompt=given["prompt"],
            seed=given["seed"],
            loaders=given["loaders"],
            say=say,
            report=report,
        )
    _write(folder / "workflow.json", (json.dumps(done.patched.workflow, indent=2) + "\n").encode())
    paths = [_write(folder / name, data) for name, data in done.pictures]
    changed = {
        name: getattr(done.patched, name) for name in ("loaders", "added", "texts", "prompted", "strengths", "seeds")
    }
    result = {"pictures": paths, "prompt_id": done.prompt_id, "workflow": str(folder / "workflow.json")}
    return result | changed | {"notes": done.notes}


def _changed(result: dict[str, Any]) -> str:
    """What was changed in the workflow, by node."""
    names = {"strengths": "LoRA", "prompted": "prompt", "seeds": "seed"}
    parts = [f"{name} in node {', '.join(result[key])}" for key, name in names.items() if result[key]]
    return "changed: " + "; ".join(parts) if parts else "nothing was changed in the workflow"


def _strength(given: dict[str, Any]) -> float:
    return loras.STRENGTH if given["strength"] is None else float(given["strength"])


def _workflow(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise WorkflowInvalid(f"{path} is not a JSON file") from None


def _here(folder: Path, weights: LoraWeights | None, given: dict[str, Any]) -> dict[str, Any]:
    first = secrets.randbits(32) if given["seed"] is None else given["seed"]
    seeds = tuple(first + number for number in range(given["count"] or 1))
    names = ("prompt", "base_model", "family", "steps", "guidance")
    how = LocalDrawing(
        seeds=seeds,
        size=_size(given["size"]),
        device=given["device"] or "auto",
        **{name: given[name] for name in names},
    )
    made = drawing.draw_locally(services(), how, weights, strength=_strength(given), trigger_word=given["trigger_word"])
    paths = [_write(folder / f"{seed}.png", data) for seed, data in zip(seeds, made, strict=True)]
    return {"pictures": paths, "seeds": seeds}


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()) or not all(
        64 <= int(side) <= 4096 and int(side) % 8 == 0 for side in (width, height)
    ):
        raise SpecInvalid.of({"--size": "must be WIDTHxHEIGHT, such as 768x512: multiples of 8 from 64 to 4096"})
    return int(width), int(height)


def _write(path: Path, data: bytes) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be written: {error.strerror}") from error
    return str(path)


GENERATION: tuple[click.Command, ...] = (resolve, generate)
