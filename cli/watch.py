"""`--watch`: a job's stages, progress, loss and time left, on a terminal or line by line into a file."""

import json
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
from jobs.view import View
from storage.tables import ACTIVE, PictureState, Stage

_LOOK_EVERY_S = 0.25
_WORDS = {
    Stage.PREPROCESS: "fetch and check pictures",
    Stage.DATASET: "build the dataset",
    Stage.TRAIN: "train",
    Stage.UPLOAD: "check and upload",
    Stage.SETTLE: "settle credits",
}


def watch(services: Services, job_id: str, console: Console) -> View:
    """Follow a job until it is final; its last view. Ctrl-C leaves the job running and raises KeyboardInterrupt."""
    return _live(services, job_id, console) if console.is_terminal else _lines(services, job_id, console)


def _lines(services: Services, job_id: str, console: Console) -> View:
    """For files and pipes: a line for each event."""
    seen = 0
    while True:
        view = service.look(services, job_id)
        for event in service.events(services, job_id, seen):
            seen = event.id or seen
            console.print(f"{event.at:%H:%M:%S} {event.kind}: {_said(json.loads(event.data))}", highlight=False)
        if view["status"] not in ACTIVE:
            return view
        time.sleep(_LOOK_EVERY_S)


def _said(data: dict[str, Any]) -> str:
    told = {key: value for key, value in data.items() if value is not None}
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in told.items()
    )


def _live(services: Services, job_id: str, console: Console) -> View:
    view = service.look(services, job_id)
    with Live(_picture(view), console=console, refresh_per_second=8) as live:
        while view["status"] in ACTIVE:
            time.sleep(_LOOK_EVERY_S)
            view = service.look(services, job_id)
            live.update(_picture(view))
    return view


def _picture(view: View) -> Group:
    """The stages from top to bottom, the present one with what there is to tell of it."""
    table = Table.grid(padding=(0, 1))
    present = list(Stage).index(Stage(view["stage"]))
    for index, stage in enumerate(Stage):
        if index < present or view["status"] == "ready":
            table.add_row(Text("✓", "green"), Text(_WORDS[stage], "green"), _told(view, stage))
        elif index == present and view["status"] in ACTIVE:
            table.add_row(Spinner("dots", style="cyan"), Text(_WORDS[stage], "bold"), _told(view, stage))
        elif index == present:
            table.add_row(Text("✗", "red"), Text(_WORDS[stage], "red"), Text(view["status"], "red"))
        else:
            table.add_row(Text("·", "dim"), Text(_WORDS[stage], "dim"), "")
    head = Text(f"{view['job_id']}  ", "bold").append(
        f"{view['spec']['trigger_word']} on {view['spec']['base_model']}", ""
    )
    if view["attempt"] > 1:
        head.append(f"  attempt {view['attempt']}", "yellow")
    return Group(head, table)


def _told(view: View, stage: Stage) -> Progress | Text:
    pictures = view["pictures"]
    if stage is Stage.PREPROCESS:
        done = sum(picture["state"] != PictureState.WAITING for picture in pictures)
        bad = sum(picture["state"] == PictureState.BAD for picture in pictures)
        if done == len(pictures):
            return Text(f"{done - bad} good pictures" + (f", {bad} left out" if bad else ""), "dim")
        return _bar(done, len(pictures), "")
    if stage is Stage.TRAIN and (view["step"] or view["stage"] == stage):
        loss = f"loss {view['loss']:.4f}" if view["loss"] is not None else ""
        left = f"{view['seconds_left']:.0f} s left" if view["seconds_left"] else ""
        return _bar(view["step"], view["total_steps"], "  ".join(part for part in (loss, left) if part))
    return Text("")


def _bar(done: int, total: int, words: str) -> Progress:
    bar = Progress(BarColumn(30), MofNCompleteColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    bar.add_task(words, total=total, completed=done)
    return bar
