"""The docs site: it is built without a warning, and its reference has everything that the code has."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.telemetry import metrics
from tasks.app import app
from tests.docs.pages import ROOT
from tests.once import made_once
from tools.site.nav import MOVED, sections
from tools.site.stage import place


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "site", build)


def build(out: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("IMPRINT_")}
    done = subprocess.run(
        [sys.executable, "-m", "tools.site", "build", "--out", str(out)],
        cwd=ROOT, env=clean, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_page_is_there_with_the_navigation(built: Path) -> None:
    for page in [page for pages in sections().values() for page in pages]:
        shown = (built / place(page)).with_suffix(".html").read_text()
        assert all(f'<span class="caption-text">{section}</span>' in shown for section in sections()), page


def test_links_between_pages_lead_to_pages(built: Path) -> None:
    tutorial = (built / "tutorial.html").read_text()
    assert 'href="train-your-pictures.html"' in tutorial
    contributing = (built / "project" / "contributing.html").read_text()
    assert re.findall(r'href="[^"]+\.md[#"]', contributing) == []


def test_the_reference_has_what_the_code_has(built: Path) -> None:
    tasks, http, shown_metrics = (
        re.sub(r"<[^>]+>", "", (built / "reference" / f"{name}.html").read_text())
        for name in ("tasks", "http", "metrics")
    )
    app.loader.import_default_modules()
    assert all(name in tasks for name in app.tasks if name.startswith("imprint."))
    assert all(route in http for route in ("GET /healthz", "POST /api/influencer/{id}/lora/train", "GET /metrics"))
    assert all(measure.name in shown_metrics for measure in metrics.ALL)
    for name in ("imprint_jobs", "imprint_queue_oldest_seconds", "imprint_http_requests_total", "imprint_pods_dollars"):
        assert name in shown_metrics, name


def test_the_site_loads_nothing_from_other_hosts(built: Path) -> None:
    index = (built / "index.html").read_text()
    for kind in ('<script src="http', '<link rel="stylesheet" type="text/css" href="http', '<img src="http'):
        assert kind not in index


def test_old_addresses_lead_to_pages_that_are_there(built: Path) -> None:
    for old in MOVED:
        page = built / f"{old}.html"
        [target] = re.findall(r'url=([^"]+)"', page.read_text())
        assert (page.parent / target).exists(), old
