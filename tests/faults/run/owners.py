"""The owners of a fault run: they repeat requests until accepted, and cancel; messages are also sent twice."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from sqlmodel import select

from core.errors import IllegalMove, StoreUnavailable
from jobs import service
from jobs.stages import intake
from storage.database import AWAY
from storage.tables.jobs import Job
from tests.faults.run.plan import PICTURES, PlannedTraining, Resend
from tests.faults.run.world import World
from tests.site import RECIPE, drawing

log = logging.getLogger(__name__)

QUEUES = {"dataset": "cpu", "train": "train.sd15"}
# An application that has not been answered for so long sends its request again, with the same key.
PATIENCE_S = 12.0
_PASSES = (*AWAY, sa.exc.DBAPIError, StoreUnavailable, OperationalError, RedisError, OSError)


class Owners:
    """What they have sent, and which jobs they were given: `accepted` maps an order's number to its job's id."""

    def __init__(self, world: World, folder: Path) -> None:
        self._world, self._site, self._folder = world, world.site, folder
        self.accepted: dict[int, str] = {}
        self.duplicates: list[str] = []  # two jobs for one key: must stay empty
        self.resent = 0
        self._stored: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        self.given_up = threading.Event()

    def place(self, order: PlannedTraining) -> None:
        """Send an order, as often as it says and until there is a job for its key; then cancel it, if it says so."""
        request = self._request(order)
        job_id = None
        while job_id is None and not self.given_up.is_set():
            for _ in range(order.copies):
                self._until_it_passes(lambda: self._send(order, request))
            job_id = self._wait_for_job(order)
        if job_id is None:
            return
        self.accepted[order.number] = job_id
        if order.cancel_after_s is not None:
            time.sleep(order.cancel_after_s)
            self._until_it_passes(lambda: self._cancel(job_id))

    def resend(self, resend: Resend) -> None:
        """Send a stage's message of an order once more, if there is a job by now."""
        job_id = self.accepted.get(resend.number)
        if job_id is None:
            return
        arguments = (job_id, 0) if resend.stage == "preprocess" else (job_id,)
        queue = QUEUES.get(resend.stage, "io")
        with suppress(*_PASSES):
            name = f"imprint.{resend.stage}"
            self._site.application.send_task(name, arguments, queue=queue, ignore_result=True)
            self.resent += 1

    def _request(self, order: PlannedTraining) -> dict[str, Any]:
        """The same for every copy of the order."""
        request = {
            **RECIPE, "max_steps": 1, "owner_id": order.owner_id, "subject_id": "drawings",
            "idempotency_key": f"order {order.number}", "images": self._pictures(order),
        }  # fmt: skip
        if order.webhook:
            request["webhook_url"] = self._world.receiver.url
        if order.what == "broken base":
            request |= {"base_model": str(self._site.settings.home.resolve() / "bases" / "broken"), "family": "sd15"}
        return request

    def _pictures(self, order: PlannedTraining) -> list[str]:
        bad = {"bad pictures": 1, "too few": 3}.get(order.what, 0)  # of six; five are needed
        if order.stored and not bad:
            return self._stored_pictures(order.owner_id)
        images = []
        for position in range(PICTURES):
            path = self._folder / f"{order.number}-{position}.png"
            if position < bad:
                path.write_bytes(b"no picture %d" % order.number)
            else:
                drawing(path, order.number * PICTURES + position)
            images.append(path.as_uri())
        return images

    def _stored_pictures(self, owner_id: str) -> list[str]:
        """Ids of an owner's six pictures, stored when they are first asked for."""
        with self._lock:
            if owner_id not in self._stored:
                seed = 10_000 + 100 * len(self._stored)
                files = [drawing(self._folder / f"{owner_id}-{n}.png", seed + n) for n in range(PICTURES)]
                store = partial(intake.store_picture, self._site.services, owner_id, "drawings")
                self._stored[owner_id] = [self._until_it_passes(partial(store, file.read_bytes())) for file in files]
            return self._stored[owner_id]

    def _send(self, order: PlannedTraining, request: dict[str, Any]) -> None:
        if order.by_task:
            # Nobody waits for the answer: Redis may forget it. The job is found by its key.
            send = self._site.application.send_task
            send("imprint.train_lora", kwargs=request, queue="io", ignore_result=True)
            return
        job_id = service.submit(self._site.services, request).job_id
        if self.accepted.setdefault(order.number, job_id) != job_id:
            self.duplicates.append(job_id)

    def _wait_for_job(self, order: PlannedTraining) -> str | None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and not self.given_up.is_set():
            with suppress(*AWAY, sa.exc.DBAPIError), self._site.services.database.reading() as session:
                query = select(Job.id).where(
                    Job.owner_id == order.owner_id, Job.idempotency_key == f"order {order.number}"
                )
                found = session.exec(query).all()
                self.duplicates += found[1:]
                if found:
                    return found[0]
            time.sleep(0.5)
        return None

    def _cancel(self, job_id: str) -> None:
        with suppress(IllegalMove):  # it had ended by then
            service.cancel(self._site.services, job_id)

    def _until_it_passes(self, action: Callable[[], Any]) -> Any:
        """Try again while servers are away, as an application would."""
        while True:
            try:
                return action()
            except _PASSES as error:
                if self.given_up.is_set():
                    raise
                log.info("once more: %s", error)
                time.sleep(0.5)
