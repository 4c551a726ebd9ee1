"""Writes deploy/grafana/dashboards/imprint.json: rows of panels, each with a title, a unit and its queries.

Run `python tools/dashboard.py` after a change. `--check` fails if the file is not up to date.
"""

import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent.parent / "deploy" / "grafana" / "dashboards" / "imprint.json"
_SOURCE = {"type": "prometheus", "uid": "prometheus"}

# Several web processes report the same number about the installation; `max` takes one of them.
# A row: its title, and its panels as (title, unit, kind, {legend: query}, description).
_DONE = 'rate(imprint_stage_seconds_bucket{outcome="done"}[1h])'
_ENDED = 'delta(imprint_jobs{status=~"ready|failed|cancelled"}[1h])'
_INTERVAL = "[$__rate_interval]"
Panel = tuple[str, str, str, dict[str, str], str]
ROWS: list[tuple[str, list[Panel]]] = [
    ("Now", [
        ("Jobs at work", "none", "stat", {"": 'sum(max by (stage) (imprint_jobs_active{state!="waiting"}))'}, ""),
        ("Jobs waiting", "none", "stat", {"": 'sum(max by (stage) (imprint_jobs_active{state="waiting"}))'}, ""),
        ("Longest wait", "s", "stat", {"": "max(imprint_queue_oldest_seconds)"}, ""),
        ("Steps a second", "none", "stat", {"": f"sum(rate(imprint_training_steps_total{_INTERVAL}))"}, ""),
        ("Processes that answer", "none", "stat", {"": 'sum(up{job=~"web|workers"})'}, ""),
        ("Since the last sweep", "s", "stat", {"": "time() - max(imprint_sweep_time_seconds)"}, ""),
        ("Broken rules of the ledger", "none", "alarm", {"": "max(imprint_audit_findings)"}, ""),
        ("Pods, dollars an hour", "currencyUSD", "stat", {"": 'max(imprint_pods_dollars{period="hour"})'}, ""),
    ]),
    ("Jobs", [
        ("Not final, by stage", "none", "stacked",
         {"{{stage}} {{state}}": "max by (stage, state) (imprint_jobs_active) > 0"}, ""),
        ("Ended in the last hour, by status", "none", "lines",
         {"{{status}}": f"sum by (status) (max by (status, code) ({_ENDED}))"},
         ""),
        ("Failures, by code", "none", "lines",
         {"{{code}}": 'max by (code) (imprint_jobs{status="failed"}) > 0'}, "Since the installation."),
        ("Waited longest, by stage", "s", "lines", {"{{stage}}": "max by (stage) (imprint_queue_oldest_seconds)"},
         "Of jobs without a worker."),
        ("Messages in queues", "none", "lines", {"{{queue}}": "max by (queue) (imprint_queue_messages)"}, ""),
        ("Attempts at stages, by outcome", "ops", "lines",
         {"{{stage}} {{outcome}}": f"sum by (stage, outcome) (rate(imprint_stage_seconds_count{_INTERVAL}))"}, ""),
        ("Stage, median", "s", "lines",
         {"{{stage}}": f"histogram_quantile(0.5, sum by (stage, le) ({_DONE}))"},
         "A worker's time at a stage, over the last hour."),
        ("Stage, 95 % are faster", "s", "lines",
         {"{{stage}}": f"histogram_quantile(0.95, sum by (stage, le) ({_DONE}))"},
         "A worker's time at a stage, over the last hour."),
    ]),
    ("Training", [
        ("Steps a second, by family", "none", "lines",
         {"{{family}}": f"sum by (family) (rate(imprint_training_steps_total{_INTERVAL}))"},
         "Of all jobs: a batched step of eight jobs is eight."),
        ("Jobs in a step", "none", "lines",
         {"{{family}}": f"sum by (family) (rate(imprint_cohort_jobs_sum{_INTERVAL})) / "
                        f"sum by (family) (rate(imprint_cohort_jobs_count{_INTERVAL}))"},
         "How many share a batched step, on average."),
        ("Devices at work", "percentunit", "lines",
         {"{{instance}} {{device}}": f"sum by (instance, device) (rate(imprint_device_seconds_total{_INTERVAL}))"},
         "Share of the time that a worker's device spent on training steps."),
        ("Device hours in the last day", "none", "lines",
         {"{{device}}": "sum by (device) (increase(imprint_device_seconds_total[1d])) / 3600"}, ""),
        ("Encodings found in the cache", "percentunit", "lines",
         {"{{kind}}": 'sum by (kind) (rate(imprint_encodings_total{result="found"}[1h])) / '
                      "sum by (kind) (rate(imprint_encodings_total[1h]))"}, ""),
        ("Base models: resident or loaded", "none", "lines",
         {"{{family}} {{result}}": "sum by (family, result) (increase(imprint_base_models_total[1h]))"},
         "In an hour."),
    ]),
    ("Messages", [
        ("Waiting to be sent", "none", "lines", {"{{kind}}": "max by (kind) (imprint_outbox_waiting)"}, ""),
        ("Longest due", "s", "lines", {"{{kind}}": "max by (kind) (imprint_outbox_oldest_seconds)"}, ""),
        ("Webhooks, by outcome", "ops", "lines",
         {"{{verdict}}": f"sum by (verdict) (rate(imprint_notice_attempts_total{_INTERVAL}))"}, ""),
        ("Given up", "none", "lines", {"dead letters": "max(imprint_outbox_dead)"}, ""),
    ]),
    ("Money", [
        ("Credits", "none", "lines", {"{{state}}": 'max by (state) (imprint_credits{state=~"held|spent"})'},
         "On hold now, and charged so far."),
        ("Credits moved in an hour", "none", "lines",
         {"{{kind}}": "max by (kind) (increase(imprint_credits_moved_total[1h]))"}, ""),
        ("Delivered and not charged", "none", "lines", {"leaks": "max(imprint_leaks)"}, ""),
        ("Since the last audit", "s", "lines", {"audit": "time() - max(imprint_audit_time_seconds)"}, ""),
        ("Pods", "none", "stacked", {"{{state}}": "max by (state) (imprint_pods)"}, ""),
        ("Pods, dollars in 24 hours", "currencyUSD", "lines",
         {"spent": 'max(imprint_pods_dollars{period="day"})',
          "ceiling": 'max(imprint_pods_ceiling_dollars{period="day"})'},
         ""),
    ]),
    ("HTTP API", [
        ("Requests a second, by status", "reqps", "lines",
         {"{{status}}": f"sum by (status) (rate(imprint_http_requests_total{_INTERVAL}))"}, ""),
        ("95 % are faster, by route", "s", "lines",
         {"{{route}}": "histogram_quantile(0.95, sum by (route, le) (rate(imprint_http_request_seconds_bucket[10m])))"},
         ""),
        ("Broker answers", "bool_yes_no", "lines", {"broker": "max(imprint_broker_up)"}, ""),
    ]),
]  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's format."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": [],
             "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}}
        )  # fmt: skip
        small = title == "Now"
        # Rows without gaps: three panels of width eight, or four of width six.
        width, height, x, y = (3, 4, 0, y + 1) if small else (6 if len(row) % 4 == 0 else 8, 8, 0, y + 1)
        for panel in row:
            if x + width > 24:
                x, y = 0, y + height
            panels.append({"id": len(panels) + 1, **_panel(panel, x, y, width, height)})
            x += width
        y += height
    return {
        "uid": "imprint",
        "title": "Imprint",
        "tags": ["imprint"],
        "timezone": "browser",
        "schemaVersion": 39,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "graphTooltip": 1,
        "panels": panels,
    }


def _panel(panel: Panel, x: int, y: int, width: int, height: int) -> dict[str, Any]:
    title, unit, kind, queries, description = panel
    is_number = kind in ("stat", "alarm")
    custom = {"fillOpacity": 30, "stacking": {"mode": "normal"}} if kind == "stacked" else {"fillOpacity": 5}
    steps = [{"color": "green", "value": None}, *([{"color": "red", "value": 1}] if kind == "alarm" else [])]
    return {
        "type": "stat" if is_number else "timeseries",
        "title": title,
        "description": description,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "fieldConfig": {
            "defaults": {"unit": unit, "min": 0, "noValue": "none yet" if kind == "alarm" else "",
                         "custom": {} if is_number else custom,
                         "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area"} if is_number
        else {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _SOURCE, "expr": query, "legendFormat": legend or title}
            for number, (legend, query) in enumerate(queries.items())
        ],
    }  # fmt: skip


def main() -> int:
    text = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        if FILE.exists() and FILE.read_text() == text:
            return 0
        print(f"{FILE} is not up to date: run python tools/dashboard.py", file=sys.stderr)
        return 1
    FILE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
