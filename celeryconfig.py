"""The configuration of Celery. Values only; docs/adr/0007-celery-settings.md has the reasons."""

from kombu import Exchange, Queue

from core.brokers import broker, queues
from core.settings import settings
from training.families.registry import trained_here

_settings = settings()
_broker, _results = broker.broker(_settings), broker.results(_settings)
_redis_options = {
    "visibility_timeout": _settings.visibility_timeout_s,
    # Look for messages of dead workers right after the timeout, not up to 100 s later.
    "unacked_restore_interval": 2,
    "unacked_restore_throttle": 1,
    "queue_order_strategy": "tasks.messages.queue_order:FinishFirst",
    "socket_keepalive": True,
    "health_check_interval": 30,
}

# ---- broker and results ----
broker_url = _broker.url
broker_use_ssl = _broker.tls
# RabbitMQ confirms a message only on request. Without that, a message sent during its crash is lost unnoticed.
broker_transport_options = (_redis_options if _broker.is_redis else {"confirm_publish": True}) | _broker.options
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
result_backend = _results.shown  # tasks/app.py has the address with its password: commands of Celery print this one
redis_backend_use_ssl = _results.tls
result_backend_transport_options = {} if _results.is_database else _results.options
database_engine_options = _results.options if _results.is_database else {}
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
worker_consumer = "tasks.rabbitmq.consumer:SteadyConsumer"
worker_proc_alive_timeout = 60
worker_hijack_root_logger = False
worker_redirect_stdouts = False
# A step that hangs is killed after its lease has expired, so that its process is free again. Not possible with threads.
task_annotations = {
    f"imprint.{name}": {"time_limit": _settings.stage_timeout_s + 3 * _settings.lease_s}
    for name in ("preprocess", "dataset", "upload")
}
# Memory that a large picture or a leaking codec took is freed at some point.
worker_max_tasks_per_child = 2000

# ---- queues ----
task_default_queue = "io"
task_queues = [
    Queue(name, Exchange(name), routing_key=name)
    for name in (*queues.WORK, *(kind + family for kind in (queues.TRAIN, queues.DRAW) for family in trained_here()))
]
task_create_missing_queues = False
_on_fetch = ("preprocess", "fetch_images", "draw", "send_to_comfyui", "screen", "ask_caption")
# Workers alternate between their queues, so a sweep does not expire behind a backlog of other tasks. Only the last
# stages of trained jobs go first (tasks/messages/queue_order.py). Tasks that call addresses of owners have queues and a
# worker of their own, because a slow host holds a slot.
task_routes = {
    **{f"imprint.{name}": {"queue": "cpu"} for name in ("caption", "dataset")},
    **{f"imprint.{name}": {"queue": queues.FINISH} for name in ("upload", "settle")},
    **{f"imprint.{name}": {"queue": "fetch"} for name in _on_fetch},
    **{f"imprint.{name}": {"queue": "notices"} for name in ("notify", "send_mail", "send_alerts")},
    **{f"imprint.{name}": {"queue": "sweep"} for name in ("sweep", "poll_remote", "audit")},
}

# ---- sweeps ----
# Seconds between two runs. None has `expires`, which would compare the clocks of two machines: the worker's consumer
# drops a backlog.
_sweeps = {"sweep": _settings.sweep_s, "poll_remote": _settings.remote_poll_s, "audit": 3600.0}
# `shadow` is the name in Flower, in events and in Celery's log: there, sweeps sort apart from the tasks of jobs.
beat_schedule = {
    name: {"task": f"imprint.{name}", "schedule": period_s, "options": {"shadow": f"sweep.{name}"}}
    for name, period_s in _sweeps.items()
}
beat_schedule_filename = str(_settings.run_dir / "beat")
timezone = "UTC"
