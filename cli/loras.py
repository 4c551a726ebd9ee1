"""`imprint inspect` and `imprint convert`: check LoRA files from any trainer, and convert them."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from cli.output.terminal import answers, err, out, print_json
from core.errors import SpecInvalid, StoreUnavailable
from training.lora import file as lora_file
from training.lora import formats as lora_formats
from training.lora import inspect as lora_inspect
from training.lora.inspect import InspectionReport
from training.lora.reading import read_lora

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("file", type=_FILE)
@answers
def inspect(file: Path, *, as_json: bool) -> None:
    """Show and check a LoRA file from any trainer.

    Shows family, format, modules, rank, scale, norms and faults. Exit code 1 if the file is broken; a sound file of
    another method or family is shown as what it is.
    """
    report = lora_inspect.inspect(file)
    if as_json:
        print_json({"path": str(file), **report.to_dict()})
    else:
        _show(file, report)
    if report.problems:
        sys.exit(1)


@click.command()
@click.argument("file", type=_FILE)
@click.argument("result", type=_FILE)
@click.option("--to", required=True, type=click.Choice(lora_formats.FORMATS), help="The format of RESULT.")
@click.option("--force", is_flag=True, help="Overwrite RESULT if it exists.")
@answers
def convert(file: Path, result: Path, *, to: str, force: bool, as_json: bool) -> None:
    """Convert the LoRA in FILE to another format, RESULT.

    Weights, strength and metadata stay the same. kohya: for AUTOMATIC1111, ComfyUI and diffusers (sd15, sdxl). comfyui:
    the same, with ComfyUI's key names for z-image. peft: the format of diffusers; for flux1, flux2-klein and
    qwen-image also that of ComfyUI.
    """
    if result.exists() and not force:
        raise SpecInvalid.of({"RESULT": f"{result} exists; use --force to overwrite it"})
    data = lora_formats.serialize_as(read_lora(file), to)
    try:
        lora_file.write_file(result, data)
    except OSError as error:
        raise StoreUnavailable(f"{result} cannot be written: {error.strerror}") from error
    report = lora_inspect.inspect(data)
    facts = {"path": str(result), "format": to, "modules": report.modules, "scales": report.scales}
    if as_json:
        print_json(facts | {"size_bytes": report.size_bytes, "sha256": report.sha256})
        return
    out.print(
        f"{result}  {report.modules} modules as {to}, scale {_numbers(report.scales)}", highlight=False, markup=False
    )
    for warning in report.warnings:
        err.print(f"[yellow]note[/]: {escape(warning)}", highlight=False)


def _show(file: Path, report: InspectionReport) -> None:
    facts: dict[str, Any] = {
        "verdict": report.verdict + (f": {', '.join(report.contains)}" if report.contains else ""),
        "family": report.family or "unknown",
        "form": report.format + (" (DoRA)" if report.is_dora else ""),
        "rank": _numbers(report.ranks),
        "alpha": _numbers(report.alphas) or "not in the file",
        "scale": _numbers(report.scales),
        "modules": f"{report.modules}, {report.parameters} parameters, {', '.join(report.precision) or 'nothing'}",
        "trigger word": report.trigger_word or "not in the file",
        "size": f"{report.size_bytes} bytes",
        "sha256": report.sha256,
    }
    out.print(f"[bold]{escape(str(file))}[/]", highlight=False)
    for name, value in facts.items():
        out.print(f"  {name:13}{escape(str(value))}", highlight=False)
    if report.recipe:
        shown = ", ".join(f"{name} {value}" for name, value in report.recipe.items() if name != "trigger_word")
        out.print(f"  recipe       {escape(shown[:2000])}", highlight=False)
    if report.kinds:
        table = Table("modules", "count", "rank", "scale", "norm, mean", "norm, largest", box=None)
        for kind, stats in report.kinds.items():
            norms = ["" if stats[name] is None else f"{stats[name]:.4g}" for name in ("norm_mean", "norm_max")]
            table.add_row(
                kind,
                str(stats["modules"]),
                _numbers(stats["ranks"]),
                _numbers(stats["scales"]),
                *norms,
            )
        out.print(table)
    if report.readers:
        readers = "; ".join(f"{name}: {how}" for name, how in report.readers.items())
        out.print(f"  read by      {readers}", highlight=False)
    others = {name: value for name, value in report.metadata.items() if not name.startswith("imprint_recipe")}
    for name, value in sorted(others.items()):
        line = value.replace("\n", " ")
        out.print(f"  [dim]{escape(name[:60])} = {escape(line[:120])}{'…' * (len(line) > 120)}[/]", highlight=False)
    for problem in report.problems:
        err.print(f"[red]broken[/]: {escape(problem)}", highlight=False)
    for warning in report.warnings:
        err.print(f"[yellow]note[/]: {escape(warning)}", highlight=False)


def _numbers(values: list[Any]) -> str:
    """A few numbers, or the span of many."""
    if len(values) > 4:
        return f"{values[0]:g} to {values[-1]:g}, {len(values)} different"
    return ", ".join(f"{value:g}" for value in values)


LORAS = (inspect, convert)
