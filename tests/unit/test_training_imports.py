"""A worker that does not train never imports torch."""

import subprocess
import sys

import pytest

LIGHT = (
    "training.spec",
    "training.ports",
    "training.data.dataset",
    "training.data.pictures",
    "training.data.decoder",
    "training.data.decoder_child",
    "training.lora.file",
    "training.lora.metadata",
    "training.lora.safetensor",
    "training.checkpoint_folder",
    "training.families",
    "training.backends.ai_toolkit.work",
    "training.backends.ai_toolkit.convert",
    "fakes.ai_toolkit.pod",
)
HEAVY = ("torch", "diffusers", "peft", "transformers")


@pytest.mark.parametrize("module", ["all", *LIGHT])
def test_imports_without_torch(module: str) -> None:
    names = LIGHT if module == "all" else (module,)
    code = "import sys\n" + "".join(f"import {name}\n" for name in names)
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
