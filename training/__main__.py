"""Training without a queue: `python -m training FOLDER --base-model sd15 --trigger "sks dog" --out lora.safetensors`.

Exit codes: 0 success, 1 the training failed, 2 invalid arguments or pictures, 130 stopped by Ctrl-C (resumable).
"""

import argparse
import logging
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from core.errors import HandOver, ImageInvalid, ImprintError, SpecInvalid, TooFewImages
from core.settings import settings
from training.base_family import family_of_base
from training.base_recipe import with_recipe_of
from training.captioning.captions_file import write_captions
from training.checkpoint_folder import FolderCheckpoints, FolderLoras, FolderPreviews, options_of, require_writable
from training.data.file_kinds import ACCEPTED
from training.data.folders.prepare import FolderDataset, WriteCaptions, load_folder
from training.families.registry import BASE_MODELS, FAMILIES
from training.lora.inspect import inspect
from training.multi_process import shared_checkpoints
from training.options import parse_assignments
from training.ports import TrainResult, TrainRun
from training.progress_bar import ProgressBar, clock
from training.spec import GROUPS, CaptionSource, Learns, Optimizer, TrainSpec, base_model_location

# Errors of the input; all others are failures.
_GIVEN_WRONG = (SpecInvalid, TooFewImages, ImageInvalid)

_ARGUMENTS = frozenset(TrainSpec.model_fields) - set(GROUPS)

_EPILOG = f"""
pictures:
  {ACCEPTED}, 5 to 1,000 of one subject. Captions are text files of
  the same name (dog1.jpg, dog1.txt), or as other trainers write them: dog1.caption, dog1.jpg.txt, metadata.jsonl. If a
  caption lacks the trigger word, it is put in front; without a caption it is "a photo of TRIGGER CLASS", or what
  --captions auto writes. Blurred, small, badly exposed and repeated pictures are left out and listed.

resuming:
  Ctrl-C saves a checkpoint. The same command resumes from it and gives the same file as without the interruption (on a
  CPU byte for byte).

examples:
  python -m training pictures/ --trigger "sks dog" --class-word dog --out dog.safetensors
  python -m training pictures/ --base-model /models/my-sd15 --trigger sks --out sks.safetensors
  python -m training pictures/ --trigger sks --set adapter.targets=all --set data.flip=true --out sks.safetensors
  python -m training pictures/ --base-model sdxl --trigger sks --epochs 60 --rank 16 --out sks-xl.safetensors
"""


def parser() -> argparse.ArgumentParser:
    """All arguments. Recipe options default to those of the family."""
    made = argparse.ArgumentParser(
        prog="python -m training",
        description="Train a LoRA on a folder of pictures, on this machine, without a queue or server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = {
        name: ", ".join(f"{family.recipe[name]:g} ({family.name})" for family in FAMILIES.values())
        for name in ("rank", "alpha", "learning_rate", "resolution", "epochs")
    }
    add = made.add_argument
    add("folder", metavar="FOLDER", type=Path, help="folder of pictures, or a ZIP or tar archive of one")
    add("--out", type=Path, required=True, help="the .safetensors file to write")
    add(
        "--trigger",
        dest="trigger_word",
        metavar="WORDS",
        required=True,
        help='the words for the subject in prompts, such as "sks dog"',
    )
    add(
        "--base-model",
        metavar="NAME",
        default="sd15",
        help=f"{', '.join(BASE_MODELS)}; or a folder, a .safetensors file or a hub id (default: sd15)",
    )
    add(
        "--family", choices=list(FAMILIES), help="of a base model given as hub id; files and folders tell it themselves"
    )
    add("--class-word", default="", help="what the subject is, for pictures without a caption, such as dog")
    _add_captions(made.add_argument_group("captions"))
    recipe = made.add_argument_group("recipe")
    add = recipe.add_argument
    add("--rank", type=int, help=f"width of the LoRA: {defaults['rank']}")
    add("--alpha", type=float, help=f"strength, as a share of the rank: {defaults['alpha']}")
    add("--learning-rate", type=float, help=f"{defaults['learning_rate']}; 1 with prodigy")
    add("--optimizer", choices=get_args(Optimizer), help="what moves the weights (default: adamw)")
    add("--resolution", type=int, help=f"pixels, a multiple of 64: {defaults['resolution']}")
    add("--epochs", type=int, help=f"times that every picture is seen, 1 to 500: {defaults['epochs']}")
    add("--max-steps", type=int, help="train this many steps, whatever the epochs")
    add("--batch-size", type=int, help="pictures per step (default: 1)")
    add("--seed", type=int, default=0, help="the same seed, recipe and pictures give the same LoRA (default: 0)")
    add("--set", action="append", default=[], metavar="GROUP.OPTION=VALUE", help="an option of docs/recipe.md")
    add("--aspect-buckets", action="store_true", help="keep the shape of the pictures instead of cutting squares")
    _add_machine(made.add_argument_group("machine"))
    return made


def _add_captions(group: "argparse._ArgumentGroup") -> None:
    """The arguments for pictures without a caption."""
    add = group.add_argument
    add(
        "--captions",
        choices=get_args(CaptionSource),
        help="auto: written by a captioner for pictures without one, and kept in OUT.captions.jsonl, where you can "
        "change them; given: those beside the pictures (default); template: the same for all",
    )
    add("--captioner", metavar="MODEL", help="folder or hub id of a Florence-2 model (default: IMPRINT_CAPTIONER)")
    add("--learns", choices=get_args(Learns), help="what --captions auto leaves out (default: by the class word)")


def _add_machine(group: "argparse._ArgumentGroup") -> None:
    """The arguments that do not change the LoRA, only where and how it is trained."""
    add = group.add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    add(
        "--precision",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="of the base (default: auto)",
    )
    add("--deterministic", action="store_true", help="on a GPU: the same bits each time, slower; a CPU always does so")
    add("--resume-dir", type=Path, help="where checkpoints are kept (default: OUT.checkpoints, removed at the end)")
    add("--checkpoint-every", type=int, default=10, metavar="EPOCHS", help="epochs between checkpoints (default: 10)")
    add("--keep-checkpoints", action="store_true", help="also keep the LoRA of every checkpoint, beside OUT")
    add(
        "--training-adapter",
        type=Path,
        help="z-image-turbo, flux1-schnell: the de-distilling LoRA to merge while training",
    )
    add("--verbose", action="store_true", help="log what is done")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = parser().parse_args(arguments)
    console = Console(stderr=True)
    level = logging.INFO if given.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[RichHandler(console=console, show_path=False)])
    try:
        spec = parse_spec(given)
        if given.checkpoint_every < 1:
            raise SpecInvalid.of({"--checkpoint-every": "is 0"})
        require_writable(given.out, given.resume_dir)
        captions = _captions_of(given, spec)
        with shared_checkpoints(given, spec.batch_size, console) as kept:
            return _train(given, spec, kept, console, arguments, captions)
    except ImprintError as error:
        console.print(f"[red]error[/] ({error.code}): ", end="")
        console.print(error.message, markup=False, highlight=False)
        return 2 if isinstance(error, _GIVEN_WRONG) else 1
    except KeyboardInterrupt:  # before the loop, or pressed twice
        console.print("stopped at once")
        return 130


def parse_spec(given: argparse.Namespace) -> TrainSpec:
    """The recipe from the arguments. Raises SpecInvalid, with all faults."""
    asked: dict[str, Any] = {
        name: value for name, value in vars(given).items() if name in TrainSpec.model_fields and value is not None
    }
    try:
        asked |= parse_assignments(given.set)
    except ValueError as error:
        raise SpecInvalid.of({"--set": str(error)}) from error
    base_model = Path(asked["base_model"]).expanduser()
    if asked["base_model"] not in BASE_MODELS and base_model.exists():
        asked["base_model"] = str(base_model.resolve())
        if "family" not in asked and (family := family_of_base(asked["base_model"])) is not None:
            asked["family"] = family
    try:
        return TrainSpec(**with_recipe_of(base_model_location(asked["base_model"], settings().base_models), asked))
    except ValidationError as error:
        faults = {_argument(fault["loc"]): fault["msg"] for fault in error.errors(include_url=False)}
        raise SpecInvalid.of(faults) from error


def _argument(where: Sequence[Any]) -> str:
    """The argument that a field of the recipe comes from."""
    if where and where[0] not in _ARGUMENTS:
        return f"--set {'.'.join(str(part) for part in where)}"
    return "--" + str(where[0] if where else "base_model").replace("_", "-")


def _train(
    given: argparse.Namespace,
    spec: TrainSpec,
    kept: FolderCheckpoints,
    console: Console,
    arguments: Sequence[str] | None,
    captions: WriteCaptions,
) -> int:
    """Prepare the pictures, train, and print the result."""
    with tempfile.TemporaryDirectory(prefix="imprint-") as temporary:
        found = load_folder(given.folder, spec, Path(temporary), captions)
        for name, reason in found.left_out.items():
            console.print(f"left out {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
        for note in found.notes:
            _print_note(console, note)
        for note in kept.claim(options_of(spec, found.manifest.sha256)):
            console.print(note, markup=False, highlight=False)
        total = spec.steps(len(found.examples))
        console.print(f"{len(found.examples)} pictures, {total} steps on {spec.base_model}", highlight=False)
        with ProgressBar(console, total) as bar:
            try:
                result = _loop(_run(given, spec, found, kept, bar, partial(_print_note, console)))
            except HandOver:
                stopped = True
            else:
                stopped = False
    if stopped:
        _say_how_to_resume(kept, console, arguments)
        return 130
    if given.resume_dir is None:
        kept.remove()
    _say_result(result, spec, console)
    for note in inspect(result.path).warnings:
        _print_note(console, note)
    return 0


def _captions_of(given: argparse.Namespace, spec: TrainSpec) -> WriteCaptions:
    """What writes the captions of pictures without one. Raises SpecInvalid if there is no captioner for it."""
    if spec.captions != "auto":
        return lambda _: {}
    captioner = given.captioner or settings().captioner
    if captioner is None:
        raise SpecInvalid.of({"--captions": "needs --captioner with a Florence-2 model, or IMPRINT_CAPTIONER"})
    file = given.out.with_name(f"{given.out.name}.captions.jsonl")
    return partial(write_captions, spec=spec, captioner=captioner, device=given.device, file=file)


def _print_note(console: Console, note: str) -> None:
    console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _run(
    given: argparse.Namespace, spec: TrainSpec, dataset: FolderDataset, kept: FolderCheckpoints, bar: ProgressBar,
    note: Callable[[str], None],
) -> TrainRun:  # fmt: skip
    return TrainRun(
        job_id=given.out.name,
        spec=spec,
        examples=dataset.examples,
        dataset_sha256=dataset.manifest.sha256,
        base_model=base_model_location(spec.base_model, settings().base_models),
        out=given.out,
        checkpoints=kept,
        control=bar,
        device=given.device,
        precision=given.precision,
        deterministic=given.deterministic,
        checkpoint_every_epochs=given.checkpoint_every,
        training_adapter=given.training_adapter,
        loras=FolderLoras(given.out) if spec.keep_checkpoints else None,
        previews=FolderPreviews(given.out.with_name(f"{given.out.name}.previews")),
        note=note,
    )


def _loop(run: TrainRun) -> TrainResult:
    from training.backends.local import train  # importing torch takes seconds, so check everything else first

    return train(run)


def _say_how_to_resume(kept: FolderCheckpoints, console: Console, arguments: Sequence[str] | None) -> None:
    steps = kept.steps()
    if not steps:
        console.print("stopped before the first step")
        return
    command = shlex.join(["python", "-m", "training", *(sys.argv[1:] if arguments is None else arguments)])
    console.print(f"stopped; step {steps[-1]} is saved in {kept.folder}. To resume:", highlight=False)
    console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


def _say_result(result: TrainResult, spec: TrainSpec, console: Console) -> None:
    resumed = f", resumed at step {result.resumed_from}" if result.resumed_from else ""
    console.print(
        f"trained {result.steps} steps in {clock(result.train_seconds)} on {result.device}{resumed}, "
        f"loss {result.final_loss:.4f}; say [bold]{escape(spec.trigger_word)}[/] in a prompt",
        highlight=False,
    )
    print(f"{result.path}  {result.size_bytes} bytes  sha256 {result.sha256}")


if __name__ == "__main__":
    sys.exit(main())
