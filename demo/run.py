"""The steps of the demo."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.output.watch import watch
from cli.stack import running
from core.errors import ImprintError
from core.settings import settings
from demo import pictures_of_it
from demo.cloud import Cloud
from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from jobs.remote.run_views import list_runs
from jobs.requests import quotes
from jobs.services import services
from jobs.stages import intake
from jobs.view import JobView

PICTURES = Path(__file__).resolve().parent / "pictures"
OWNER, TRIGGER = "demo", "imp mascot"
# More layers and a higher rank than the family's recipe: the pocket model has a thousandth of the weights of Stable
# Diffusion, and the mascot differs from everything that it knows.
RECIPE = {
    "base_model": "sd15",
    "resolution": 64,
    "epochs": 120,
    "rank": 16,
    "alpha": 64.0,
    "learning_rate": 1e-3,
    "adapter": {"targets": "all"},
    # Not the rest of the recipe that the model carries (model/recipe.json).
    "optimization": {"schedule": "cosine", "loraplus_ratio": 1.0, "ema_decay": 0.0},
    "objective": {"weighting": "none", "prior_share": 0.0},
}
SEED = 7
GRANTED = 1000
_DELETED_WITHIN_S = 60.0

console = Console()


def main(base: Path, cloud: Cloud | None, jobs: int = 1) -> int:
    """Run the demo; 0 if each LoRA is ready, the ledger is consistent, and no pod of `cloud` is left."""
    try:
        return _demo(base, cloud, jobs)
    except ImprintError as error:
        console.print(f"[red]{error.message}[/]", highlight=False)
        return 1


def _demo(base: Path, cloud: Cloud | None, jobs: int) -> int:
    begun = time.monotonic()
    home = settings().home
    many = "one LoRA" if jobs == 1 else f"{jobs} LoRAs, trained as one cohort"
    console.rule(f"[bold]Imprint demo[/]: ten pictures, {many}" + (", on a rented GPU" if cloud else ""))
    if cloud:
        console.print(
            "[yellow]The rented GPU is a stand-in:[/] RunPod and its pod run on this machine, with the API of the real "
            "ones. The pod trains for real, on this CPU. Nothing is paid."
        )
    left = 0
    with running(settings(), fresh=True) as stack:
        console.print(f"The stack is up. Flower: {stack.layout.flower_url} (login {stack.layout.flower_login})")
        accounts.grant(services(), OWNER, GRANTED, key="demo grant")
        sent = send(jobs)
        views = [watch(services(), job_id, console) for job_id in sent]
        view = views[0]
        failed = [one for one in views if one.status != "ready"]
        for one in failed:
            failure = f"{one.failure.code}: {one.failure.message}" if one.failure else one.status
            console.print(f"[red]{failure}[/]", highlight=False)
            console.print(f"The logs are in {settings().log_dir}")
        if not failed:
            _show(view, home, base)
        if cloud:
            left = _pods(cloud, view)
        findings = sweeps.run_audit(services())
        _statement(findings == [])
    rented = {"trained_on": view.trained_on.server, "pods_left": left} if cloud else {}
    others = {"jobs": [_brief(one) for one in views]} if jobs > 1 else {}
    print(json.dumps(_result(view, home, time.monotonic() - begun) | others | rented))
    return 0 if not failed and not findings and not left else 1


def _brief(view: JobView) -> dict[str, Any]:
    return {"job_id": view.job_id, "status": view.status, "sha256": view.lora.sha256 if view.lora else None}


def send(jobs: int) -> list[str]:
    """Send the task as an application would, `jobs` times with different seeds; returns the job ids."""
    from tasks.ingress import train_lora

    images = [
        {"ref": intake.store_picture(services(), OWNER, "mascot", file.read_bytes()), "caption": _caption(file)}
        for file in sorted(PICTURES.glob("*.png"))
    ]
    common = {"owner_id": OWNER, "subject_id": "mascot", "images": images, "trigger_word": TRIGGER, **RECIPE}
    quote = quotes.quote(services(), common)
    each = f", each of {jobs} jobs" if jobs > 1 else ""
    console.print(f"{len(images)} pictures, {quote.steps} steps: {quote.credits} of {quote.available} credits{each}")
    asked = [common | {"seed": SEED + number, "idempotency_key": f"demo {number}"} for number in range(jobs)]
    answers = [train_lora.apply_async(kwargs=arguments) for arguments in asked]
    return [answer.get(timeout=60)["job_id"] for answer in answers]


def _caption(picture: Path) -> str | None:
    text = picture.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.is_file() else None


def _show(view: JobView, home: Path, base: Path) -> None:
    """Write the LoRA file, the loss curve, and samples without and with the LoRA."""
    lora = home / "lora_weights.safetensors"
    service.download(services(), view.job_id, lora)
    losses = [
        (data["step"], data["loss"])
        for event in service.events(services(), view.job_id)
        if event.kind == "progress" and (data := event.data)["loss"] is not None
    ]
    curve, samples = home / "loss.png", home / "before_after.png"
    pictures_of_it.loss_curve(losses, curve)
    shown = sorted(PICTURES.glob("*.png"))
    pictures_of_it.before_after(base, lora, TRIGGER, shown, samples)
    table = Table.grid(padding=(0, 2))
    for name, path in (("LoRA", lora), ("loss curve", curve), ("before and after", samples)):
        table.add_row(f"[bold]{name}[/]", str(path))
    console.print(table)


def _pods(cloud: Cloud, view: JobView) -> int:
    """Print the rented pods and their costs; returns the number of pods that were not deleted in time."""
    until = time.monotonic() + _DELETED_WITHIN_S
    while any(pod["left"] for pod in cloud.pods()) and time.monotonic() < until:
        time.sleep(0.5)
    table = Table(
        "pod", "GPU it stands for", "seconds", "dollars", "now", title="rented", title_justify="left", box=None
    )
    for pod in cloud.pods():
        state = "[red]still there[/]" if pod["left"] else "deleted"
        table.add_row(pod["name"], pod["gpu"], f"{pod['seconds']:.0f}", f"{pod['microdollars'] / 1e6:.4f}", state)
    console.print(table)
    borne = sum(run.cost_dollars for run in list_runs(services(), view.job_id))
    console.print(f"{borne:.4f} dollars of that are this training's, the rest is waiting", highlight=False)
    return sum(pod["left"] for pod in cloud.pods())


def _statement(in_order: bool) -> None:
    balance = accounts.balance(services(), OWNER)
    table = Table("no.", "what", "credits", title="credit statement", title_justify="left", box=None)
    for entry in reversed(accounts.statement(services(), OWNER)):
        table.add_row(str(entry.seq), entry.kind, str(entry.amount))
    console.print(table)
    console.print(
        f"{balance.available} available + {balance.held} held + {balance.spent} spent = {balance.granted} granted; "
        + ("[green]the ledger is consistent[/]" if in_order else "[red]the ledger is NOT consistent[/]"),
        highlight=False,
    )


def _result(view: JobView, home: Path, seconds: float) -> dict[str, Any]:
    ready = view.status == "ready"
    return {
        "status": view.status,
        "job_id": view.job_id,
        "lora": str(home / "lora_weights.safetensors") if ready else None,
        "sha256": view.lora.sha256 if view.lora else None,
        "steps": view.step,
        "train_seconds": view.train_seconds,
        "total_seconds": round(seconds, 1),
        "charged": view.credits.charged,
        "balance": accounts.balance(services(), OWNER).available,
    }
