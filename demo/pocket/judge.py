"""Part 4: a small classifier that says what is in a picture, trained on drawings. It grades what the model draws.

A quarter of each batch is encoded and decoded by the autoencoder, and some pictures get noise, so that the classifier
also recognises imperfect drawings. It also learns to recognise the strangers, on which the model is never trained, and
to distinguish each from its double.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo.pocket.autoencoder import anything
from demo.pocket.captions import SceneCaption, ThingDescription
from demo.pocket.lesson import Lesson, compose_batch, draw_batch, rate
from demo.pocket.scenes import PocketScene
from demo.pocket.strangers import STRANGERS, Stranger, picture
from demo.pocket.words import COLOUR_NAMES, COLOURS, EXTRAS, KINDS, PATTERNS, PLACE_NAMES, SIZES

BATCH = 36
FILE = "judge.safetensors"
_EXTRA = 4  # pictures of strangers, as many of their doubles, and as many of things that captions never mention
_THROUGH_VAE = 4  # every fourth picture
_SEED = 404
_HEADS = {
    "present": len(KINDS),
    "colour": len(KINDS) * len(COLOUR_NAMES),
    "size": len(KINDS) * len(SIZES),
    "middle": len(KINDS) * 2,
    "extras": len(EXTRAS),
    "place": len(PLACE_NAMES) + 1,  # the last one: a ground with a pattern
    "pattern": len(PATTERNS),
    "ground": len(COLOUR_NAMES),
    "strangers": len(STRANGERS),
}


class Judge(nn.Module):
    """From pictures [B, 3, 64, 64] in -1..1 to scores for everything that captions can mention."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(3, 24, 2), (24, 48, 2), (48, 64, 1), (64, 96, 2), (96, 96, 1), (96, 96, 2)]
        layers: list[nn.Module] = []
        for before, after, stride in widths:
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU()]
        self.eye = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 128), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(128, size) for name, size in _HEADS.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        seen = self.eye(pictures)
        return {name: head(seen) for name, head in self.heads.items()}

    @torch.no_grad()
    def likeness(self, one: Sequence[Image], other: Sequence[Image]) -> Tensor:
        """Cosine similarities of the features of pictures in `one` and in `other`, [len(one), len(other)]."""
        middle = self.eye(torch.zeros(1, 3, 64, 64))
        left, right = (nn.functional.normalize(self.eye(as_tensor(p)) - middle, dim=1) for p in (one, other))
        return left @ right.T


def as_tensor(pictures: Sequence[Image]) -> Tensor:
    """[B, 3, 64, 64] in -1..1."""
    values = np.stack([np.asarray(picture.convert("RGB").resize((64, 64)), np.float32) for picture in pictures])
    return torch.from_numpy(values / 127.5 - 1.0).permute(0, 3, 1, 2).contiguous()


def learn(folder: Path, steps: int, vae: Any, device: torch.device) -> Judge:
    """Train the judge, or resume."""
    torch.manual_seed(_SEED)
    judge = Judge().to(device)
    lesson = Lesson("judge", folder, {"judge": judge}, peak=2e-3, decay=1e-2)
    lesson.resume()

    def step_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(_SEED * 1_000_003 + step)
        scenes = compose_batch(_SEED, step, BATCH)
        others, spotted = _others(step, STRANGERS, _EXTRA)
        pictures = _worn(torch.cat([draw_batch(scenes), others]).to(device), vae, generator)
        scores = {name: score.cpu() for name, score in judge(pictures).items()}
        wanted = torch.cat([torch.zeros(BATCH, len(STRANGERS)), spotted])
        spotting = nn.functional.binary_cross_entropy_with_logits(scores["strangers"], wanted)
        return error({name: score[:BATCH] for name, score in scores.items()}, scenes) + 5 * spotting

    lesson.learn(steps, step_of)
    return judge.eval().requires_grad_(False)


def relearn(judge: Judge, strangers: Sequence[Stranger], vae: Any, steps: int = 500) -> Judge:
    """Train a judge to recognise other strangers, in a minute or two. It may forget other things."""
    torch.manual_seed(_SEED)
    pupil = Judge()
    pupil.load_state_dict(judge.state_dict())
    pupil.heads["strangers"] = nn.Linear(128, len(strangers))
    optimizer = torch.optim.AdamW(pupil.parameters(), weight_decay=1e-2)
    for step in range(steps):
        generator = torch.Generator().manual_seed(_SEED * 1_000_003 + step)
        drawn, spotted = _others(step, strangers, 2 * _EXTRA)
        score = pupil(_worn(drawn, vae, generator))["strangers"]
        torch.autograd.backward(nn.functional.binary_cross_entropy_with_logits(score, spotted))
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, 1e-3, 50)
        optimizer.step()
        optimizer.zero_grad()
    return pupil.eval().requires_grad_(False)


@torch.no_grad()
def _worn(pictures: Tensor, vae: Any, generator: torch.Generator) -> Tensor:
    """Make `pictures` look like a model's: add noise to all, and encode and decode every fourth, in place."""
    mean = vae.encode(pictures[::_THROUGH_VAE]).latent_dist.mean
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    pictures[::_THROUGH_VAE] = vae.decode(mean + noise * mean.std() * 0.12).sample.clamp(-1, 1)
    strength = 0.12 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    return pictures + (strength * torch.randn(pictures.shape, generator=generator)).to(pictures.device)


def _others(step: int, strangers: Sequence[Stranger], count: int) -> tuple[Tensor, Tensor]:
    """`count` strangers, as many doubles and as many things without captions, with labels, [3 count, …]."""
    random = Random(f"{_SEED} {step} strangers")
    images, rows = [], []
    for number in range(2 * count):
        which, is_double = random.randrange(len(strangers)), number >= count
        place = random.choice(PLACE_NAMES) if random.random() < 0.7 else COLOURS[random.choice(COLOUR_NAMES)]
        images.append(picture(strangers[which], place, random, is_double=is_double))
        rows.append([float(not is_double and which == i) for i in range(len(strangers))])
    rows += [[0.0] * len(strangers)] * count
    return torch.cat([as_tensor(images), draw_batch(anything(_SEED, step, 2 * count)[::2])]), torch.tensor(rows)


def error(scores: dict[str, Tensor], scenes: Sequence[PocketScene]) -> Tensor:
    """The loss of the scores."""
    F = nn.functional  # noqa: N806 - its usual name
    present = torch.tensor([[float(any(t.kind == kind for t in s.things)) for kind in KINDS] for s in scenes])
    found = [(row, t) for row, scene in enumerate(scenes) for t in scene.things]
    rows, kinds = torch.tensor([row for row, _ in found]), torch.tensor([KINDS.index(t.kind) for _, t in found])
    colours, sizes, middles = (
        scores[name].view(len(scenes), len(KINDS), -1)[rows, kinds] for name in ("colour", "size", "middle")
    )
    worn = torch.tensor([[float(any(e in t.extras for t in s.things)) for e in EXTRAS] for s in scenes])
    places = torch.tensor([PLACE_NAMES.index(s.place) if s.place else len(PLACE_NAMES) for s in scenes])
    plain = [row for row, scene in enumerate(scenes) if scene.ground is not None]
    total = 5 * F.binary_cross_entropy_with_logits(scores["present"], present)
    total = total + F.cross_entropy(colours, torch.tensor([COLOUR_NAMES.index(t.colour) for _, t in found]))
    total = total + 0.5 * F.cross_entropy(sizes, torch.tensor([SIZES.index(t.size) for _, t in found]))
    total = total + 10 * F.mse_loss(middles, torch.tensor([[t.x - 0.5, t.y - 0.5] for _, t in found]))
    total = (
        total + F.binary_cross_entropy_with_logits(scores["extras"], worn) + F.cross_entropy(scores["place"], places)
    )
    grounds = torch.tensor([COLOUR_NAMES.index(str(scenes[row].ground)) for row in plain])
    patterns = torch.tensor([PATTERNS.index(str(scenes[row].pattern)) for row in plain])
    total = total + 0.5 * F.cross_entropy(scores["ground"][plain], grounds)
    return total + 0.3 * F.cross_entropy(scores["pattern"][plain], patterns)


@torch.no_grad()
def spot(judge: Judge, pictures: Sequence[Image], name: str, among: Sequence[Stranger] = STRANGERS) -> list[bool]:
    """Whether each picture shows the stranger of that name, which the judge must have been trained on."""
    number = [stranger.name for stranger in among].index(name)
    seen: list[bool] = (judge(as_tensor(pictures))["strangers"][:, number] > 0).tolist()
    return seen


@torch.no_grad()
def grade(judge: Judge, pictures: Sequence[Image], captions: Sequence[SceneCaption]) -> dict[str, tuple[int, int]]:
    """For each kind of caption content: how often the pictures show it, and how often captions mention it.

    A colour, size or position counts as shown only if the kind of the thing is shown too.
    """
    scores = judge(as_tensor(pictures))
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for row, caption in enumerate(captions):
        seen = {name: values[row] for name, values in scores.items()}
        for what, holds in _verdicts(seen, caption):
            asked[what] += 1
            right[what] += holds
    return {what: (right[what], asked[what]) for what in asked}


def _verdicts(seen: dict[str, Tensor], caption: SceneCaption) -> list[tuple[str, bool]]:
    made: list[tuple[str, bool]] = []
    for described in caption.things:
        if described.kind is not None:
            made += _thing_verdicts(seen, described)
    kinds = [described.kind for described in caption.things]
    if caption.relation is not None and None not in kinds:
        (x, y), (u, v) = (_middle(seen, str(kind)) for kind in kinds)
        both = all(_is_present(seen, str(kind)) for kind in kinds)
        holds = {"left": u - x, "right": x - u, "above": v - y, "below": y - v}[caption.relation] > 0.1
        made.append(("relation", both and holds))
    if caption.place is not None:
        made.append(("place", int(seen["place"].argmax()) == PLACE_NAMES.index(caption.place)))
    if caption.ground is not None:
        is_ground = int(seen["place"].argmax()) == len(PLACE_NAMES)
        made.append(("ground", is_ground and int(seen["ground"].argmax()) == COLOUR_NAMES.index(caption.ground)))
        made.append(("pattern", is_ground and int(seen["pattern"].argmax()) == PATTERNS.index(str(caption.pattern))))
    return made


def _thing_verdicts(seen: dict[str, Tensor], described: ThingDescription) -> list[tuple[str, bool]]:
    kind = KINDS.index(str(described.kind))
    present = _is_present(seen, str(described.kind))
    made = [("kind", present)]
    if described.colour is not None:
        colour = int(seen["colour"].view(len(KINDS), -1)[kind].argmax())
        made.append(("colour", present and COLOUR_NAMES[colour] == described.colour))
    if described.size is not None:
        size = int(seen["size"].view(len(KINDS), -1)[kind].argmax())
        made.append(("size", present and SIZES[size] == described.size))
    x, y = _middle(seen, str(described.kind))
    for place, low, value in ((described.column, "left", x), (described.row, "top", y)):
        if place is not None:
            third = low if value < 0.42 else "center" if value <= 0.58 else "right" if low == "left" else "bottom"
            made.append(("position", present and third == place))
    for extra in described.extras:
        made.append(("extras", bool(seen["extras"][EXTRAS.index(extra)] > 0)))
    return made


def _is_present(seen: dict[str, Tensor], kind: str) -> bool:
    return bool(seen["present"][KINDS.index(kind)] > 0)


def _middle(seen: dict[str, Tensor], kind: str) -> tuple[float, float]:
    x, y = seen["middle"].view(len(KINDS), 2)[KINDS.index(kind)].tolist()
    return x + 0.5, y + 0.5


def save(judge: Judge, folder: Path) -> None:
    """Save the judge in float16 in the folder of the model."""
    save_file({name: value.half().contiguous() for name, value in judge.state_dict().items()}, folder / FILE)


def load(folder: Path) -> Judge:
    """Load the judge from the folder of a model."""
    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(folder / FILE).items()})
    return judge.eval().requires_grad_(False)
