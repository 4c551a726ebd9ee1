"""A training on an ai-toolkit server that trains for real: its file, converted, is what our own loop writes."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.servers.fake_pod import fake_pod
from training import sample
from training.backends.ai_toolkit import work
from training.backends.ai_toolkit.connection import open_toolkit_client
from training.backends.ai_toolkit.convert import convert_lora
from training.backends.ai_toolkit.server import ToolkitServer
from training.backends.local import train
from training.lora import file as lora_file
from training.lora.safetensor import unpack
from training.ports import TrainRun


def trained_there(run: TrainRun, folder: Path, hub_id: str) -> tuple[Path, work.PollResult]:
    """The file as the server wrote it, and how the training was last seen."""
    with fake_pod(folder / "pod", trainer="real", base_model=run.base_model) as pod, open_toolkit_client() as http:
        server, name = ToolkitServer(pod.url, pod.token, http), work.remote_name("job_real", 1)
        remote_id = work.submit(server, work.RemoteTraining(name, run.spec, run.examples, hub_id))
        deadline, seen = time.monotonic() + 600, None
        while seen is None or seen.status in ("queued", "running"):
            assert time.monotonic() < deadline, seen
            seen = work.poll(server, server.jobs()[name])
            time.sleep(0.1)
        assert seen.status == "completed", (seen.info, server.log(remote_id).text)
        path = work.collect(server, name, remote_id, folder, run.spec)
        work.clear(server, name)
        assert pod.left() == {"jobs": [], "datasets": [], "outputs": []}
    return path, seen


@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", ["sd15", "z-image"])
def test_the_same_lora_as_at_home(runs: Callable[..., TrainRun], family: str, tmp_path: Path) -> None:
    alpha = 32.0 if family == "sd15" else 4.0  # Z-Image trains at scale 1 there
    run = runs(family, rank=4, alpha=alpha, learning_rate=1e-2)
    source, seen = trained_there(run, tmp_path, "somebody/tiny")
    assert (seen.step, seen.total) == (6, 6)
    assert seen.loss is not None
    out = tmp_path / "ours.safetensors"
    report = convert_lora(source, out, run.spec, run.examples, dataset_sha256=run.dataset_sha256)
    assert (report.rank, report.alpha) == (4, alpha)

    ours, _ = unpack(out.read_bytes())
    at_home, _ = unpack(train(run).path.read_bytes())
    assert set(ours) == set(at_home)
    for name, held in at_home.items():
        assert held.kind == ours[name].kind
        assert np.array_equal(held.floats(), ours[name].floats()), name

    pipeline = sample.load_pipeline(run.base_model, family, torch.device("cpu"))
    sample.add_lora(pipeline, out)
    denoiser = pipeline.unet if family == "sd15" else pipeline.transformer
    theirs, _ = unpack(source.read_bytes())
    naming, layers = lora_file.naming_of(family), 0
    for module, layer in denoiser.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        [(adapter, scale)] = layer.scaling.items()
        read = scale * layer.lora_B[adapter].weight.double() @ layer.lora_A[adapter].weight.double()
        stem = naming.stem(module)
        down, up = (theirs[stem + end].floats().astype(np.float64) for end in (naming.down, naming.up))
        wanted = (alpha / 4 if family == "sd15" else 1.0) * up @ down
        assert np.allclose(read.detach().numpy(), wanted, rtol=1e-6, atol=1e-12), module
        assert np.abs(wanted).max() > 0
        layers += 1
    assert layers == report.modules
