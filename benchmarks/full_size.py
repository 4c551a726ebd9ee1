"""`make bench-full`: ten photographs through the whole chain on a base model of sd15's exact size, on this machine.

The base model is one `.safetensors` file of random weights in float16, 2 GB, made for the run: its numbers mean
nothing, but cost as much as real ones. A training of a few steps at 512 pixels goes through a private Redis, an io
worker and a training worker. The seconds of each stage come from the job's events. Memory comes from the kernel: the
peak of the training worker's resident memory, and what it had before the job.

`PICTURES=folder make bench-full` uses the first ten of your photographs; without it, the demo's drawings, enlarged.
The last line is one JSON object: `steps, resolution, pictures, threads, precision, stage_s, first_step_s,
first_step_cpu_s, s_per_step, train_cpu_s, train_peak_gb, train_idle_gb, io_peak_gb, lora_bytes`. `first_step_cpu_s` is
the cold start: CPU seconds of an idle training worker until the end of the first step, with loading and encoding.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from benchmarks.home import ROOT, clear_settings
from jobs import service
from jobs.stages import intake
from tests.servers.redis import redis_server
from tests.site import Site
from training.device import choose, precision
from training.families.registry import FAMILIES
from training.families.weights import single_file
from training.families.weights.parts import class_of
from training.tiny.words import clip_vocabulary

PICTURES = 10
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_WAIT_S = 3600.0


def main() -> int:
    """Run the benchmark in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=os.environ.get("PICTURES"), help="a folder of photographs")
    parser.add_argument("--base", type=Path, help="a file to train on in place of one of random weights")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the training worker")
    given = parser.parse_args()
    clear_settings()
    with tempfile.TemporaryDirectory(prefix="imprint-bench-") as folder:
        place = Path(folder)
        base = given.base or full_size(place / "sd15.safetensors")
        print(f"base model: {base.stat().st_size / 1e9:.2f} GB in one file")
        with redis_server(place / "redis") as redis:
            # The defaults, instead of the short intervals of the tests.
            site = Site(
                place / "site", base, redis.url, IMPRINT_LEASE_S="25", IMPRINT_SWEEP_S="30",
                OMP_NUM_THREADS=str(given.threads), HF_HUB_OFFLINE="1",
            )  # fmt: skip
            try:
                result = _run(site, _pictures(given.pictures), base.stat().st_size, given)
            finally:
                site.end()
    print(json.dumps(result))
    return 0


def full_size(path: Path) -> Path:
    """An sd15 checkpoint with small random weights, and the tokenizer of the tiny base."""
    chance = torch.Generator().manual_seed(0)
    tensors = {}
    family = FAMILIES["sd15"]
    layout = family.single_file
    assert layout is not None  # noqa: S101
    for part, prefixes in layout.prefixes.items():
        config = family.configs[part]
        for name, weights in single_file.empty(class_of(family.classes[part]), config).named_parameters():
            if weights.ndim == 1:
                made = (
                    torch.ones(weights.shape)
                    if "norm" in name and name.endswith("weight")
                    else torch.zeros(weights.shape)
                )
            else:
                made = (torch.rand(weights.shape, generator=chance) * 2 - 1) * weights[0].numel() ** -0.5
            tensors[prefixes[0] + layout.sources[part](name, config).name] = made.half()
    save_file(tensors, path)
    vocabulary, merges = clip_vocabulary()
    tokenizer: Any = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)  # type: ignore[arg-type]
    tokenizer.save_pretrained(path.with_suffix(".parts") / "tokenizer")
    return path


def _pictures(folder: Path | None) -> list[bytes]:
    """The first ten pictures of a folder and its subfolders; without a folder the demo's pictures at twice the size."""
    if folder is not None:
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
        return [file.read_bytes() for file in files[:PICTURES]]
    found = []
    for file in sorted((ROOT / "demo" / "pictures").glob("*.png"))[:PICTURES]:
        with Image.open(file) as picture:
            out = BytesIO()
            picture.resize((2 * picture.width, 2 * picture.height)).save(out, "PNG")
            found.append(out.getvalue())
    return found


def _run(site: Site, pictures: list[bytes], base_bytes: int, given: argparse.Namespace) -> dict[str, Any]:
    site.services.database.migrate()
    for name in ("io", "beat", "train"):
        site.start(name)
    idle, cpu_idle = _memory(site, "train")[1], _cpu_seconds(site, "train")
    site.grant("owner", 100_000)
    images = [{"ref": intake.store_picture(site.services, "owner", "photographs", picture)} for picture in pictures]
    job_id = site.send(images=images, max_steps=given.steps, resolution=given.resolution)["job_id"]
    until, first_step_cpu = time.monotonic() + _WAIT_S, None
    while (view := site.view(job_id))["status"] not in ("ready", "failed", "cancelled"):
        if time.monotonic() > until:
            raise SystemExit(f"not done after {_WAIT_S:.0f} s: {view}")
        if first_step_cpu is None and view["step"]:
            first_step_cpu = round(_cpu_seconds(site, "train") - cpu_idle, 1)
        time.sleep(0.2)
    if view["status"] != "ready":
        raise SystemExit(f"the job {view['status']}: {view['failure']}")
    stages, steps = _seconds(site, job_id)
    return {
        "steps": given.steps,
        "resolution": given.resolution,
        "pictures": sum(picture["state"] == "good" for picture in view["pictures"]),
        "threads": given.threads,
        "precision": str(precision(choose(), base_bytes)).removeprefix("torch."),
        "stage_s": stages,
        **steps,
        "first_step_cpu_s": first_step_cpu,
        "train_cpu_s": round(_cpu_seconds(site, "train") - cpu_idle, 1),
        "train_peak_gb": _memory(site, "train")[0],
        "train_idle_gb": idle,
        "io_peak_gb": _memory(site, "io")[0],
        "lora_bytes": view["lora"]["bytes"],
    }


def _seconds(site: Site, job_id: str) -> tuple[dict[str, float], dict[str, float]]:
    """The seconds of each stage, until the first step of the training, and per step."""
    begun: dict[str, float] = {}
    reported: list[tuple[int, float]] = []
    last = 0.0
    for event in service.events(site.services, job_id):
        data, at = event.data, event.at.timestamp()
        if event.kind == "stage" and data.get("stage"):
            begun.setdefault(data["stage"], at)
        if event.kind == "progress" and data.get("step"):
            reported.append((data["step"], at))
        last = at
    names = list(begun)
    ends = [*[begun[name] for name in names[1:]], last]
    stages = {name: round(end - begun[name], 1) for name, end in zip(names, ends, strict=True)}
    (first, at_first), (final, at_last) = reported[0], reported[-1]
    per_step = (at_last - at_first) / (final - first) if final > first else 0.0
    return stages, {"first_step_s": round(at_first - begun["train"], 1), "s_per_step": round(per_step, 2)}


def _memory(site: Site, name: str) -> tuple[float, float]:
    """Peak and present resident memory of a worker's process, in GB."""
    status = Path(f"/proc/{site.processes[name].pid}/status").read_text()
    sizes_kb = dict(re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB", status, re.MULTILINE))
    return round(int(sizes_kb["VmHWM"]) * 1024 / 1e9, 2), round(int(sizes_kb["VmRSS"]) * 1024 / 1e9, 2)


def _cpu_seconds(site: Site, name: str) -> float:
    """The CPU time of a worker's process, which other load on the machine does not change."""
    fields = Path(f"/proc/{site.processes[name].pid}/stat").read_text().rpartition(")")[2].split()
    return round((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 1)


if __name__ == "__main__":
    sys.exit(main())
