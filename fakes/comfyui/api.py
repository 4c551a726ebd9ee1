"""The HTTP API and the websocket of the fake server; every path also exists under /api."""

import asyncio
import hashlib
import json
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from fakes.comfyui import loras
from fakes.comfyui.convert import convert
from fakes.comfyui.folders import KINDS, ComfyUIFolders
from fakes.comfyui.queue import PromptQueue
from fakes.comfyui.validation import object_info, validate
from fakes.json_body import json_body
from generation.comfyui.nodes import NODES


@dataclass(frozen=True)
class FakeComfyUIOptions:
    """Options of the fake server."""

    folder: Path
    assets: bool = False  # enable the assets API
    old_assets: bool = False  # enable it with the tags of its first builds
    websocket: bool = True  # False: as behind a proxy without websockets
    converter: bool = False  # as with the custom node that converts workflows of the editor
    seconds_per_step: float = 0.02
    max_upload_mb: int = 100


class ComfyUIApi:
    """The request handlers."""

    def __init__(self, options: FakeComfyUIOptions) -> None:
        self.options, self.folders = options, ComfyUIFolders(options.folder)
        self.clients: dict[str, asyncio.Queue[str]] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.queue = PromptQueue(self.folders, self.send, options.seconds_per_step)

    def app(self) -> Starlette:
        of: list[tuple[str, Any, str]] = [
            ("/prompt", self.prompt, "POST"),
            ("/prompt", self.length, "GET"),
            ("/queue", self.queued, "GET"),
            ("/queue", self.change_queue, "POST"),
            ("/interrupt", self.interrupt, "POST"),
            ("/free", self.free, "POST"),
            ("/history", self.whole_history, "GET"),
            ("/history/{prompt_id}", self.history, "GET"),
            ("/view", self.view, "GET"),
            ("/object_info", self.all_info, "GET"),
            ("/object_info/{name}", self.info, "GET"),
            ("/models", self.kinds, "GET"),
            ("/models/{kind}", self.models, "GET"),
            ("/system_stats", self.stats, "GET"),
            ("/upload/image", self.upload, "POST"),
            ("/view_metadata/{kind}", self.metadata, "GET"),
        ]
        if self.options.converter:
            of.append(("/workflow/convert", self.convert, "POST"))
        routes: list[BaseRoute] = [
            Route("/api/assets", self.assets, methods=["POST"]),
            Route("/internal/logs/raw", self.logs, methods=["GET"]),
        ]
        for base in ("", "/api"):
            routes += [Route(base + path, answer, methods=[method]) for path, answer, method in of]
            if self.options.websocket:
                routes.append(WebSocketRoute(f"{base}/ws", self.listen))
        return Starlette(routes=routes)

    # ---- prompts ----

    async def prompt(self, request: Request) -> Response:
        given = await json_body(request)
        self.loop = asyncio.get_running_loop()
        if not isinstance(given.get("prompt"), dict):
            reason = "No prompt provided"
            none = {"type": "no_prompt", "message": reason, "details": reason, "extra_info": {}}
            return JSONResponse({"error": none, "node_errors": {}}, 400)
        prompt, extra = given["prompt"], dict(given.get("extra_data") or {})
        error, outputs, node_errors = await asyncio.to_thread(validate, prompt, self.folders)
        if error is not None:
            return JSONResponse({"error": error, "node_errors": node_errors}, 400)
        if "client_id" in given:
            extra["client_id"] = given["client_id"]
        prompt_id = str(given.get("prompt_id", uuid.uuid4()))
        number = self.queue.put(prompt_id, prompt, extra, outputs, bool(given.get("front")))
        return JSONResponse({"prompt_id": prompt_id, "number": number, "node_errors": node_errors})

    async def length(self, request: Request) -> Response:
        return JSONResponse({"exec_info": {"queue_remaining": self.queue.length()}})

    async def queued(self, request: Request) -> Response:
        running = [self.queue.running] if self.queue.running else []
        return JSONResponse({"queue_running": running, "queue_pending": self.queue.waiting})

    async def change_queue(self, request: Request) -> Response:
        given = await json_body(request)
        if given.get("clear"):
            self.queue.delete(None)
        if isinstance(given.get("delete"), list):
            self.queue.delete(given["delete"])
        return Response()

    async def interrupt(self, request: Request) -> Response:
        self.queue.interrupt((await json_body(request)).get("prompt_id"))
        return Response()

    async def free(self, request: Request) -> Response:
        return Response()

    async def whole_history(self, request: Request) -> Response:
        return JSONResponse(self.queue.history)

    async def history(self, request: Request) -> Response:
        prompt_id = request.path_params["prompt_id"]
        found = self.queue.history.get(prompt_id)
        return JSONResponse({prompt_id: found} if found else {})

    async def view(self, request: Request) -> Response:
        asked = request.query_params
        name, kind = asked.get("filename", ""), asked.get("type", "output")
        if not name or kind not in self.folders.pictures:
            return Response(status_code=404 if not name else 400)
        if name.startswith("/") or ".." in name:
            return Response(status_code=400)
        path = self.folders.within(self.folders.pictures[kind], [asked.get("subfolder", ""), Path(name).name])
        if path is None:
            return Response(status_code=403)
        return FileResponse(path) if path.is_file() else Response(status_code=404)

    # ---- nodes and models ----

    async def all_info(self, request: Request) -> Response:
        return JSONResponse({name: object_info(name, node, self.folders) for name, node in NODES.items()})

    async def info(self, request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse({name: object_info(name, NODES[name], self.folders)} if name in NODES else {})

    async def kinds(self, request: Request) -> Response:
        return JSONResponse(KINDS)

    async def models(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        return JSONResponse(self.folders.listed(kind)) if kind in KINDS else Response(status_code=404)

    async def stats(self, request: Request) -> Response:
        return JSONResponse({"system": {"comfyui_version": "0.3.64", "python_version": "fake"}, "devices": []})

    async def metadata(self, request: Request) -> Response:
        kind, name = request.path_params["kind"], request.query_params.get("filename", "")
        path = self.folders.within(self.folders.models(kind), [name]) if kind in KINDS else None
        if path is None or path.suffix != ".safetensors" or not path.is_file():
            return Response(status_code=404)
        try:
            found = loras.header(path).get("__metadata__")
        except loras.UnreadableLora:
            found = None
        return Response(status_code=404) if found is None else JSONResponse(found)

    async def logs(self, request: Request) -> Response:
        return JSONResponse({"entries": list(loras.LOG), "size": {"cols": 80, "rows": 24}})

    async def convert(self, request: Request) -> Response:
        try:
            return JSONResponse(convert(await json_body(request)))
        except (KeyError, ValueError, TypeError, AttributeError):
            return JSONResponse({"error": "Invalid workflow format - missing nodes or links"}, 400)

    # ---- files ----

    async def upload(self, request: Request) -> Response:
        form = await request.form()
        file, kind = form.get("image"), str(form.get("type", "input"))
        if isinstance(file, str) or file is None or not file.filename or kind not in self.folders.pictures:
            return Response(status_code=400)
        below = str(form.get("subfolder", ""))
        folder = self.folders.within(self.folders.pictures[kind], [below])
        if folder is None:
            return Response(status_code=400)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / Path(file.filename).name).write_bytes(await file.read())
        return JSONResponse({"name": Path(file.filename).name, "subfolder": below, "type": kind})

    async def assets(self, request: Request) -> Response:
        if not self.options.assets and not self.options.old_assets:
            return _refused(503, "SERVICE_DISABLED", "Assets system is disabled.")
        form = await request.form(max_part_size=self.options.max_upload_mb << 20)
        file, tags = form.get("file"), [str(tag) for tag in form.getlist("tags")]
        if file is None or isinstance(file, str):
            return _refused(400, "MISSING_FILE", "Form must include a 'file' part or a known 'hash'.")
        sign = "" if self.options.old_assets else "model_type:"
        kinds = [tag.removeprefix(sign) for tag in tags if tag.startswith(sign) and tag != "models"]
        if "models" not in tags or len(kinds) != 1 or kinds[0] not in KINDS:
            return _refused(400, "INVALID_BODY", "a model asset names exactly one model_type")
        name = Path(str(form.get("name") or file.filename)).name
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            return _refused(400, "INVALID_BODY", "unsupported file name")
        content = await file.read()
        digest = hashlib.sha256(content).hexdigest()  # a real one takes BLAKE3, which Python does not have
        stored = f"{digest}.safetensors"
        (self.folders.models(kinds[0]) / stored).write_bytes(content)
        about = {"user_metadata": {"filename": stored}} if self.options.old_assets else {"loader_path": stored}
        asset = {"id": str(uuid.uuid4()), "name": name, "asset_hash": f"blake3:{digest}", "tags": tags}
        return JSONResponse(asset | about, 201)

    # ---- events ----

    async def listen(self, socket: WebSocket) -> None:
        await socket.accept()
        self.loop = asyncio.get_running_loop()
        client = socket.query_params.get("clientId") or uuid.uuid4().hex
        events = self.clients[client] = asyncio.Queue()
        status = {"status": {"exec_info": {"queue_remaining": self.queue.length()}}, "sid": client}
        await socket.send_text(json.dumps({"type": "status", "data": status}))
        gone = asyncio.create_task(_gone(socket))
        try:
            while not gone.done():
                following = asyncio.create_task(events.get())
                await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    break
                await socket.send_text(following.result())
        except (WebSocketDisconnect, RuntimeError):
            pass
        finally:
            gone.cancel()
            if self.clients.get(client) is events:
                del self.clients[client]

    def send(self, event: str, data: dict[str, Any], client: str | None) -> None:
        """Send an event from the queue's thread to the websockets."""
        loop = self.loop
        if loop is None or loop.is_closed():
            return
        text = json.dumps({"type": event, "data": data})
        for name, events in list(self.clients.items()):
            if client in (None, name):
                loop.call_soon_threadsafe(events.put_nowait, text)


async def _gone(socket: WebSocket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


def _refused(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message, "details": {}}}, status)
