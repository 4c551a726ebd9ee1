"""Captions that are longer than a text encoder reads: the trigger word is moved to where it is read."""

from collections.abc import Sequence
from dataclasses import replace

from training.data.dataset import find_trigger, with_trigger
from training.families.family import Base, FamilyCode
from training.ports import Example
from training.spec import TrainSpec

_SURE_BYTES = 75  # a token has at least a byte of text, and every family reads 75 tokens


def fit_captions(
    family: FamilyCode, base: Base, spec: TrainSpec, examples: Sequence[Example]
) -> tuple[list[Example], list[str]]:
    """The examples with captions whose trigger word is read, and a note on each caption that is not read to its end.

    A text encoder ignores what is behind its last token. Where that is the trigger word, the word is put in front too:
    otherwise the training would teach nothing about it.
    """
    fitted, notes = [], []
    for example in examples:
        caption, note = _fit(family, base, spec, example.caption)
        fitted.append(example if caption == example.caption else replace(example, caption=caption))
        if note:
            notes.append(f"{example.label or 'a picture'}: {note}")
    return fitted, notes


def _fit(family: FamilyCode, base: Base, spec: TrainSpec, caption: str) -> tuple[str, str]:
    if len(caption.encode()) <= _SURE_BYTES or family.reads_whole(base, caption):
        return caption, ""
    read = _characters_read(family, base, caption)
    trigger = find_trigger(spec, caption)
    moved = ""
    if trigger is None or trigger.end() > read:
        caption = with_trigger(spec, caption)
        read = _characters_read(family, base, caption)
        moved = ", so the trigger word was put in front"
    cut = caption[read:].strip()
    shown = cut if len(cut) <= 60 else f"{cut[:59]}…"
    return caption, f'its caption is longer than the text encoder reads; not read: "{shown}"{moved}'


def _characters_read(family: FamilyCode, base: Base, caption: str) -> int:
    """How many characters of a caption are read."""
    read, over = 0, len(caption)  # up to `read` it fits, up to `over` it does not
    while over - read > 1:
        middle = (read + over) // 2
        read, over = (middle, over) if family.reads_whole(base, caption[:middle]) else (read, middle)
    return read
