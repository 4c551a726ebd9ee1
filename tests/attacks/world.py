"""The installation that is attacked, in the layout of the stack, and the owner whose times are measured."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx2
import sqlalchemy as sa

from jobs.notices import notices
from jobs.owners import tokens
from tests.attacks.servers import SlowHost, slow_host
from tests.servers.mail import Mailbox, mail_server
from tests.servers.pictures import PictureServer, picture_server
from tests.servers.receiver import Receiver, receiver
from tests.site import Site, drawing, site, until

ATTACKER = "mallory"
_HONEST = "honest"
_PAGE_S = 0.25  # a page that is faster than this is normal, however fast it usually is
_PAGES = 15
AFTER_S = 60.0  # after an attack everything must be normal in this time
_SUMS = """
SELECT a.granted, a.spent, a.held,
  (SELECT COALESCE(SUM(e.amount), 0) FROM credit_entry e WHERE e.account_id = a.id AND e.kind = 'grant'),
  (SELECT COALESCE(SUM(e.amount), 0) FROM credit_entry e WHERE e.account_id = a.id AND e.kind = 'settle'),
  (SELECT COALESCE(SUM(h.amount), 0) FROM credit_hold h WHERE h.account_id = a.id AND h.state = 'held')
FROM credit_account a
"""
_STEPS = 100  # a training of two steps is over before anything could delay it


@dataclass(frozen=True)
class Times:
    """Seconds until an honest training is ready and its owner is told, and until a page is there."""

    job_s: float
    page_s: float

    def is_normal(self, normal: "Times", slack_s: float = 0.0) -> bool:
        """At most twice the normal time, and `slack_s` more where other tests share the machine."""
        longest_page_s = max(2 * normal.page_s, _PAGE_S) + slack_s / 10
        return self.job_s <= 2 * normal.job_s + slack_s and self.page_s <= longest_page_s


class World:
    """A running site with an honest owner and an attacker, and the hosts that they name."""

    def __init__(self, made: Site, host: SlowHost, files: PictureServer, app: Receiver, box: Mailbox) -> None:
        self.site, self.host, self.app, self.box = made, host, app, box
        self._files, self._trainings = files, 0
        for owner in (_HONEST, ATTACKER):
            made.grant(owner, 1_000_000)
            notices.change(made.services, owner, {"email": f"{owner}@example.org"})
        self.attacker = self._client(ATTACKER)
        self._page = self._client(_HONEST)
        secret = tokens.create(made.services, "page", owner_id=_HONEST)[0]
        answer = self._page.post("/sign-in", data={"token": secret}, headers={"Origin": made.web_url})
        assert answer.status_code == 303, answer.text
        # The cookie alone: a page is what a browser gets.
        self._page.headers.pop("Authorization")

    def _client(self, owner: str) -> httpx2.Client:
        secret = tokens.create(self.site.services, "test", owner_id=owner)[0]
        return httpx2.Client(
            base_url=self.site.web_url,
            headers={"Authorization": f"Bearer {secret}"},
            timeout=60,
            trust_env=False,
            limits=httpx2.Limits(max_connections=100),
        )

    def measure(self) -> Times:
        """Send an honest training by its pictures' addresses, and look at pages meanwhile."""
        self._trainings += 1
        images = []
        for number in range(6):
            path = self.site.folder / f"honest-{self._trainings}-{number}.png"
            images.append(self._files.put(f"/{path.name}", drawing(path, 6 * self._trainings + number).read_bytes()))
        mails = len(self.box.to(f"{_HONEST}@example.org"))
        begun = time.monotonic()
        job_id = self.site.send(owner_id=_HONEST, images=images, webhook_url=self.app.url, max_steps=_STEPS)["job_id"]
        pages = [self._page_s() for _ in range(_PAGES)]
        view = self.site.wait(job_id)
        assert view["status"] == "ready", view
        until(
            lambda: any(one.content["training_status"] == "completed" for one in self.app.about(job_id)), 120, "webhook"
        )
        until(lambda: len(self.box.to(f"{_HONEST}@example.org")) > mails, 120, "e-mail")
        return Times(time.monotonic() - begun, median(pages))

    def normal(self) -> Times:
        """The slowest of three quiet measures, after one that starts decoders and loads the model."""
        self.measure()
        measured = [self.measure() for _ in range(3)]
        return Times(max(one.job_s for one in measured), max(one.page_s for one in measured))

    def is_ready(self) -> bool:
        """Whether `/readyz` is green: servers answer and sweeps run."""
        answer = httpx2.get(f"{self.site.web_url}/readyz", timeout=30, trust_env=False)
        return answer.status_code == 200

    def audit_is_clean(self) -> bool:
        """The verdict of `imprint audit`."""
        return json.loads(self.site.imprint("audit", "--json").stdout)["ok"] is True

    def sums_are_right(self) -> bool:
        """Whether each account is the sum of its entries and holds, by SQL that shares nothing with the audit."""
        with self.site.services.database.reading() as session:
            rows = session.execute(sa.text(_SUMS)).all()
        return bool(rows) and all((row[0], row[1], row[2]) == (row[3], row[4], row[5]) for row in rows)

    def _page_s(self) -> float:
        begun = time.monotonic()
        answer = self._page.get("/subjects/mascot")
        assert answer.status_code == 200, answer.text
        return time.monotonic() - begun


@contextmanager
def world(folder: Path, base_model: Path) -> Iterator[World]:
    """Everything started and ready, for a `with` block."""
    with ExitStack() as stack:
        host = stack.enter_context(slow_host())
        files = stack.enter_context(picture_server())
        app = stack.enter_context(receiver())
        box = stack.enter_context(mail_server())
        made = stack.enter_context(
            site(
                folder / "site",
                base_model,
                start=("io", "fetch", "train", "beat"),
                IMPRINT_SMTP_URL=box.url,
                IMPRINT_FETCH_ALLOW_HOSTS=json.dumps([host.address, files.address, app.address]),
            )
        )
        made.start("web")
        yield World(made, host, files, app, box)


__all__ = ["ATTACKER", "Times", "World", "world"]
