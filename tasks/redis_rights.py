"""Whether the user of a Redis with ACLs may do what Celery and Imprint do there. docs/brokers.md has the rule."""

from collections.abc import Sequence
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis import Connection
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from core.brokers.broker import REDIS

_ANSWER_S = 3
_ID = "00000000-0000-0000-0000-000000000000"
# Each command with arguments that Redis accepts and that a user with all rights may name:
# ACL LOG keeps what is refused. Scripts of kombu and Celery need the rights for what they call, too.
_SCRIPTS = f"script exists x|script load x|evalsha {'0' * 40} 1 KEY"
_CHANNELS = "publish CHANNEL x|subscribe CHANNEL"
_BROKER = (
    "brpop KEY 1|rpop KEY|lpush KEY x|rpush KEY x|llen KEY|exists KEY|del KEY|pexpire KEY 9|get KEY|set KEY x|time|"
    "hset KEY x x|hget KEY x|hdel KEY x|zadd KEY 1 x|zrem KEY x|zrange KEY 0 1|zrangebyscore KEY 0 1|"
    f"sadd KEY x|srem KEY x|smembers KEY|psubscribe CHANNEL|{_SCRIPTS}|{_CHANNELS}"
)
_RESULTS = (
    "get KEY|mget KEY|set KEY x|setex KEY 9 x|del KEY|exists KEY|expire KEY 9|sadd KEY x|sismember KEY x|zadd KEY 1 x|"
    f"zcount KEY 0 1|zrange KEY 0 1|{_SCRIPTS}|{_CHANNELS}"
)
_KEYS = (
    "unacked", "unacked_index", "unacked_mutex", "_kombu.binding.io", "_kombu.binding_permanent.io",
    "_kombu.binding_deadlines", f"{_ID}.reply.celery.pidbox",
)  # fmt: skip
_RESULT_KEYS = (f"celery-task-meta-{_ID}", f"celery-taskset-meta-{_ID}")


def check_redis_rights(app: Celery) -> None:
    """Raises ValueError that names the commands, keys and channels that the user of the broker or the results lacks.

    A worker would otherwise reconnect for ever, or leave its messages unacknowledged. A Redis that is away is not
    checked.
    """
    for setting, check in (("IMPRINT_BROKER_URL", _check_broker), ("IMPRINT_RESULT_URL", _check_results)):
        try:
            lacking = check(app)
        except NoPermissionError as error:
            lacking = str(error)  # not even PING
        except (OperationalError, OSError, RedisError) as error:
            if not isinstance(error.__cause__, NoPermissionError):
                continue  # the worker waits for it, as ever
            lacking = str(error.__cause__)
        if lacking:
            raise ValueError(
                f"{setting}: its user of Redis lacks rights ({lacking}): give it those that docs/brokers.md lists"
            )


def _check_broker(app: Celery) -> str:
    with app.connection_for_write() as connection:
        if connection.transport.driver_type != "redis":
            return ""
        connection.ensure_connection(max_retries=1, timeout=_ANSWER_S)
        channel = connection.default_channel
        channels = [f"{channel.keyprefix_fanout}{name}" for name in ("celery.pidbox", "celeryev/worker.heartbeat")]
        return _lacking(channel.client, _BROKER, (*_KEYS, *sorted(app.amqp.queues)), channels)


def _check_results(app: Celery) -> str:
    if str(app.conf.result_backend).partition("://")[0] not in REDIS:
        return ""  # without a look at `app.backend`, which would connect to the database
    return _lacking(app.backend.client, _RESULTS, _RESULT_KEYS, _RESULT_KEYS[:1])


def _lacking(client: Any, commands: str, keys: Sequence[str], channels: Sequence[str]) -> str:
    """What Redis does not permit. It says so when a transaction queues a command, and this one is never executed."""
    filled = commands.replace("KEY", keys[0]).replace("CHANNEL", channels[0])
    lines = [line.split() for line in filled.split("|")]
    asked = [
        *(("commands", " ".join(line[: 1 + (line[0] == "script")]), line) for line in lines),
        *(("keys", key, ["lpush", key, "x"]) for key in keys),
        *(("channels", channel, ["publish", channel, "x"]) for channel in channels),
    ]
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command("MULTI")
        connection.read_response()
        connection.send_packed_command(connection.pack_commands([line for _, _, line in asked]))
        found: dict[str, list[str]] = {}
        for what, name, _ in asked:
            # One command may be refused for itself, or for its key or channel.
            why = _refusal(connection)
            if why and (what == "commands") == ("to run the" in why):
                found.setdefault(what, []).append(name)
    finally:
        connection.disconnect()  # discards the transaction
        client.connection_pool.release(connection)
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in found.items())


def _refusal(connection: Connection) -> str:
    try:
        connection.read_response()
    except NoPermissionError as error:
        return str(error)
    except ResponseError:
        return ""  # not one about rights
    return ""
