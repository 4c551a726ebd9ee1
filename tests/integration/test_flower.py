"""What Flower, the result store, the logs, the events and the webhooks show of a training: its chain, and no secret."""

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
import sqlalchemy as sa
from celery.exceptions import TimeoutError as NotInTime
from sqlmodel import select

from cli.stack import Supervisor
from jobs import service
from notifications.tables import MESSAGE
from storage.tables.jobs import JobPicture
from tests.servers.gated_s3 import SECRET as S3_SECRET
from tests.servers.gated_s3 import gated_s3
from tests.servers.pictures import picture_server
from tests.servers.postgres import new_database, postgres_server
from tests.servers.process import ServerProcess
from tests.servers.receiver import Receiver, receiver
from tests.site import ROOT, Site, drawing, site, until

SIGNATURE = "presigned-and-not-for-you"
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"webhook secret, not for you").decode()
LOGIN = "operator:flower-password-not-for-you"
BROKER_PASSWORD, DATABASE_PASSWORD = "broker-password-not-for-you", "database-password-not-for-you"
KEYS = {
    "IMPRINT_AI_TOOLKIT_TOKEN": "ai-toolkit-token-not-for-you",
    "IMPRINT_RUNPOD_API_KEY": "rpa_runpod-key-not-for-you",
    "IMPRINT_HF_TOKEN": "hf_hub-token-not-for-you",
}
# What comes last in a webhook's address may be all that keeps others from writing to it.
HOOK = "secret-path-not-for-you"
SCRIPT = "<script>alert(1)</script>"  # a subject of an owner who means no good
PLANTED = (
    SIGNATURE, WEBHOOK_SECRET, WEBHOOK_SECRET.removeprefix("whsec_"), S3_SECRET, LOGIN.split(":")[1], BROKER_PASSWORD,
    DATABASE_PASSWORD, *KEYS.values(), HOOK,
)  # fmt: skip


@dataclass
class Shown:
    """A site after three requests: one ready, one failed, one refused; with Flower on it."""

    site: Site
    stack: Supervisor
    application: Receiver
    pictures: str
    ready: dict[str, Any]
    failed: dict[str, Any]
    refused: str

    def ask(self, path: str, login: str | None = LOGIN) -> httpx2.Response:
        return httpx2.get(self.stack.layout.flower_url + path, auth=_login(login) if login else None, timeout=20)

    def tasks(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("/api/tasks?limit=1000").json()
        return found


@pytest.fixture
def shown(base_model: Path, tmp_path: Path) -> Iterator[Shown]:
    folder = tmp_path
    with picture_server() as server, receiver() as application, gated_s3() as s3, postgres_server() as postgres:
        database = sa.make_url(new_database(postgres)).set(password=DATABASE_PASSWORD)
        hook = f"{application.url}/{HOOK}"
        application.refuse(500)  # what goes wrong is told, and the address is not
        environment = {
            "IMPRINT_FETCH_ALLOW_HOSTS": json.dumps([server.address, application.address]),
            "IMPRINT_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "IMPRINT_FLOWER_AUTH": LOGIN,
            "IMPRINT_FLOWER_PORT": "0",
            "IMPRINT_DATABASE_URL": database.render_as_string(hide_password=False),
            "IMPRINT_RUNPOD_URL": "http://127.0.0.1:9",  # nobody: every look at the pods fails, and is logged
            **KEYS,
            **s3.environment,
        }
        with site(folder, base_model, start=(), redis_password=BROKER_PASSWORD, **environment) as made:
            # The process that the stack would start, with its arguments and environment.
            stack = Supervisor(made.settings)
            member = stack["flower"]
            made.processes["flower"] = ServerProcess(
                made.celery(*member.arguments), log=made.log("flower"), cwd=ROOT,
                env=made.surroundings(**member.environment), fresh=True,
            )  # fmt: skip
            made.start_together("io", "train", "beat")
            # Flower serves pages before it receives events: what happens in between it never knows of.
            until(lambda: {"io@test", "train@test"} <= _heard(stack.layout.flower_url), 60, "Flower hears both workers")
            made.grant("owner")
            urls = [server.put(f"/{n}.png", drawing(folder / f"{n}.png", n).read_bytes()) for n in range(6)]
            secret = [f"{url}?X-Amz-Signature={SIGNATURE}" for url in urls]
            gone = [f"http://{server.address}/gone-{n}.png?X-Amz-Signature={SIGNATURE}" for n in range(2)]
            masked = [{"ref": url, "mask": f"{url}&mask"} for url in secret]
            ready = made.send(images=masked, objective={"masked": True}, webhook_url=hook)
            without = {"ref": secret[4], "mask": gone[0]}
            images = [*secret[:4], without, gone[1]]
            failed = made.send(subject_id=SCRIPT, images=images, objective={"masked": True}, webhook_url=hook)
            refused = _refused(made, [f"ftp://{server.address}/x?X-Amz-Signature={SIGNATURE}"] * 5)
            yield Shown(
                made, stack, application, server.address, made.wait(ready["job_id"]),
                made.wait(failed["job_id"]), refused,
            )  # fmt: skip


def _heard(url: str) -> set[str]:
    """The workers whose events have reached Flower."""
    try:
        answer = httpx2.get(f"{url}/api/workers?status=true", auth=_login(LOGIN), timeout=5)
    except httpx2.TransportError:
        return set()
    return {name for name, alive in answer.json().items() if alive} if answer.status_code == 200 else set()


def _login(login: str) -> tuple[str, str]:
    name, _, password = login.partition(":")
    return name, password


def _refused(site: Site, images: list[str]) -> str:
    try:
        site.send(images=images)
    except NotInTime:
        raise
    except Exception as error:  # noqa: BLE001 - of a class that an application without our code does not have
        return str(error)
    raise AssertionError("accepted")


def clean(text: str, where: str) -> None:
    for planted in PLANTED:
        assert planted not in text, f"{where}: …{text[max(text.index(planted) - 200, 0) :][:400]}…"


@pytest.mark.drawn
def test_a_training_is_shown_and_its_secrets_are_not(shown: Shown) -> None:
    """One test, for each of its checks wants the same site after the same trainings."""
    the_requests_ended_as_they_should(shown)
    nobody_sees_anything_without_the_login(shown)
    nobody_does_anything_without_the_login(shown)
    the_chain_is_there_by_its_readable_names_with_the_job_as_argument(shown)
    sweeps_sort_apart_from_the_tasks_of_jobs(shown)
    flower_shows_no_secret(shown)
    the_broker_and_result_store_keep_no_secret(shown)
    the_logs_tell_no_secret(shown)
    views_events_and_messages_tell_no_secret_and_no_address(shown)
    the_webhooks_are_signed_and_tell_no_secret(shown)
    the_command_line_tells_no_secret_and_is_told_none(shown)
    errors_about_the_servers_tell_no_secret(shown)


def the_requests_ended_as_they_should(shown: Shown) -> None:
    assert shown.ready["status"] == "ready", shown.ready["failure"]
    assert shown.failed["failure"]["code"] == "too_few_images"
    assert "5 fault(s)" in shown.refused


def nobody_sees_anything_without_the_login(shown: Shown) -> None:
    for path in (
        "/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks", "/api/queues/length", "/api/task/types"
    ):  # fmt: skip
        assert shown.ask(path, None).status_code == 401, path
        assert shown.ask(path, "operator:wrong").status_code == 401, path


def nobody_does_anything_without_the_login(shown: Shown) -> None:
    for path in ("/api/task/apply/imprint.cancel", "/api/worker/shutdown/io@test"):
        assert httpx2.post(shown.stack.layout.flower_url + path, json={"args": []}, timeout=20).status_code == 401, path


def the_chain_is_there_by_its_readable_names_with_the_job_as_argument(shown: Shown) -> None:
    job_id = shown.ready["job_id"]
    wanted = {f"imprint.{stage}" for stage in ("preprocess", "dataset", "train", "upload", "settle")}

    def of_the_job() -> list[dict[str, Any]]:
        return [task for task in shown.tasks().values() if job_id in str(task["args"]) and task["state"] == "SUCCESS"]

    until(lambda: {task["name"] for task in of_the_job()} >= wanted, 60, "all of them succeeded")
    names = [task["name"] for task in of_the_job()]
    assert names.count("imprint.preprocess") == 3, "two pictures from addresses to a message"
    assert names.count("imprint.train") == 1
    doors = [task for task in shown.tasks().values() if task["name"] == "imprint.train_lora"]
    assert len(doors) == 3
    assert {(task["args"], task["kwargs"]) for task in doors} == {("()", "{…}")}


def sweeps_sort_apart_from_the_tasks_of_jobs(shown: Shown) -> None:
    def names() -> set[str]:
        return {task["name"] for task in shown.tasks().values()}

    until(lambda: {"sweep.sweep", "sweep.poll_remote"} <= names(), 60, "both sweeps")
    assert not names() & {"imprint.sweep", "imprint.poll_remote", "imprint.audit"}


def flower_shows_no_secret(shown: Shown) -> None:
    found = shown.tasks()
    assert found
    clean(json.dumps(found, ensure_ascii=False), "/api/tasks")
    for path in ("/", "/workers", "/tasks", "/broker", "/api/workers?refresh=1", "/metrics"):
        clean(shown.ask(path).text, path)
    for uuid, task in found.items():
        page = shown.ask(f"/task/{uuid}").text
        clean(page, task["name"])
        assert SCRIPT not in page, f"{task['name']}: a subject's id is shown as HTML"


def the_broker_and_result_store_keep_no_secret(shown: Shown) -> None:
    assert shown.site.redis is not None
    client = redis.Redis.from_url(shown.site.redis.url)
    names = [key for key in client.scan_iter() if b"celery-task-meta" in key]
    assert names, "results are there to look at"
    for key in client.scan_iter():
        clean(f"{key!r} {_value(client, key)!r}", str(key))


def _value(client: "redis.Redis", key: bytes) -> Any:
    kind = client.type(key)
    if kind == b"string":
        return client.get(key)
    if kind == b"hash":
        return client.hgetall(key)
    if kind == b"list":
        return client.lrange(key, 0, -1)
    if kind == b"set":
        return client.smembers(key)
    return client.zrange(key, 0, -1)


def the_logs_tell_no_secret(shown: Shown) -> None:
    logs = [*shown.site.folder.glob("*.log"), *shown.site.settings.log_dir.glob("*")]
    assert {log.name for log in logs} >= {"io.log", "train.log", "flower.log", "errors.jsonl"}
    for log in logs:
        clean(log.read_text(), log.name)
    assert "imprint.preprocess" in shown.site.log("io").read_text()


def views_events_and_messages_tell_no_secret_and_no_address(shown: Shown) -> None:
    services = shown.site.services
    for view in (shown.ready, shown.failed):
        content = json.dumps(view) + json.dumps([event.data for event in service.events(services, view["job_id"])])
        clean(content, view["job_id"])
        assert f"{shown.pictures}/" not in content, "host and file name are told apart, and no address"
    with services.database.reading() as session:
        for column in (JobPicture.reference, JobPicture.mask):
            kept_there = session.exec(select(column)).all()
            assert any(SIGNATURE in (reference or "") for reference in kept_there), "the two places where it is"
        kept = session.execute(sa.select(MESSAGE.c.payload, MESSAGE.c.last_error)).all()
    clean(str(kept).replace(HOOK, ""), "outbox")  # it is where notices go to
    clean(shown.refused, "the refusal")


def the_webhooks_are_signed_and_tell_no_secret(shown: Shown) -> None:
    for view, last in ((shown.ready, "completed"), (shown.failed, "failed")):

        def statuses(job_id: str = view["job_id"]) -> list[str]:
            return [one.content["training_status"] for one in shown.application.about(job_id)]

        until(lambda: statuses()[-1:] == [last], 30, last)  # noqa: B023 - asked at once
    for one in shown.application.got:
        one.verified(WEBHOOK_SECRET)
        assert HOOK in one.path, "the one place where it belongs"
        clean(one.body.decode() + str(one.headers) + one.path.replace(HOOK, ""), "webhook")
        assert shown.pictures not in one.body.decode()


def the_command_line_tells_no_secret_and_is_told_none(shown: Shown) -> None:
    for arguments in (("status", shown.ready["job_id"]), ("list",), ("status", shown.failed["job_id"])):
        done = shown.site.imprint(*arguments, "--json")
        clean(done.stdout + done.stderr, " ".join(arguments))
    for command in (("graph", "workers"), ("report",), ("inspect", "conf")):
        done = shown.site.command(*command)
        assert done.returncode == 0, done.stderr
        clean(done.stdout + done.stderr, " ".join(command))
    lines = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            lines[process.name] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    assert any("celery" in line and " flower " in line for line in lines.values())
    for line in lines.values():
        clean(line, "a process")
    for member in shown.stack.members:
        clean(" ".join([*member.command, *member.arguments]), member.name)


def errors_about_the_servers_tell_no_secret(shown: Shown) -> None:
    """What is said when broker and database are away, or the settings are wrong."""
    url = sa.make_url(shown.site.settings.database)
    # A database of its own: the site's sweep would send the message, and nothing would be wrong.
    alone = {
        "IMPRINT_DATABASE_URL": f"sqlite:///{shown.site.folder / 'alone.db'}",
        "IMPRINT_BROKER_URL": f"redis://:{BROKER_PASSWORD}@127.0.0.1:9/0",
    }
    assert shown.site.command("imprint", "grant", "owner", "1000", **alone).returncode == 0
    for changed in (
        {"IMPRINT_DATABASE_URL": url.set(port=9).render_as_string(hide_password=False)},
        {"IMPRINT_DATABASE_URL": url.set(drivername="nothing").render_as_string(hide_password=False)},
        alone,
        {"IMPRINT_LEASE_S": "soon"},
    ):
        submit = ("imprint", "submit", str(shown.site.folder), "--trigger", "x", "--owner", "owner")
        done = shown.site.command(*submit, **changed)
        assert done.stderr, "it is said that something is wrong"
        clean(done.stdout + done.stderr, str(list(changed)))
