"""Two processes on the CPU: the LoRA of one process with the whole batch; a stop, and on.

`accelerate launch` starts them in the test of the stop. In the others they are forked with the variables that it sets.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from core.errors import SpecInvalid
from tests.servers import launcher
from tests.servers.process import free_port
from tests.site import MASCOT, ROOT, until
from training.engine import distributed

# On a machine without GPUs the launcher's multi-GPU mode is the one that starts plain processes.
LAUNCH = ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no",
          "--dynamo_backend", "no", "--module"]  # fmt: skip


def command(base_model: Path, out: Path, *more: str, program: str = "training") -> list[str]:
    return [
        program, str(MASCOT), "--base-model", str(base_model),
        "--family", "sd15", "--trigger", "imp", "--resolution", "64", "--device", "cpu", "--out", str(out), *more,
    ]  # fmt: skip


def run(arguments: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """`arguments` begin with a module. Of `accelerate launch`, only the first process comes from our launcher."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return launcher.run(arguments, cwd=ROOT, env=environment, folder=folder, timeout=240)


def launched(arguments: list[str]) -> list[str]:
    return [LAUNCH[0], "--num_processes", "2", "--main_process_port", str(free_port()), *LAUNCH[1:], *arguments]


def run_two(arguments: list[str], folder: Path) -> str:
    """What both processes print. Both must end well."""
    common = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(free_port())}  # fmt: skip
    log, processes = folder / "both.log", list[launcher.Process]()
    with log.open("ab") as out:
        for rank in ("0", "1"):
            environment = {**common, "RANK": rank, "LOCAL_RANK": rank}
            processes.append(
                launcher.launcher().start(
                    arguments, cwd=ROOT, env=environment, stdout=out.fileno(), stderr=out.fileno()
                )
            )
    try:
        codes = [process.wait(240) for process in processes]
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
    assert codes == [0, 0], log.read_text()
    return log.read_text()


def test_two_processes_make_the_lora_of_one(
    base_model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("out")
    recipe = ("--max-steps", "5", "--batch-size", "4", "--set", "optimization.max_grad_norm=0.01")
    one, two, half = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "half"))
    assert run(command(base_model, one, *recipe), out).returncode == 0
    assert run_two(command(base_model, two, *recipe), out).count(str(two)) == 1, "only the first process tells"
    assert {path.name for path in tmp_path.iterdir()} == {"one.safetensors", "two.safetensors"}
    alone, together = load_file(one), load_file(two)
    assert alone.keys() == together.keys()
    moved = max(float(np.abs(alone[name]).max()) for name in alone if "lora_up" in name)
    apart = max(float(np.abs(alone[name] - together[name]).max()) for name in alone)
    assert apart < 1e-4
    assert apart < moved / 20, "and it is not that nothing was learnt"
    # That comparison would find a process that trains on its half alone.
    assert run(command(base_model, half, "--max-steps", "5", "--batch-size", "2", *recipe[4:]), out).returncode == 0
    other = load_file(half)
    assert max(float(np.abs(alone[name] - other[name]).max()) for name in alone) > 10 * apart


def test_memory_that_runs_out_in_an_evaluation_of_one_process_ends_neither(base_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "starved.safetensors"
    recipe = (
        "--max-steps", "4", "--batch-size", "2", "--set", "validation.held_out=1", "--set", "validation.every_epochs=1",
    )  # fmt: skip
    run_two(command(base_model, out, *recipe, program="tests.training.starved"), tmp_path)
    with safe_open(out, "np") as lora:
        assert "imprint_validation_loss" in lora.metadata()


def test_a_batch_that_cannot_be_shared_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecInvalid, match="3 cannot be shared evenly by 2 processes"), distributed.sharing("cpu", 3):
        pass


@pytest.mark.drawn
def test_both_stop_at_the_same_step_and_go_on(base_model: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "shared.safetensors", tmp_path / "log"
    arguments = command(base_model, out, "--max-steps", "80", "--batch-size", "2", "--checkpoint-every", "1")
    kept = tmp_path / "shared.safetensors.checkpoints"
    with log.open("wb") as text:
        process = subprocess.Popen(
            [sys.executable, "-m", *launched(arguments)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=text, stderr=text, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            until(lambda: kept.is_dir() and any(kept.glob("*.safetensors")), 120, "a checkpoint")
            os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C: to the launcher and all its processes
            process.wait(60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    stopped = int(re.findall(r"step (\d+) is saved", log.read_text())[0])
    assert 0 < stopped < 80
    assert f"resumed at step {stopped}" in " ".join(run_two(arguments, tmp_path).split())
    assert not kept.exists()
