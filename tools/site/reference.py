"""Pages of the reference that are made from the code: tasks, HTTP API, metrics, failure codes."""

import inspect
from collections.abc import Iterable
from typing import Any

_NOTE = "\n*Made from the code when this site is built.*\n\n"


def pages() -> dict[str, str]:
    """The text of each page by the name of its file."""
    return {"tasks.md": tasks(), "http.md": http(), "metrics.md": metrics(), "failure-codes.md": failure_codes()}


def tasks() -> str:
    """Every Celery task: its queue, arguments, and what its docstring says."""
    from tasks.app import app

    app.loader.import_default_modules()
    told = ["# Tasks", _NOTE, "How to send one is in [the task](../task.md). Imprint's own messages are here too: "]
    told.append("their names are what Flower and the logs show.\n")
    ours = {name: task for name, task in app.tasks.items() if name.startswith("imprint.")}
    periods = {entry["task"]: entry["schedule"] for entry in app.conf.beat_schedule.values()}
    routes = app.conf.task_routes
    for name, task in sorted(ours.items()):
        queue = "train.{family}" if name == "imprint.train" else routes.get(name, {}).get("queue", "io")
        parameters = inspect.signature(task.run).parameters.values()
        given = [parameter for parameter in parameters if parameter.name != "self"]
        told.append(f"\n## `{name}`\n\n{inspect.getdoc(task.run) or ''}\n\n")
        told.append(f"- Queue: `{queue}`\n")
        told.append(f"- Arguments: {', '.join(f'`{one}`' for one in given) or 'none'}\n")
        told.append(f"- Result: {'none' if task.ignore_result in (True, None) else 'kept for 24 hours'}\n")
        if name in periods:
            told.append(f"- Sent by beat every {float(periods[name]):g} s\n")
    return "".join(told)


def http() -> str:
    """Every route with what it takes and answers, from the OpenAPI document."""
    from tools.site.scrape import empty_house
    from web.app import create_app

    with empty_house() as services:
        document = create_app(services).openapi()
    told = ["# HTTP API: every route", _NOTE]
    told.append("A first call and the rules for all of them are in [the HTTP API](../http-api.md). ")
    told.append("A running service has the same as `/openapi.json`, and to read at `/docs`.\n")
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            told.append(f"\n## `{method.upper()} {path}`\n\n{one.get('summary', '')}\n\n")
            if one.get("description"):
                told.append(f"{one['description']}\n\n")
            rows = [
                (f"`{p['name']}`", p["in"], "yes" if p.get("required") else "no", p.get("description", ""))
                for p in one.get("parameters", [])
            ]
            told.append(_table(("parameter", "in", "required", "what"), rows))
            if body := _schema_of(one.get("requestBody", {}), document):
                told.append(f"Body: `{body[0]}`\n\n" + _fields(body[1]))
            answers = [(f"`{code}`", answer.get("description", "")) for code, answer in one["responses"].items()]
            told.append(_table(("answer", "what"), answers))
    return "".join(told)


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
    """Every metric: of the workers from core/metrics.py, of the web process as it registers them."""
    from core import metrics
    from tools.site.scrape import families

    told = ["# Metrics", _NOTE, "How they are collected and shown is in [Watching](../watching.md).\n"]
    told.append("\n## Of the workers\n\n")
    rows = [
        (f"`{one.name}{'_total' if one.kind == 'counter' else ''}`", one.kind, _names(one.labels), one.told)
        for one in metrics.ALL
    ]
    told.append(_table(("metric", "kind", "labels", "what"), rows))
    told.append("\n## Of the web process\n\n")
    rows = [
        (f"`{name}{'_total' if kind == 'counter' else ''}`", kind, _names(labels), what)
        for name, kind, labels, what in families()
    ]
    told.append(_table(("metric", "kind", "labels", "what"), rows))
    return "".join(told)


def failure_codes() -> str:
    """What each code says, what its owner can do, and whether another attempt may help."""
    from core.advice import ADVICE
    from core.errors import FailureCode

    told = ["# Failure codes", _NOTE, "Pictures' faults, and what an operator can do, are in "]
    told.append("[Troubleshooting](../troubleshooting.md); how to read one in [Read a failure]")
    told.append("(../how-to/read-a-failure.md).\n\n")
    rows = [(f"`{code}`", ADVICE[code].what, ADVICE[code].do) for code in FailureCode]
    told.append(_table(("code", "what happened", "what its owner can do"), rows))
    return "".join(told)


def _names(labels: Iterable[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines) + "\n\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
