"""`imprint backends` and `imprint pods`: where jobs can be trained, and the rented pods."""

import sys
from dataclasses import asdict

import click
from rich.table import Table

from cli.output.terminal import answers, err, out, print_json
from core.errors import NotFound
from jobs.remote import trainers as remotes
from jobs.services import services
from tasks.workers import fleet

# ---- backends -------------------------------------------------------------------------------------------------


@click.command()
@answers
def backends(*, as_json: bool) -> None:
    """List backends: health, GPU, queue length, price."""
    found_locally = fleet.inspect("train.")
    local, trouble = found_locally.queues, found_locally.trouble
    found = local + remotes.list_trainers(services())
    if as_json:
        print_json({"backends": [asdict(row) for row in found], "trouble": trouble})
        return
    table = Table("backend", "name", "health", "GPU", "queue", "$/h", box=None)
    for row in found:
        price = "" if row.dollars_per_hour is None else f"{row.dollars_per_hour:.2f}"
        queue = "" if row.queue is None else str(row.queue)
        table.add_row(row.backend, row.name, row.health, row.gpu or "", queue, price)
    out.print(table)
    if trouble:
        err.print(f"[yellow]{trouble}[/]")
    if len(found) == len(local):
        err.print(
            "No remote backend is configured: neither IMPRINT_AI_TOOLKIT_URL nor IMPRINT_RUNPOD_API_KEY is set",
            highlight=False,
        )


# ---- rented pods ----------------------------------------------------------------------------------------------


@click.group(invoke_without_command=True)
@click.option("--all", "everything", is_flag=True, help="Also pods that were deleted in the last 24 hours.")
@click.pass_context
@answers
def pods(context: click.Context, *, everything: bool, as_json: bool) -> None:
    """List rented pods: state, age, cost, jobs."""
    if context.invoked_subcommand is not None:
        return
    found, spent = remotes.list_pods(services(), gone=everything), remotes.spending(services())
    if as_json:
        print_json({"pods": [asdict(pod) for pod in found], "spending": asdict(spent)})
        return
    table = Table("pod", "GPU", "state", "age", "cost", "jobs", "why", box=None)
    for pod in found:
        minutes, cost, jobs = f"{pod.age_s / 60:.0f} min", f"${pod.dollars:.4f}", " ".join(pod.jobs)
        table.add_row(pod.name, pod.gpu, pod.state, minutes, cost, jobs, pod.reason or "")
    out.print(table if found else "no pod is rented")
    out.print(
        f"{spent.pods} of {spent.pods_max} pods, ${spent.per_hour:.2f} of ${spent.per_hour_max:.2f} an "
        f"hour, ${spent.in_24_hours:.2f} of ${spent.in_24_hours_max:.2f} in 24 hours", highlight=False,
    )  # fmt: skip


@pods.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Delete it even if jobs run on it; they start again elsewhere.")
@answers
def close(name: str, *, force: bool, as_json: bool) -> None:
    """Delete the pod NAME."""
    pod = next((pod for pod in remotes.list_pods(services()) if pod.name == name), None)
    if pod is None:
        raise NotFound(f"no rented pod has the name {name}")
    if pod.jobs and not force:
        err.print(f"{len(pod.jobs)} job(s) run on {name}; use --force to delete it anyway", highlight=False)
        sys.exit(1)
    jobs = remotes.close_pod(services(), name) or []
    [state] = [pod.state for pod in remotes.list_pods(services(), gone=True) if pod.name == name]
    if as_json:
        print_json({"name": name, "state": state, "jobs": jobs})
        return
    text = (
        "deleted"
        if state == "gone"
        else "marked for deletion; RunPod has not deleted it yet, and the sweep tries again"
    )
    out.print(f"{name}: {text}; {len(jobs)} job(s) start again elsewhere", highlight=False)


BACKENDS: tuple[click.Command, ...] = (backends, pods)
