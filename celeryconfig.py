"""The configuration of Celery. Values only; docs/adr/0007-celery-settings.md has the reasons."""

from kombu import Exchange, Queue

from core import embedded_broker, queues
from core.database_address import engine_arguments
from core.settings import settings
from training.spec import FAMILIES

_settings = settings()
_redis_options = {
    "visibility_timeout": _settings.visibility_timeout_s,
    # Look for messages of dead workers right after the timeout, not up to 100 s later.
    "unacked_restore_interval": 2,
    "unacked_restore_throttle": 1,
    "socket_keepalive": True,
    "health_check_interval": 30,
}

# ---- broker and results ----
broker_url = (
    _settings.broker_url.get_secret_value()
    if _settings.broker_url
    else embedded_broker.address(_settings) or "redis://127.0.0.1:1/0"  # no stack runs: commands report it
)
# RabbitMQ confirms a message only on request. Without that, a message sent during its crash is lost unnoticed.
broker_transport_options = _redis_options if broker_url.startswith("redis") else {"confirm_publish": True}
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
result_backend: str = (
    _settings.result_url.get_secret_value()
    if _settings.result_url
    else broker_url
    if broker_url.startswith("redis")
    else f"db+{_settings.database}"
)
if result_backend.startswith("db+"):
    _address, database_engine_options = engine_arguments(result_backend.removeprefix("db+"))
    result_backend = f"db+{_address}"
result_backend_always_retry = True
result_backend_max_retries = 20
result_expires = 24 * 3600
task_ignore_result = True

# ---- messages: JSON, ids only ----
task_serializer = result_serializer = "json"
accept_content = ["json"]
task_send_sent_event = True
worker_send_task_events = True

# ---- a task may run twice, and is never lost with its worker ----
task_acks_late = True
worker_prefetch_multiplier = 1
worker_cancel_long_running_tasks_on_connection_loss = False
worker_consumer = "tasks.consumer:SteadyConsumer"
worker_proc_alive_timeout = 60
worker_hijack_root_logger = False
worker_redirect_stdouts = False
# Memory that a large picture or a leaking codec took is freed at some point.
worker_max_tasks_per_child = 2000

# ---- queues ----
task_default_queue = "io"
task_queues = [
    Queue(name, Exchange(name), routing_key=name)
    for name in (*queues.WORK, *(f"train.{family}" for family in FAMILIES))
]
task_create_missing_queues = False
# Workers alternate between their queues, so a sweep does not expire behind a backlog of other tasks.
task_routes = {
    "imprint.dataset": {"queue": "cpu"},
    **{f"imprint.{name}": {"queue": "sweep"} for name in ("sweep", "poll_remote", "audit")},
}

# ---- sweeps ----
_sweep = {"schedule": _settings.sweep_s, "options": {"expires": _settings.sweep_s * 0.9}}
_poll = {"schedule": _settings.remote_poll_s, "options": {"expires": _settings.remote_poll_s * 0.9}}
beat_schedule = {
    "sweep": {"task": "imprint.sweep", **_sweep},
    "poll_remote": {"task": "imprint.poll_remote", **_poll},
    "audit": {"task": "imprint.audit", "schedule": 3600.0, "options": {"expires": 3000}},
}
beat_schedule_filename = str(_settings.run_dir / "beat")
timezone = "UTC"
