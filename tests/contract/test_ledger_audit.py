"""The audit finds every kind of damage, names it, and finds nothing in good books."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.clock import utcnow
from credits import audit as audits
from credits import ledger
from credits.audit import AuditFinding, audit
from storage.database import Database

TABLES = ("credit_account", "credit_hold", "credit_entry")

# Damage, and the rules of the audit that must name it. The books: `fill`.
DAMAGE = {
    "UPDATE credit_account SET granted = granted + 1 WHERE owner_id = 'ada'": {"granted, spent and held are"},
    "UPDATE credit_account SET spent = spent - 1 WHERE owner_id = 'ada'": {"granted, spent and held are"},
    "UPDATE credit_account SET held = held + 1 WHERE owner_id = 'ada'": {
        "granted, spent and held are",
        "held is the sum",
    },
    "UPDATE credit_account SET held = -1 WHERE owner_id = 'ada'": {"nothing is below zero", "held is the sum"},
    "UPDATE credit_account SET spent = 1000 WHERE owner_id = 'ada'": {"nothing is below zero"},
    "UPDATE credit_account SET seq = seq + 1 WHERE owner_id = 'ada'": {"the entries are numbered"},
    "UPDATE credit_account SET owner_id = 'ada'": {"a training has one hold"},
    "DELETE FROM credit_account WHERE owner_id = 'ada'": {"every entry has an account", "every hold has an account"},
    "DELETE FROM credit_entry WHERE seq = 2": {"the entries are numbered", "every hold was made"},
    "DELETE FROM credit_entry WHERE kind = 'settle'": {"a hold's state is", "the entries are numbered"},
    "DELETE FROM credit_entry WHERE kind = 'refund'": {"a hold's refunds are"},
    "UPDATE credit_entry SET seq = 99 WHERE kind = 'refund'": {"the entries are numbered"},
    "UPDATE credit_entry SET seq = seq + 1": {"the entries are numbered"},
    "UPDATE credit_entry SET seq = 4 WHERE seq = 3": {"the entries are numbered"},
    "UPDATE credit_entry SET amount = amount + 1 WHERE kind = 'grant'": {"granted, spent and held are"},
    "UPDATE credit_entry SET amount = amount + 1 WHERE kind = 'settle'": {"a hold's state is"},
    "UPDATE credit_entry SET amount = amount + 1 WHERE kind = 'refund'": {"a hold's refunds are"},
    "UPDATE credit_entry SET amount = amount + 1 WHERE kind = 'hold'": {"every hold was made"},
    "UPDATE credit_entry SET amount = amount - 1 WHERE kind = 'release'": {"what is given back is"},
    "UPDATE credit_entry SET amount = -amount WHERE kind = 'release'": {"every entry is of a known kind"},
    "UPDATE credit_entry SET kind = 'gift' WHERE kind = 'expire'": {
        "every entry is of a known kind",
        "a hold's state is",
    },
    "UPDATE credit_entry SET kind = 'release' WHERE kind = 'expire'": {"a hold's state is"},
    "UPDATE credit_entry SET counterparty = 'issued' WHERE kind = 'settle'": {"every entry has its counterparty"},
    "UPDATE credit_entry SET idempotency_key = 'same'": {"a key is used once"},
    "UPDATE credit_entry SET hold_id = 'none' WHERE kind = 'settle'": {"every entry but a grant names"},
    "UPDATE credit_entry SET hold_id = NULL WHERE kind = 'settle'": {"every entry but a grant names"},
    "UPDATE credit_entry SET training_id = 'other' WHERE kind = 'settle'": {"every entry but a grant names"},
    "UPDATE credit_entry SET training_id = NULL WHERE kind = 'settle'": {"every entry but a grant names"},
    "UPDATE credit_entry SET training_id = 't1' WHERE kind = 'grant'": {"every entry but a grant names"},
    "UPDATE credit_entry SET hold_id = (SELECT hold_id FROM credit_entry WHERE kind = 'settle')"
    " WHERE kind = 'release'": {"a hold is resolved at most once", "a hold's state is"},
    "UPDATE credit_hold SET account_id = 'none' WHERE training_id = 't1'": {"every hold has an account"},
    "UPDATE credit_hold SET training_id = 't1'": {"a training has one hold", "every entry but a grant names"},
    "UPDATE credit_hold SET state = 'held' WHERE training_id = 't1'": {"a hold's state is", "held is the sum"},
    "UPDATE credit_hold SET state = 'settled', settled = 1 WHERE state = 'held'": {"a hold's state is"},
    "UPDATE credit_hold SET settled = settled - 1 WHERE training_id = 't1'": {"a hold's state is"},
    "UPDATE credit_hold SET settled = 1000 WHERE training_id = 't1'": {"no more is settled"},
    "UPDATE credit_hold SET refunded = 1000 WHERE training_id = 't1'": {
        "no more is settled",
        "a hold's refunds are",
    },
    "UPDATE credit_hold SET amount = amount + 1 WHERE state = 'held'": {"every hold was made", "held is the sum"},
    "UPDATE credit_hold SET amount = amount + 1 WHERE state = 'expired'": {"what is given back is"},
    "DELETE FROM credit_hold WHERE state = 'released'": {"every entry but a grant names"},
}


def fill(session: Session) -> None:
    """ada: 200 granted; t1 settled 30 of 40 and refunded 5, t2 released, t3 expired, t4 live. bob: 10 granted."""
    ledger.grant(session, "ada", 200, key="g")
    expires_at = utcnow() + timedelta(days=1)
    holds = [ledger.hold(session, "ada", f"t{n}", 40, key=f"h{n}", expires_at=expires_at) for n in range(1, 5)]
    ledger.settle(session, holds[0], 30)
    ledger.refund(session, holds[0], 5, key="r")
    ledger.settle(session, holds[1], 0)
    ledger.expire(session, holds[2])
    ledger.grant(session, "bob", 10, key="g")


@pytest.fixture
def books(database: Database) -> Iterator[sa.Connection]:
    """Good books in tables that keep no rules, so that anything can be written into them."""
    with database.writing() as session:
        fill(session)
    with database.engine.connect() as connection:
        for table in TABLES:
            connection.exec_driver_sql(f"CREATE TABLE bare_{table} AS SELECT * FROM {table}")  # noqa: S608
        for table in reversed(TABLES):
            cascade = "CASCADE" if connection.dialect.name == "postgresql" else ""
            connection.exec_driver_sql(f"DROP TABLE {table} {cascade}")
            connection.exec_driver_sql(f"ALTER TABLE bare_{table} RENAME TO {table}")
        connection.commit()
        yield connection


def found_in(connection: sa.Connection) -> list[AuditFinding]:
    with Session(connection) as session:
        return audit(session)


def test_good_books(database: Database, books: sa.Connection) -> None:
    assert found_in(books) == []
    with database.reading() as session:
        assert audit(session) == []


def test_every_kind_of_damage_is_found(books: sa.Connection) -> None:
    tried = set()
    for damage, names in DAMAGE.items():
        assert books.exec_driver_sql(damage).rowcount > 0, damage
        findings = found_in(books)
        books.rollback()
        for name in names:
            assert any(finding.what.startswith(name) for finding in findings), (damage, name, findings)
        tried |= {finding.what for finding in findings}
    assert tried == set(audits._CHECKS), "a rule of the audit that no damage above breaks"


def test_a_finding_says_what_and_where(books: sa.Connection) -> None:
    account = books.exec_driver_sql("SELECT id FROM credit_account WHERE owner_id = 'ada'").scalar()
    books.exec_driver_sql("UPDATE credit_account SET spent = 7 WHERE owner_id = 'ada'")
    (finding,) = found_in(books)
    assert finding == AuditFinding(
        "granted, spent and held are what the journal sums to",
        str(account),
        "granted 200, spent 25, held 40",
        "granted 200, spent 7, held 40",
    )
    assert str(finding).endswith(
        f"{account} has granted 200, spent 7, held 40, expected granted 200, spent 25, held 40"
    )


def test_a_flood_of_findings_is_cut(books: sa.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits, "MAX_FINDINGS", 3)
    books.exec_driver_sql("UPDATE credit_entry SET counterparty = 'nobody'")
    assert len(found_in(books)) == 3
