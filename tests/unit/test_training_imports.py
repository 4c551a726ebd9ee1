"""A worker that does not train never imports torch."""

import subprocess
import sys

import pytest

LIGHT = (
    "spec",
    "ports",
    "dataset",
    "pictures",
    "decoder",
    "decoder_child",
    "lora_file",
    "lora_metadata",
    "safetensor",
    "checkpoint_folder",
    "families",
    "backends.ai_toolkit.work",
    "backends.ai_toolkit.convert",
    "backends.ai_toolkit.fake.pod",
)
HEAVY = ("torch", "diffusers", "peft", "transformers")


@pytest.mark.parametrize("module", ["all", *LIGHT])
def test_imports_without_torch(module: str) -> None:
    names = LIGHT if module == "all" else (module,)
    code = "import sys\n" + "".join(f"import training.{name}\n" for name in names)
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
