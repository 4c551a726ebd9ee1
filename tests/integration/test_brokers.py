"""The brokers of docs/brokers.md, each with a real worker: it takes tasks, or says in one sentence why it does not."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from amqp.exceptions import NotFound
from celery import Celery
from kombu import Connection, Queue

from jobs import service
from tasks.queue_types import check_queue_types
from tests.integration.doctor import diagnosed
from tests.servers.certificates import Certificates, make_certificates
from tests.servers.launcher import run
from tests.servers.process import free_port
from tests.servers.rabbitmq import rabbitmq_cluster, rabbitmq_server
from tests.servers.redis import redis_server
from tests.servers.redis_setups import GROUP, redis_over_tls, redis_sentinel
from tests.site import MASCOT, RECIPE, ROOT, Site, until

CELERY = ["celery", "-A", "tasks.app"]
PASSWORD = "broker-password-not-for-you"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@contextmanager
def installed(folder: Path, base_model: Path, broker_url: str, **environment: str) -> Iterator[Site]:
    """An installation on a broker that the test has started."""
    made = Site(folder / "site", base_model, broker_url, **environment)
    try:
        made.services.database.migrate()
        made.grant("owner")
        yield made
    finally:
        made.end()


def quoted(made: Site, application: Celery | None = None) -> Any:
    """What an application gets from the installation's worker."""
    request = {"subject_id": "mascot", "owner_id": "owner", "images": made.pictures("owner"), **RECIPE}
    sent = (application or made.application).send_task("imprint.quote", kwargs=request, queue="io")
    try:
        return sent.get(timeout=60)["steps"]
    finally:
        sent.backend = None


PLAIN = "does not speak TLS, but the address begins with {}://: begin it with {}://"
TLS_ONLY = "speaks TLS only, but the address begins with {}://: begin it with {}://"


class TestTlsOfTheAddressAndNotOfTheServer:
    """A client waits a minute for such a server, or for ever, without a word."""

    @pytest.mark.parametrize("server", ["plain", "tls"])
    def test_every_process_says_at_once_what_to_do(
        self, base_model: Path, tmp_path: Path, certificates: Certificates, server: str
    ) -> None:
        with ExitStack() as stack:
            if server == "plain":
                url = stack.enter_context(redis_server(tmp_path / "redis")).url.replace("redis://", "rediss://")
                told = PLAIN.format("rediss", "redis")
            else:
                url = stack.enter_context(redis_over_tls(tmp_path / "redis", certificates))
                url, told = url.replace("rediss://", "redis://"), TLS_ONLY.format("redis", "rediss")
            made = stack.enter_context(installed(tmp_path, base_model, url))
            submit = ["submit", str(MASCOT), "--owner", "owner", "--trigger", "sks", "--resolution", "64"]
            commands = {
                "stack": ["cli.stack"],
                "web": ["web"],
                "worker": [*CELERY, "worker", "-Q", "io", "-P", "threads"],
                "beat": [*CELERY, "beat", "-s", str(tmp_path / "schedule")],
                "submit": [*CELERY, "imprint", *submit],  # its request is stored, and continues with a stack
            }

            def ended(name: str) -> tuple[str, int, str]:
                (folder := tmp_path / name).mkdir()
                done = run(commands[name], cwd=ROOT, env=made.surroundings(), folder=folder, timeout=240)
                return name, done.returncode, " ".join((done.stdout + done.stderr).split())  # a terminal breaks lines

            with ThreadPoolExecutor() as pool:
                for name, code, output in pool.map(ended, commands):
                    assert told in output, f"{name}: {output}"
                    assert code == (name != "submit"), f"{name}: {output}"
            assert f"todo  settings: IMPRINT_BROKER_URL: {urlsplit(url).netloc} {told}" in diagnosed(made)


class TestRedisOverTls:
    def test_without_parameters_certificates_are_checked(
        self, base_model: Path, tmp_path: Path, certificates: Certificates
    ) -> None:
        """Case 21."""
        trusted = {"SSL_CERT_FILE": str(certificates.authority)}  # the machine's authorities
        with (
            redis_over_tls(tmp_path / "redis", certificates) as url,
            installed(tmp_path, base_model, url, **trusted) as made,
        ):
            made.start("io")
            address = f"{url}?ssl_cert_reqs=required&ssl_ca_certs={certificates.authority}"
            assert quoted(made, Celery(broker=address, backend=address)) == 2
            assert "insecure" not in made.log("io").read_text()
            assert "ok    broker: rediss://" in diagnosed(made)

            unknown = diagnosed(made, SSL_CERT_FILE="/dev/null")
            assert "does not answer: its certificate is not trusted" in unknown
            assert "add ?ssl_ca_certs=" in unknown
            assert "ok    broker" in diagnosed(made, SSL_CERT_FILE="/dev/null", IMPRINT_BROKER_URL=address)
            wrong = address.replace("localhost", "127.0.0.1")  # a name that is not in the certificate
            assert "its certificate is not trusted" in diagnosed(made, IMPRINT_BROKER_URL=wrong)
            assert "ok    broker" in diagnosed(made, IMPRINT_BROKER_URL=wrong.replace("required", "none"))


class TestRabbitmqOverTls:
    def test_certificates_and_names_are_checked(
        self, base_model: Path, tmp_path: Path, certificates: Certificates
    ) -> None:
        port = free_port()
        lines = [
            f"listeners.ssl.default = {port}",
            f"ssl_options.cacertfile = {certificates.authority}",
            f"ssl_options.certfile = {certificates.certificate}",
            f"ssl_options.keyfile = {certificates.key}",
            "ssl_options.verify = verify_none",
        ]
        url = f"amqps://guest:guest@localhost:{port}//?ssl_ca_certs={certificates.authority}"
        with (
            rabbitmq_server(tmp_path / "rabbitmq", config=lines),
            installed(tmp_path, base_model, url) as made,
        ):
            made.start("io")
            doctor = diagnosed(made)
            assert f"ok    broker: amqps://guest:**@localhost:{port}//" in doctor
            assert "no worker takes from train.sd15" in doctor  # but from the other queues
            for changed in (url.replace("localhost", "127.0.0.1"), url.partition("?")[0]):
                assert "its certificate is not trusted" in diagnosed(made, IMPRINT_BROKER_URL=changed)
            plain = diagnosed(made, IMPRINT_INGRESS_URL=url.replace("amqps://", "amqp://"))
            assert "IMPRINT_INGRESS_URL: localhost:" in plain
            assert TLS_ONLY.format("amqp", "amqps") in plain


class TestSentinel:
    def test_a_worker_follows_the_master(self, base_model: Path, tmp_path: Path) -> None:
        with (
            redis_sentinel(tmp_path / "redis") as group,
            installed(tmp_path, base_model, group.address) as made,
        ):
            address, _, _ = group.address.partition("?")
            application = Celery(broker=address, backend=address)
            application.conf.broker_transport_options = {"master_name": GROUP}
            application.conf.result_backend_transport_options = {"master_name": GROUP}
            made.application = application
            made.start_together("io", "train", "beat")
            view = made.wait(made.send()["job_id"])
            assert view["status"] == "ready", view["failure"]

            first = group.master_port()
            group.master.end(kill=True)
            until(lambda: group.master_port() != first, 60, "the replica is the master")
            after = Celery(broker=address, backend=address)
            after.conf.broker_transport_options = {"master_name": GROUP}
            after.conf.result_backend_transport_options = {"master_name": GROUP}
            made.application = after
            assert quoted(made) == 2
            view = made.wait(made.send()["job_id"])
            assert view["status"] == "ready", view["failure"]

    def test_without_the_name_of_the_group_a_worker_does_not_start(self, base_model: Path, tmp_path: Path) -> None:
        with installed(tmp_path, base_model, "sentinel://127.0.0.1:1/0") as made:
            done = made.command("worker")
            assert done.returncode != 0
            wanted = "IMPRINT_BROKER_URL: add ?master_name=…, the name by which the Sentinels know the Redis"
            assert f"this worker cannot start: {wanted}" in done.stderr
            assert "Traceback" not in done.stderr
            submit = ("imprint", "submit", str(ROOT / "demo" / "pictures"), "--trigger", "imp", "--owner", "owner")
            assert wanted in " ".join(made.command(*submit).stderr.split()), "the terminal breaks the line"


@pytest.mark.drawn
class TestRabbitmqCluster:
    def test_workers_follow_and_a_job_waits_for_the_node_that_has_its_queues(
        self, base_model: Path, tmp_path: Path
    ) -> None:
        with rabbitmq_cluster(tmp_path / "rabbitmq", 2) as (first, second):
            both = f"{first.url};{second.url}"
            with installed(tmp_path, base_model, both, IMPRINT_RELAUNCH_AFTER_S="3") as made:
                made.start_together("io", "train", "beat")
                made.grant("owner")
                assert made.wait(made.send()["job_id"])["status"] == "ready"
                second.kill()  # has no queue: nobody notices
                assert made.wait(made.send()["job_id"])["status"] == "ready"
                second.start()
                job_id = made.send(max_steps=30)["job_id"]
                made.wait(job_id, lambda view: view["step"] > 0)
                first.kill()  # the node with the queues, in mid-training
                with pytest.raises(NotFound, match="home node"):
                    made.send()
                with Celery(broker=both) as starting:
                    starting.conf.task_queues = [Queue("io")]
                    check_queue_types(starting)  # does not end a worker that starts now
                request = {"subject_id": "mascot", "owner_id": "owner", "images": made.pictures("owner"), **RECIPE}
                waiting = service.submit(made.services, request).job_id  # as the HTTP API does
                until(lambda: made.view(job_id)["stage"] != "train", 60, "the training ends without a broker")
                first.start()
                for each in (job_id, waiting):
                    assert made.wait(each)["status"] == "ready"
                assert {name: process.alive for name, process in made.processes.items()} == dict.fromkeys(
                    ("io", "train", "beat"), True
                )


class TestQuorumQueues:
    def test_a_worker_refuses_them_in_one_sentence(self, base_model: Path, tmp_path: Path) -> None:
        with (
            rabbitmq_server(tmp_path / "rabbitmq") as server,
            installed(tmp_path, base_model, server.url) as made,
        ):
            with Connection(server.url) as connection:
                Queue("cpu", durable=True, queue_arguments={"x-queue-type": "quorum"})(connection).declare()
            done = made.command("worker", "-Q", "io.finish,io,cpu,sweep")
            assert done.returncode != 0
            assert "this worker cannot start: the queue cpu on the broker is not a plain classic queue" in done.stderr
            assert "default queue type is classic" in done.stderr
            assert "Traceback" not in done.stderr
            with Connection(server.url) as connection:
                Queue("cpu")(connection).delete()
            made.start("io")  # with classic queues it starts


class TestPasswords:
    def test_a_file_has_it_and_no_command_prints_it(self, base_model: Path, tmp_path: Path) -> None:
        (tmp_path / "password").write_text(f"{PASSWORD}\n")
        with redis_server(tmp_path / "redis", password=PASSWORD) as server:
            without = f"redis://127.0.0.1:{server.port}/0"
            file = {"IMPRINT_BROKER_PASSWORD_FILE": str(tmp_path / "password")}
            with installed(tmp_path, base_model, without, **file) as made:
                made.application = Celery(broker=server.url, backend=server.url)
                made.start("io")
                assert quoted(made) == 2
                for command in (("graph", "workers"), ("report",), ("inspect", "conf")):
                    for surroundings in ({}, {"IMPRINT_BROKER_URL": server.url}):
                        done = made.command(*command, **surroundings)
                        assert done.returncode == 0, done.stderr
                        assert f"127.0.0.1:{server.port}" in done.stdout
                        assert PASSWORD not in done.stdout + done.stderr, command
                missing = made.command("worker", IMPRINT_BROKER_PASSWORD_FILE=str(tmp_path / "no-such"))
                assert "this worker cannot start: IMPRINT_BROKER_PASSWORD_FILE: " in missing.stderr
                assert "Traceback" not in missing.stderr
