"""`--watch`: stages, progress, loss and time left of a job, live on a terminal or as lines in a file."""

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from jobs import service
from jobs.services import Services
from jobs.view import JobView
from storage.tables.jobs import ACTIVE, PictureState, Stage

_POLL_S = 0.25
_WORDS = {
    Stage.PREPROCESS: "fetch and check pictures",
    Stage.CAPTION: "write captions",
    Stage.REVIEW: "wait for the review of the captions",
    Stage.DATASET: "build the dataset",
    Stage.TRAIN: "train",
    Stage.UPLOAD: "check and upload",
    Stage.SETTLE: "settle credits",
}


def watch(services: Services, job_id: str, console: Console) -> JobView:
    """Follow a job until it ends, and return its last view. Ctrl-C raises KeyboardInterrupt; the job continues."""
    return _live(services, job_id, console) if console.is_terminal else _lines(services, job_id, console)


def _lines(services: Services, job_id: str, console: Console) -> JobView:
    """One line per event, for files and pipes."""
    seen = 0
    while True:
        view = service.get(services, job_id)
        for event in service.events(services, job_id, seen):
            seen = event.id or seen
            console.print(f"{event.at:%H:%M:%S} {event.kind}: {_line(event.data)}", highlight=False)
        if view.status not in ACTIVE:
            return view
        time.sleep(_POLL_S)


def _line(data: dict[str, Any]) -> str:
    present = {key: value for key, value in data.items() if value is not None}
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in present.items()
    )


def _live(services: Services, job_id: str, console: Console) -> JobView:
    view = service.get(services, job_id)
    with Live(_screen(view), console=console, refresh_per_second=8) as live:
        while view.status in ACTIVE:
            time.sleep(_POLL_S)
            view = service.get(services, job_id)
            live.update(_screen(view))
    return view


def _screen(view: JobView) -> Group:
    """The stages from top to bottom, the current one with its progress."""
    table = Table.grid(padding=(0, 1))
    present = view.stages.index(view.stage)
    for index, stage in enumerate(view.stages):
        if index < present or view.status == "ready":
            table.add_row(Text("✓", "green"), Text(_WORDS[stage], "green"), _details(view, stage))
        elif index == present and view.status in ACTIVE:
            table.add_row(Spinner("dots", style="cyan"), Text(_WORDS[stage], "bold"), _details(view, stage))
        elif index == present:
            table.add_row(Text("✗", "red"), Text(_WORDS[stage], "red"), Text(view.status, "red"))
        else:
            table.add_row(Text("·", "dim"), Text(_WORDS[stage], "dim"), "")
    head = Text(f"{view.job_id}  ", "bold").append(f"{view.spec.trigger_word} on {view.spec.base_model}", "")
    if view.attempt > 1:
        head.append(f"  attempt {view.attempt}", "yellow")
    return Group(head, table)


def _details(view: JobView, stage: Stage) -> Progress | Text:
    pictures = view.pictures
    if stage is Stage.PREPROCESS:
        done = sum(picture.state != PictureState.WAITING for picture in pictures)
        bad = sum(picture.state == PictureState.BAD for picture in pictures)
        if done == len(pictures):
            return Text(f"{done - bad} good pictures" + (f", {bad} left out" if bad else ""), "dim")
        return _bar(done, len(pictures), "")
    if stage is Stage.TRAIN and (view.step or view.stage == stage):
        loss = f"loss {view.loss:.4f}" if view.loss is not None else ""
        left = f"{view.seconds_left:.0f} s left" if view.seconds_left else ""
        return _bar(view.step, view.total_steps, "  ".join(part for part in (loss, left) if part))
    return Text("")


def _bar(done: int, total: int, words: str) -> Progress:
    bar = Progress(BarColumn(30), MofNCompleteColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    bar.add_task(words, total=total, completed=done)
    return bar
