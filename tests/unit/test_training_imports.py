"""A worker that does not train never imports torch."""

import subprocess
import sys

LIGHT = (
    "training.spec",
    "training.ports",
    "training.data.dataset",
    "training.data.pictures",
    "training.data.decoding.decoder",
    "training.data.decoding.decoder_child",
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


def test_nothing_that_a_worker_of_other_queues_imports_imports_torch() -> None:
    code = "import sys\n"
    for name in LIGHT:
        code += f"import {name}\n"
        code += f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        code += f"assert not heavy, f'{name} imports {{heavy}}'\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
