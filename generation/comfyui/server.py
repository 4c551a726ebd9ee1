"""A client for the HTTP API of one ComfyUI server, with one method per endpoint.

The operator configures the address, so it needs no guard. The server has no password and keeps its queue and history in
memory. Messages quote the server only about nodes of the workflow.
"""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from core.errors import GeneratorError, GeneratorUnreachable, WorkflowInvalid
from generation.comfyui.text import one_line

MAX_ANSWER_BYTES = 64 * 2**20


@dataclass(frozen=True)
class OutputImage:
    """A picture file on the server."""

    filename: str
    subfolder: str
    kind: str  # output, temp, input
    node_id: str


class ComfyUIServer:
    """A ComfyUI server. `http` may be shared between servers and threads."""

    def __init__(self, url: str, http: httpx2.Client) -> None:
        """url: `http(s)://host[:port][/path]`. Raises GeneratorError for any other address."""
        try:
            parsed = httpx2.URL(url.rstrip("/"))
        except (httpx2.InvalidURL, TypeError):
            parsed = httpx2.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.userinfo:
            raise GeneratorError("the address of the ComfyUI server must start with http:// or https://")
        self.url, self.http = str(parsed).rstrip("/"), http
        self.place = f"the ComfyUI server at {parsed.netloc.decode('ascii')}"

    # ---- nodes and files ----

    def object_info(self, class_type: str = "") -> dict[str, Any]:
        """The server's description of all node classes, or of one."""
        body = self._json("GET", f"/object_info/{class_type}" if class_type else "/object_info")
        if not isinstance(body, dict):
            raise self._unexpected_answer()
        return body

    def loras(self) -> list[str]:
        """The LoRA files that the server lists. Subfolders are separated by a slash or backslash, as on its system."""
        try:
            choices = self.object_info("LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"]
            names = choices[1]["options"] if choices[0] == "COMBO" else choices[0]  # newer and older servers
            return [str(name) for name in names]
        except (KeyError, TypeError, IndexError):
            raise self._unexpected_answer() from None

    def upload_lora(self, path: Path, name: str) -> str | None:
        """Upload a file through the assets API; returns the name of the stored file, which may be that of its hash.

        None if the server has no assets API, or it is disabled.
        """
        for tag in ("model_type:loras", "loras"):  # older builds reject the first and need the second
            with path.open("rb") as file:
                answer = self._send(
                    "POST",
                    "/api/assets",
                    accept=(200, 201, 400, 404, 405, 503),
                    files={"file": (name, file, "application/octet-stream")},
                    data={"name": name, "tags": ["models", tag]},
                )
            if answer.status_code in (200, 201):
                return _stored_name(self._parse(answer)) or name
            if answer.status_code != 400:
                return None
        raise GeneratorError(f"{self.place} rejects {name} as a LoRA file", {"status": 400})

    def model_metadata(self, folder: str, file: str) -> dict[str, Any] | None:
        """The metadata of a model file in a folder such as `checkpoints`; None if it has none, or cannot be read."""
        answer = self._send("GET", f"/view_metadata/{folder}", accept=(200, 400, 404, 500), params={"filename": file})
        body = self._parse(answer) if answer.status_code == 200 else None
        return body if isinstance(body, dict) else None

    def log_lines(self) -> list[tuple[str, str]] | None:
        """The newest lines of the server's log with their times; None if it does not show its log."""
        answer = self._send("GET", "/internal/logs/raw", accept=(200, 403, 404, 405, 500))
        body = self._parse(answer) if answer.status_code == 200 else None
        entries = body.get("entries") if isinstance(body, dict) else None
        if not isinstance(entries, list):
            return None
        return [(str(entry.get("t")), str(entry.get("m"))) for entry in entries if isinstance(entry, dict)]

    def convert_workflow(self, workflow: Mapping[str, Any]) -> Any:
        """A workflow of the editor in API format, by the server's own route; None if it has no such route.

        The custom node "Workflow to API Converter Endpoint" has it. Raises WorkflowInvalid if the server refuses.
        """
        answer = self._send("POST", "/workflow/convert", accept=(200, 400, 404, 405, 413, 500), json=workflow)
        if answer.status_code in (404, 405):
            return None
        body = self._parse(answer)
        if answer.status_code != 200:
            why = one_line(body.get("error")) if isinstance(body, dict) else "it gives no reason"
            raise WorkflowInvalid(f"{self.place} cannot convert the workflow to API format: {why}")
        return body

    # ---- drawing ----

    def submit(self, workflow: Mapping[str, Any], client_id: str, prompt_id: str) -> str:
        """Queue a workflow; returns its prompt id on the server.

        After GeneratorUnreachable, check the queue and the history before trying again. Raises WorkflowInvalid if the
        server rejects the workflow or part of it; then nothing stays in its queue.
        """
        body = {"prompt": workflow, "client_id": client_id, "prompt_id": prompt_id}
        answer = self._send("POST", "/prompt", accept=(200, 400), json=body)
        body = self._parse(answer)
        if not isinstance(body, dict):
            raise self._unexpected_answer()
        if answer.status_code == 400:
            raise self._rejection(body)
        given = body.get("prompt_id")
        if not isinstance(given, str):
            raise self._unexpected_answer()
        if body.get("node_errors"):  # the server would draw only some of the pictures
            self.cancel(given)
            raise self._rejection(body)
        return given

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The history of a prompt; None until it has ended, or if the server does not know it any more."""
        body = self._json("GET", f"/history/{prompt_id}")
        if not isinstance(body, dict):
            raise self._unexpected_answer()
        found = body.get(prompt_id)
        return found if isinstance(found, dict) else None

    def queued(self) -> tuple[list[str], list[str]]:
        """The ids of the running and of the waiting prompts."""
        body = self._json("GET", "/queue")
        try:
            running, waiting = ([str(item[1]) for item in body[key]] for key in ("queue_running", "queue_pending"))
        except (KeyError, TypeError, IndexError):
            raise self._unexpected_answer() from None
        return running, waiting

    def cancel(self, prompt_id: str) -> None:
        """Remove a prompt from the queue, or stop it. Has no effect on one that has ended."""
        self._send("POST", "/queue", json={"delete": [prompt_id]})
        if prompt_id in self.queued()[0]:  # older servers interrupt any running prompt, so check that it is this one
            self._send("POST", "/interrupt", json={"prompt_id": prompt_id})

    def picture(self, picture: OutputImage, max_bytes: int = MAX_ANSWER_BYTES) -> bytes:
        """Download a picture."""
        asked = {"filename": picture.filename, "subfolder": picture.subfolder, "type": picture.kind}
        answer = self._send("GET", "/view", max_bytes=max_bytes, params=asked)
        return answer.content

    # ---- requests ----

    def _json(self, method: str, path: str) -> Any:
        return self._parse(self._send(method, path))

    def _parse(self, answer: httpx2.Response) -> Any:
        try:
            return json.loads(answer.content)
        except (ValueError, RecursionError):
            raise self._unexpected_answer() from None

    def _send(
        self,
        method: str,
        path: str,
        *,
        accept: tuple[int, ...] = (200,),
        max_bytes: int = MAX_ANSWER_BYTES,
        **more: Any,
    ) -> httpx2.Response:
        with self._translated(), self.http.stream(method, self.url + path, **more) as answer:
            body = bytearray()
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > max_bytes:
                    raise GeneratorError(f"{self.place} sent more than {max_bytes} bytes")
        if answer.status_code not in accept:
            kind = GeneratorUnreachable if answer.status_code >= 500 else GeneratorError
            raise kind(
                f"{self.place} answered {answer.status_code} to {path.split('?')[0]}", {"status": answer.status_code}
            )
        return httpx2.Response(answer.status_code, content=bytes(body))

    @contextmanager
    def _translated(self) -> Generator[None]:
        """Translate the errors of the HTTP client, without their messages."""
        try:
            yield
        except httpx2.TimeoutException:
            raise GeneratorUnreachable(f"{self.place} did not answer in time") from None
        except httpx2.ConnectError:
            raise GeneratorUnreachable(f"{self.place} cannot be reached") from None
        except httpx2.HTTPError:
            raise GeneratorUnreachable(f"the connection to {self.place} broke") from None

    def _unexpected_answer(self) -> GeneratorError:
        return GeneratorError(f"{self.place} sent a response that ComfyUI's API does not have")

    def _rejection(self, body: Mapping[str, Any]) -> WorkflowInvalid:
        """The server's errors by node, or its general error."""
        nodes: dict[str, str] = {}
        errors = body.get("node_errors")
        for node_id, about in (errors if isinstance(errors, dict) else {}).items():
            found = about.get("errors") if isinstance(about, dict) else None
            remarks = "; ".join(_describe_error(error) for error in (found if isinstance(found, list) else []))
            nodes[str(node_id)[:40]] = f"{one_line(about.get('class_type'), 60)}: {remarks}"
        listed = "; ".join(f"node {node_id} ({text})" for node_id, text in list(nodes.items())[:5])
        return WorkflowInvalid(
            f"{self.place} rejects the workflow: {listed or _describe_error(body.get('error'))}", {"nodes": nodes}
        )


def _describe_error(error: Any) -> str:
    if not isinstance(error, dict):
        return one_line(error)
    message, details = one_line(error.get("message", "")), one_line(error.get("details", ""))
    return f"{message} ({details})" if details and details != message else message


def open_comfyui_client(timeout_s: float = 60.0) -> httpx2.Client:
    """An HTTP client for ComfyUI servers, safe to share between threads: no proxy, no redirects."""
    return httpx2.Client(
        trust_env=False,
        follow_redirects=False,
        timeout=httpx2.Timeout(timeout_s, connect=min(10.0, timeout_s)),
        headers={"User-Agent": "imprint"},
    )


def _stored_name(asset: Any) -> str | None:
    """The file's name in an answer of the assets API: newer builds give it, older ones what it is made of."""
    if not isinstance(asset, dict):
        return None
    about = asset.get("user_metadata")
    digest = str(asset.get("asset_hash") or "").partition(":")[2]
    names = (
        asset.get("loader_path"),
        about.get("filename") if isinstance(about, dict) else None,
        f"{digest}.safetensors" if digest else None,
    )
    return next((name for name in names if isinstance(name, str) and name), None)
