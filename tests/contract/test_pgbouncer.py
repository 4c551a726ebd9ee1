"""Imprint's writes through pgbouncer in transaction mode: each transaction may run on another server connection."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from core.database_address import engine_arguments
from core.settings import Settings
from jobs.owners import accounts
from jobs.services import Services
from tests.servers.pgbouncer import pgbouncer
from tests.servers.postgres import new_database
from tests.site import ROOT

WRITES = 25  # psycopg prepares a statement after five uses
# Stores results as a worker does, with the configuration of Celery.
_RESULTS = f"""
from tasks.app import app
for number in range({WRITES}):
    app.backend.store_result(f"task-{{number}}", number, "SUCCESS")
print(app.backend.get_result("task-24"))
"""


@pytest.fixture(scope="module")
def direct(postgres: tuple[str, str]) -> str:
    """A database without a table."""
    return new_database(postgres[0])


@pytest.fixture(scope="module")
def through(direct: str) -> Iterator[str]:
    with pgbouncer(direct) as address:
        yield address


def test_a_loop_of_writes_works_through_it_and_so_do_migrations(through: str, tmp_path: Path) -> None:
    def write(number: int) -> None:
        services = Services(Settings(_env_file=None, home=tmp_path / f"{number}", database_url=through))
        for one in range(WRITES):
            accounts.grant(services, f"owner-{number}", 1, key=f"{number}-{one}")
        assert accounts.balance(services, f"owner-{number}").available == WRITES
        services.database.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))


def test_what_is_prepared_fails_there_and_works_on_direct_connections(direct: str, through: str) -> None:
    """This shows that the server above is one on which prepared statements fail."""

    def read(address: str) -> None:
        plain = address.replace("+psycopg", "")
        clients = [psycopg.connect(plain, prepare_threshold=0) for _ in range(3)]
        try:
            for _ in range(WRITES):
                for client in clients:
                    client.execute("SELECT 1")
                    client.commit()
        finally:
            for client in clients:
                client.close()

    read(direct)
    with pytest.raises(psycopg.errors.DuplicatePreparedStatement):
        read(through)


@pytest.mark.parametrize("parameter", ["", "?prepare_threshold=none"])
def test_results_in_the_database_go_through_it_too(through: str, tmp_path: Path, parameter: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("IMPRINT_")}
    environment = {
        **clean,
        "IMPRINT_HOME": str(tmp_path),
        "IMPRINT_DATABASE_URL": f"{through}{parameter}",
        "IMPRINT_BROKER_URL": "amqp://127.0.0.1:1//",
    }
    done = subprocess.run(
        [sys.executable, "-c", _RESULTS], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, "24"), done.stderr


@pytest.mark.parametrize(
    ("address", "plain", "threshold"),
    [
        ("postgresql+psycopg://a:b@h/d", "postgresql+psycopg://a:b@h/d", None),
        ("postgresql+psycopg://a:b@h/d?prepare_threshold=none", "postgresql+psycopg://a:b@h/d", None),
        ("postgresql+psycopg://h/d?prepare_threshold=5&x=y", "postgresql+psycopg://h/d?x=y", 5),
    ],
)
def test_the_parameter_is_for_the_driver(address: str, plain: str, threshold: int | None) -> None:
    assert engine_arguments(address) == (plain, {"connect_args": {"prepare_threshold": threshold}})


def test_other_databases_have_no_such_parameter_and_a_wrong_one_is_named() -> None:
    assert engine_arguments("sqlite:///x.db") == ("sqlite:///x.db", {})
    for wrong in ("-1", "off", "5.5"):
        with pytest.raises(ValueError, match="prepare_threshold in the database's address must be"):
            engine_arguments(f"postgresql+psycopg://h/d?prepare_threshold={wrong}")
