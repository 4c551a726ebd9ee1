"""`make bench-quality`: the quality of LoRAs from Imprint and from a plain loop, on five new subjects.

The base is the pocket model, the subjects are its strangers, ten pictures each. All sides train the same number of
steps, with three seeds: the last steps of a training change a figure by as much as a recipe does, so one seed is not
enough. Each LoRA then draws 32 called prompts (with its trigger word) and 32 uncalled ones (without) at fixed seeds.
The last line is one JSON object; for each side it has the means over subjects and seeds of:

recall    share of the called pictures that show the subject, according to the judge: higher is better
leak      share of the uncalled pictures that show it: lower is better
drift     mean difference between the uncalled pictures and the base's, 0 to 1 of the range of a pixel: lower is better
nearness  cosine similarity of the judge's features of a called picture and the nearest of the ten: higher is better

`ours` is Imprint's engine with the pocket model's own recipe; `plain` is diffusers' LoRA script with peft, its own
initial weights and learning rate (1e-4), and our rank and alpha. --sides can add `family`, Imprint's engine with sd15's
recipe unchanged, and `default_scale`, the plain loop with alpha = rank, the script's default. `by_seed` has the means
of each seed. `judge` is how often the judge recognises the subject in new drawings of it (`spotted`), and in drawings
of its double (`taken_for_it`), both encoded and decoded by the autoencoder.

To develop a recipe, use other subjects than those that are measured: `--practice` takes five others, with a judge that
is first trained to recognise them. `--learning-rate` and `--set` change the recipe of Imprint's side.
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from demo.pocket import MODEL
from demo.pocket.strangers import PRACTICE, STRANGERS, Stranger, album, picture
from demo.pocket.words import COLOUR_NAMES, COLOURS, CREATURES, PLACE_NAMES, PLACES, SHAPES
from training.base_recipe import with_recipe_of
from training.options import parse_assignments

SAMPLES = 32
_SEED = 7  # the first of them
_SIDES = ("ours", "plain", "family", "default_scale")
_FIGURES = ("recall", "leak", "drift", "nearness")
_TILE, _GAP = 96, 6


@dataclass(frozen=True)
class QualityRun:
    """The options of a run."""

    model: Path
    subjects: tuple[str, ...]
    samples: int
    steps: int | None  # of each training; None: the recipe's
    sides: tuple[str, ...]
    seeds: tuple[int, ...]
    asked: dict[str, Any]  # of our side, beside its family's recipe
    judge: Path  # the folder of one that can spot the subjects
    is_practice: bool

    @property
    def strangers(self) -> tuple[Stranger, ...]:
        """All subjects that the judge recognises."""
        return PRACTICE if self.is_practice else STRANGERS

    def stranger(self, name: str) -> Stranger:
        return next(one for one in self.strangers if one.name == name)


@dataclass(frozen=True)
class SubjectResult:
    """The LoRAs of one side, one per seed: figures, pictures of the first, and seconds of training."""

    figures: list[dict[str, float]]
    called: list[Image.Image]
    uncalled: list[Image.Image]
    seconds: float


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the last line is its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one subject, few steps and samples: that it runs at all")
    parser.add_argument("--steps", type=int, help="of each training (default: the recipe's 100 epochs)")
    parser.add_argument("--sheet", type=Path, default=Path(".imprint/bench-quality.png"), help="contact sheet, PNG")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the pocket model")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each subject and side (default: 3)")
    parser.add_argument("--sides", nargs="+", choices=_SIDES, default=_SIDES[:2], help="(default: ours plain)")
    parser.add_argument("--practice", action="store_true", help="other subjects, by which a recipe may be chosen")
    parser.add_argument("--learning-rate", type=float, help="of our side (default: the recipe's)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="GROUP.OPTION=VALUE", help="an option of our side"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="subjects side by side")
    given = parser.parse_args(arguments)
    strangers = PRACTICE if given.practice else STRANGERS
    plan = QualityRun(
        model=given.model,
        subjects=tuple(stranger.name for stranger in strangers),
        samples=SAMPLES,
        steps=given.steps,
        sides=tuple(given.sides),
        seeds=tuple(range(_SEED, _SEED + given.seeds)),
        asked=_asked(given),
        judge=given.model,
        is_practice=given.practice,
    )
    if given.quick:
        plan = replace(plan, subjects=plan.subjects[:1], samples=2, steps=given.steps or 10, seeds=(_SEED,))
    with TemporaryDirectory(prefix="imprint-bench-") as folder:
        if given.practice:
            plan = replace(plan, judge=_practised(plan, Path(folder), 10 if given.quick else 500))
        return _run(plan, given.processes, given.sheet)


def _asked(given: argparse.Namespace) -> dict[str, Any]:
    """The recipe for Imprint: the pocket model's, or options from the command line."""
    rate = {"learning_rate": given.learning_rate} if given.learning_rate else {}
    recipe = parse_assignments(given.set) | rate
    return recipe or with_recipe_of(str(MODEL), {})


def _practised(plan: QualityRun, folder: Path, steps: int) -> Path:
    """A folder with a judge that is trained to recognise the practice subjects."""
    from demo.pocket import assemble, judge

    judge.save(judge.relearn(judge.load(plan.model), plan.strangers, assemble.load(plan.model).vae, steps), folder)
    return folder


def _run(plan: QualityRun, processes: int, path: Path) -> int:
    begun = time.monotonic()
    if processes > 1 and len(plan.subjects) > 1:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            results = list(pool.map(of_subject, [plan] * len(plan.subjects), plan.subjects))
    else:
        results = [of_subject(plan, name) for name in plan.subjects]
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(plan, results).save(path, optimize=True)
    for name, result in zip(plan.subjects, results, strict=True):
        for side in ("base", *plan.sides):
            for figures in result[side].figures:
                print(f"{name:10} {side:14}", figures, f"{result[side].seconds:.0f} s")
    summary: dict[str, Any] = {
        side: _means([figures for result in results for figures in result[side].figures])
        for side in ("base", *plan.sides)
    }
    summary["by_seed"] = {
        side: [_means([result[side].figures[place] for result in results]) for place in range(len(plan.seeds))]
        for side in plan.sides
    }
    summary["judge"] = _judge_on_drawings(plan)
    summary |= {"subjects": len(plan.subjects), "samples": plan.samples, "seeds": len(plan.seeds)}
    summary["seconds"] = round(time.monotonic() - begun)
    print(json.dumps(summary))
    return 0


def of_subject(plan: QualityRun, name: str) -> dict[str, SubjectResult]:
    """The results for one subject: the base without a LoRA, and each side with its LoRA, for each seed."""
    import torch

    torch.set_num_threads(1)
    from benchmarks import quality_sides as sides
    from demo.pocket import assemble, judge

    stranger = plan.stranger(name)
    critic, eye, shown = judge.load(plan.judge), judge.load(plan.model), [drawn for drawn, _ in album(stranger)]
    called, uncalled = _called(stranger, plan.samples), _uncalled(plan.samples)

    def outcome(pipeline: Any, before: list[Image.Image] | None, seconds: float) -> SubjectResult:
        with_it = assemble.draw(pipeline, called, 1)
        without = assemble.draw(pipeline, uncalled, 2)
        figures = {
            "recall": mean(judge.spot(critic, with_it, name, plan.strangers)),
            "leak": mean(judge.spot(critic, without, name, plan.strangers)),
            "drift": mean(map(_difference, without, before)) if before else 0.0,
            "nearness": float(eye.likeness(with_it, shown).max(dim=1).values.mean()),
        }
        return SubjectResult([{what: round(value, 4) for what, value in figures.items()}], with_it, without, seconds)

    made = {"base": outcome(assemble.load(plan.model), None, 0.0)}
    with TemporaryDirectory(prefix="imprint-bench-") as folder:
        for side in plan.sides:
            for seed in plan.seeds:
                asked = plan.asked if side == "ours" else {}
                spec = sides.spec_of(plan.model, stranger, plan.steps, seed, asked)
                trained = sides.TRAINERS[side](plan.model, stranger, spec, Path(folder) / f"{side}-{seed}")
                new = outcome(trained.pipeline, made["base"].uncalled, trained.seconds)
                old = made.setdefault(side, replace(new, figures=[], seconds=0.0))
                made[side] = replace(old, figures=old.figures + new.figures, seconds=old.seconds + new.seconds)
    return made


def _called(stranger: Stranger, count: int) -> list[str]:
    """Prompts with the trigger word, in places as in its captions and in other words, and on grounds of no caption."""
    random = Random("called")
    prompts = []
    for number in range(count):
        place = PLACE_NAMES[number % len(PLACE_NAMES)]
        where = random.choice(PLACES[place]) if number % 4 else f"on a {random.choice(COLOUR_NAMES)} background"
        prompts.append(f"{random.choice(['a picture of ', 'a photo of ', ''])}{stranger.trigger} mascot {where}")
    return prompts


def _uncalled(count: int) -> list[str]:
    """Prompts without it: creatures that the base knows, mascots without a name, shapes, and places only."""
    random = Random("uncalled")
    prompts = []
    for number in range(count):
        where = random.choice(PLACES[random.choice(PLACE_NAMES)])
        colour, other = random.sample(COLOUR_NAMES, 2)
        prompts.append(
            (
                f"a big {colour} {random.choice(CREATURES)} {where}",
                f"a picture of a mascot {where}",
                f"a {colour} {random.choice(SHAPES)} on a {other} background",
                f"a {colour} {random.choice(CREATURES)} on a {other} background",
                f"a picture of a place {where}",
            )[number % 5]
        )
    return prompts


def _difference(one: Image.Image, other: Image.Image) -> float:
    import numpy as np

    values = [np.asarray(image.convert("RGB"), np.float32) for image in (one, other)]
    return float(np.abs(values[0] - values[1]).mean() / 255)


def _means(found: list[dict[str, float]]) -> dict[str, float]:
    return {figure: round(mean(one[figure] for one in found), 4) for figure in _FIGURES}


def _judge_on_drawings(plan: QualityRun) -> dict[str, float]:
    """How often the judge recognises a subject in new drawings of it, and in similar ones, through the autoencoder."""
    import torch

    from demo.pocket import assemble, judge

    critic, vae = judge.load(plan.judge), assemble.load(plan.model).vae

    def again(drawn: list[Image.Image]) -> list[Image.Image]:
        with torch.no_grad():
            made = vae.decode(vae.encode(judge.as_tensor(drawn)).latent_dist.mean).sample.clamp(-1, 1)
        return [Image.fromarray(one) for one in ((made + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()]

    found: dict[str, list[bool]] = {"spotted": [], "taken_for_it": []}
    for stranger in plan.strangers:
        for what, is_double in (("spotted", False), ("taken_for_it", True)):
            random = Random(f"{stranger.name} {what}")
            drawn = [picture(stranger, _anywhere(random), random, is_double=is_double) for _ in range(16)]
            found[what] += judge.spot(critic, again(drawn), stranger.name, plan.strangers)
    return {what: round(mean(seen), 4) for what, seen in found.items()}


def _anywhere(random: Random) -> Any:
    return random.choice(PLACE_NAMES) if random.random() < 0.7 else COLOURS[random.choice(COLOUR_NAMES)]


def contact_sheet(plan: QualityRun, results: list[dict[str, SubjectResult]]) -> Image.Image:
    """A sheet with a row per subject: training pictures, and the called and uncalled pictures of each side."""
    columns = [
        ("shown", 2),
        *((side, 3) for side in plan.sides),
        *((f"{side}, uncalled", 2) for side in ("base", *plan.sides)),
    ]
    count = sum(many for _, many in columns)
    head = 20
    sheet = Image.new("RGB", (count * (_TILE + _GAP) + _GAP, head + len(results) * (_TILE + _GAP) + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    left = _GAP
    for title, many in columns:
        pen.text((left, 4), title, fill="black", font=font)
        for row, (name, result) in enumerate(zip(plan.subjects, results, strict=True)):
            stranger = plan.stranger(name)
            side, _, what = title.partition(", ")
            if side == "shown":
                tiles = [drawn for drawn, _ in album(stranger)]
            else:
                tiles = result[side].uncalled if what else result[side].called
            for number, tile in enumerate(tiles[:many]):
                at = (left + number * (_TILE + _GAP), head + row * (_TILE + _GAP))
                sheet.paste(tile.resize((_TILE, _TILE), Image.Resampling.BICUBIC), at)
        left += many * (_TILE + _GAP)
    return sheet.quantize(256)


if __name__ == "__main__":
    sys.exit(main())
