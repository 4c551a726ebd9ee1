"""Captions that a training without a queue has written: kept in a file beside the LoRA, where people can change them.

A line is a JSON object as in `metadata.jsonl`: `file_name` and `text`, and what the caption depends on. The next run
takes the texts from there, so it asks for nothing twice, and changes of the file count.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.files import atomic_file
from training.captioning import wording
from training.captioning.instructions import prompt_for
from training.data.folders.prepare import Uncaptioned
from training.spec import TrainSpec


def write_captions(
    pictures: Sequence[Uncaptioned], spec: TrainSpec, captioner: str, device: str, file: Path
) -> dict[str, str]:
    """The captions of prepared pictures by their hash, from `file` or from the captioner. Writes them to `file`.

    A picture that the captioner says nothing of has none. Raises BaseModelUnavailable, OutOfMemory, DeviceLost.
    """
    prompt = prompt_for(spec, captioner)
    lines = _read(file)
    known = {sha256: text for (sha256, asked), (_, text) in lines.items() if asked == prompt.sha256}
    missing = {one.sha256: one.png for one in pictures if one.sha256 not in known}
    if missing:
        from training.captioning import captioner as device_captioner  # torch

        names = {one.sha256: one.name for one in pictures}

        def save(said: Mapping[str, str]) -> None:
            for sha256, text in said.items():
                known[sha256] = wording.finish(spec, text) or ""
                lines[sha256, prompt.sha256] = names[sha256], known[sha256]
            _write(file, lines)

        order = device_captioner.CaptionOrder(captioner, prompt.instruction, missing, device)
        device_captioner.write_captions(order, lambda: None, save)
    return {one.sha256: known[one.sha256] for one in pictures if known[one.sha256].strip()}


_Lines = dict[tuple[str, str], tuple[str, str]]  # the picture and the prompt, to the name and the text


def _read(file: Path) -> _Lines:
    """The lines of the file. One that cannot be read is asked for again."""
    lines: _Lines = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            held = json.loads(line)
            lines[str(held["sha256"]), str(held["prompt"])] = str(held["file_name"]), str(held["text"])
        except (ValueError, KeyError, TypeError):
            continue
    return lines


def _write(file: Path, lines: _Lines) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as out:
        for (sha256, prompt), (name, text) in lines.items():
            line = {"file_name": name, "text": text, "sha256": sha256, "prompt": prompt}
            out.write(f"{json.dumps(line, ensure_ascii=False)}\n".encode())
