"""What a captioner is asked: a caption names what the LoRA should not learn, and leaves out what it should.

What a caption names, the prompt controls later. What it leaves out goes into the trigger word. Does not import torch.
"""

import hashlib
import json
from dataclasses import dataclass

from training.spec import Learns, TrainSpec

_COMMON = (
    "Write a caption of this picture for the training of an image generator: one sentence in plain English, of 8 to 40 "
    "words, without a preamble, without guesses, and without words for the quality of the picture."
)
_ABOUT: dict[Learns, str] = {
    "character": 'Call the person or character "{subject}". Name the pose, the expression, the clothes, the things '
    "around, the place, the light and the view. Leave out what is always the same about the person: face, hair, eyes, "
    "skin, body and age.",
    "object": 'Call the thing "{subject}". Name the place, what is around, the light and the view. Leave out how the '
    "thing itself looks: its shape, its colours, its material and its marks.",
    "style": "Name everything that is shown, and where. Leave out how it is made: no word for the style, the "
    "technique, the medium, the colours or the mood, and not whether it is a photograph, a painting or a drawing.",
}


@dataclass(frozen=True)
class Prompt:
    """What a picture's caption depends on beside the picture: who writes it, and what it is asked."""

    captioner: str  # the folder, hub id, task or address
    learns: Learns
    instruction: str

    def to_json(self) -> str:
        return json.dumps(vars(self), sort_keys=True)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def prompt_for(spec: TrainSpec, captioner: str) -> Prompt:
    """The prompt for the captions of a training."""
    about = _ABOUT[spec.learnt].format(subject=spec.subject)
    return Prompt(captioner, spec.learnt, f"{_COMMON} {about}")
