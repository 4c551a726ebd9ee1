"""Hostile LoRA files given to the commands that read strangers' files: no crash, nothing run, nothing half written."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import imprint
from tests.hostile.test_weights import RAN
from tests.hostile.weights import LORAS


@pytest.mark.parametrize("name", LORAS)
def test_convert_and_inspect_refuse_it_or_do_their_work(name: str, tmp_path: Path) -> None:
    make, _ = LORAS[name]
    file = tmp_path / "lora.safetensors"
    file.write_bytes(make())
    for to in ("peft", "kohya"):
        result = tmp_path / f"{to}.safetensors"
        done = CliRunner().invoke(imprint, ["convert", str(file), str(result), "--to", to])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert result.exists() == (done.exit_code == 0), done.output
    inspected = CliRunner().invoke(imprint, ["inspect", str(file)])
    assert inspected.exception is None or isinstance(inspected.exception, SystemExit), inspected.exception
    assert len(inspected.output) < 10_000
    assert {path.name for path in tmp_path.iterdir()} <= {"lora.safetensors", "peft.safetensors", "kohya.safetensors"}
    assert not RAN.exists()
