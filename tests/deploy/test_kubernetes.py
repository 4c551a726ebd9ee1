"""The manifests: against the API's own schemas, and what they promise; KEDA's query and queue on real servers."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis
import sqlalchemy as sa
import yaml
from celery import Celery
from sqlmodel import col

from core.settings import Settings
from jobs import service
from jobs.services import Services
from storage.tables.jobs import Job, Stage
from storage.tables.remote import RemoteRun
from tests.contract.jobs import put_at, request, services, settings
from tests.servers.databases import postgres
from tests.servers.postgres import new_database
from tests.servers.redis import redis_server
from tests.site import ROOT
from training.families.registry import trained_here

__all__ = ["postgres", "services", "settings"]

FOLDER = ROOT / "deploy" / "kubernetes"
FAMILIES = tuple(trained_here())
KUBERNETES = ("1.30", "1.33")  # the oldest that is looked after somewhere, and a common one


@pytest.fixture
def address(postgres: tuple[str, str]) -> str:
    """KEDA asks PostgreSQL only."""
    server, template = postgres
    return new_database(server, template)


def objects() -> list[dict[str, Any]]:
    """What the kustomization names, as it stands in the files."""
    named = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    return [one for name in named for one in yaml.safe_load_all((FOLDER / name).read_text())]


def of(kind: str, name: str) -> dict[str, Any]:
    return next(one for one in objects() if (one["kind"], one["metadata"]["name"]) == (kind, name))


def test_every_file_is_named() -> None:
    named = set(yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"])
    assert {path.name for path in FOLDER.glob("*.yaml")} - named == {"kustomization.yaml", "secret.example.yaml"}


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_api_takes_them(version: str) -> None:
    secret = yaml.safe_load((FOLDER / "secret.example.yaml").read_text())
    for one in [*objects(), secret]:
        if not one["apiVersion"].startswith("keda.sh"):
            kubernetes_validate.validate(one, version, strict=True)


def test_kustomize_renders_them() -> None:
    content = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert content["namespace"] == "imprint"
    rendered = objects()
    if shutil.which("kubectl"):  # else the files themselves are what it would render, but for the namespace
        done = subprocess.run(["kubectl", "kustomize", FOLDER], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        rendered = list(yaml.safe_load_all(done.stdout))
        assert len(rendered) == len(objects())
        assert {one["metadata"].get("namespace") for one in rendered if one["kind"] != "Namespace"} == {"imprint"}
    images = {
        container["image"]
        for one in rendered
        if one["kind"] in ("Deployment", "Job")
        for container in one["spec"]["template"]["spec"]["containers"]
    }
    tags = {one["name"]: one["newTag"] for one in content["images"]}
    named = {image if ":" in image else f"{image}:{tags[image]}" for image in images}
    assert named == {"imprint-serve:0.1.0", "imprint-train:0.1.0"}


def pods() -> dict[str, dict[str, Any]]:
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in objects()
        if one["kind"] in ("Deployment", "Job")
    }


@pytest.mark.parametrize("name", sorted(pods()))
def test_pods_keep_to_the_restricted_standard(name: str) -> None:
    pod = pods()[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert container["resources"]["requests"]["memory"]
        assert container["resources"]["limits"]["memory"]
        assert name == "migrate" or "livenessProbe" in container
        written = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/tmp", "/var/lib/imprint"} <= written  # noqa: S108 - a mount's place


@pytest.mark.parametrize("family", FAMILIES)
def test_one_deployment_trains_each_family_and_has_time_to_hand_over(family: str) -> None:
    pod = pods()[f"train-{family}"]
    command = pod["containers"][0]["command"]
    assert command[command.index("-Q") + 1] == f"train.{family},draw.{family}"
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["terminationGracePeriodSeconds"] >= 90
    assert "replicas" not in of("Deployment", f"train-{family}")["spec"], "the number is KEDA's"


def test_settings_exist() -> None:
    secret = yaml.safe_load((FOLDER / "secret.example.yaml").read_text())["stringData"]
    for name in [*of("ConfigMap", "imprint")["data"], *secret]:
        if name.startswith("IMPRINT_"):
            assert name.removeprefix("IMPRINT_").lower() in Settings.model_fields, name


def test_the_api_believes_the_proxies_of_the_cluster() -> None:
    trusted = of("ConfigMap", "imprint")["data"]["IMPRINT_WEB_TRUSTED_PROXIES"]
    assert Settings(_env_file=None, web_trusted_proxies=json.loads(trusted)).web_trusted_proxies == ["10.0.0.0/8"]


@pytest.mark.parametrize("family", FAMILIES)
def test_keda_scales_to_zero_and_down_without_haste(family: str) -> None:
    spec = of("ScaledObject", f"train-{family}")["spec"]
    assert spec["scaleTargetRef"]["name"] == f"train-{family}"
    assert of("Deployment", spec["scaleTargetRef"]["name"])
    assert spec["minReplicaCount"] == 0 < spec["maxReplicaCount"]
    down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 300}]
    assert down["stabilizationWindowSeconds"] >= 600
    secrets = yaml.safe_load((FOLDER / "secret.example.yaml").read_text())["stringData"]
    assert [trigger["type"] for trigger in spec["triggers"]] == ["postgresql", "redis"]
    for trigger in spec["triggers"]:
        for reference in of("TriggerAuthentication", trigger["authenticationRef"]["name"])["spec"]["secretTargetRef"]:
            assert reference["key"] in secrets
        assert all(isinstance(value, str) for value in trigger["metadata"].values())


def test_keda_counts_the_jobs_that_wait_or_train(services: Services) -> None:
    """The very query of the manifest, on a real PostgreSQL, with jobs of every kind."""
    queries = {
        family: of("ScaledObject", f"train-{family}")["spec"]["triggers"][0]["metadata"]["query"] for family in FAMILIES
    }

    def counted() -> dict[str, int]:
        with services.database.reading() as session:
            return {family: session.execute(sa.text(query)).scalar_one() for family, query in queries.items()}

    submitted = [service.submit(services, request(services, max_steps=10 + number)).job_id for number in range(4)]
    other = service.submit(services, request(services, base_model="sdxl", max_steps=10)).job_id
    assert not any(counted().values()), "jobs whose pictures are being prepared need no GPU"
    for each in (*submitted, other):
        put_at(services, each, Stage.TRAIN)
    assert counted() == dict.fromkeys(FAMILIES, 0) | {"sd15": 4, "sdxl": 1}
    put_at(services, submitted[0], Stage.TRAIN, lease_holder="train@pod", lease_token=1, step=7)  # in mid-training
    put_at(services, submitted[1], Stage.UPLOAD)
    service.cancel(services, submitted[2])
    assert counted() == dict.fromkeys(FAMILIES, 0) | {"sd15": 2, "sdxl": 1}
    with services.database.writing() as session:  # and one that trains on a rented machine needs none of ours
        session.add(RemoteRun(job_id=other, attempt=1, name="run_1", state="submitted"))
        session.execute(sa.update(Job).where(col(Job.id) == submitted[0]).values(status="ready"))
    assert counted() == dict.fromkeys(FAMILIES, 0) | {"sd15": 1}


def test_keda_looks_at_the_lists_that_celery_fills(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as server:
        application = Celery("application", broker=server.url)
        client = redis.Redis.from_url(server.url)
        for family in FAMILIES:
            name = of("ScaledObject", f"train-{family}")["spec"]["triggers"][1]["metadata"]["listName"]
            application.send_task("imprint.train", args=["job_1"], queue=f"train.{family}")
            assert client.llen(name) == 1
        client.close()
        application.close()
