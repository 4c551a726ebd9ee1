"""Sends what the outbox holds: right after a commit, and from the sweep for what was left."""

import logging
from datetime import timedelta

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from core.clock import utcnow
from jobs.wiring import House
from notifications import outbox
from tasks import pipeline
from tasks.app import app

log = logging.getLogger(__name__)

# What sending raises while broker or result store are away: a chord asks its result store before it is sent, and
# celery says that it has asked often enough with a plain RuntimeError.
_AWAY = (OperationalError, RedisError, RuntimeError)
# A message that was handed to a task is sent again if nobody has recorded its end by then.
CLAIM = timedelta(seconds=60)
BATCH = 100


def relay(house: House) -> int:
    """Hand every due message to whoever carries it out; gives how many. A broker that is away loses nothing."""
    handed = 0
    while True:
        with house.database.writing() as session:
            messages = outbox.claim(session, utcnow(), ("launch", "cleanup", "notice"), BATCH, lease=CLAIM)
        launched = []
        try:
            for message in messages:
                if message.kind == "launch" and message.job_id is not None:
                    pipeline.launch(house, message.job_id)
                    launched.append(message.id)
                else:
                    name = "imprint.notify" if message.kind == "notice" else "imprint.clean_up"
                    app.signature(name, (message.job_id, message.id)).apply_async()
                handed += 1
        except _AWAY as error:
            log.warning("the broker does not answer; %d message(s) wait for the sweep: %s", len(messages), error)
            return handed
        finally:
            if launched:
                with house.database.writing() as session:
                    for message_id in launched:
                        outbox.mark_sent(session, message_id)
        if len(messages) < BATCH:
            return handed
