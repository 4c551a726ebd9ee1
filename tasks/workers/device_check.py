"""The check of a training worker's device before the first job: its name, and the families it must not train."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import BackendFailed
from core.settings import Settings
from core.telemetry import metrics

log = logging.getLogger(__name__)

FOLDER = "self-check"  # under the home folder: the tiny base models that the check trains


@dataclass(frozen=True)
class DeviceState:
    """What a worker reports about its device."""

    name: str
    verdict: str = ""  # of the self-check; empty if none was made
    refused: Sequence[str] = ()  # families whose jobs the worker does not take


def is_cpu(settings: Settings) -> bool:
    """Whether this worker computes on a CPU, or on nothing."""
    from training.device import choose  # torch: only on workers that train or draw

    try:
        return choose(settings.device).type == "cpu"
    except BackendFailed:
        return True


def check(settings: Settings, families: Sequence[str]) -> DeviceState:
    """Test the device with a matrix product, and a GPU with a tiny training of each family.

    If recorded steps differ from steps that run one by one, this process records none. A family with wrong steps is
    refused; if the device does not work, all are.
    """
    # torch: only on workers that train
    from training.device import choose, probe

    try:
        if choose(settings.device).type != "cuda":
            report = probe(settings.device)
            log.info("%s", report.text)
            return DeviceState(report.name)
        return _check_card(settings, families)
    except (BackendFailed, RuntimeError) as error:  # torch's CUDA errors are RuntimeErrors
        log.error("this worker takes no training: %s", error)
        return DeviceState("nothing", f"takes no job: {error}", tuple(families))


def _check_card(settings: Settings, families: Sequence[str]) -> DeviceState:
    from training import self_check
    from training.engine import recorder

    found = self_check.check_device(
        settings.home.resolve() / FOLDER, settings.device, families=families, asked_precision=settings.precision,
        deterministic=settings.deterministic,
    )  # fmt: skip
    log.log(logging.ERROR if found.faults else logging.INFO, "%s", found.text)
    if found.records is False:
        recorder.refuse()
    for one in found.families:
        metrics.SELF_CHECK.add(one.is_usable, one.family, "eager")
        if found.records is not None:
            metrics.SELF_CHECK.add("recorded" not in one.faults, one.family, "recorded")
    return DeviceState(found.device.name, found.verdict, found.unusable)
