"""`imprint generate --queue` and `--wait`: a drawing that a worker draws, with its price, progress and cancellation."""

import sys
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cli.output.terminal import err, out, print_json
from core.errors import FailureCode, ImprintError, StoreUnavailable
from jobs.drawings import drawings
from jobs.drawings.drawing_view import DrawingView
from jobs.services import services
from storage.tables.drawings import OPEN, DrawingStatus

_POLL_S = 0.25
_WORDS = {DrawingStatus.PENDING: "waiting for a worker", DrawingStatus.DRAWING: "drawing"}


class DrawingFailed(ImprintError):
    """The drawing failed. The message and the code are the drawing's."""

    def __init__(self, view: DrawingView) -> None:
        failure = view.failure
        super().__init__(failure.message or "the drawing failed" if failure else "the drawing failed")
        self.code = FailureCode(failure.code) if failure else FailureCode.INTERNAL  # type: ignore[misc]


def check(given: dict[str, Any]) -> dict[str, str]:
    """What is wrong with the options of a drawing for a worker."""
    faults = {
        f"--{option}": "cannot be used with --queue or --wait: a worker draws on its own device"
        for option, name in (("lora", "file"), ("family", "family"), ("trigger", "trigger_word"), ("device", "device"))
        if given[name] is not None
    }
    if given["subject_id"] is None:
        faults["--subject"] = "is required with --queue or --wait"
    return faults


def draw(folder: Path, given: dict[str, Any], size: tuple[int, int] | None, *, wait: bool, as_json: bool) -> None:
    """Ask a worker for a drawing; with `wait`, follow it to its end and save its pictures in `folder`."""
    arguments = {
        name: given[name]
        for name in ("owner_id", "subject_id", "base_model", "prompt", "strength", "seed", "count", "steps", "guidance")
        if given[name] is not None
    }
    arguments |= {"compare": given["compare"]}
    arguments |= {"width": size[0], "height": size[1]} if size else {}
    view = drawings.submit(services(), arguments)
    if not wait:
        _tell(view, [], as_json)
        return
    try:
        view = _follow(view, as_json)
    except KeyboardInterrupt:
        view = drawings.cancel(services(), view.drawing_id)
        err.print(f"\n{view.drawing_id} is cancelled; {view.credits.charged} credits were charged", highlight=False)
        sys.exit(130)
    if view.status != DrawingStatus.READY:
        raise DrawingFailed(view)
    _tell(view, _save(view, folder), as_json)


def _tell(view: DrawingView, files: list[str], as_json: bool) -> None:
    if as_json:
        print_json(view.to_dict() | {"files": files})
        return
    for line in files or [view.drawing_id]:
        out.print(line, highlight=False, markup=False)
    paid = f"{view.credits.charged} charged" if files else f"{view.credits.held} held"
    err.print(f"[dim]{view.drawing_id}: {view.status}, credits: {paid}[/]", highlight=False)


def _follow(view: DrawingView, as_json: bool) -> DrawingView:
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=as_json or not err.is_terminal) as bar:
        line = bar.add_task("", total=view.total_steps)
        while view.status in OPEN:
            bar.update(line, description=_WORDS[view.status], completed=view.step)
            time.sleep(_POLL_S)
            view = drawings.get(services(), view.drawing_id)
    return view


def _save(view: DrawingView, folder: Path) -> list[str]:
    """Save the pictures under their seeds; those without the LoRA are named so."""
    paths = []
    for picture in view.pictures:
        path = folder / f"{picture.seed}{'' if picture.with_lora else '-without-lora'}.png"
        data = drawings.picture(services(), view.drawing_id, picture.number)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be written: {error.strerror}") from error
        paths.append(str(path))
    return paths
