"""A fake RunPod for tests and demos, with the API, prices and errors of the real one, and pods that run.

A RUNNING pod is a process with the fake ai-toolkit server on its own loopback port. Clients reach it through
`/proxy/{pod_id}`, as through RunPod's proxy: 404 and 502 until it listens. Billing is by the second, and `/fake/ledger`
lists all pods with their end and their costs.

Faults are drawn from a seed with the rates in `RunPodFaults`; `POST /fake/next` scripts single faults.
"""

import argparse
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fakes.runpod.cloud import FakeRunPod, RunPodError, RunPodFaults
from fakes.runpod.machine import PodOptions

_TITLES = {
    400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 404: "Not Found",
    422: "Unprocessable Entity", 429: "Too Many Requests",
}  # fmt: skip
_MOST_UPLOADED = 100_000_000  # the largest request that the proxy accepts
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]  # that the proxy forwards
_HOP = {"host", "connection", "transfer-encoding", "keep-alive", "date", "server"}


class LostAnswer(Response):
    """A lost response: the connection ends after the headers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


def application(cloud: FakeRunPod) -> Starlette:
    """The web application for one fake RunPod."""

    def api(operation: str, work: Callable[[Request], Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                if request.headers.get("authorization") != f"Bearer {cloud.key}":
                    raise RunPodError(401, "missing bearer token")
                fault = cloud.draw_fault(operation)
                done = await work(request)
            except RunPodError as problem:
                return _problem(problem)
            return LostAnswer() if fault == "lost" else done

        return answer

    async def gpus(_: Request) -> Response:
        return JSONResponse({"gpus": cloud.gpus()})

    async def pods(_: Request) -> Response:
        return JSONResponse({"pods": [machine.as_pod() for machine in cloud.machines.values()]})

    async def create(request: Request) -> Response:
        return JSONResponse(cloud.create(await _json(request)), 201)

    async def get(request: Request) -> Response:
        return JSONResponse(cloud.find(request.path_params["id"]).as_pod())

    async def delete(request: Request) -> Response:
        cloud.delete(request.path_params["id"])
        return Response(status_code=204)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await cloud.close()

    return Starlette(
        lifespan=lifespan,
        exception_handlers={HTTPException: _not_found},
        routes=[
            Route("/v2/catalog/gpus", api("gpus", gpus)),
            Route("/v2/pods", api("list", pods), methods=["GET"]),
            Route("/v2/pods", api("create", create), methods=["POST"]),
            Route("/v2/pods/{id}", api("get", get), methods=["GET"]),
            Route("/v2/pods/{id}", api("delete", delete), methods=["DELETE"]),
            *_control_routes(cloud),
            Route("/proxy/{id}/{path:path}", partial(_proxied, cloud), methods=_METHODS),
        ],
    )


def _control_routes(cloud: FakeRunPod) -> list[Route]:
    """Routes that RunPod does not have: what a test sees and scripts."""

    async def ledger(_: Request) -> Response:
        return JSONResponse({"pods": cloud.ledger(), "calls": len(cloud.calls)})

    async def order_faults(request: Request) -> Response:
        for operation, faults in (await _json(request)).items():
            cloud.ordered[operation].extend(str(fault) for fault in faults)
        return Response(status_code=204)

    async def change(request: Request) -> Response:
        """Make a pod vanish, or end it with a status."""
        how, pod_id = (await _json(request))["status"], request.path_params["id"]
        cloud.remove(pod_id, "vanished") if how == "vanished" else cloud.find(pod_id).end(how)
        return Response(status_code=204)

    return [
        Route("/fake/ledger", ledger),
        Route("/fake/next", order_faults, methods=["POST"]),
        Route("/fake/pods/{id}", change, methods=["POST"]),
    ]


async def _json(request: Request) -> Any:
    try:
        return await request.json()
    except ValueError:
        raise RunPodError(400, "the body is not JSON") from None


def _problem(problem: RunPodError) -> Response:
    body = {"title": _TITLES.get(problem.status, "Error"), "status": problem.status, "detail": problem.detail}
    return JSONResponse(
        body | ({"errors": problem.errors} if problem.errors else {}),
        problem.status,
        headers={"Retry-After": str(problem.wait_s)} if problem.wait_s is not None else None,
        media_type="application/problem+json",
    )


async def _not_found(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _problem(RunPodError(status, "no such path"))


async def _proxied(cloud: FakeRunPod, request: Request) -> Response:
    """Forward a request to the pod's process, and stream its response."""
    machine = cloud.machines.get(request.path_params["id"])
    if machine is None:
        return HTMLResponse("<html>no such pod</html>", 404)
    if int(request.headers.get("content-length", 0)) > _MOST_UPLOADED:
        return HTMLResponse("<html>too large</html>", 413)
    prefix = f"/proxy/{machine.id}"
    path = request.scope["raw_path"].decode("ascii").removeprefix(prefix)  # undecoded, to keep %2F
    query = request.scope["query_string"].decode("ascii")
    target = httpx2.URL(machine.address).copy_with(raw_path=f"{path}?{query}".removesuffix("?").encode())
    headers = [(name, value) for name, value in request.headers.items() if name not in _HOP]
    has_body = request.method not in ("GET", "HEAD", "DELETE")
    onward = cloud.proxy.build_request(
        request.method, target, headers=headers, content=request.stream() if has_body else None
    )
    try:
        answer = await cloud.proxy.send(onward, stream=True)
    except httpx2.TransportError:
        return HTMLResponse("<html>bad gateway</html>", 502)
    back = {name: value for name, value in answer.headers.items() if name not in _HOP}
    return StreamingResponse(answer.aiter_raw(), answer.status_code, back, background=BackgroundTask(answer.aclose))


class _Server(uvicorn.Server):
    """Prints its address once it listens, because port 0 takes any free one."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        print(json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)


def serve_runpod(port: int, key: str, seed: int, faults: RunPodFaults, pod_options: PodOptions | None = None) -> None:
    """Serve on loopback until SIGTERM. Pods end with the server."""
    app = application(FakeRunPod(key, seed, faults, pod_options))
    config = uvicorn.Config(app, "127.0.0.1", port, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    _Server(config).run()


def main() -> None:
    """`python -m fakes.runpod.server`: like `imprint fake-runpod`, without Celery."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default="fake-key")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=RunPodFaults.model_validate_json, default=RunPodFaults())
    parser.add_argument("--pods", type=json.loads, default={})
    given = parser.parse_args()
    serve_runpod(given.port, given.key, given.seed, given.faults, given.pods)


if __name__ == "__main__":
    main()
