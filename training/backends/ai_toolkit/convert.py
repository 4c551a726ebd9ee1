"""From ai-toolkit's LoRA file to ours: our key names, an explicit alpha, our metadata."""

from collections.abc import Sequence
from pathlib import Path

from training.lora_file import LoraReport
from training.ports import Example
from training.spec import TrainSpec


def convert(
    source: Path, out: Path, spec: TrainSpec, examples: Sequence[Example], *, dataset_sha256: str, base_model: str = ""
) -> LoraReport:
    """Write ai-toolkit's file `source` as ours to `out`, whole or not at all; passes `lora_file.check`.

    base_model: the hub id that was trained on, kept in the metadata. Raises LoraInvalid for a file that is not what
    was ordered.
    """
    raise NotImplementedError
