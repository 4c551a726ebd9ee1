"""Invariants between jobs, drawings, their holds and their messages, checked in SQL; and LoRAs delivered without a
charge.
"""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlmodel import Session, col, select

from credits.audit import AuditFinding, findings_of
from credits.tables import CreditHold
from storage.tables.jobs import Job, Status

# Each check selects three texts for each row that breaks it: where (an id), expected, found. An active job is
# `pending` or `training`; every other job is final.
CHECKS = {
    "every job has a hold, made for it and paid by its owner": """
        SELECT j.id, 'a hold for ' || j.id || ' of ' || j.owner_id,
            coalesce(h.id || ' for ' || h.training_id || ' of ' || coalesce(a.owner_id, 'nobody'), 'none')
        FROM training_job j LEFT JOIN credit_hold h ON h.id = j.hold_id
            LEFT JOIN credit_account a ON a.id = h.account_id
        WHERE h.id IS NULL OR h.training_id <> j.id OR a.id IS NULL OR a.owner_id <> j.owner_id""",
    "every hold belongs to a job or a drawing, or to one that was deleted": """
        SELECT h.id, 'job or drawing ' || h.training_id, 'none'
        FROM credit_hold h LEFT JOIN training_job j ON j.id = h.training_id
            LEFT JOIN deleted_training d ON d.id = h.training_id
            LEFT JOIN device_drawing p ON p.id = h.training_id
        WHERE j.id IS NULL AND d.id IS NULL AND p.id IS NULL""",
    "the hold of a deleted job is resolved": """
        SELECT h.id, 'deleted, hold resolved', 'deleted, hold ' || h.state
        FROM credit_hold h JOIN deleted_training d ON d.id = h.training_id
        WHERE h.state = 'held'""",
    "the hold of a drawing is its owner's, live while it is open, and resolved at its end": """
        SELECT d.id, 'a hold of ' || d.owner_id || ', held only while the drawing is open',
            d.status || ', ' || coalesce(h.state || ' of ' || a.owner_id, 'no hold')
        FROM device_drawing d LEFT JOIN credit_hold h ON h.training_id = d.id
            LEFT JOIN credit_account a ON a.id = h.account_id
        WHERE (d.hold_id IS NOT NULL AND (h.id IS NULL OR h.id <> d.hold_id OR a.owner_id <> d.owner_id))
            OR (d.hold_id IS NULL AND h.id IS NOT NULL)
            OR (h.id IS NOT NULL AND (h.state = 'held') <> (d.status IN ('pending', 'drawing')))""",
    "a drawing was charged what its hold settled, and a failed one nothing": """
        SELECT d.id, d.status || ', charged ' || CASE WHEN d.status IN ('pending', 'drawing') THEN 'nothing yet'
                WHEN d.status = 'failed' THEN '0' ELSE CAST(coalesce(h.settled, 0) AS TEXT) END,
            d.status || ', charged ' || coalesce(CAST(d.charged AS TEXT), 'nothing yet')
        FROM device_drawing d LEFT JOIN credit_hold h ON h.training_id = d.id
        WHERE CASE WHEN d.status IN ('pending', 'drawing') THEN d.charged IS NOT NULL
            WHEN d.status = 'failed' THEN d.charged IS NULL OR d.charged <> 0 OR coalesce(h.settled, 0) <> 0
            ELSE d.charged IS NULL OR d.charged <> coalesce(h.settled, 0) END""",
    "a final drawing has an end time and no lease; an open one has no end time": """
        SELECT id, status || CASE WHEN status IN ('pending', 'drawing') THEN ', no end' ELSE ', an end, no lease' END,
            status || ', ' || CASE WHEN finished_at IS NULL THEN 'no end' ELSE 'an end' END
                || CASE WHEN lease_until IS NULL THEN ', no lease' ELSE ', a lease' END
        FROM device_drawing
        WHERE (status IN ('pending', 'drawing')) <> (finished_at IS NULL)
            OR (status NOT IN ('pending', 'drawing') AND lease_until IS NOT NULL)""",
    "the hold of an active job is live or expired": """
        SELECT j.id, j.status || ', hold held or expired', j.status || ', hold ' || h.state
        FROM training_job j JOIN credit_hold h ON h.training_id = j.id
        WHERE j.status IN ('pending', 'training') AND h.state NOT IN ('held', 'expired')""",
    "the hold of a final job is resolved": """
        SELECT j.id, j.status || ', hold resolved', j.status || ', hold ' || h.state
        FROM training_job j JOIN credit_hold h ON h.training_id = j.id
        WHERE j.status NOT IN ('pending', 'training') AND h.state = 'held'""",
    "a job was charged what its hold settled": """
        SELECT j.id, j.status || ', charged ' || CASE WHEN j.status IN ('pending', 'training') THEN 'nothing yet'
                ELSE CAST(h.settled AS TEXT) END,
            j.status || ', charged ' || coalesce(CAST(j.charged AS TEXT), 'nothing yet')
        FROM training_job j JOIN credit_hold h ON h.training_id = j.id
        WHERE CASE WHEN j.status IN ('pending', 'training') THEN j.charged IS NOT NULL
            ELSE j.charged IS NULL OR j.charged <> h.settled END""",
    "a failed job is charged nothing": """
        SELECT j.id, 'charged 0', 'charged ' || coalesce(j.charged, 0) || ', hold settled ' || h.settled
        FROM training_job j JOIN credit_hold h ON h.training_id = j.id
        WHERE j.status = 'failed' AND (j.charged <> 0 OR h.settled <> 0)""",
    "a job cancelled before its first step is charged nothing": """
        SELECT id, 'charged 0', 'charged ' || charged FROM training_job
        WHERE status = 'cancelled' AND charged <> 0
            AND (step = 0 OR stage IN ('preprocess', 'caption', 'review', 'dataset'))""",
    "a ready job is charged, or its hold had expired": """
        SELECT j.id, 'hold settled or expired', 'hold ' || h.state
        FROM training_job j JOIN credit_hold h ON h.training_id = j.id
        WHERE j.status = 'ready' AND h.state NOT IN ('settled', 'expired')""",
    "a ready job has passed every stage and names its file": """
        SELECT id, 'stage settle, a file and its hash',
            'stage ' || stage || ', ' || coalesce(lora_key, 'no file') || ', ' || coalesce(lora_sha256, 'no hash')
        FROM training_job
        WHERE status = 'ready' AND (stage <> 'settle' OR lora_key IS NULL OR lora_sha256 IS NULL)""",
    "a final job has an end time and no lease; an active job has no end time": """
        SELECT id, status || CASE WHEN status IN ('pending', 'training') THEN ', no end' ELSE ', an end, no lease' END,
            status || ', ' || CASE WHEN finished_at IS NULL THEN 'no end' ELSE 'an end' END
                || CASE WHEN lease_until IS NULL THEN ', no lease' ELSE ', a lease' END
        FROM training_job
        WHERE (status IN ('pending', 'training')) <> (finished_at IS NULL)
            OR (status NOT IN ('pending', 'training') AND lease_until IS NOT NULL)""",
    "the end of a job is announced once, to its webhook": """
        SELECT j.id, CASE j.status WHEN 'ready' THEN 'training.completed' WHEN 'failed' THEN 'training.failed'
                WHEN 'cancelled' THEN 'training.cancelled' ELSE 'no end' END,
            coalesce(m.topics, 'no notice')
        FROM training_job j LEFT JOIN (
            SELECT job_id, min(topic) || CASE WHEN count(*) > 1 THEN ' and more' ELSE '' END AS topics
            FROM outbox_message
            WHERE kind = 'notice' AND topic IN ('training.completed', 'training.failed', 'training.cancelled')
            GROUP BY job_id
        ) m ON m.job_id = j.id
        WHERE j.trimmed_at IS NULL AND coalesce(m.topics, 'none') <> CASE WHEN j.webhook_url IS NULL THEN 'none'
            ELSE CASE j.status WHEN 'ready' THEN 'training.completed' WHEN 'failed' THEN 'training.failed'
                WHEN 'cancelled' THEN 'training.cancelled' ELSE 'none' END END""",
    "a task that waits for a job gets its result once, at the end": """
        SELECT j.id, CASE WHEN j.status IN ('pending', 'training') THEN '0' ELSE '1' END || ' results',
            coalesce(m.messages, 0) || ' results of task ' || c.task_id
        FROM training_job j JOIN task_call c ON c.job_id = j.id LEFT JOIN (
            SELECT task_id, count(*) AS messages FROM outbox_message
            WHERE kind = 'callback' AND topic = 'result' GROUP BY task_id
        ) m ON m.task_id = c.task_id
        WHERE c.waits AND coalesce(m.messages, 0) <> CASE WHEN j.status IN ('pending', 'training') THEN 0 ELSE 1 END""",
    "the task of on_end is sent once, at the end": """
        SELECT j.id, 'a task only at the end', coalesce(m.messages, 0) || ' tasks'
        FROM training_job j LEFT JOIN (
            SELECT job_id, count(*) AS messages FROM outbox_message
            WHERE kind = 'callback' AND topic = 'on_end' GROUP BY job_id
        ) m ON m.job_id = j.id
        WHERE j.trimmed_at IS NULL AND coalesce(m.messages, 0) <> CASE
            WHEN j.on_end IS NULL OR j.status IN ('pending', 'training') THEN 0 ELSE 1 END""",
    "a final job has one clean-up": """
        SELECT j.id, '1 clean-up', coalesce(m.messages, 0) || ' clean-ups'
        FROM training_job j LEFT JOIN (
            SELECT job_id, count(*) AS messages FROM outbox_message WHERE kind = 'cleanup' GROUP BY job_id
        ) m ON m.job_id = j.id
        WHERE j.trimmed_at IS NULL
            AND coalesce(m.messages, 0) <> CASE WHEN j.status IN ('pending', 'training') THEN 0 ELSE 1 END""",
    "the messages of a job are numbered from 1 without gaps": """
        SELECT job_id, 'messages 1 to ' || count(*), 'messages ' || min(sequence) || ' to ' || max(sequence)
        FROM outbox_message WHERE job_id IS NOT NULL
        GROUP BY job_id HAVING min(sequence) <> 1 OR max(sequence) <> count(*)""",
}


@dataclass(frozen=True)
class Leak:
    """A LoRA that was delivered but not charged, because its hold expired first. `credits` is what the hold held."""

    job_id: str
    owner_id: str
    credits: int
    at: datetime


def check(session: Session) -> list[AuditFinding]:
    """Every row that breaks an invariant; an empty list if all hold."""
    return findings_of(session, CHECKS)


def leaks(session: Session, since: datetime | None = None) -> list[Leak]:
    """Jobs that ended ready after their hold had expired, newest first; only those since a time, if one is given."""
    query = (
        select(Job.id, Job.owner_id, CreditHold.amount, Job.finished_at)
        .join(CreditHold, col(CreditHold.training_id) == col(Job.id))
        .where(Job.status == Status.READY, CreditHold.state != "settled", col(Job.finished_at).is_not(None))
        .order_by(sa.desc(col(Job.finished_at)))
    )
    if since is not None:
        query = query.where(col(Job.finished_at) >= since)
    return [Leak(job_id, owner_id, amount, at) for job_id, owner_id, amount, at in session.exec(query) if at]
