"""A client for the part of RunPod's REST API v2 that rents machines, with one method per endpoint.

BackendFull: the GPU type is not available now, or the balance is too low. BackendUnreachable: no response, or an error
that may pass. BackendFailed: the key, the template or the request is wrong; a retry does not help. Messages never quote
RunPod: it may echo the request, which has passwords.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2

from core.errors import BackendFailed, BackendFull, BackendUnreachable
from core.outbound import wire
from core.outbound.http_status import is_retryable

DEAD = ("EXITED", "ERROR", "TERMINATED")  # nothing trains there any more; the first two may still cost money
PORT = 8675  # of ai-toolkit's web UI in its image

_TRIES = 4
_LONGEST_WAIT_S = 30.0  # the longest wait that RunPod may ask for; beyond it the caller retries
_SOONEST_CUDA = "13.0"  # required by the image
_MOST_DOLLARS_PER_H = 10_000.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class Pod:
    """A machine at RunPod. `status`: PROVISIONING, STARTING, RUNNING, EXITED, ERROR or TERMINATED."""

    id: str
    name: str
    status: str
    gpu: str
    cost_microdollars_per_h: int  # 0 while it costs nothing
    created_at: datetime | None


@dataclass(frozen=True)
class GpuType:
    """A GPU type in the catalogue. `price` is the list price in the secure cloud."""

    id: str
    memory_gb: int
    price_microdollars_per_h: int
    available: bool


@dataclass(frozen=True)
class PodRequest:
    """A pod to rent: one GPU of a type, under a unique name."""

    name: str
    gpu: str
    disk_gb: int
    env: Mapping[str, str]
    image: str | None = None  # required without a template
    template: str | None = None

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "name": self.name,
            "gpu": {"id": self.gpu, "count": 1, "minCudaVersion": _SOONEST_CUDA},
            "cloud": "SECURE",
            "disk": self.disk_gb,
            "ports": [f"{PORT}/http"],
            "env": dict(self.env),
        }
        return body | ({"templateId": self.template} if self.template else {"image": self.image})


class RunPod:
    """A RunPod account. Safe to use from several threads; close it when done."""

    def __init__(
        self, url: str, key: str, *, timeout_s: float = 60.0, pause: Callable[[float], object] = time.sleep
    ) -> None:
        """timeout_s: of one request. pause: waits between attempts; tests replace it."""
        self._pause = pause
        self._http = httpx2.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {key}", "User-Agent": "imprint"},
            timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    # ---- reading ----

    def gpus(self) -> dict[str, GpuType]:
        """The catalogue by type, with current availability, which may change at any moment."""
        answer = self._send_with_retries("GET", "/catalog/gpus", params={"include": "AVAILABILITY", "product": "POD"})
        return {gpu.id: gpu for gpu in _parse_list(answer, "gpus", _gpu_of_row)}

    def pods(self) -> list[Pod]:
        """All pods of the account, including those that Imprint did not rent."""
        return _parse_list(self._send_with_retries("GET", "/pods"), "pods", _pod_of_row)

    def get(self, pod_id: str) -> Pod | None:
        """A pod by id; None if it does not exist."""
        answer = self._send_with_retries("GET", f"/pods/{quote(pod_id, safe='')}", fine=(200, 404))
        return None if answer.status_code == 404 else _parse_pod(answer)

    def find_by_name(self, name: str) -> Pod | None:
        """The pod with that name, or the oldest of several."""
        found = [pod for pod in self.pods() if pod.name == name and pod.status != "TERMINATED"]
        return min(found, key=lambda pod: (pod.created_at is None, pod.created_at, pod.id), default=None)

    # ---- changing ----

    def create(self, request: PodRequest) -> Pod:
        """Rent a machine. After an unclear response, the pod is first looked up by its name.

        After BackendUnreachable the pod may exist or appear later: look it up again.
        """
        for attempt in range(_TRIES):
            try:
                answer = self._send("POST", "/pods", json=request.body())
            except httpx2.ConnectError:
                answer = None  # the request was never sent
            except httpx2.TransportError:
                if found := self._find_twice(request.name):
                    return found
                raise BackendUnreachable("RunPod did not answer the request for a pod") from None
            if answer is not None and answer.status_code == 201:
                return _parse_pod(answer)
            # The pod may exist despite an error response, but not after a rate limit.
            is_unclear = answer is not None and answer.status_code != 429 and is_retryable(answer.status_code)
            if is_unclear and (found := self.find_by_name(request.name)):
                return found
            self._raise_if_final(answer, renting=True)
            self._wait(answer, attempt)
        raise BackendUnreachable("RunPod did not answer the request for a pod")

    def delete(self, pod_id: str) -> None:
        """Delete a machine, if it exists."""
        self._send_with_retries("DELETE", f"/pods/{quote(pod_id, safe='')}", fine=(200, 204, 404))

    # ---- requests ----

    def _find_twice(self, name: str) -> Pod | None:
        """Look a pod up twice: after a lost response it may take a moment until it is listed."""
        found = self.find_by_name(name)
        if found is None:
            self._pause(2.0)
            found = self.find_by_name(name)
        return found

    def _send_with_retries(
        self, method: str, path: str, *, fine: Sequence[int] = (200,), params: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """Send an idempotent request, with retries after errors that may pass."""
        for attempt in range(_TRIES):
            try:
                answer = self._send(method, path, params=params)
            except httpx2.TransportError:
                answer = None
            if answer is not None and answer.status_code in fine:
                return answer
            self._raise_if_final(answer, renting=False)
            self._wait(answer, attempt)
        raise BackendUnreachable("RunPod does not answer")

    def _send(self, method: str, path: str, **what: Any) -> httpx2.Response:
        try:
            return self._http.request(method, path, **what)
        except httpx2.DecodingError:
            raise BackendFailed("RunPod's response cannot be read") from None

    @staticmethod
    def _raise_if_final(answer: httpx2.Response | None, *, renting: bool) -> None:
        """Raise for a final error; return for one that may pass."""
        status = answer.status_code if answer is not None else 0
        if status == 0 or is_retryable(status):
            return
        details = {"status": status}
        if status == 401:
            raise BackendFailed("RunPod rejects the API key: check IMPRINT_RUNPOD_API_KEY", details)
        if status == 402:
            raise BackendFull("the balance at RunPod is too low to rent a pod", details)
        if renting and status == 400:
            raise BackendFull("RunPod has no free machine of this type, or rejects the request", details)
        if renting and status == 403:
            raise BackendFull("this RunPod account may not rent this type of GPU", details)
        if renting and status == 404:
            raise BackendFailed("RunPod does not know the template: check IMPRINT_POD_TEMPLATE", details)
        raise BackendFailed(f"RunPod rejected a request with status {status}", details)

    def _wait(self, answer: httpx2.Response | None, attempt: int) -> None:
        """Wait before a retry: as RunPod asks, or with backoff. Raises BackendUnreachable after the last one."""
        asked = _parse_seconds(answer.headers.get("retry-after")) if answer is not None else None
        wait_s = 2.0**attempt * random.uniform(0.5, 1.0) if asked is None else asked  # noqa: S311 - jitter
        if attempt == _TRIES - 1 or wait_s > _LONGEST_WAIT_S:
            details = {} if answer is None else {"status": answer.status_code}
            limited = answer is not None and answer.status_code == 429
            why = "RunPod limits the rate of requests" if limited else "RunPod does not answer, or only with errors"
            raise BackendUnreachable(why, details)
        self._pause(wait_s)


def _parse_seconds(value: str | None) -> float | None:
    return wire.real(value, most=86_400.0) if value is not None and value.isdigit() else None


def _parse_list(answer: httpx2.Response, field: str, of: Callable[[Any], _T]) -> list[_T]:
    try:
        return [of(row) for row in answer.json()[field]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BackendFailed("RunPod sent a response that its API does not have") from None


def _parse_pod(answer: httpx2.Response) -> Pod:
    try:
        return _pod_of_row(answer.json())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BackendFailed("RunPod sent a response that its API does not have") from None


def _pod_of_row(row: Any) -> Pod:
    return Pod(
        id=wire.name(row["id"]),
        name=wire.text(row["name"], 200),
        status=wire.text(row["status"], 100),
        gpu=wire.text((row.get("gpu") or {}).get("id") or "", 200),
        cost_microdollars_per_h=_microdollars(row.get("cost")) or 0,
        created_at=_parse_time(row.get("createdAt")),
    )


def _parse_time(value: str | None) -> datetime | None:
    at = datetime.fromisoformat(value) if value else None
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def _gpu_of_row(row: Any) -> GpuType:
    price = _microdollars(row["price"]["secure"])  # a type without a price that can be is not rented
    return GpuType(
        id=wire.name(row["id"]),
        memory_gb=wire.whole(row.get("memory")) or 0,
        price_microdollars_per_h=price or 0,
        available=price is not None and bool(row.get("secure", True)) and row.get("availability") != "NONE",
    )


def _microdollars(dollars: Any) -> int | None:
    """An hourly price in microdollars; None for one that cannot be."""
    found = wire.real(dollars, most=_MOST_DOLLARS_PER_H)
    return None if found is None else round(found * 1_000_000)
