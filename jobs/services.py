"""The services of a process: the one place where implementations are chosen from settings."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from pydantic import SecretStr

from core.brokers import broker, queues
from core.fairness.slot_shares import SlotShares
from core.outbound.download_budget import DownloadBudget
from core.outbound.guard import Guard
from core.settings import Settings, settings
from core.telemetry import tracing
from jobs.admission.decide import DUE, decide_due
from jobs.admission.places import Places
from jobs.lifecycle.lease_keeper import LeaseKeeper
from jobs.notices.outbox_sender import OutboxSender
from notifications import channels, mail, outbox, signing
from storage.database import Database
from storage.objects import ObjectStore
from storage.objects.local import LocalStore
from storage.sources import Sources
from training.backends.ai_toolkit.connection import open_toolkit_client
from training.backends.runpod import RunPod
from training.data.decoding.decoder import Decoder


@dataclass(frozen=True)
class Services:
    """What the jobs of one process use; each part is created on first use."""

    settings: Settings
    # Sends the outbox and returns whether all is sent, as `tasks.relay.relay` does; None: messages wait for the sweep.
    send: "Callable[[Services], bool] | None" = None

    @cached_property
    def outbox_sender(self) -> OutboxSender | None:
        """The thread that sends the outbox after each commit that added a message."""
        send = self.send
        return None if send is None else OutboxSender(lambda: send(self))

    @cached_property
    def database(self) -> Database:
        """The database, with its schema up to date."""
        sender = self.outbox_sender
        database = Database(
            self.settings.database,
            before_commit={DUE: lambda session: decide_due(session, self.settings)},
            after_commit={outbox.CHANGED: sender.wake} if sender else None,
        )
        database.migrate()
        return database

    @cached_property
    def places(self) -> Places:
        """The places of waiting jobs."""
        return Places(self.database, self.settings)

    @cached_property
    def lease_keeper(self) -> LeaseKeeper:
        return LeaseKeeper(self.database, self.settings.lease_s)

    @cached_property
    def store(self) -> ObjectStore:
        return open_store(self.settings)

    @cached_property
    def guard(self) -> Guard:
        return Guard(
            allow_hosts=self.settings.fetch_allow_hosts,
            timeout_s=self.settings.fetch_timeout_s,
            min_bytes_per_s=self.settings.fetch_min_bytes_per_s,
            at_once=self.settings.fetch_concurrency,
            budget=DownloadBudget(self.settings.fetch_request_s, self.settings.fetch_host_s),
        )

    @cached_property
    def slots(self) -> SlotShares:
        """Turns between owners on a fetch worker, which sets their number at its start."""
        return SlotShares()

    @cached_property
    def webhook_guard(self) -> Guard:
        return Guard(allow_hosts=self.settings.fetch_allow_hosts, timeout_s=self.settings.webhook_timeout_s)

    @cached_property
    def sources(self) -> Sources:
        return Sources(
            guard=self.guard,
            store=self.store,
            file_roots=self.settings.file_roots,
            s3_buckets=self.settings.s3_source_buckets,
        )

    @cached_property
    def decoder(self) -> Decoder:
        """Decodes untrusted pictures in processes of its own, which start with the first picture."""
        return Decoder(
            max_pixels=self.settings.max_picture_pixels,
            max_bytes=self.settings.max_picture_bytes,
            at_once=self.settings.io_concurrency,
        )

    @cached_property
    def webhook_secrets(self) -> list[bytes]:
        """The keys that sign webhooks. Raises ValueError for an invalid key."""
        secret = self.settings.webhook_secret
        return signing.parse_secrets(secret.get_secret_value()) if secret else []

    @cached_property
    def mailer(self) -> mail.Mailer | None:
        """Who takes e-mails; None without a server. ValueError for an address that is none."""
        url = self.settings.smtp_url
        if url is None:
            return None
        made = mail.Mailer(url.get_secret_value())
        made.check()
        return made

    @cached_property
    def channels(self) -> list[str]:
        """The operators' channels. Raises ValueError for an address that Apprise does not know."""
        found = [channel.get_secret_value() for channel in self.settings.operator_channels]
        if found:
            channels.check(found)
        return found

    def check(self) -> None:
        """Check the settings that would otherwise fail only when they are used. Raises ValueError."""
        for part, setting in (
            ("webhook_secrets", "IMPRINT_WEBHOOK_SECRET"),
            ("guard", "IMPRINT_FETCH_ALLOW_HOSTS"),
            ("mailer", "IMPRINT_SMTP_URL"),
            ("channels", "IMPRINT_OPERATOR_CHANNELS"),
        ):
            try:
                getattr(self, part)
            except ValueError as error:
                raise ValueError(f"{setting}: {error}") from None
        if queues.is_own_queue(self.settings.callback_queue):
            raise ValueError(
                f"IMPRINT_CALLBACK_QUEUE: {self.settings.callback_queue} is a queue of Imprint's workers; "
                "name a queue of the application"
            )
        self._check_application_tasks()
        broker.check(self.settings)
        try:
            tracing.check()
        except ValueError as error:
            raise ValueError(f"IMPRINT_TRACING: {error}") from None

    def _check_application_tasks(self) -> None:
        for kind in ("screen", "caption"):
            name, queue = (getattr(self.settings, f"{kind}_{what}") for what in ("task", "queue"))
            setting = f"IMPRINT_{kind.upper()}"
            if name is not None and queues.is_own_task(name):
                raise ValueError(f"{setting}_TASK: {name} is a task of Imprint or Celery; name one of your application")
            if queue is not None and queues.is_own_queue(queue):
                raise ValueError(f"{setting}_QUEUE: {queue} is a queue of Imprint's workers; name one of your own")

    @cached_property
    def runpod(self) -> RunPod | None:
        """The client of RunPod; None without a key."""
        key = self.settings.runpod_api_key
        return RunPod(self.settings.runpod_url, key.get_secret_value()) if key else None

    @cached_property
    def ai_toolkit(self) -> httpx2.Client:
        """One connection pool for all ai-toolkit servers."""
        return open_toolkit_client()

    @property
    def work_dir(self) -> Path:
        """Where steps unpack files: one folder for each process, deleted with it."""
        return self.settings.home.resolve() / "work" / str(os.getpid())


def open_store(settings: Settings) -> ObjectStore:
    """The object store that the settings name."""
    address = urlsplit(settings.store)
    if address.scheme != "s3":
        return LocalStore(Path(address.path if address.scheme == "file" else settings.store))
    from storage.objects.s3 import S3Store

    def secret(value: SecretStr | None) -> str | None:
        return value.get_secret_value() if value else None

    return S3Store(
        bucket=address.netloc,
        prefix=address.path.strip("/"),
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        access_key_id=secret(settings.s3_access_key_id),
        secret_access_key=secret(settings.s3_secret_access_key),
        session_token=secret(settings.s3_session_token),
        addressing=settings.s3_addressing,
        ca_file=settings.s3_ca_file,
        min_bytes_per_s=settings.s3_min_bytes_per_s,
    )


_send: Callable[[Services], bool] | None = None


def send_outbox_with(send: Callable[[Services], bool]) -> None:
    """Send the outbox of this process's services, and of its children's, with `send` from now on."""
    global _send
    _send = send


def _send_if_possible(services: Services) -> bool:
    return _send is not None and _send(services)


@cache
def _services_of(_pid: int) -> Services:
    return Services(settings(), _send_if_possible)


def services() -> Services:
    """The services of this process. A forked child gets its own, since connections do not survive a fork."""
    return _services_of(os.getpid())
