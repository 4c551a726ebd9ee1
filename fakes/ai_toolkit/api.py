"""The HTTP API of the fake server for jobs, queues and the output of jobs. `files_api` has datasets and files."""

import json
import shutil
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fakes.ai_toolkit import files_api
from fakes.ai_toolkit.faults import FATES, KINDS, FaultInjector, ScriptedFault, record_subject
from fakes.ai_toolkit.options import FakeToolkitOptions
from fakes.ai_toolkit.rows import NameTaken, Row
from fakes.ai_toolkit.server_data import SETTINGS, ServerData
from fakes.ai_toolkit.worker import QueueWorker
from fakes.json_body import json_body

_CARDS = {"80GB": 81920, "A6000": 49140, "L40S": 46068}  # MiB, by a part of the name
_TAIL_BYTES = 5 * 2**20
_OPEN = ("/api/img/", "/api/files/")  # open without a password, as on a real server


class BearerAuth:
    """Requires a bearer token under /api/, except for the paths that a real server leaves open."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and self.token is not None and not path.startswith(_OPEN):
            header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1").split(" ")
            if len(header) < 2 or header[1] != self.token:
                await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class ToolkitApi:
    """The request handlers."""

    def __init__(
        self, server_data: ServerData, worker: QueueWorker, faults: FaultInjector, options: FakeToolkitOptions
    ) -> None:
        self.server_data, self.rows, self.worker, self.faults, self.options = (
            server_data,
            server_data.rows,
            worker,
            faults,
            options,
        )

    def app(self) -> Starlette:
        """The application, without injected faults."""
        of_job = "/api/jobs/{job_id}"
        routes = [
            Route("/api/auth", self.auth),
            Route("/api/settings", self.settings, methods=["GET"]),
            Route("/api/settings", self.set_settings, methods=["POST"]),
            Route("/api/gpu", self.gpu),
            Route("/api/jobs", self.jobs, methods=["GET"]),
            Route("/api/jobs", self.create, methods=["POST"]),
            Route(f"{of_job}/start", self.start),
            Route(f"{of_job}/stop", self.stop),
            Route(f"{of_job}/mark_stopped", self.mark_stopped),
            Route(f"{of_job}/save_now", self.flag),
            Route(f"{of_job}/sample_now", self.flag),
            Route(f"{of_job}/delete", self.delete),
            Route(f"{of_job}/log", self.log),
            Route(f"{of_job}/samples", self.samples),
            Route(f"{of_job}/files", self.files),
            Route(f"{of_job}/loss", self.loss),
            *files_api.routes(self.server_data, self.options),
            Route("/_fake/faults", self.script_fault, methods=["POST"]),
            Route("/_fake/fates", self.script_fate, methods=["POST"]),
        ]
        if not self.options.old_api:
            routes += [
                Route("/api/queue", self.queues),
                Route("/api/queue/{gpu_ids}/start", self.start_queue),
                Route("/api/queue/{gpu_ids}/stop", self.stop_queue),
            ]
        handlers = {404: _page_not_found, 500: _empty_error}
        return Starlette(
            routes=routes,
            middleware=[Middleware(BearerAuth, token=self.options.token)],
            exception_handlers=handlers,
        )

    # ---- the server ----

    async def auth(self, request: Request) -> Response:
        return JSONResponse({"isAuthenticated": True})

    async def settings(self, request: Request) -> Response:
        return JSONResponse({"HF_TOKEN": "", **{key: str(path) for key, path in self.server_data.settings().items()}})

    async def set_settings(self, request: Request) -> Response:
        given = await json_body(request)
        for key in ("HF_TOKEN", *SETTINGS):
            if not isinstance(given.get(key), str):  # earlier settings are already saved
                return JSONResponse({"error": "Failed to update settings"}, 500)
            if key in SETTINGS:
                if not self.server_data.is_ours(Path(given[key])):
                    return JSONResponse({"error": "Failed to update settings"}, 500)
                self.rows.set(key, given[key])
        return JSONResponse({"success": True})

    async def gpu(self, request: Request) -> Response:
        total = next((mib for mark, mib in _CARDS.items() if mark in self.options.gpu), 24564)
        memory = {"total": total, "free": total - 4564, "used": 4564}
        return JSONResponse(
            {
                "hasNvidiaSmi": True,
                "isMac": False,
                "gpus": [{"index": 0, "name": self.options.gpu, "memory": memory, "temperature": 60}],
            }
        )

    # ---- jobs ----

    async def jobs(self, request: Request) -> Response:
        if job_id := request.query_params.get("id"):
            return JSONResponse(self.rows.job(job_id))  # null if it does not exist
        active = request.query_params.get("only_active") == "true"
        rows = self.rows.jobs("status IN ('running', 'queued', 'stopping')" if active else "1")
        return JSONResponse({"jobs": rows})

    async def create(self, request: Request) -> Response:
        given = await json_body(request)
        record_subject(request.scope, given.get("name"))
        try:
            if "id" in given:
                values = {"name": given["name"], "gpu_ids": given["gpu_ids"]}
                self.rows.change(given["id"], touch=True, job_config=json.dumps(given["job_config"]), **values)
                return JSONResponse(self._known(given["id"]))
            if not isinstance(given["gpu_ids"], str) or not isinstance(given["name"], str):
                raise TypeError
            return JSONResponse(self.rows.create(given))
        except NameTaken:
            return JSONResponse({"error": "Job name already exists"}, 409)
        except (KeyError, TypeError):
            return JSONResponse({"error": "Failed to save training data"}, 500)

    async def start(self, request: Request) -> Response:
        row = self._asked(request)
        if row is None:
            return _no_job()
        self.rows.enqueue(row["id"])
        return JSONResponse(row)  # the row before the change

    async def stop(self, request: Request) -> Response:
        row = self._asked(request)
        if row is None:
            return _no_job()
        self.rows.change(row["id"], touch=True, stop=1, info="Stopping job...")
        if row["id"] in self.worker.runs:  # without a process, a queued job stays queued and a dead one running
            self.rows.change(row["id"], touch=True, status="stopped", info="Job stopped")
        return JSONResponse(row)

    async def mark_stopped(self, request: Request) -> Response:
        row = self._asked(request)
        if row is None:
            return Response(status_code=500)
        self.rows.change(row["id"], touch=True, status="stopped", stop=1, info="Job stopped", pid=None)
        return JSONResponse(row)

    async def flag(self, request: Request) -> Response:
        row = self._asked(request)
        if row is None:
            return Response(status_code=500)
        self.rows.change(row["id"], touch=True, **{request.url.path.rsplit("/", 1)[1]: 1})
        return JSONResponse(self._known(row["id"]))

    async def delete(self, request: Request) -> Response:
        row = self._asked(request)
        if row is None:
            return _no_job()
        folder = self.server_data.outputs() / row["name"]  # with the name "" this is the folder of all outputs
        if self.server_data.is_ours(folder):
            shutil.rmtree(folder, ignore_errors=True)
        self.rows.delete(row["id"])
        return JSONResponse(row)

    # ---- the output of a job ----

    async def log(self, request: Request) -> Response:
        row = self._asked(request)
        if row is None:
            return _no_job()
        path = self.server_data.outputs() / row["name"] / "log.txt"
        data = path.read_bytes() if path.is_file() else b""
        if self.options.old_api:
            return JSONResponse({"log": data.decode("utf-8", "replace")})
        offset = request.query_params.get("offset", "")
        begun = int(offset) if offset.isdecimal() else 0
        reset = not path.is_file() or not offset.isdecimal() or begun > len(data)
        text = data[max(0, len(data) - _TAIL_BYTES) :] if reset else data[begun:]
        return JSONResponse({"log": text.decode("utf-8", "replace"), "offset": len(data), "reset": reset})

    async def samples(self, request: Request) -> Response:
        row = self._asked(request)
        if row is None:
            return _no_job()
        folder = self.server_data.outputs() / row["name"] / "samples"
        return JSONResponse({"samples": sorted(str(path) for path in folder.glob("*.jpg"))})

    async def files(self, request: Request) -> Response:
        row = self._asked(request)
        if row is None:
            return _no_job()
        folder = self.server_data.outputs() / row["name"]
        paths = sorted([*folder.glob("*.safetensors"), *folder.glob("*.pt")])
        return JSONResponse({"files": [{"path": str(path), "size": path.stat().st_size} for path in paths]})

    async def loss(self, request: Request) -> Response:
        row = self._asked(request)
        if row is None:
            return _no_job()
        asked = request.query_params
        key, since, limit = asked.get("key", "loss"), int(asked.get("since_step", -1)), int(asked.get("limit", 2000))
        points: list[Row] = []
        if key == "loss/loss":  # the default key, "loss", has no data
            query = "SELECT step, wall_time, value FROM loss WHERE job_id = ? AND step > ? ORDER BY step LIMIT ?"
            points = self.rows.all(query, row["id"], since, min(limit, 20_000))
        return JSONResponse({"key": key, "keys": ["learning_rate", "loss/loss"], "points": points})

    # ---- queues ----

    async def queues(self, request: Request) -> Response:
        return JSONResponse({"queues": self.rows.queues()})

    async def start_queue(self, request: Request) -> Response:
        gpu_ids = request.path_params["gpu_ids"]
        self.rows.run("INSERT OR IGNORE INTO queue (gpu_ids) VALUES (?)", gpu_ids)
        before = next(queue for queue in self.rows.queues() if queue["gpu_ids"] == gpu_ids)
        self.rows.run_queue(gpu_ids, True)
        return JSONResponse(before)

    async def stop_queue(self, request: Request) -> Response:
        gpu_ids = request.path_params["gpu_ids"]
        before = next((queue for queue in self.rows.queues() if queue["gpu_ids"] == gpu_ids), None)
        if before is None:
            return JSONResponse({"error": "Queue not found"}, 404)
        self.rows.run_queue(gpu_ids, False)
        return JSONResponse(before)

    # ---- for tests: faults ----

    async def script_fault(self, request: Request) -> Response:
        script = ScriptedFault(**await json_body(request))
        if script.kind not in KINDS:
            return JSONResponse({"error": f"kind is one of {', '.join(KINDS)}"}, 400)
        self.faults.script(script)
        return JSONResponse({"success": True})

    async def script_fate(self, request: Request) -> Response:
        given = await json_body(request)
        if given.get("fate") not in FATES:
            return JSONResponse({"error": f"fate is one of {', '.join(FATES)}"}, 400)
        self.faults.set_fate(str(given["name"]), str(given["fate"]))
        return JSONResponse({"success": True})

    def _asked(self, request: Request) -> Row | None:
        row = self.rows.job(request.path_params["job_id"])
        if row is not None:
            record_subject(request.scope, row["name"])
        return row

    def _known(self, job_id: str) -> Row:
        row = self.rows.job(job_id)
        if row is None:
            raise KeyError(job_id)
        return row


def _no_job() -> Response:
    return JSONResponse({"error": "Job not found"}, 404)


async def _page_not_found(request: Request, error: Exception) -> Response:
    return HTMLResponse("<!DOCTYPE html><html><title>404: This page could not be found.</title></html>", 404)


async def _empty_error(request: Request, error: Exception) -> Response:
    return Response(status_code=500)
