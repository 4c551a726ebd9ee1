"""The installation that a fault run breaks: PostgreSQL, Redis, a store, a receiver, two of each worker, two beats."""

import json
import random
import secrets
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import redis as redis_client

from tests.faults.run.plan import WORKERS, Fault
from tests.servers.gated_s3 import GatedS3, Trouble, gated_s3
from tests.servers.postgres import PostgresServer, new_database, postgres_node
from tests.servers.process import Server
from tests.servers.receiver import Receiver, receiver
from tests.servers.redis import RedisServer, redis_server
from tests.site import Site

SECRET = "whsec_" + "F" * 40
TROUBLES: dict[str, Trouble] = {
    "store refuses": "error",
    "store cuts connections": "reset",
    "store loses answers": "lost-answer",
}
SETTINGS = {
    "IMPRINT_LEASE_S": "3",
    "IMPRINT_SWEEP_S": "2",
    "IMPRINT_RETRY_BASE_S": "0.5",
    "IMPRINT_RELAUNCH_AFTER_S": "8",
    "IMPRINT_VISIBILITY_TIMEOUT_S": "20",  # so that messages of the dead and the paused come again as well
    "IMPRINT_WEBHOOK_SECRET": SECRET,
}


class World:
    """A running site, its servers, and the faults that they may have."""

    def __init__(
        self, site: Site, redis: RedisServer, postgres: PostgresServer, s3: GatedS3, webhooks: Receiver
    ) -> None:
        self.site, self.redis, self.postgres, self.s3, self.receiver = site, redis, postgres, s3, webhooks
        self.heard: dict[str, list[str]] = {}  # by job: the final statuses that were well signed and acknowledged
        self._listened = 0

    def begin(self, fault: Fault) -> None:
        """Let it go wrong."""
        what, _, whom = fault.kind.partition(" ")
        if fault.kind in TROUBLES:
            self.s3.spoil(TROUBLES[fault.kind], fault.share)
        elif fault.kind == "receiver refuses first attempts":
            self.receiver.refuses_first = random.Random(fault.at_s).choice((500, 503, 429))
        elif fault.kind == "kill a child of io":
            self._kill_child(fault.target)
        elif fault.kind == "crash PostgreSQL":
            self.postgres.kill()
        elif fault.kind == "Redis flushed":
            redis_client.Redis.from_url(self.redis.url).flushall()
        elif fault.kind.startswith("Redis"):
            self.redis.kill()
            if "everything" in fault.kind:
                self.redis.forget()
        elif what == "kill":
            self.site.kill(fault.target)
        else:
            self._signal(fault.target, whom, signal.SIGSTOP)

    def end(self, fault: Fault) -> None:
        """Let it be over: what was killed is started again, what was paused goes on."""
        what, _, whom = fault.kind.partition(" ")
        if fault.target == "store":
            self.s3.release()
        elif fault.target == "receiver":
            self.receiver.refuses_first = None
        elif fault.kind == "crash PostgreSQL":
            self.postgres.start()
        elif fault.kind in ("Redis back to its last snapshot", "Redis loses everything"):
            self.redis.start()
        elif what == "pause":
            self._signal(fault.target, whom, signal.SIGCONT)
        elif what == "kill" and fault.target not in self.site.processes:
            self.site.start(fault.target, wait=False)

    def listen(self) -> None:
        """Read what the receiver has got since the last call: often, because a signature is good for minutes only."""
        new = self.receiver.got[self._listened :]
        self._listened += len(new)
        for one in new:
            body = one.verified(SECRET)
            if 200 <= one.answered < 300 and body["training_status"] != "processing":
                self.heard.setdefault(body["data"]["training_id"], []).append(body["training_status"])

    def save_redis(self) -> None:
        """A snapshot to fall back to; not while it is down or paused."""
        with suppress(redis_client.RedisError):
            client = redis_client.Redis.from_url(self.redis.url, socket_timeout=1)
            client.bgsave()

    def revive(self) -> list[str]:
        """Start again whatever ended by itself: as a supervisor would. Gives who that was."""
        ended = [name for name, process in self.site.processes.items() if not process.alive]
        for name in ended:
            self.site.kill(name)
            self.site.start(name, wait=False)
        return ended

    def _signal(self, target: str, whom: str, number: int) -> None:
        server: Server | None = {"Redis": self.redis, "PostgreSQL": self.postgres}.get(whom)
        if server is not None:
            server.pause() if number == signal.SIGSTOP else server.resume()
        elif target in self.site.processes:
            self.site.processes[target].signal(number)

    def _kill_child(self, name: str) -> None:
        """kill -9 of one process of a prefork pool: its parent lives and notices."""
        if name in self.site.processes:
            with suppress(psutil.Error):
                for child in psutil.Process(self.site.processes[name].pid).children()[:1]:
                    child.kill()


@contextmanager
def world(folder: Path, base_model: Path) -> Iterator[World]:
    """Everything started and ready, for a `with` block; nothing of it runs afterwards."""
    with ExitStack() as stack:
        postgres = stack.enter_context(postgres_node())
        redis = stack.enter_context(redis_server(folder / "redis", appendonly=False))
        s3 = stack.enter_context(gated_s3())
        webhooks = stack.enter_context(receiver())
        site = Site(
            folder / "site",
            base_model,
            redis.url,
            IMPRINT_DATABASE_URL=new_database(postgres.address),
            IMPRINT_FETCH_ALLOW_HOSTS=json.dumps([webhooks.address]),
            IMPRINT_FILE_ROOTS=json.dumps([str(folder / "pictures")]),
            **SETTINGS,
            **s3.environment,
        )
        (folder / "pictures").mkdir()
        _break_base(site.settings.home.resolve() / "bases" / "broken")
        stack.callback(site.end)
        site.services.database.migrate()
        for name in (*WORKERS, "beat", "beat-2"):
            site.start(name, wait=False)
        yield World(site, redis, postgres, s3, webhooks)


def _break_base(folder: Path) -> None:
    """A base model's folder with nothing sound in it."""
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "config.json").write_text(secrets.token_hex(20))
