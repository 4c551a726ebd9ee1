"""Drawings on the device of a worker: a real training, then pictures with its LoRA; killed, cancelled, handed over."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs import service
from jobs.drawings import drawings
from jobs.drawings.drawing_view import DrawingView
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from tests.site import Site, site, until

LONG = 100  # steps of a picture: it ends when it is cancelled or its worker is killed


@pytest.fixture(scope="module")
def made(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("drawings"), base_model, start=("io", "train", "draw", "beat")) as running:
        running.grant("owner")
        yield running
        assert sweeps.run_audit(running.services) == []


@pytest.fixture(scope="module")
def job_id(made: Site) -> str:
    found: str = made.wait(made.send(max_steps=20, learning_rate=1e-2)["job_id"])["job_id"]
    return found


def ask(made: Site, job_id: str, **changed: Any) -> DrawingView:
    request = {"owner_id": "owner", "job_id": job_id, "prompt": "on a beach", "steps": 4, "width": 64, "height": 64}
    view = drawings.submit(made.services, {**request, **changed})
    sender = made.services.outbox_sender
    assert sender is None  # a test's own process sends nothing: the sweep of the site does
    return view


def wait(made: Site, view: DrawingView, *statuses: str) -> DrawingView:
    wanted = statuses or ("ready", "failed", "cancelled")

    def has_come() -> bool:
        return drawings.get(made.services, view.drawing_id).status in wanted

    until(has_come, 120, f"{view.drawing_id} {wanted}")
    return drawings.get(made.services, view.drawing_id)


def steps(made: Site, view: DrawingView) -> int:
    return drawings.get(made.services, view.drawing_id).step


@pytest.mark.drawn
def test_with_and_without_the_lora_beside_each_other(made: Site, job_id: str) -> None:
    before = accounts.balance(made.services, "owner")
    done = wait(made, ask(made, job_id, count=2, compare=True, seed=7))
    assert (done.status, done.step, done.failure) == ("ready", 16, None)
    assert [(one.seed, one.with_lora) for one in done.pictures] == [(7, True), (7, False), (8, True), (8, False)]
    pngs = [drawings.picture(made.services, done.drawing_id, number, "owner") for number in range(4)]
    assert len(set(pngs)) == 4
    assert [Image.open(io.BytesIO(png)).size for png in pngs] == [(64, 64)] * 4
    after = accounts.balance(made.services, "owner")
    assert (after.held, after.spent - before.spent) == (0, done.credits.charged)
    assert done.credits.charged == 1

    # The same seed is the same picture; another strength is another one, and none is the picture without the LoRA.
    again = wait(made, ask(made, job_id, seed=7))
    weak = wait(made, ask(made, job_id, seed=7, strength=0.5))
    off = wait(made, ask(made, job_id, seed=7, strength=0.0))
    [same, half, none] = [one.pictures[0].sha256 for one in (again, weak, off)]
    assert (same, none) == (done.pictures[0].sha256, done.pictures[1].sha256)
    assert half not in (same, none)


def test_a_task_asks_looks_and_cancels(made: Site, job_id: str) -> None:
    def send(name: str, **arguments: Any) -> Any:
        return made.application.send_task(name, kwargs=arguments, queue="io").get(timeout=60)

    asked = send(
        "imprint.generate", owner_id="owner", subject_id="mascot", prompt="on a beach", steps=LONG, count=8, width=64,
        height=64,
    )  # fmt: skip
    assert (asked["job_id"], asked["credits"]["held"]) == (job_id, 1)
    drawing_id = asked["drawing_id"]
    until(lambda: send("imprint.drawing", drawing_id=drawing_id)["step"] > 0, 60, "the drawing shows its steps")
    done = send("imprint.cancel_drawing", drawing_id=drawing_id)
    assert (done["status"], done["credits"]["held"]) == ("cancelled", 0)


@pytest.mark.drawn
def test_a_killed_worker_loses_no_picture_and_another_draws_the_rest(made: Site, job_id: str) -> None:
    view = ask(made, job_id, count=2, steps=LONG // 2, seed=3)
    until(lambda: len(drawings.get(made.services, view.drawing_id).pictures) == 1, 60, "the first picture")
    made.kill("draw")
    first = drawings.get(made.services, view.drawing_id)
    assert first.status == "drawing"
    made.start("draw")
    done = wait(made, view)
    assert (done.status, len(done.pictures)) == ("ready", 2)
    assert done.pictures[0] == first.pictures[0]
    whole = wait(made, ask(made, job_id, count=2, steps=LONG // 2, seed=3))
    assert [one.sha256 for one in whole.pictures] == [one.sha256 for one in done.pictures]


def test_a_cancelled_drawing_frees_its_worker_at_once(made: Site, job_id: str) -> None:
    view = ask(made, job_id, count=8, steps=LONG)
    until(lambda: steps(made, view) > 0, 60, "its first steps")
    done = drawings.cancel(made.services, view.drawing_id, "owner")
    assert (done.status, done.credits.held) == ("cancelled", 0)
    assert wait(made, ask(made, job_id)).status == "ready"
    assert len(drawings.get(made.services, view.drawing_id).pictures) < 8


def test_a_worker_that_is_asked_to_stop_hands_its_drawing_over(made: Site, job_id: str) -> None:
    view = ask(made, job_id, count=8, steps=LONG)
    until(lambda: steps(made, view) > 0, 60, "its first steps")
    assert made.stop("draw") == 0
    handed_over = drawings.get(made.services, view.drawing_id)
    assert handed_over.status == "pending"
    drawings.cancel(made.services, view.drawing_id, "owner")
    made.start("draw")


def test_a_training_does_not_wait_for_a_drawing_on_a_cpu(made: Site, job_id: str) -> None:
    """Nor for the processes that take requests: each kind of work has its own."""
    view = ask(made, job_id, count=8, steps=LONG)
    until(lambda: steps(made, view) > 0, 60, "its first steps")
    assert made.wait(made.send(max_steps=2)["job_id"])["status"] == "ready"
    assert drawings.get(made.services, view.drawing_id).status == "drawing"
    drawings.cancel(made.services, view.drawing_id, "owner")


def test_a_lora_that_is_gone_fails_the_drawing_with_a_sentence(made: Site, job_id: str) -> None:
    other = made.wait(made.send(max_steps=2, model_id="gone")["job_id"])["job_id"]
    lora = service.get_lora(made.services, other)
    made.services.store.delete(lora.key)
    done = wait(made, ask(made, other))
    assert done.failure is not None
    assert (done.status, done.failure.code, done.credits.charged) == ("failed", "lora_invalid", 0)
    assert done.failure.message == f"the LoRA file of {other} is not in the object store any more"
