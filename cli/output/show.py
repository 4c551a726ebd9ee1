"""How the commands show a job: as lines of text or as JSON, once or until it ends."""

import sys
from collections.abc import Sequence

from rich.markup import escape

from cli.output.terminal import err, out, print_json
from jobs.checkpoints import CheckpointView
from jobs.remote.run_views import RemoteRunView
from jobs.services import services
from jobs.view import JobView


def follow(job_id: str, as_json: bool) -> JobView:
    """Follow a job until it ends, or exit with 130 after Ctrl-C."""
    from cli.output.watch import watch

    try:
        return watch(services(), job_id, err if as_json else out)
    except KeyboardInterrupt:
        err.print(f"\nThe job continues. Follow it again with: celery -A tasks.app imprint status {job_id} --watch")
        sys.exit(130)


def coloured(view: JobView) -> str:
    """The status in its colour, for the console."""
    colour = {"ready": "green", "failed": "red", "cancelled": "yellow"}.get(view.status, "cyan")
    return f"[{colour}]{view.status}[/]"


def show(
    view: JobView,
    as_json: bool,
    runs: Sequence[RemoteRunView] | None = None,
    kept: Sequence[CheckpointView] | None = None,
) -> None:
    """Print a job, for people or as JSON."""
    if as_json:
        lists = {"remote_runs": runs, "checkpoints": kept}
        more = {name: [one.to_dict() for one in found] for name, found in lists.items() if found is not None}
        print_json(view.to_dict() | more)
        return
    out.print(
        f"{view.job_id}  {coloured(view)}  stage {view.stage}  step {view.step}/{view.total_steps}  "
        f"held {view.credits.held}  charged {view.credits.charged}", highlight=False,
    )  # fmt: skip
    if view.place:
        times = f", expected from {view.expected_start:%Y-%m-%d %H:%M} UTC" if view.expected_start else ""
        times += f" to {view.expected_end:%H:%M} UTC" if times and view.expected_end else ""
        out.print(f"  waits for its turn: place {view.place}{times}", highlight=False)
    for picture in view.pictures:
        if picture.faults:
            why = (picture.report and picture.report.error) or ""
            out.print(
                f"  {escape(picture.label)}: [yellow]{', '.join(picture.faults)}[/] {escape(why)}",
                highlight=False,
            )
    for run in runs or ():
        out.print(
            f"  attempt {run.attempt} on {run.server or 'no server yet'}: {run.state}, step {run.step}, "
            f"{run.cost_dollars:.4f} $  {run.reason or run.status}", highlight=False, markup=False,
        )  # fmt: skip
    for checkpoint in kept or ():
        out.print(f"  checkpoint of step {checkpoint.step}  {checkpoint.key}", highlight=False)
    if view.failure:
        out.print(f"  [red]{view.failure.code}[/]: {view.failure.message}", highlight=False)
    if view.lora:
        out.print(
            f"  LoRA {view.lora.key}  {view.lora.bytes} bytes  sha256 {view.lora.sha256}",
            highlight=False,
        )
