"""The command `imprint fake-runpod`."""

import json

import click


@click.command(name="fake-runpod")
@click.option("--port", default=8674, show_default=True, help="On loopback; 0 takes a free one.")
@click.option("--key", default="fake-key", show_default=True, help="The API key that it accepts.")
@click.option("--seed", default=0, show_default=True, help="Seed of random faults.")
@click.option("--faults", metavar="JSON", default="{}", help="Rates of faults: see docs/rented-gpus.md.")
@click.option("--pods", "pod_options", metavar="JSON", default="{}", help="Options of the fake pods, in the same way.")
def fake_runpod(port: int, key: str, seed: int, faults: str, pod_options: str) -> None:
    """Serve a fake RunPod that rents out fake pods, until Ctrl-C."""
    from pydantic import ValidationError

    from fakes.runpod.cloud import RunPodFaults
    from fakes.runpod.server import serve_runpod

    try:
        rates = RunPodFaults.model_validate_json(faults)
    except ValidationError as error:
        raise click.BadParameter("; ".join(str(one["msg"]) for one in error.errors()), param_hint="--faults") from None
    serve_runpod(port, key, seed, rates, json.loads(pod_options))


COMMAND = fake_runpod
