"""What Prometheus gets from the real processes after real trainings, and the dashboard and alerts that read it."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from sqlmodel import col, func, select

from core.telemetry import metrics
from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import tokens
from storage.tables.jobs import Job, Stage
from tests.servers.process import ServerProcess, free_port
from tests.servers.receiver import receiver
from tests.site import ROOT, Site, site, until

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "imprint.json"
# Names in queries that are Prometheus' own.
_METRIC = re.compile(r"\b(imprint_[a-z0-9_]+)\b")


class Watched:
    """A site whose processes answer Prometheus, after a training that was done and one that failed."""

    def __init__(self, running: Site, ports: dict[str, int]) -> None:
        self.site, self.ports = running, ports

    def text(self, name: str) -> str:
        return httpx2.get(f"http://127.0.0.1:{self.ports[name]}/metrics", timeout=20, trust_env=False).text

    def value(self, name: str, sample: str) -> float:
        """Of one line of a process's answer; 0 where it is not there."""
        found = re.search(rf"^{re.escape(sample)} (\S+)$", self.text(name), re.MULTILINE)
        return float(found[1]) if found else 0.0


@pytest.fixture(scope="module")
def watched(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    ports = {name: free_port() for name in ("io", "train", "web")}
    folder = tmp_path_factory.mktemp("watched")
    with receiver() as application:
        allowed = json.dumps([application.address])
        with site(folder, base_model, start=("beat",), IMPRINT_FETCH_ALLOW_HOSTS=allowed) as running:
            for name, port in ports.items():
                running.start(name, IMPRINT_METRICS_PORT=str(port), IMPRINT_LOG_FORMAT="json")
            running.grant("owner")
            url = f"{application.url}/hook"
            for _ in range(2):
                view = running.wait(running.send(webhook_url=url)["job_id"])
                assert view["status"] == "ready", view["failure"]
            failed = running.wait(running.send(images=running.pictures("owner", 5)[:1] * 5)["job_id"])
            assert failed["failure"]["code"] == "too_few_images"
            sweeps.run_audit(running.services)
            until(lambda: len(application.got) >= 4, 60, "the application was told")
            yield Watched(running, ports)


@pytest.mark.drawn
def test_workers_tell_what_they_did_and_it_is_true(watched: Watched) -> None:
    train, io = "train", "io"
    assert watched.value(train, 'imprint_training_steps_total{family="sd15"}') == 4
    assert watched.value(train, 'imprint_cohort_jobs_count{family="sd15"}') == 4
    assert watched.value(train, 'imprint_cohort_jobs_sum{family="sd15"}') == 4
    took = watched.value(train, 'imprint_device_seconds_total{device="cpu",family="sd15"}')
    trained = sum(job["step"] for job in _ready(watched.site))
    assert trained == 4
    assert 0 < took <= _train_seconds(watched.site)
    # The second training found what the first one had made.
    pictures = len(watched.site.view(_ready(watched.site)[0]["job_id"])["pictures"])
    for result in ("made", "found"):
        assert watched.value(train, f'imprint_encodings_total{{kind="picture",result="{result}"}}') == pictures
    for result in ("loaded", "resident"):
        assert watched.value(train, f'imprint_base_models_total{{family="sd15",result="{result}"}}') == 1
    # Of the processes of the io worker's pool; the second training's pictures were prepared already.
    assert watched.value(io, 'imprint_stage_seconds_count{outcome="done",stage="preprocess"}') == pictures
    for stage, outcome, count in (("dataset", "done", 2), ("dataset", "failed", 1), ("settle", "done", 2)):
        assert watched.value(io, f'imprint_stage_seconds_count{{outcome="{outcome}",stage="{stage}"}}') == count, stage
    assert watched.value(io, 'imprint_notice_attempts_total{verdict="sent"}') >= 4
    assert time.time() - watched.value(io, "imprint_sweep_time_seconds") < 60


def _ready(site: Site) -> list[dict[str, Any]]:
    return [job.to_dict() for job in service.jobs(site.services, limit=10) if job.status == "ready"]


def _train_seconds(site: Site) -> float:
    with site.services.database.reading() as session:
        return float(session.exec(select(func.sum(col(Job.train_seconds)))).one())


def test_every_line_about_a_job_carries_its_id_in_every_process(watched: Watched) -> None:
    job_id = _ready(watched.site)[0]["job_id"]
    token = tokens.create(watched.site.services, "logs", owner_id="owner", scopes=("read", "train"))[0]
    answer = httpx2.post(
        f"{watched.site.web_url}/api/trainings/{job_id}/cancel", headers={"Authorization": f"Bearer {token}"}
    )

    def told_by(name: str) -> list[dict[str, Any]]:
        return [line for line in lines(watched, name) if line.get("job_id") == job_id]

    until(lambda: bool(told_by("web")), 60, "a request is logged, which is after it was answered")
    about = {name: told_by(name) for name in watched.ports}
    assert {line["task"] for line in about["train"]} == {"imprint.train"}
    assert {line.get("task") for line in about["io"]} >= {"imprint.dataset", "imprint.upload", "imprint.settle"}
    assert [(line["method"], line["status"]) for line in about["web"]] == [("POST", answer.status_code)]
    assert about["web"][0]["request_id"] == answer.headers["x-request-id"]
    # No line of a step's own is without: not of the pool's processes, nor of the main process that took the message.
    steps = {f"imprint.{stage}" for stage in Stage}
    without = [line for name in ("io", "train") for line in lines(watched, name) if line.get("task") in steps]
    assert [line for line in without if not line.get("job_id")] == []
    assert any(line["logger"] == "celery.worker.strategy" for line in without)


def lines(watched: Watched, name: str) -> list[dict[str, Any]]:
    """The log of a process, less Celery's banner and a line that is being written: all of it is JSON."""
    text = watched.site.log(name).read_text()
    whole = text[text.index("{") : text.rindex("\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


def test_the_web_tells_the_state_of_the_installation(watched: Watched) -> None:
    until(lambda: watched.value("web", 'imprint_jobs{code="",status="ready"}') == 2, 60, "the sums were asked again")
    charged = sum(watched.site.view(job["job_id"])["credits"]["charged"] for job in _ready(watched.site))
    web = watched.text("web").splitlines()
    for line in (
        'imprint_jobs{code="too_few_images",status="failed"} 1.0',
        f'imprint_credits{{state="spent"}} {float(charged)}',
        'imprint_credits{state="held"} 0.0',
        f'imprint_credits_moved_total{{kind="settle"}} {float(charged)}',
        'imprint_credits_moved_total{kind="grant"} 10000.0',
        "imprint_broker_up 1.0",
        'imprint_queue_messages{queue="train.sd15"} 0.0',
        'imprint_jobs_active{stage="train",state="waiting"} 0.0',
        'imprint_pods_dollars{period="hour"} 0.0',
        'imprint_pods_ceiling_dollars{period="day"} 40.0',
        "imprint_leaks 0.0",
    ):
        assert line in web, f"{line}\n" + "\n".join(web)


def test_the_age_of_a_queue_is_that_of_the_job_that_waits(watched: Watched) -> None:
    watched.site.stop("train")
    waiting = watched.site.send()
    watched.site.wait(waiting["job_id"], lambda view: view["stage"] == "train")
    until(lambda: watched.value("web", 'imprint_jobs_active{stage="train",state="waiting"}') == 1, 60, "it waits")
    until(lambda: watched.value("web", 'imprint_queue_messages{queue="train.sd15"}') == 1, 60, "its message waits")
    assert 0 < watched.value("web", 'imprint_queue_oldest_seconds{stage="train"}') < 600
    watched.site.start("train", IMPRINT_METRICS_PORT=str(watched.ports["train"]), IMPRINT_LOG_FORMAT="json")
    assert watched.site.wait(waiting["job_id"])["status"] == "ready"


def test_metrics_are_formed_as_prometheus_likes_them(watched: Watched) -> None:
    for name in watched.ports:
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=watched.text(name), capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_dashboard_and_alerts_name_only_metrics_that_are_there(watched: Watched) -> None:
    content = {
        sample for name in watched.ports for sample in re.findall(r"^(imprint_\w+)", watched.text(name), re.MULTILINE)
    }
    content |= {"imprint_audit_findings", "imprint_audit_time_seconds"}  # hourly: of the table, not of this site
    assert {measure.name for measure in metrics.ALL} >= {"imprint_audit_findings", "imprint_audit_time_seconds"}
    asked = {name for query in queries() for name in _METRIC.findall(query)}
    assert len(asked) >= 20
    assert asked <= content, asked - content


def queries() -> list[str]:
    """All that dashboard and alerts ask."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return found + [rule["expr"] for group in groups for rule in group["rules"]]


@pytest.mark.drawn
def test_a_prometheus_reads_them_and_every_panel_has_an_answer(watched: Watched, tmp_path: Path) -> None:
    """The rules as they are, the configuration with addresses of this machine, the server as Debian has it."""
    port = free_port()
    with_addresses(watched, tmp_path)
    server = ServerProcess(
        ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
         f"--web.listen-address=127.0.0.1:{port}"],
        log=tmp_path / "prometheus.log", cwd=tmp_path,
    )  # fmt: skip

    def ask(query: str) -> list[Any]:
        answer = httpx2.get(
            f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}, timeout=60, trust_env=False
        ).json()
        assert answer["status"] == "success", f"{query}: {answer}"
        found: list[Any] = answer["data"]["result"]
        return found

    try:
        until(lambda: _ready_to_answer(port), 60, "Prometheus answers")
        until(lambda: len(ask("up == 1")) == 3, 60, "all are asked")
        until(lambda: ask("imprint_training_steps_total offset 3s") != [], 60, "twice")
        wanted = [
            query for query in panel_queries() if not any(word in query for word in ("> 0", "audit", "histogram"))
        ]
        # Each process is asked at times of its own, and on a slow machine one may be asked much later.
        until(lambda: all(ask(query.replace("$__rate_interval", "1m")) for query in wanted), 60, f"answers to {wanted}")
        alerts = httpx2.get(f"http://127.0.0.1:{port}/api/v1/rules", timeout=60, trust_env=False).json()["data"][
            "groups"
        ][0]
        assert {rule["health"] for rule in alerts["rules"]} <= {"ok", "unknown"}
    finally:
        server.end(kill=True)


def panel_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def with_addresses(watched: Watched, folder: Path) -> None:
    shutil.copy(PROMETHEUS / "alerts.yml", folder)
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    ports = {"web": ["web"], "workers": ["io", "train"]}
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{watched.ports[name]}" for name in ports[job["job_name"]]]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))


def _ready_to_answer(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/-/ready", timeout=5, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.parametrize("arguments", [["test", "rules", "alerts_test.yml"], ["check", "config", "prometheus.yml"]])
def test_promtool_finds_nothing_wrong(arguments: list[str]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried() -> None:
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
    tried = (PROMETHEUS / "alerts_test.yml").read_text()
    for rule in rules:
        assert len(re.findall(rf"\b{rule['alert']}\b", tried)) >= 2, rule["alert"]


def test_the_dashboard_is_what_its_script_says() -> None:
    done = subprocess.run(
        ["python3", ROOT / "tools" / "dashboard.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
