"""The statements of the decision which waiting job of a queue is admitted next.

One statement admits one job, or none if no job may start. All work is in the database. It is linear in the jobs in
flight and in the owners that wait, but not in their jobs. PostgreSQL plans it for longer than it runs, SQLite reads it
for 5 ms, and everybody waits for its lock. So a short statement asks first whether the window has room and a job waits:
mostly the window is full, and a sweep asks for every queue. And `share` is MATERIALIZED, so that PostgreSQL plans it
alone: all in 2.4 ms, where trying every order of all joins took 7 to 13.
"""

import math
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from core.clock import UtcDateTime
from core.settings import Settings
from jobs.admission.queues import REMOTE
from storage.tables.jobs import Priority

PREPARING_S = 10.0  # how long a job that is being prepared counts for the window
COHORT_WAIT_S = 600.0  # an owner's oldest job is overtaken by others of the owner until it has waited so long
ALIVE_S = 60.0  # a worker that has not reported for so long has no slots
_OVERTAKEN_BY = 16
_ON_ONE_SERVER = 16  # jobs on a fixed remote server
_NO_LIMIT = 2**31 - 1

# The conditions of the partial indexes of migration 0022, in their words.
_WAITING = "j.admitted_at IS NULL AND j.queue <> '' AND j.status IN ('pending', 'training')"
_IN_FLIGHT = "admitted_at IS NOT NULL AND status IN ('pending', 'training')"

_ROOM = f"""
WITH RECURSIVE
flight AS (
    SELECT queue, owner_id, token_id, shape, stage, admitted_at, expected_s FROM training_job
    WHERE {_IN_FLIGHT} AND stage IN ('preprocess', 'caption', 'dataset', 'train')
),
load AS (
    SELECT coalesce(sum(CASE WHEN stage <> 'preprocess' THEN 1 ELSE 0 END), 0) AS training,
        coalesce(sum(CASE WHEN stage = 'preprocess' AND admitted_at > :fresh_since THEN 1 ELSE 0 END), 0) AS fresh,
        count(DISTINCT CASE WHEN stage = 'preprocess' AND admitted_at > :fresh_since THEN owner_id END) AS owners
    FROM flight WHERE queue = :queue
),
slots AS (
    SELECT coalesce(sum(slots), 0) AS slots, coalesce(max(slots), 0) AS most FROM training_worker
    WHERE queue = :queue AND NOT draining AND seen_at > :alive_since
),
room AS (
    SELECT CASE WHEN CAST(:fixed AS INTEGER) > 0 THEN CAST(:fixed AS INTEGER) WHEN slots = 0 THEN :floor
        WHEN slots / 4 > :ahead THEN slots + slots / 4 ELSE slots + :ahead END AS places, most FROM slots
)
"""  # noqa: S608 - ours
_HAS_ROOM = "load.training + load.owners < room.places"  # implied by `best`
_COMMON = f"""{_ROOM},
running AS (
    SELECT owner_id, count(*) AS jobs, sum(expected_s) AS seconds,
        sum(CASE WHEN queue = :queue THEN 1 ELSE 0 END) AS here
    FROM flight GROUP BY owner_id
),
limits AS (SELECT owner_id, token_id, value FROM usage_limit WHERE name = 'running_jobs'),
full_tokens AS (
    SELECT l.token_id FROM limits l
    WHERE l.token_id IS NOT NULL AND l.value <= (SELECT count(*) FROM flight f WHERE f.token_id = l.token_id)
),
share AS MATERIALIZED (
    SELECT w.owner_id, (CASE WHEN s.used_at > :forgotten_s THEN s.used_s * exp((s.used_at - :now_s) * :decay)
            ELSE 0 END + coalesce(r.seconds, 0))
        / coalesce(s.weight, 1) AS used, s.low_at, s.normal_at, s.high_at, coalesce(r.here, 0) AS here,
        coalesce(r.jobs, 0) AS jobs
    FROM (SELECT DISTINCT owner_id FROM pairs WHERE owner_id IS NOT NULL) w
        LEFT JOIN owner_share s ON s.owner_id = w.owner_id LEFT JOIN running r ON r.owner_id = w.owner_id
),
pairs (priority, owner_id) AS (
    SELECT p.priority, (SELECT min(j.owner_id) FROM training_job j
        WHERE j.queue = :queue AND j.priority = p.priority AND {_WAITING})
    FROM (SELECT 0 AS priority UNION ALL SELECT 1 UNION ALL SELECT 2) p
    -- While the window is full, nothing below looks at the owners that wait.
    WHERE EXISTS (SELECT 1 FROM load CROSS JOIN room WHERE {_HAS_ROOM})
        AND NOT EXISTS (SELECT 1 FROM admission_pause WHERE scope IN ('all', 'queue:' || :queue))
    UNION ALL
    SELECT pairs.priority, (SELECT min(j.owner_id) FROM training_job j
        WHERE j.queue = :queue AND j.priority = pairs.priority AND j.owner_id > pairs.owner_id AND {_WAITING})
    FROM pairs WHERE pairs.owner_id IS NOT NULL
),
paused AS (SELECT scope FROM admission_pause),
oldest AS MATERIALIZED (
    SELECT pairs.owner_id, (SELECT j.id FROM training_job j
        WHERE j.queue = :queue AND j.priority = pairs.priority AND j.owner_id = pairs.owner_id AND {_WAITING}
            AND ('family:' || j.family) NOT IN (SELECT scope FROM paused)
            AND (j.token_id IS NULL OR j.token_id NOT IN (SELECT token_id FROM full_tokens))
        ORDER BY j.created_at, j.id LIMIT 1) AS id
    FROM pairs WHERE pairs.owner_id IS NOT NULL
),
candidate AS (
    SELECT j.id, j.owner_id, j.priority, j.created_at, share.used, share.here, share.jobs,
        CASE j.priority WHEN 0 THEN share.low_at WHEN 1 THEN share.normal_at ELSE share.high_at END AS last_at,
        CASE WHEN room.most > 1 AND j.shape IN (SELECT shape FROM flight WHERE queue = :queue) THEN 0 ELSE 1 END
            AS misfit
    -- Not `= j.owner_id`: PostgreSQL would read all jobs of these owners, also finished ones, to find the oldest.
    FROM oldest JOIN training_job j ON j.id = oldest.id JOIN share ON share.owner_id = oldest.owner_id CROSS JOIN room
),
best AS (
    SELECT c.owner_id, c.priority, c.id, c.created_at
    FROM candidate c CROSS JOIN load CROSS JOIN room
    WHERE ((load.training + load.fresh < room.places AND c.here < 2 * room.places)
            OR (c.here = 0 AND load.training + load.owners < room.places))
        AND c.jobs < coalesce((SELECT value FROM limits l WHERE l.owner_id = c.owner_id), :most_running)
    ORDER BY
        c.priority + CASE WHEN c.created_at < :twice AND coalesce(c.last_at, 0) < :twice_s THEN 2
            WHEN c.created_at < :once AND coalesce(c.last_at, 0) < :once_s THEN 1 ELSE 0 END DESC,
        CASE WHEN room.most > 1
            THEN CAST(c.used / coalesce((SELECT avg(expected_s) + 0.001 FROM flight), 60) AS BIGINT) ELSE 0 END,
        c.misfit, c.used, c.created_at, c.id
    LIMIT 1
),
chosen AS (
    SELECT coalesce(
        (SELECT j.id FROM (
            SELECT j.id, j.shape, j.created_at FROM training_job j
            WHERE j.queue = :queue AND j.priority = (SELECT priority FROM best)
                AND j.owner_id = (SELECT owner_id FROM best) AND {_WAITING}
                AND ('family:' || j.family) NOT IN (SELECT scope FROM paused)
            AND (j.token_id IS NULL OR j.token_id NOT IN (SELECT token_id FROM full_tokens))
            ORDER BY j.created_at, j.id LIMIT {_OVERTAKEN_BY}) j
        WHERE room.most > 1 AND best.created_at > :cohort_since
            AND j.shape IN (SELECT shape FROM flight WHERE queue = :queue)
        ORDER BY j.created_at, j.id LIMIT 1), best.id) AS id
    FROM best CROSS JOIN room
)
"""  # noqa: S608 - ours
# A row that another transaction has locked is left to it: it may be cancelling the job.
_DECIDE = """
UPDATE training_job SET admitted_at = :now, launches = 0, failed_launches = 0
WHERE id IN (SELECT id FROM training_job j WHERE j.id = (SELECT id FROM chosen) AND {waiting} {lock})
RETURNING id
"""
USE = sa.text(
    "INSERT INTO owner_share (owner_id, used_s, used_at) VALUES (:owner_id, :seconds, :now_s)"
    " ON CONFLICT (owner_id) DO UPDATE SET used_at = :now_s,"
    " used_s = :seconds + CASE WHEN owner_share.used_at > :forgotten_s"
    " THEN owner_share.used_s * exp((owner_share.used_at - :now_s) * :decay) ELSE 0 END"
)
TURN = {
    priority: sa.text(
        f"INSERT INTO owner_share (owner_id, {name}) VALUES (:owner_id, :now_s)"  # noqa: S608 - ours
        f" ON CONFLICT (owner_id) DO UPDATE SET {name} = :now_s"
    )
    for priority, name in ((Priority.LOW, "low_at"), (Priority.NORMAL, "normal_at"), (Priority.HIGH, "high_at"))
}
_TIMES = ("fresh_since", "alive_since", "once", "twice", "cohort_since", "now")


def _statement(text: str) -> sa.TextClause:
    times = [name for name in _TIMES if f":{name}" in text]
    return sa.text(text).bindparams(*(sa.bindparam(name, type_=UtcDateTime()) for name in times))


HAS_ROOM = _statement(
    f"{_ROOM} SELECT 1 FROM load CROSS JOIN room WHERE {_HAS_ROOM}"  # noqa: S608 - ours
    f" AND EXISTS (SELECT 1 FROM training_job j WHERE j.queue = :queue AND {_WAITING})"
)
ADMIT_NEXT = {
    name: _statement(_COMMON + _DECIDE.format(waiting=_WAITING, lock=lock))
    for name, lock in (("sqlite", ""), ("postgresql", "FOR UPDATE SKIP LOCKED"))
}


def parameters(queue: str, settings: Settings, now: datetime) -> dict[str, Any]:
    """The parameters of the statement."""

    def before(seconds: float) -> datetime:
        return now - timedelta(seconds=seconds)

    raise_s = settings.admission_raise_s
    return {
        "queue": queue,
        "now": now,
        **decay(settings, now),
        "fixed": _remote_places(settings) if queue == REMOTE else 0,
        "floor": settings.admission_floor,
        "ahead": settings.admission_ahead,
        "most_running": _NO_LIMIT if settings.limit_running_jobs is None else settings.limit_running_jobs,
        "fresh_since": before(PREPARING_S),
        "alive_since": before(ALIVE_S),
        "once": before(raise_s),
        "twice": before(2 * raise_s),
        "once_s": now.timestamp() - raise_s,
        "twice_s": now.timestamp() - 2 * raise_s,
        "cohort_since": before(COHORT_WAIT_S),
    }


def _remote_places(settings: Settings) -> int:
    """How many jobs remote servers may have at a time."""
    if settings.admission_remote or settings.ai_toolkit_url:
        return settings.admission_remote or _ON_ONE_SERVER
    return settings.pods_max * settings.pod_jobs_max + settings.admission_ahead


def decay(settings: Settings, now: datetime) -> dict[str, float]:
    """What the decay of used seconds is computed from. PostgreSQL refuses the exponentials of very long times."""
    now_s = now.timestamp()
    forgotten_s = now_s - 50 * settings.share_half_life_s
    return {"now_s": now_s, "decay": math.log(2) / settings.share_half_life_s, "forgotten_s": forgotten_s}


def decay_of(used_s: float, used_at: float, settings: Settings, now: datetime) -> float:
    """What is left of seconds that were used until `used_at`."""
    factors = decay(settings, now)
    if used_at <= factors["forgotten_s"]:
        return 0.0
    return used_s * math.exp((used_at - factors["now_s"]) * factors["decay"])
