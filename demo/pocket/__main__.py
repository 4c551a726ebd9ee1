"""`python -m demo.pocket draw | train | check`: draw training pictures, train the pocket model, grade it."""

import argparse
import json
import sys
from pathlib import Path
from random import Random

from demo.pocket import MODEL


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.pocket", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("draw", help="a contact sheet of drawings with their captions, as training sees them")
    draw.add_argument("out", type=Path, help="PNG file")
    draw.add_argument("--seed", type=int, default=0)
    draw.add_argument("--count", type=int, default=64)
    train = commands.add_parser("train", help="train all parts, or resume a stopped training, and save them")
    train.add_argument(
        "--work", type=Path, required=True, help="folder of checkpoints; a file `stop` in it ends a part"
    )
    train.add_argument("--out", type=Path, required=True, help="folder of the model")
    train.add_argument("--threads", type=int, default=2)
    train.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    train.add_argument("--vae-steps", type=int, default=1250, help="of 8 drawings (default: 1250)")
    train.add_argument("--decoder-steps", type=int, default=700, help="of 8 drawings (default: 700)")
    train.add_argument("--text-steps", type=int, default=1200, help="of 96 captions (default: 1200)")
    train.add_argument("--unet-steps", type=int, default=3550, help="of 32 drawings (default: 3550)")
    train.add_argument("--judge-steps", type=int, default=2400, help="of 48 drawings (default: 2400)")
    train.add_argument("--drawings", type=int, default=19_968, help="that the UNet learns from (default: 19968)")
    check = commands.add_parser("check", help="grade the model by its classifier, and make a contact sheet")
    check.add_argument("--model", type=Path, default=MODEL)
    check.add_argument("--sheet", type=Path, help="PNG file")
    check.add_argument("--count", type=int, default=64, help="captions (default: 64)")
    check.add_argument("--guidance", type=float, default=4.0)
    given = parser.parse_args(arguments)
    return {"draw": _draw, "train": _train, "check": _check}[given.command](given)


def _draw(given: argparse.Namespace) -> int:
    from demo.pocket.captions import describe
    from demo.pocket.exam import contact_sheet
    from demo.pocket.scenes import compose

    random = Random(given.seed)
    scenes = [compose(random) for _ in range(given.count)]
    texts = [describe(scene, random).text for scene in scenes]
    contact_sheet([scene.draw() for scene in scenes], texts).save(given.out)
    print(given.out)
    return 0


def _train(given: argparse.Namespace) -> int:
    from demo.pocket import assemble, autoencoder, judge, painter, reader
    from demo.pocket.lesson import settle_threads
    from training.device import choose

    settle_threads(given.threads)
    device = choose(given.device)
    given.work.mkdir(parents=True, exist_ok=True)
    vae = autoencoder.learn(given.work, given.vae_steps, device)
    encoder = reader.learn(given.work, given.text_steps, device)
    vae = autoencoder.polish(given.work, given.decoder_steps, vae, device)
    critic = judge.learn(given.work, given.judge_steps, vae, device)
    unet = painter.learn(given.work, given.unet_steps, vae, encoder, given.drawings, device)
    assemble.save(given.out, vae, encoder, unet)
    judge.save(critic, given.out)
    print(given.out)
    return 0


def _check(given: argparse.Namespace) -> int:
    from demo.pocket import assemble, exam, judge

    grades = exam.examine(assemble.load(given.model), judge.load(given.model), given.count, given.sheet, given.guidance)
    print(json.dumps(grades))
    return 0


if __name__ == "__main__":
    sys.exit(main())
