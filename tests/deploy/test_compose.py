"""deploy/compose.yml, rendered by a real docker-compose (which needs no engine for that), against what it promises."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.stack_members import Layout
from core.settings import Settings
from tests.servers.s3 import s3_server
from tests.site import ROOT
from web.server.open_files import WANTED_FILES

DEPLOY = ROOT / "deploy"
OURS = ("web", "io", "fetch", "beat", "flower", "migrate", "train-0")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The file as compose reads it, with the example's settings filled in."""
    tool = shutil.which("docker-compose")
    if tool is None:
        pytest.fail("no docker-compose here: tools/setup.sh test installs one")
    folder = tmp_path_factory.mktemp("compose")
    shutil.copy(DEPLOY / "compose.yml", folder)
    (folder / ".env").write_text((DEPLOY / ".env.example").read_text().replace("CHANGE-ME", "f00d"))
    done = subprocess.run(
        [tool, "-f", "compose.yml", "config"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = yaml.safe_load(done.stdout)
    return read


def test_without_passwords_nothing_starts(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "compose.yml", tmp_path)
    (tmp_path / ".env").write_text("")
    done = subprocess.run(
        ["docker-compose", "-f", "compose.yml", "config"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "set it in .env" in done.stderr


def test_everything_that_it_promises_is_there(rendered: dict[str, Any]) -> None:
    assert set(rendered["services"]) == {*OURS, "redis", "postgres", "s3", "prometheus", "grafana"}


def test_it_runs_the_same_processes_as_make_up(rendered: dict[str, Any]) -> None:
    stack = Layout(Settings(_env_file=None, flower_port=5555))
    for member in stack.members:
        if member.name == "draw":  # on machines without a GPU
            continue
        run = rendered["services"]["train-0" if member.name == "train" else member.name]["command"]
        content = ["python", "-m", *member.command, *member.arguments]
        assert run == ["--address=0.0.0.0" if word.startswith("--address") else word for word in content]


def test_only_the_api_can_be_reached_from_outside(rendered: dict[str, Any]) -> None:
    published = {name: str(port) for name, service in rendered["services"].items() for port in service.get("ports", [])}
    assert set(published) == {"web", "flower", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for name, port in published.items() if name != "web")
    assert rendered["networks"]["inside"]["internal"] is True
    for name in ("redis", "postgres", "s3"):
        assert list(rendered["services"][name]["networks"]) == ["inside"], name


@pytest.mark.parametrize("name", OURS)
def test_our_containers_can_do_little(rendered: dict[str, Any], name: str) -> None:
    service = rendered["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["user"] == "10001:10001"
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["ulimits"]["nofile"] == WANTED_FILES


def test_every_service_is_bounded_watched_and_starts_again(rendered: dict[str, Any]) -> None:
    inherits = {name for name in OURS if name != "migrate"}  # the health check of the image
    for name, service in rendered["services"].items():
        limits = service["deploy"]["resources"]["limits"]
        assert limits["memory"], name
        assert limits["cpus"], name
        assert service["pids_limit"], name
        assert service["restart"] == ("no" if name == "migrate" else "unless-stopped"), name
        assert service["logging"]["options"]["max-size"], name
        assert name in inherits or "healthcheck" in service, name
        image = service["image"]
        assert re.search(r":v?\d+\.\d+[\w.-]*$", image), f"{image} is not pinned"


def test_workers_wait_for_the_migrations_and_have_time_to_hand_over(rendered: dict[str, Any]) -> None:
    for name in OURS:
        needs = rendered["services"][name]["depends_on"]
        assert needs["postgres"]["condition"] == "service_healthy"
        if name != "migrate":
            assert needs["migrate"]["condition"] == "service_completed_successfully"
    assert rendered["services"]["train-0"]["stop_grace_period"] in ("90s", "1m30s")
    [device] = rendered["services"]["train-0"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert device["device_ids"] == ["0"]


def test_its_settings_and_files_exist(rendered: dict[str, Any]) -> None:
    for name, service in rendered["services"].items():
        for key in service.get("environment", {}):
            if key.startswith("IMPRINT_"):
                assert key.removeprefix("IMPRINT_").lower() in Settings.model_fields, f"{name}: {key}"
    sources = re.findall(r"^ +- (\./[\w./-]+):", (DEPLOY / "compose.yml").read_text(), re.MULTILINE)
    assert len(sources) >= 4
    for source in sources:
        assert (DEPLOY / source).exists(), source


def test_the_api_believes_a_proxy_on_the_host_or_in_a_container(rendered: dict[str, Any]) -> None:
    trusted = rendered["services"]["web"]["environment"]["IMPRINT_WEB_TRUSTED_PROXIES"]
    assert Settings(_env_file=None, web_trusted_proxies=json.loads(trusted)).web_trusted_proxies == ["172.16.0.0/12"]


def test_the_bucket_is_made_once() -> None:
    """The first thing that a fresh installation runs, against a real server, twice."""
    with s3_server() as server:
        environment = {
            "IMPRINT_STORE_URL": "s3://brand-new/store",
            "IMPRINT_S3_ENDPOINT_URL": server.endpoint_url,
            "IMPRINT_S3_REGION": server.region,
            "IMPRINT_S3_ACCESS_KEY_ID": server.access_key_id,
            "IMPRINT_S3_SECRET_ACCESS_KEY": server.secret_access_key,
        }
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, DEPLOY / "images" / "make_bucket.py"],
                env=environment, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "bucket brand-new" in done.stdout
        server.store("brand-new").put("models/one", b"whole", create_only=True)
