"""One trace over the whole chain, as a collector of OpenTelemetry's sees it: from the HTTP request to the webhook."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from jobs.owners import tokens
from tests.servers.receiver import Receiver, receiver
from tests.site import site, until

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Takes what is sent over OTLP by HTTP, as OpenTelemetry's own collector does."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[Span] = []

    def of(self, trace: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id.hex() == trace]


@contextmanager
def collector() -> Iterator[Collector]:
    made = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            request = ExportTraceServiceRequest.FromString(body)
            for resource in request.resource_spans:
                made.spans += [span for scope in resource.scope_spans for span in scope.spans]
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()


@pytest.mark.drawn
def test_one_trace_from_the_request_to_the_webhook(base_model: Path, tmp_path: Path) -> None:
    with collector() as seen, receiver() as application:
        environment = {
            "IMPRINT_TRACING": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": seen.url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "IMPRINT_FETCH_ALLOW_HOSTS": json.dumps([application.address]),
        }
        with site(tmp_path, base_model, start=("io", "train", "beat", "web"), **environment) as running:
            running.grant("ada")
            token = tokens.create(running.services, "traces", owner_id="ada", scopes=("read", "train"))[0]
            answer = httpx2.post(
                f"{running.web_url}/api/influencer/mascot/lora/train",
                headers={"Authorization": f"Bearer {token}", "traceparent": f"00-{TRACE}-{CALLER}-01"},
                json={"baseModel": "sd15", "triggerWord": "imp", "resolution": 64, "maxSteps": 160, "epochs": 500,
                      "imageIds": running.pictures("ada"), "webhookUrl": application.url},
                timeout=60,
            )  # fmt: skip
            assert answer.status_code == 202, answer.text
            job_id = answer.json()["id"]
            # Its worker is stopped in the middle: the rest is done by another process, sent by a message of the outbox.
            running.wait(job_id, lambda view: view["step"] > 0)
            running.stop("train")
            running.start("train")
            assert running.wait(job_id)["status"] == "ready"
            until(lambda: _statuses(application, job_id)[-1:] == ["completed"], 60, "the webhook")
            until(lambda: sum(span.name == "webhook" for span in seen.of(TRACE)) == 2, 60, "the webhooks' spans")
            until(lambda: any(span.name == "imprint.clean_up" for span in seen.of(TRACE)), 60, "all of it")
            # A span is exported when it ends, so a webhook's comes before that of the task that sent it.
            until(lambda: _orphans(seen.of(TRACE)) == [], 60, "the spans that others name as their parents")
        spans = seen.of(TRACE)
    names = [span.name for span in spans]
    stages = {"preprocess": 2, "dataset": 1, "train": 2, "upload": 1, "settle": 1}
    assert {stage: names.count(f"imprint.{stage}") for stage in stages} == stages, names
    assert names.count("POST /api/influencer/{id}/lora/train") == 1
    assert names.count("submit") == 1
    assert _orphans(spans) == []
    of_job = [span for span in spans if span.name.startswith("imprint.") and span.name != "imprint.notify"]
    assert {_attribute(span, "imprint.job_id") for span in of_job} == {job_id}
    assert all(one.headers["traceparent"].split("-")[1] == TRACE for one in application.about(job_id))
    # Sweeps are traces of their own.
    assert any(span.name == "imprint.sweep" and not span.parent_span_id for span in seen.spans)
    # Of the request's arguments nothing is in them.
    assert application.url not in str(seen.spans)


def _orphans(spans: list[Span]) -> list[str]:
    """The names of the spans whose parent is not among them."""
    known = {span.span_id.hex() for span in spans} | {CALLER}
    return [span.name for span in spans if span.parent_span_id.hex() not in known]


def _statuses(application: Receiver, job_id: str) -> list[str]:
    return [one.content["training_status"] for one in application.about(job_id)]


def _attribute(span: Span, name: str) -> str:
    return next((one.value.string_value for one in span.attributes if one.key == name), "")


def test_without_the_setting_there_is_no_trace_of_it() -> None:
    code = (
        "import sys, tasks.app, web.app\nfrom core.telemetry import tracing\n"
        "with tracing.span('x') as begun: assert begun is None\n"
        "assert tracing.current_headers() == {} and tracing.trace_id() is None\n"
        "assert tracing._provider.cache_info().currsize == 0"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
