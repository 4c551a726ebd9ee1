"""PostgreSQL becomes read-only under running processes, as after a failover, and nothing is restarted afterwards."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa

from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from tests.servers.postgres import new_database, postgres_server
from tests.site import Site, site, until

pytestmark = pytest.mark.drawn


@contextmanager
def read_only(address: str) -> Iterator[None]:
    """The server ends every session, and new ones may only read. Those stay so, as if they had reached a standby."""
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    name = engine.url.database

    def execute(*statements: str) -> None:
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on", f"{ended} AND pid <> pg_backend_pid()")
    try:
        yield
    finally:
        execute("SET default_transaction_read_only = off", f"ALTER DATABASE {name} RESET default_transaction_read_only")
        engine.dispose()


def readiness(running: Site) -> str:
    return str(httpx2.get(f"{running.web_url}/readyz", timeout=20, trust_env=False).json()["database"])


def test_trainings_go_on_through_the_spell_and_requests_wait_for_its_end(base_model: Path, tmp_path: Path) -> None:
    with postgres_server() as server:
        address = new_database(server)
        with site(tmp_path, base_model, IMPRINT_DATABASE_URL=address, IMPRINT_LEASE_S="12") as running:
            running.start("web")
            running.grant("owner")
            training = running.send(max_steps=400)["job_id"]
            pictures = running.pictures("owner")
            running.wait(training, lambda view: view["step"] > 0)
            sent: list[str] = []
            with read_only(address):
                request = threading.Thread(target=lambda: sent.append(running.send(images=pictures)["job_id"]))
                request.start()
                until(lambda: readiness(running) == "away", 60, "/readyz is red")
                until(lambda: "waits for the next round" in running.log("io").read_text(), 60, "a sweep met it")
                until(lambda: "leases are not renewed" in running.log("train").read_text(), 60, "a lease was due")
            until(lambda: readiness(running) == "ok", 60, "/readyz is green")
            request.join(90)
            assert sent, "the application's task was tried again"
            for job_id in (training, sent[0]):
                view = running.wait(job_id, timeout_s=240)
                assert view["status"] == "ready", view["failure"]
            reasons = [event.data for event in service.events(running.services, training) if event.kind == "retry"]
            assert reasons == [], "the same worker trained it to its end"
            kinds = [entry.kind for entry in accounts.statement(running.services, "owner")]
            assert sorted(kinds) == ["grant", "hold", "hold", "settle", "settle"]
            assert sweeps.run_audit(running.services) == []
