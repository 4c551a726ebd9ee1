"""Pages generated from the code: tasks, HTTP API, metrics."""

import inspect
from collections.abc import Iterable
from typing import Any

_NOTE = "\n*Generated from the code.*\n\n"


def pages() -> dict[str, str]:
    """The text of each page, by file name."""
    return {"tasks.md": tasks(), "http.md": http(), "metrics.md": metrics()}


def tasks() -> str:
    """Every Celery task: its docstring, queue and arguments."""
    from tasks.app import app

    app.loader.import_default_modules()
    parts = ["# Tasks", _NOTE, "[The task](../task.md) says how to send one. Imprint's internal tasks are listed too: "]
    parts.append("Flower and the logs show their names.\n")
    ours = {name: task for name, task in app.tasks.items() if name.startswith("imprint.")}
    periods = {entry["task"]: entry["schedule"] for entry in app.conf.beat_schedule.values()}
    routes = app.conf.task_routes
    for name, task in sorted(ours.items()):
        own = {"imprint.train": "train.{family}", "imprint.draw_pictures": "draw.{family}"}
        queue = own.get(name) or routes.get(name, {}).get("queue", "io")
        parameters = inspect.signature(task.run).parameters.values()
        given = [parameter for parameter in parameters if parameter.name != "self"]
        parts.append(f"\n## `{name}`\n\n{inspect.getdoc(task.run) or ''}\n\n")
        parts.append(f"- Queue: `{queue}`\n")
        parts.append(f"- Arguments: {', '.join(f'`{one}`' for one in given) or 'none'}\n")
        parts.append(f"- Result: {'none' if task.ignore_result in (True, None) else 'kept for 24 hours'}\n")
        if name in periods:
            parts.append(f"- Sent by beat every {float(periods[name]):g} s\n")
    return "".join(parts)


def http() -> str:
    """Every route with its parameters and answers, from the OpenAPI document."""
    from tools.site.scrape import empty_services
    from web.app import create_app

    with empty_services() as services:
        document = create_app(services).openapi()
    parts = ["# HTTP API: every route", _NOTE]
    parts.append("[The HTTP API](../http-api.md) has a first call and the rules for all routes. ")
    parts.append("A running service serves the same as `/openapi.json`, and as a page at `/docs`.\n")
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            parts.append(f"\n## `{method.upper()} {path}`\n\n{one.get('summary', '')}\n\n")
            if one.get("description"):
                parts.append(f"{one['description']}\n\n")
            rows = [
                (f"`{p['name']}`", p["in"], "yes" if p.get("required") else "no", p.get("description", ""))
                for p in one.get("parameters", [])
            ]
            parts.append(_table(("parameter", "in", "required", "what"), rows))
            if body := _schema_of(one.get("requestBody", {}), document):
                parts.append(f"Body: `{body[0]}`\n\n" + _fields(body[1]))
            answers = [(f"`{code}`", answer.get("description", "")) for code, answer in one["responses"].items()]
            parts.append(_table(("answer", "what"), answers))
    return "".join(parts)


def _schema_of(holder: dict[str, Any], document: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    for content in holder.get("content", {}).values():
        name = str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2]
        if name in document["components"]["schemas"]:
            return name, document["components"]["schemas"][name]
    return None


def _fields(schema: dict[str, Any]) -> str:
    needed = schema.get("required", [])
    rows = [
        (f"`{name}`", "yes" if name in needed else "no", one.get("description", ""))
        for name, one in schema.get("properties", {}).items()
    ]
    return _table(("field", "required", "what"), rows)


def metrics() -> str:
    """Every metric: those of workers from core/telemetry/metrics.py, those of the web process as it registers them."""
    from core.telemetry import metrics
    from tools.site.scrape import families

    parts = ["# Metrics", _NOTE, "[Monitoring](../monitoring.md) says how to collect and show them.\n"]
    parts.append("\n## Of the workers\n\n")
    rows = [
        (f"`{one.name}{'_total' if one.kind == 'counter' else ''}`", one.kind, _names(one.labels), one.description)
        for one in metrics.ALL
    ]
    parts.append(_table(("metric", "kind", "labels", "what"), rows))
    parts.append("\n## Of the web process\n\n")
    rows = [
        (f"`{name}{'_total' if kind == 'counter' else ''}`", kind, _names(labels), what)
        for name, kind, labels, what in families()
    ]
    parts.append(_table(("metric", "kind", "labels", "what"), rows))
    return "".join(parts)


def _names(labels: Iterable[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines) + "\n\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
