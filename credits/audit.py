"""The audit: every invariant of the ledger, recomputed from the journal in SQL."""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

MAX_FINDINGS = 1000  # of each check


@dataclass(frozen=True)
class AuditFinding:
    """A broken rule: which one, at which account, hold or entry, and what was expected and found."""

    what: str
    where: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: {self.where} has {self.found}, expected {self.expected}"


# Each check selects three texts for each row that breaks it: where (an id), expected, found.
_CHECKS = {
    "granted, spent and held are what the journal sums to": """
        SELECT a.id,
            'granted ' || coalesce(j.granted, 0) || ', spent ' || coalesce(j.spent, 0)
                || ', held ' || coalesce(j.held, 0),
            'granted ' || a.granted || ', spent ' || a.spent || ', held ' || a.held
        FROM credit_account a LEFT JOIN (
            SELECT e.account_id,
                sum(CASE WHEN e.kind = 'grant' THEN e.amount ELSE 0 END) AS granted,
                sum(CASE e.kind WHEN 'settle' THEN e.amount WHEN 'refund' THEN -e.amount ELSE 0 END) AS spent,
                sum(CASE WHEN e.kind = 'hold' THEN e.amount
                         WHEN e.kind IN ('settle', 'release', 'expire') THEN -h.amount ELSE 0 END) AS held
            FROM credit_entry e LEFT JOIN credit_hold h ON h.id = e.hold_id
            GROUP BY e.account_id
        ) j ON j.account_id = a.id
        WHERE a.granted <> coalesce(j.granted, 0) OR a.spent <> coalesce(j.spent, 0)
            OR a.held <> coalesce(j.held, 0)""",
    "nothing is below zero, and no more is spent and held than was granted": """
        SELECT id, 'no overdraft', 'granted ' || granted || ', spent ' || spent || ', held ' || held
        FROM credit_account
        WHERE granted < 0 OR spent < 0 OR held < 0 OR granted - spent - held < 0""",
    "held is the sum of the live holds": """
        SELECT a.id, 'held ' || coalesce(h.held, 0), 'held ' || a.held
        FROM credit_account a LEFT JOIN (
            SELECT account_id, sum(amount) AS held FROM credit_hold WHERE state = 'held' GROUP BY account_id
        ) h ON h.account_id = a.id
        WHERE a.held <> coalesce(h.held, 0)""",
    "the entries are numbered from 1 without gaps": """
        SELECT a.id, 'entries 1 to ' || a.seq,
            coalesce(j.entries, 0) || ' entries, ' || coalesce(j.first, 0) || ' to ' || coalesce(j.last, 0)
        FROM credit_account a LEFT JOIN (
            SELECT account_id, count(*) AS entries, count(DISTINCT seq) AS numbers,
                min(seq) AS first, max(seq) AS last
            FROM credit_entry GROUP BY account_id
        ) j ON j.account_id = a.id
        WHERE coalesce(j.entries, 0) <> a.seq OR coalesce(j.numbers, 0) <> a.seq
            OR coalesce(j.last, 0) <> a.seq OR (a.seq > 0 AND j.first <> 1)""",
    "every entry has an account": """
        SELECT e.id, 'account ' || e.account_id, 'none'
        FROM credit_entry e LEFT JOIN credit_account a ON a.id = e.account_id WHERE a.id IS NULL""",
    "every entry is of a known kind and moves something": """
        SELECT id, 'a positive amount of a known kind', kind || ' of ' || amount
        FROM credit_entry
        WHERE amount <= 0 OR kind NOT IN ('grant', 'hold', 'settle', 'release', 'expire', 'refund')""",
    "every entry has its counterparty": """
        SELECT id,
            CASE kind WHEN 'grant' THEN 'issued' WHEN 'settle' THEN 'revenue' WHEN 'refund' THEN 'revenue'
                ELSE 'held' END,
            counterparty
        FROM credit_entry
        WHERE counterparty <> CASE kind WHEN 'grant' THEN 'issued' WHEN 'settle' THEN 'revenue'
            WHEN 'refund' THEN 'revenue' ELSE 'held' END""",
    "a key is used once by an account": """
        SELECT account_id || ' ' || idempotency_key, '1 entry', count(*) || ' entries'
        FROM credit_entry GROUP BY account_id, idempotency_key HAVING count(*) > 1""",
    "every entry but a grant names a hold of its own account and training": """
        SELECT e.id,
            CASE WHEN e.kind = 'grant' THEN 'no hold'
                ELSE coalesce(h.account_id || ' ' || h.training_id, 'a hold') END,
            e.account_id || ' ' || coalesce(e.training_id, '-') || ' ' || coalesce(e.hold_id, '-')
        FROM credit_entry e LEFT JOIN credit_hold h ON h.id = e.hold_id
        WHERE (e.kind = 'grant' AND (e.hold_id IS NOT NULL OR e.training_id IS NOT NULL))
            OR (e.kind <> 'grant' AND (h.id IS NULL OR h.account_id <> e.account_id
                OR e.training_id IS NULL OR h.training_id <> e.training_id))""",
    "every hold was made by one entry of its amount": """
        SELECT h.id, '1 entry of ' || h.amount,
            coalesce(j.entries, 0) || ' entries of ' || coalesce(j.amount, 0) || ' in all'
        FROM credit_hold h LEFT JOIN (
            SELECT hold_id, count(*) AS entries, sum(amount) AS amount
            FROM credit_entry WHERE kind = 'hold' GROUP BY hold_id
        ) j ON j.hold_id = h.id
        WHERE coalesce(j.entries, 0) <> 1 OR j.amount <> h.amount""",
    "a hold is resolved at most once": """
        SELECT hold_id, 'at most 1 resolution', count(*) || ' resolutions'
        FROM credit_entry WHERE kind IN ('settle', 'release', 'expire')
        GROUP BY hold_id HAVING count(*) > 1""",
    "a hold's state is what its resolution says": """
        SELECT h.id,
            CASE e.kind WHEN 'settle' THEN 'settled ' || e.amount WHEN 'release' THEN 'released 0'
                WHEN 'expire' THEN 'expired 0' ELSE 'held 0' END,
            h.state || ' ' || h.settled
        FROM credit_hold h
            LEFT JOIN credit_entry e ON e.hold_id = h.id AND e.kind IN ('settle', 'release', 'expire')
        WHERE h.state || ' ' || h.settled <>
            CASE e.kind WHEN 'settle' THEN 'settled ' || e.amount WHEN 'release' THEN 'released 0'
                WHEN 'expire' THEN 'expired 0' ELSE 'held 0' END""",
    "what is given back is the whole of the hold": """
        SELECT e.id, CAST(h.amount AS TEXT), CAST(e.amount AS TEXT)
        FROM credit_entry e JOIN credit_hold h ON h.id = e.hold_id
        WHERE e.kind IN ('release', 'expire') AND e.amount <> h.amount""",
    "no more is settled than was held, nor refunded than was settled": """
        SELECT id, 'refunded <= settled <= ' || amount, 'settled ' || settled || ', refunded ' || refunded
        FROM credit_hold
        WHERE amount <= 0 OR settled < 0 OR settled > amount OR refunded < 0 OR refunded > settled""",
    "a hold's refunds are what the journal sums to": """
        SELECT h.id, 'refunded ' || coalesce(j.refunded, 0), 'refunded ' || h.refunded
        FROM credit_hold h LEFT JOIN (
            SELECT hold_id, sum(amount) AS refunded FROM credit_entry WHERE kind = 'refund' GROUP BY hold_id
        ) j ON j.hold_id = h.id
        WHERE h.refunded <> coalesce(j.refunded, 0)""",
    "every hold has an account": """
        SELECT h.id, 'account ' || h.account_id, 'none'
        FROM credit_hold h LEFT JOIN credit_account a ON a.id = h.account_id WHERE a.id IS NULL""",
    "a training has one hold, an owner one account": """
        SELECT 'training ' || training_id, '1 hold', count(*) || ' holds'
        FROM credit_hold GROUP BY training_id HAVING count(*) > 1
        UNION ALL
        SELECT 'owner ' || owner_id, '1 account', count(*) || ' accounts'
        FROM credit_account GROUP BY owner_id HAVING count(*) > 1""",
}


def audit(session: Session) -> list[AuditFinding]:
    """Every broken rule of the ledger, at most MAX_FINDINGS for each; an empty list if all hold.

    Each rule is one statement, so it sees one consistent state while credits move.
    """
    return findings_of(session, _CHECKS)


def findings_of(session: Session, checks: Mapping[str, str]) -> list[AuditFinding]:
    """The rows that the checks select."""
    findings = []
    for what, query in checks.items():
        with session.execute(sa.text(query)) as result:
            rows = result.fetchmany(MAX_FINDINGS)
        findings += [AuditFinding(what, *(str(column) for column in row)) for row in rows]
    return findings
