"""What there is to train on, from a terminal: `backends`, `pods`, and a RunPod of one's own for trying it out."""

import json
import sys

import click
from rich.table import Table

from core.errors import NotFound
from jobs import backends as remotes
from jobs.wiring import house
from tasks.fleet import look
from tasks.terminal import answers, err, out, print_json
from training.backends.ai_toolkit.fake.command import fake_pod

# ---- what there is --------------------------------------------------------------------------------------------


@click.command()
@answers
def backends(*, as_json: bool) -> None:
    """List what can train: health, GPU, queue length and dollars an hour of each."""
    fleet = look("train.")
    local, trouble = fleet.queues, fleet.trouble
    found = local + remotes.remote(house())
    if as_json:
        print_json({"backends": found, "trouble": trouble})
        return
    table = Table("backend", "name", "health", "GPU", "queue", "$/h", box=None)
    for row in found:
        price = "" if row["dollars_per_hour"] is None else f"{row['dollars_per_hour']:.2f}"
        queue = "" if row["queue"] is None else str(row["queue"])
        table.add_row(row["backend"], row["name"], row["health"], row["gpu"] or "", queue, price)
    out.print(table)
    if trouble:
        err.print(f"[yellow]{trouble}[/]")
    if len(found) == len(local):
        err.print(
            "No remote backend: neither IMPRINT_AI_TOOLKIT_URL nor IMPRINT_RUNPOD_API_KEY is set", highlight=False
        )


# ---- rented pods ----------------------------------------------------------------------------------------------


@click.group(invoke_without_command=True)
@click.option("--all", "everything", is_flag=True, help="Also those that went in the last 24 hours.")
@click.pass_context
@answers
def pods(context: click.Context, *, everything: bool, as_json: bool) -> None:
    """List rented pods: state, age, what they cost so far, and the jobs on them."""
    if context.invoked_subcommand is not None:
        return
    found, spent = remotes.rented(house(), gone=everything), remotes.spending(house())
    if as_json:
        print_json({"pods": found, "spending": spent})
        return
    table = Table("pod", "GPU", "state", "age", "cost", "jobs", "why", box=None)
    for pod in found:
        minutes, cost, jobs = f"{pod['age_s'] / 60:.0f} min", f"${pod['dollars']:.4f}", " ".join(pod["jobs"])
        table.add_row(pod["name"], pod["gpu"], pod["state"], minutes, cost, jobs, pod["reason"] or "")
    out.print(table if found else "no pod is rented")
    out.print(
        f"{spent['pods']} of {spent['pods_max']} pods, ${spent['per_hour']:.2f} of ${spent['per_hour_max']:.2f} an "
        f"hour, ${spent['in_24_hours']:.2f} of ${spent['in_24_hours_max']:.2f} in 24 hours", highlight=False,
    )  # fmt: skip


@pods.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Also with trainings on it: they begin again elsewhere.")
@answers
def close(name: str, *, force: bool, as_json: bool) -> None:
    """Delete the pod NAME now."""
    pod = next((pod for pod in remotes.rented(house()) if pod["name"] == name), None)
    if pod is None:
        raise NotFound(f"no pod of this name is rented: {name}")
    if pod["jobs"] and not force:
        err.print(f"{len(pod['jobs'])} training(s) are on it; --force closes it all the same", highlight=False)
        sys.exit(1)
    jobs = remotes.close(house(), name) or []
    [state] = [pod["state"] for pod in remotes.rented(house(), gone=True) if pod["name"] == name]
    if as_json:
        print_json({"name": name, "state": state, "jobs": jobs})
        return
    text = "deleted" if state == "gone" else "to be deleted; RunPod did not do it yet, the sweep goes on trying"
    out.print(f"{name}: {text}; {len(jobs)} training(s) begin again elsewhere", highlight=False)


@click.command(name="fake-runpod")
@click.option("--port", default=8674, show_default=True, help="On loopback; 0 takes a free one.")
@click.option("--key", default="fake-key", show_default=True, help="The API key that it takes.")
@click.option("--seed", default=0, show_default=True, help="Of what goes wrong.")
@click.option("--faults", metavar="JSON", default="{}", help="What goes wrong, and how often: see docs/rented-gpus.md.")
@click.option("--pods", "pod_options", metavar="JSON", default="{}", help="Options of the fake pods, the same way.")
def fake_runpod(port: int, key: str, seed: int, faults: str, pod_options: str) -> None:
    """Serve a RunPod on this machine that rents out fake pods, until Ctrl-C."""
    from pydantic import ValidationError

    from training.backends.fake_cloud import Faults
    from training.backends.fake_runpod import serve

    try:
        rates = Faults.model_validate_json(faults)
    except ValidationError as error:
        raise click.BadParameter("; ".join(str(one["msg"]) for one in error.errors()), param_hint="--faults") from None
    serve(port, key, seed, rates, json.loads(pod_options))


BACKENDS: tuple[click.Command, ...] = (backends, pods, fake_pod, fake_runpod)
