"""The check that a worker makes of its device, on the CPU: all agrees, and what is broken on purpose is seen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import BackendFailed
from core.settings import Settings
from core.telemetry import metrics
from tasks.workers import device_check
from tests.families import LOCAL
from training import self_check
from training.device import DeviceReport
from training.engine import recorder
from training.engine.cohorts import cohort
from training.engine.layout import Layout
from training.families.registry import FAMILIES, trained_here
from training.self_check import FamilyCheck, SelfCheck

Work = Callable[[], Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("self-check")


def called_again(work: Work) -> tuple[Callable[[], None], Tensor]:
    """Stands for a CUDA graph: the recorded work is repeated by calling it."""
    means = torch.zeros(1)

    def repeat() -> None:
        means.copy_(work())

    return repeat, means


def empty(work: Work) -> tuple[Callable[[], None], Tensor]:
    """Stands for a recording that holds nothing: no weight moves any more, and the last loss is reported again."""
    means = torch.full((1,), 1.1)
    return lambda: None, means


def refuses(work: Work) -> tuple[Callable[[], None], Tensor]:
    raise RuntimeError("operation not permitted when stream is capturing")


# In half precision the same is done as in float32, and more, so in float32 one of each kind will do. The sizes of one
# model are checked once.
AGREEING = [("float32", name) for name in ("sd15", "sdxl", "z-image")]
AGREEING += [("bfloat16", name) for name in LOCAL]


@pytest.mark.parametrize(("precision", "family"), AGREEING)
def test_every_family_agrees(folder: Path, precision: str, family: str) -> None:
    found = self_check.check_device(folder, "cpu", families=[family], asked_precision=precision, record=called_again)
    assert found.faults == []
    assert (found.unusable, found.records, found.verdict) == ([], True, "recorded steps agree")
    # Jobs of a transformer train alone, and are not recorded.
    together = {"slots", "recorded"} if family in ("sd15", "sdxl") else set()
    lower = {"precision"} if precision == "bfloat16" else set()
    [one] = found.families
    assert set(one.differences) == {"peft", "resume"} | together | lower
    assert one.differences["resume"] == 0
    assert f"precision {precision}; recorded steps agree" in found.text
    assert found.to_dict()["families"][0]["is_usable"] is True


def test_all_families_are_checked_unless_some_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes of one model once for all."""
    checked: list[str] = []

    def noted(name: str, *_: Any) -> FamilyCheck:
        checked.append(name)
        return FamilyCheck(name)

    monkeypatch.setattr(self_check, "_checked", noted)
    found = self_check.check_device(folder, "cpu")
    assert [one.family for one in found.families] == list(trained_here())
    assert len(checked) == len(set(checked)) < len(found.families)
    assert {FAMILIES[name].code for name in checked} == {FAMILIES[name].code for name in trained_here()}


@pytest.mark.parametrize("record", [empty, refuses])
def test_recorded_steps_that_differ_are_given_up(folder: Path, record: Any) -> None:
    found = self_check.check_device(folder, "cpu", families=["sd15"], record=record)
    assert (found.records, found.unusable) == (False, [])
    assert list(found.families[0].faults) == ["recorded"]
    assert "steps are sent one by one: sd15: recorded steps" in found.text


def test_a_wrong_product_is_no_device_to_train_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA products that are too large by a hundredth: peft sees it, and jobs of that family are refused."""
    loras = Layout.loras

    def larger(self: Layout, stack: Tensor, scales: Tensor, dtype: torch.dtype) -> Any:
        return loras(self, stack, scales * 1.01, dtype)

    monkeypatch.setattr(Layout, "loras", larger)
    found = self_check.check_device(folder, "cpu", families=["sd15"])
    assert found.unusable == ["sd15"]
    assert list(found.families[0].faults) == ["peft"]
    assert "takes no job of sd15: sd15: the engine's gradients and peft's in float32 differ by 0.01" in found.text


def test_a_family_that_cannot_be_stepped_leaves_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = cohort.Cohort.step

    def broken(self: cohort.Cohort) -> None:
        if self.family.name == "sdxl":
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
        step(self)

    monkeypatch.setattr(cohort.Cohort, "step", broken)
    found = self_check.check_device(folder, "cpu", families=["sd15", "sdxl"])
    assert found.unusable == ["sdxl"]
    assert "no kernel image" in found.verdict


def test_not_a_number_is_no_agreement(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort.Cohort, "weights_of", lambda self, job: torch.full((self.layout.size,), float("nan")))
    assert self_check.check_device(folder, "cpu", families=["z-image"]).unusable == ["z-image"]


# ---- what a worker makes of it ------------------------------------------------------------------------------------


def card(records: bool | None, *families: FamilyCheck) -> SelfCheck:
    report = DeviceReport("cuda", "NVIDIA Something", 2**34, "bfloat16", 0.1, "CUDA: NVIDIA Something, 16 GiB")
    return SelfCheck(report, {"driver": "600.1"}, list(families), records, 3.0)


class Counted:
    """Keeps what is counted."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, ...], float] = {}

    def record(self, measure: metrics.Measure, amount: float, labels: tuple[str, ...]) -> None:
        self.held[measure.name, *labels] = amount


def test_a_worker_steps_down_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(_env_file=None, home=tmp_path, device="cuda")
    counted = Counted()
    monkeypatch.setattr(metrics, "_sink", counted)
    monkeypatch.setattr(recorder, "_is_refused", False)
    monkeypatch.setattr("training.device.choose", lambda _: torch.device("cuda"))
    caplog.set_level("INFO")

    def found(check: SelfCheck) -> device_check.DeviceState:
        monkeypatch.setattr(self_check, "check_device", lambda *_, **__: check)
        return device_check.check(settings, ["sd15", "sdxl"])

    good = found(card(True, FamilyCheck("sd15"), FamilyCheck("sdxl")))
    assert (good.name, good.verdict, list(good.refused)) == ("NVIDIA Something", "recorded steps agree", [])
    assert "16 GiB; driver 600.1; recorded steps agree (3.0 s)" in caplog.text
    assert recorder.is_allowed()

    bad = found(card(False, FamilyCheck("sd15", faults={"recorded": "a"}), FamilyCheck("sdxl", faults={"peft": "b"})))
    assert list(bad.refused) == ["sdxl"]
    assert not recorder.is_allowed()
    assert caplog.records[-1].levelname == "ERROR"
    assert counted.held == {
        ("imprint_self_check", "sd15", "eager"): True,
        ("imprint_self_check", "sd15", "recorded"): False,
        ("imprint_self_check", "sdxl", "eager"): False,
        ("imprint_self_check", "sdxl", "recorded"): True,
    }


def test_a_device_that_does_not_work_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise BackendFailed("the device cuda computes wrong results: take it out of service")

    monkeypatch.setattr("training.device.choose", fails)
    state = device_check.check(Settings(_env_file=None, home=tmp_path), ["sd15"])
    assert (state.refused, "wrong results" in state.verdict) == (("sd15",), True)
