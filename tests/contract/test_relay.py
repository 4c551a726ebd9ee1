"""The relay while what it needs is away: it fails nobody, and keeps nothing to itself."""

from pathlib import Path

from core.clock import utcnow
from core.settings import Settings
from jobs import accounts, service
from jobs.wiring import House
from notifications import outbox
from tasks.relay import relay
from tests.contract.jobs import GRANTED, request
from tests.servers.postgres import postgres_node


def test_what_no_broker_took_is_due_again_at_once(house: House) -> None:
    """Not only when the relay's claim has run out: a broker that is back for ten seconds is enough."""
    jobs = [service.submit(house, request(house, seed=seed))["job_id"] for seed in (1, 2)]
    assert relay(house) == 0  # tests have no broker
    with house.database.reading() as session:
        assert [message.job_id for message in outbox.due(session, utcnow(), ["launch"])] == jobs


def test_a_database_that_is_away_fails_nobody_who_relays(tmp_path: Path) -> None:
    """Else a step that is done would count as failed, and what follows it in the chain would not be sent."""
    with postgres_node() as server:
        house = House(Settings(_env_file=None, home=tmp_path, database_url=server.address))
        accounts.grant(house, "ada", GRANTED)
        service.submit(house, request(house))
        server.kill()
        assert relay(house) == 0
        house.database.close()
