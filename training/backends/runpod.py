"""RunPod's REST API v2, as far as renting a machine needs it: one method, one endpoint.

Errors are ours, and what RunPod answers is never quoted: the order that it may echo holds passwords.
BackendFull: this GPU type cannot be had now, or the balance is too low. BackendUnreachable: no answer, or one that a
later try may not meet. BackendFailed: the key, the template or the order is wrong; trying again does not help.
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
from core.http_status import is_retryable

DEAD = ("EXITED", "ERROR", "TERMINATED")  # no training goes on there; the first two may still cost money
PORT = 8675  # of ai-toolkit's web UI in its image

_TRIES = 4
_LONGEST_WAIT_S = 30.0  # what RunPod may ask us to wait; beyond that the caller comes again
_SOONEST_CUDA = "13.0"  # what the image needs of its host
_T = TypeVar("_T")


@dataclass(frozen=True)
class Pod:
    """A machine as RunPod has it. `status`: PROVISIONING, STARTING, RUNNING, EXITED, ERROR or TERMINATED."""

    id: str
    name: str
    status: str
    gpu: str
    cost_microdollars_per_h: int  # 0 while it is not billed
    created_at: datetime | None


@dataclass(frozen=True)
class GpuType:
    """A kind of GPU in the catalogue. `price` is RunPod's list price in its secure cloud."""

    id: str
    memory_gb: int
    price_microdollars_per_h: int
    available: bool


@dataclass(frozen=True)
class PodRequest:
    """What is asked for: one GPU of a type, under a name of ours that no other pod has."""

    name: str
    gpu: str
    disk_gb: int
    env: Mapping[str, str]
    image: str | None = None  # without a template it is needed
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
    """One account. May be used from several threads; close it when done."""

    def __init__(
        self, url: str, key: str, *, timeout_s: float = 60.0, pause: Callable[[float], object] = time.sleep
    ) -> None:
        """timeout_s: how long one answer may take. pause: what waits between tries; for tests."""
        self._pause = pause
        self._http = httpx2.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {key}", "User-Agent": "imprint"},
            timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    # ---- what there is ----

    def gpus(self) -> dict[str, GpuType]:
        """The catalogue by type, with what is in stock for pods now. Stock may be gone the next moment."""
        answer = self._send_with_retries("GET", "/catalog/gpus", params={"include": "AVAILABILITY", "product": "POD"})
        return {gpu.id: gpu for gpu in _parse_list(answer, "gpus", _gpu_of_row)}

    def pods(self) -> list[Pod]:
        """All pods of the account, whoever rented them."""
        return _parse_list(self._send_with_retries("GET", "/pods"), "pods", _pod_of_row)

    def get(self, pod_id: str) -> Pod | None:
        """One pod; None where there is none."""
        answer = self._send_with_retries("GET", f"/pods/{quote(pod_id, safe='')}", fine=(200, 404))
        return None if answer.status_code == 404 else _parse_pod(answer)

    def find_by_name(self, name: str) -> Pod | None:
        """The pod of that name; the oldest, should there be several."""
        found = [pod for pod in self.pods() if pod.name == name and pod.status != "TERMINATED"]
        return min(found, key=lambda pod: (pod.created_at is None, pod.created_at, pod.id), default=None)

    # ---- what is changed ----

    def create(self, request: PodRequest) -> Pod:
        """Rent a machine. Where no clear answer came it is looked for by its name before anything else.

        BackendUnreachable says that it may have been made after all, and may turn up later: look for its name again.
        """
        for attempt in range(_TRIES):
            try:
                answer = self._send("POST", "/pods", json=request.body())
            except httpx2.ConnectError:
                answer = None  # it was never sent
            except httpx2.TransportError:
                if found := self._find_twice(request.name):
                    return found
                raise BackendUnreachable("RunPod did not answer a request for a pod") from None
            if answer is not None and answer.status_code == 201:
                return _parse_pod(answer)
            # An answer in error may hide a pod that was made after all; a rate limit comes before that.
            is_unclear = answer is not None and answer.status_code != 429 and is_retryable(answer.status_code)
            if is_unclear and (found := self.find_by_name(request.name)):
                return found
            self._raise_if_final(answer, renting=True)
            self._wait(answer, attempt)
        raise BackendUnreachable("RunPod has no answer to a request for a pod")

    def delete(self, pod_id: str) -> None:
        """Give a machine back, for good; absent is fine."""
        self._send_with_retries("DELETE", f"/pods/{quote(pod_id, safe='')}", fine=(200, 204, 404))

    # ---- the way there ----

    def _find_twice(self, name: str) -> Pod | None:
        """Look twice: what a request without an answer made may take a moment to be listed."""
        found = self.find_by_name(name)
        if found is None:
            self._pause(2.0)
            found = self.find_by_name(name)
        return found

    def _send_with_retries(
        self, method: str, path: str, *, fine: Sequence[int] = (200,), params: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """A request that may be repeated: tried again after errors that pass."""
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
            raise BackendFailed("RunPod's answer cannot be read") from None

    @staticmethod
    def _raise_if_final(answer: httpx2.Response | None, *, renting: bool) -> None:
        """Raise for an answer that the same request will meet again; return for one that may pass."""
        status = answer.status_code if answer is not None else 0
        if status == 0 or is_retryable(status):
            return
        details = {"status": status}
        if status == 401:
            raise BackendFailed("RunPod does not know the key: see IMPRINT_RUNPOD_API_KEY", details)
        if status == 402:
            raise BackendFull("the balance at RunPod is too low to rent a pod", details)
        if renting and status == 400:
            raise BackendFull("RunPod has no free machine of this type, or does not take the order", details)
        if renting and status == 403:
            raise BackendFull("this RunPod account may not rent this type of GPU", details)
        if renting and status == 404:
            raise BackendFailed("RunPod does not know the template: see IMPRINT_POD_TEMPLATE", details)
        raise BackendFailed(f"RunPod refuses a request with status {status}", details)

    def _wait(self, answer: httpx2.Response | None, attempt: int) -> None:
        """Before another try: as long as RunPod asks for, else longer each time; BackendUnreachable after the last."""
        asked = _parse_seconds(answer.headers.get("retry-after")) if answer is not None else None
        wait_s = 2.0**attempt * random.uniform(0.5, 1.0) if asked is None else asked  # noqa: S311 - jitter
        if attempt == _TRIES - 1 or wait_s > _LONGEST_WAIT_S:
            details = {} if answer is None else {"status": answer.status_code}
            limited = answer is not None and answer.status_code == 429
            why = "RunPod asks us to call less often" if limited else "RunPod does not answer, or with errors"
            raise BackendUnreachable(why, details)
        self._pause(wait_s)


def _parse_seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isdigit() else None


def _parse_list(answer: httpx2.Response, field: str, of: Callable[[Any], _T]) -> list[_T]:
    try:
        return [of(row) for row in answer.json()[field]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BackendFailed("RunPod's answer is not what its API promises") from None


def _parse_pod(answer: httpx2.Response) -> Pod:
    try:
        return _pod_of_row(answer.json())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BackendFailed("RunPod's answer is not what its API promises") from None


def _pod_of_row(row: Any) -> Pod:
    return Pod(
        id=str(row["id"]),
        name=str(row["name"]),
        status=str(row["status"]),
        gpu=str((row.get("gpu") or {}).get("id") or ""),
        cost_microdollars_per_h=round(float(row.get("cost") or 0) * 1_000_000),
        created_at=_parse_time(row.get("createdAt")),
    )


def _parse_time(value: str | None) -> datetime | None:
    at = datetime.fromisoformat(value) if value else None
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def _gpu_of_row(row: Any) -> GpuType:
    return GpuType(
        id=str(row["id"]),
        memory_gb=int(row.get("memory") or 0),
        price_microdollars_per_h=round(float(row["price"]["secure"]) * 1_000_000),
        available=bool(row.get("secure", True)) and row.get("availability") != "NONE",
    )
