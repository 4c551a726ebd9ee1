"""A worker that does not train never imports torch."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

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

# What a light worker takes; a worker that only draws imports torch for its first drawing, if it draws on the CPU.
QUEUES = (["io", "cpu", "sweep"], ["fetch", "notices"], ["draw.sd15", "draw.sdxl"])
START = f"""
import sys
from types import SimpleNamespace
from celery.signals import celeryd_after_setup, celeryd_init
from tasks.app import app
app.loader.import_default_modules()
for names in {QUEUES}:
    app.amqp.queues.select(names)
    worker = SimpleNamespace(app=app, hostname="test", concurrency=1, pool_cls=None)
    celeryd_init.send(sender="test", instance=worker, conf=app.conf, options={{"queues": names}})
    celeryd_after_setup.send(sender="test", instance=worker, conf=app.conf)
    heavy = [name for name in {HEAVY} if name in sys.modules]
    assert not heavy, f"a worker of {{names}} imports {{heavy}}"
"""


def test_a_worker_that_does_not_train_starts_without_torch(tmp_path: Path) -> None:
    environment = {**os.environ, "IMPRINT_HOME": str(tmp_path / "home"), "IMPRINT_DEVICE": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", START], capture_output=True, text=True, timeout=60, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_nothing_that_a_worker_of_other_queues_imports_imports_torch() -> None:
    code = "import sys\n"
    for name in LIGHT:
        code += f"import {name}\n"
        code += f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        code += f"assert not heavy, f'{name} imports {{heavy}}'\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
