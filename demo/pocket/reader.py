"""Part 2: the text encoder learns to read captions, without pictures.

From the state at the end of a caption, one linear layer must predict everything that the caption mentions, thing by
thing. So the UNet has colours tied to their things from its first step on; otherwise it would spend most of its
training on learning to read. Meaningless words are encoded by their letters, so that trigger words differ.
"""

import zlib
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from torch import Tensor, nn

from demo.pocket.captions import SceneCaption, ThingDescription, describe
from demo.pocket.lesson import Lesson, compose_batch
from demo.pocket.networks import TEXT_WIDTH, make_text_encoder, tokenizer
from demo.pocket.words import COLOUR_NAMES, EXTRAS, KINDS, MAX_TOKENS, PATTERNS, PLACE_NAMES, SIZES

BATCH = 96
NAME_WIDTH = 32
_SEED = 202
_COLUMNS, _ROWS = ("left", "center", "right"), ("top", "center", "bottom")
_OF_THING = {"kind": KINDS, "colour": COLOUR_NAMES, "size": SIZES, "column": _COLUMNS, "row": _ROWS}
_OF_SCENE = {
    "relation": ("left", "right", "above", "below"),
    "place": PLACE_NAMES,
    "pattern": PATTERNS,
    "ground": COLOUR_NAMES,
}


class Quiz(nn.Module):
    """Predicts the content of a caption from one state of the text encoder."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [len(values) + 1 for _ in range(2) for values in _OF_THING.values()]
        sizes += [len(values) + 1 for values in _OF_SCENE.values()]
        self.sizes = sizes
        self.choices = nn.Linear(TEXT_WIDTH, sum(sizes))
        self.extras = nn.Linear(TEXT_WIDTH, 2 * len(EXTRAS))
        self.name = nn.Linear(TEXT_WIDTH, NAME_WIDTH)

    def error(self, states: Tensor, captions: list[SceneCaption]) -> Tensor:
        """The mean loss of the predictions from states [B, width]."""
        wanted = torch.tensor([_answers(caption) for caption in captions]).to(states.device)
        parts = self.choices(states).split(self.sizes, dim=1)
        errors = [nn.functional.cross_entropy(part, wanted[:, i]) for i, part in enumerate(parts)]
        error = torch.stack(errors).sum()
        worn = torch.tensor([[float(e in _thing(c, n).extras) for n in (0, 1) for e in EXTRAS] for c in captions])
        worn = worn.to(states.device)
        error = error + nn.functional.binary_cross_entropy_with_logits(self.extras(states), worn) * worn.shape[1]
        names = torch.stack([name_vector(caption.name) for caption in captions]).to(states.device)
        return error + 4 * nn.functional.mse_loss(self.name(states), names)


def _thing(caption: SceneCaption, number: int) -> ThingDescription:
    return caption.things[number] if number < len(caption.things) else ThingDescription()


def _answers(caption: SceneCaption) -> list[int]:
    """The class of each prediction; 0 if the caption does not mention it."""
    made = []
    for number in (0, 1):
        for field, values in _OF_THING.items():
            answer = getattr(_thing(caption, number), field)
            made.append(0 if answer is None else values.index(answer) + 1)
    for field, values in _OF_SCENE.items():
        answer = getattr(caption, field)
        made.append(0 if answer is None else values.index(answer) + 1)
    return made


def name_vector(name: str | None) -> Tensor:
    """An encoding of a word, [NAME_WIDTH]: a sum over its pairs of letters; zeros for no word."""
    if not name:
        return torch.zeros(NAME_WIDTH)
    marked = f"<{name}>"
    total = torch.zeros(NAME_WIDTH)
    for left, right in pairwise(marked):
        seed = zlib.crc32(f"{left}{right}".encode())
        total += torch.randn(NAME_WIDTH, generator=torch.Generator().manual_seed(seed))
    vector: Tensor = total / len(marked) ** 0.5
    return vector


def tokenize(words: Any, texts: list[str]) -> Tensor:
    """[B, MAX_TOKENS] token ids."""
    ids: Tensor = words(
        texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def learn(folder: Path, steps: int, device: torch.device) -> Any:
    """Train the text encoder, or resume; returns it frozen."""
    torch.manual_seed(_SEED)
    encoder, quiz, words = cast(Any, make_text_encoder()).to(device), Quiz().to(device), tokenizer()
    lesson = Lesson("text", folder, {"encoder": encoder, "quiz": quiz}, peak=2e-3, decay=1e-3)
    lesson.resume()

    def step_of(step: int) -> Tensor:
        random = Random(f"{_SEED} {step} captions")
        captions = [describe(scene, random) for scene in compose_batch(_SEED, step, BATCH)]
        ids = tokenize(words, [caption.text for caption in captions]).to(device)
        states = encoder(ids).last_hidden_state
        ends = (ids == words.eos_token_id).int().argmax(1)
        # At the end of the text, or at any padding after it, because the UNet also uses these states.
        later = torch.tensor([random.randint(end, MAX_TOKENS - 1) for end in ends.tolist()], device=device)
        rows = torch.arange(len(ids), device=device)
        return quiz.error(states[rows, ends], captions) + quiz.error(states[rows, later], captions)

    lesson.learn(steps, step_of)
    return encoder.eval().requires_grad_(False)
