"""`make screenshots`: every page, at three sizes and in two themes, as a folder with an index page.

The pages are those of a service of its own with made-up owners, pictures and trainings. No worker runs.
"""

import argparse
import html
import io
import math
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from sqlmodel import Session, col
from starlette.types import ASGIApp

from core.clock import utcnow
from core.free_port import free_port
from core.settings import Settings
from jobs import keys, service
from jobs.admission import pauses
from jobs.deletion import requests
from jobs.lifecycle import launches
from jobs.owners import accounts, sign_in_links, tokens
from jobs.services import Services
from jobs.subjects import captions, picture_masks, subject_pictures, subject_settings
from storage.tables.jobs import Job, JobPicture, PictureState, Stage, Status
from training.families.registry import FAMILIES
from training.lora.file import serialize_lora
from web.__main__ import WebServer, server_config
from web.app import create_app
from web.streams import Streams

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "demo" / "pictures"
CHROMIUM = os.environ.get("IMPRINT_TEST_CHROMIUM", "/usr/bin/chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
SIZES = {"phone": (390, 844), "tablet": (820, 1180), "desktop": (1280, 900)}
# Pictures far down the page are loaded only when they are scrolled to.
_ALL_PICTURES = """() => Promise.all([...document.images].map((one) => {
  one.loading = "eager";
  return one.complete || new Promise((done) => { one.onload = one.onerror = done; });
}))"""
OWNER, SUBJECT = "ada", "rex"
PROMPTS = ["a photo of sks rex on a beach", "sks rex as a pencil drawing"]


@dataclass(frozen=True)
class World:
    """What the pages show."""

    services: Services
    owner_token: str
    operator_token: str
    pictures: list[str]
    ready: str
    earlier: str
    running: str
    waiting: str
    failed: str
    link: str


# ---- what is shown ------------------------------------------------------------------------------------------------


def make_world(home: Path) -> World:
    """Owners with credits, pictures, captions and trainings in every state."""
    services = Services(Settings(_env_file=None, home=home))
    accounts.grant(services, OWNER, 5000, key="welcome")
    accounts.grant(services, "new owner", 100, key="welcome")
    files = sorted(PICTURES.glob("*.png"))
    ids = [
        subject_pictures.add(services, OWNER, SUBJECT, file.read_bytes(), name=f"{SUBJECT}{number}.png")
        for number, file in enumerate(files)
    ]
    texts = {picture_id: f"sks rex on grass, picture {number}" for number, picture_id in enumerate(ids[:-3])}
    captions.set_all(services, OWNER, SUBJECT, texts)
    words = {"trigger_word": "sks rex", "class_word": "dog", "base_model": "sd15"}
    subject_settings.change(services, OWNER, SUBJECT, words)
    asked: dict[str, Any] = {"images": ids, "max_steps": 1000, "keep_checkpoints": True}
    validation = {"held_out": 1, "previews": PROMPTS}
    earlier = _training(services, **asked, rank=8)
    _finish(services, earlier, files[0], seed=1)
    ready = _training(services, **asked, validation=validation)
    _finish(services, ready, files[1], seed=2)
    failed = _training(services, **asked)
    with services.database.writing() as session:
        ended = {
            "status": Status.FAILED, "failure_code": "out_of_memory", "finished_at": utcnow(), "stage": Stage.TRAIN,
            "failure_message": "memory ran out at a batch size of 4: use 2",
        }  # fmt: skip
        session.connection().execute(sa.update(Job).where(col(Job.id) == failed).values(**ended))
    running = _training(services, **asked, validation=validation)
    _run(services, running, files[1], seed=3)
    waiting = _training(services, **asked)
    mask = subject_pictures.add(
        services, OWNER, SUBJECT, _mask(files[0]), is_mask=True, name=subject_pictures.mask_name(ids[0])
    )
    picture_masks.use(services, OWNER, SUBJECT, ids[0], mask)
    subject_pictures.add(services, OWNER, "old", files[0].read_bytes())
    requests.delete_subject(services, OWNER, "old", grace_s=3600)
    pauses.pause(services, "family:sdxl", "new drivers")
    owner_token, _ = tokens.create(services, "the browser", owner_id=OWNER)
    tokens.create(services, "shop", owner_id=OWNER, days=365)
    operator_token, _ = tokens.create(services, "operators", scopes=("read", "operate"))
    link = sign_in_links.create(services, "new owner")
    return World(services, owner_token, operator_token, ids, ready, earlier, running, waiting, failed, link)


def _training(services: Services, **given: Any) -> str:
    return service.submit(services, subject_settings.training_arguments(services, OWNER, SUBJECT, given)).job_id


def _finish(services: Services, job_id: str, picture: Path, seed: int) -> None:
    """What a worker would have left: losses, samples, checkpoints and a file."""
    data = _lora(seed)
    services.store.put(keys.lora(job_id), data)
    values = {
        "status": Status.READY, "stage": Stage.SETTLE, "step": 1000, "loss": 0.1234, "validation_loss": 0.31,
        "train_seconds": 412.0, "finished_at": utcnow(), "started_at": utcnow(), "lora_key": keys.lora(job_id),
        "lora_sha256": "ab" * 32, "lora_bytes": len(data), "charged": 100,
    }  # fmt: skip
    with services.database.writing() as session:
        _record_steps(services, session, job_id, picture, seed, 1000)
        for step in (250, 500, 750):
            key = keys.kept_lora(job_id, step)
            services.store.put(key, data)
            facts = {"step": step, "key": key, "sha256": "0" * 64, "bytes": len(data)}
            launches.record_event(session, job_id, "checkpoint", **facts, validation_loss=0.2 + abs(step - 500) / 5000)
        _change(session, job_id, **values)


def _run(services: Services, job_id: str, picture: Path, seed: int) -> None:
    """What a worker would have left so far."""
    with services.database.writing() as session:
        _record_steps(services, session, job_id, picture, seed, 620)
        now = {"status": Status.TRAINING, "stage": Stage.TRAIN, "step": 620, "loss": 0.1571, "seconds_left": 154.0}
        _change(session, job_id, **now, started_at=utcnow())


def _record_steps(services: Services, session: Session, job_id: str, picture: Path, seed: int, steps: int) -> None:
    """Losses and samples up to a step."""
    noise = np.random.default_rng(seed).normal(0, 0.02, 100)
    for number in range(steps // 10):
        loss = 0.12 + 0.3 * math.exp(-number / 25) + float(noise[number])
        event = {"step": 10 * (number + 1), "total": 1000, "loss": loss, "seconds_left": 0.4 * (1000 - 10 * number)}
        launches.record_event(session, job_id, "progress", **event)
    for number, step in enumerate(range(0, steps + 1, 250)):
        for prompt in range(len(PROMPTS)):
            services.store.put(keys.preview(job_id, 0, step, prompt, "png"), _sample(picture, number / 4, prompt))


def _change(session: Session, job_id: str, **values: Any) -> None:
    session.connection().execute(sa.update(Job).where(col(Job.id) == job_id).values(**values))
    good = sa.update(JobPicture).where(col(JobPicture.job_id) == job_id)
    session.connection().execute(good.values(state=PictureState.GOOD))


def _mask(picture: Path) -> bytes:
    """A mask of the middle of a picture."""
    with Image.open(picture) as whole:
        width, height = whole.size
    mask, out = Image.new("L", (width, height)), io.BytesIO()
    mask.paste(255, (width // 4, height // 5, 3 * width // 4, 4 * height // 5))
    mask.save(out, "PNG")
    return out.getvalue()


def _lora(seed: int) -> bytes:
    chance = np.random.default_rng(seed)
    weights = {
        module: (
            chance.normal(size=(4, inputs)).astype(np.float32),
            chance.normal(size=(inputs, 4)).astype(np.float32),
        )
        for module, inputs in FAMILIES["sd15"].lora.example.items()
    }
    return serialize_lora("sd15", weights, 32.0, {})


def _sample(picture: Path, share: float, prompt: int) -> bytes:
    """A picture that appears out of grey: `share` of it."""
    with Image.open(picture) as whole:
        shown = whole.convert("RGB").resize((384, 384))
    if prompt:
        shown = shown.convert("L").convert("RGB")
    out = io.BytesIO()
    Image.blend(Image.effect_noise((384, 384), 60).convert("RGB"), shown, share).save(out, "PNG")
    return out.getvalue()


# ---- the pictures -------------------------------------------------------------------------------------------------


def pages(world: World) -> dict[str, dict[str, str]]:
    """The address of every page by its name, for each kind of visitor."""
    subject, ready = f"/subjects/{SUBJECT}", f"/trainings/{world.ready}"
    return {
        "": {"sign-in": "/sign-in", "sign-in-link": f"/sign-in/{world.link}"},
        world.owner_token: {
            "subjects": "/",
            "subject": subject,
            "subject-new": "/subjects/bowl",
            "subject-deleted": "/subjects/old",
            "captions": f"{subject}/captions?picture={world.pictures[1]}",
            "picture": f"{subject}/images/{world.pictures[0]}/edit",
            "trainings": "/trainings",
            "trainings-none": "/trainings?subject=nothing",
            "training-running": f"/trainings/{world.running}",
            "training-waiting": f"/trainings/{world.waiting}",
            "training-ready": ready,
            "training-failed": f"/trainings/{world.failed}",
            "recipe": f"{subject}/recipe",
            "preset": f"{subject}/recipe/preset?kind=style",
            "compare": f"{ready}/compare?with={world.earlier}",
            "samples": f"{ready}/samples?prompt=0&step=1000&beside=0",
            "account": "/account",
            "signed-in": "/signed-in",
            "not-found": "/trainings/job_0",
        },
        world.operator_token: {
            "operators": "/operators",
            "operators-search": f"/operators/search?q={SUBJECT}",
            "operators-audit": "/operators/audit",
            "operators-job": f"/operators/jobs/{world.failed}",
            "operators-owner": f"/operators/owners/{OWNER}",
        },
    }


@contextmanager
def served(services: Services) -> Iterator[str]:
    """The page over HTTP; its address."""
    app = create_app(services)
    with serving(app, services, app.state.streams) as base:
        yield base


@contextmanager
def serving(app: ASGIApp, services: Services, streams: Streams) -> Iterator[str]:
    """An app over HTTP, in a thread; its address."""
    settings = services.settings.model_copy(update={"web_port": free_port(), "web_rate_per_s": 1000.0})
    server = WebServer(server_config(app, settings), streams)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            thread.join(0.05)
        yield f"http://127.0.0.1:{settings.web_port}"
    finally:
        server.should_exit = True
        thread.join()


def shoot(
    browser: Browser, base: str, token: str, addresses: dict[str, str], out: Path, only: str, language: str
) -> None:
    """Each page at each size and in each theme."""
    for size, (width, height) in SIZES.items():
        for scheme in ("light", "dark"):
            viewport: Any = {"width": width, "height": height}
            context = browser.new_context(base_url=base, viewport=viewport, color_scheme=scheme, locale=language)
            page = context.new_page()
            if token:
                sign_in(page, token)
            for name, address in addresses.items():
                if only in name:
                    page.goto(address, wait_until="load")
                    page.evaluate(_ALL_PICTURES)
                    page.screenshot(path=out / f"{name}-{size}-{scheme}.png", full_page=True)
            context.close()


def sign_in(page: Page, token: str) -> None:
    """Sign in with a token."""
    page.goto("/sign-in")
    page.locator("#token").fill(token)
    page.locator("#sign-in").click()
    page.wait_for_url(lambda url: "/sign-in" not in url)


def write_index(out: Path, names: list[str]) -> None:
    """A page with all pictures in a table: pages by sizes and themes."""
    columns = [(size, scheme) for size in SIZES for scheme in ("light", "dark")]
    head = "".join(f"<th>{size}, {scheme}</th>" for size, scheme in columns)
    rows = ""
    for name in names:
        cells = "".join(_cell(f"{name}-{size}-{scheme}.png") for size, scheme in columns)
        rows += f"<tr><th>{html.escape(name)}</th>{cells}</tr>"
    style = "body{font:16px system-ui;margin:2rem}td,th{padding:.5rem;vertical-align:top;text-align:left}"
    text = f"<!doctype html><meta charset=utf-8><title>Imprint's pages</title><style>{style}</style>"
    (out / "index.html").write_text(f"{text}<table><tr><th></th>{head}</tr>{rows}</table>")


def _cell(file: str) -> str:
    return f'<td><a href="{file}"><img src="{file}" loading="lazy" width="220"></a></td>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "test-output" / "screenshots")
    parser.add_argument("--only", default="", help="only pages with this in their names")
    parser.add_argument("--language", default="en", help="the language of the browser")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="imprint-") as home:
        world = make_world(Path(home))
        found = pages(world)
        with served(world.services) as base, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, chromium_sandbox=False)
            for token, addresses in found.items():
                shoot(browser, base, token, addresses, asked.out, asked.only, asked.language)
            browser.close()
        world.services.database.close()
        world.services.decoder.close()
    names = [name for addresses in found.values() for name in addresses if asked.only in name]
    write_index(asked.out, names)
    print(f"{len(names)} pages: {asked.out / 'index.html'}")


if __name__ == "__main__":
    main()
