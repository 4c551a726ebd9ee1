"""The state of the fake RunPod: pods, prices, ledger and faults. `server` has the HTTP API."""

import asyncio
import random
import re
import tempfile
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import httpx2
from pydantic import BaseModel, ConfigDict, Field

from fakes.runpod.machine import Machine, PodOptions

# Dollars per hour, and GB. The prices are invented but realistic.
GPUS: dict[str, tuple[float, int]] = {
    "NVIDIA GeForce RTX 4090": (0.69, 24),
    "NVIDIA RTX A6000": (0.49, 48),
    "NVIDIA L40S": (0.86, 48),
    "NVIDIA H100 80GB HBM3": (2.69, 80),
}
_FIELDS = {"name", "templateId", "image", "gpu", "cloud", "disk", "ports", "env", "mounts", "dataCenterIds"}


class RunPodFaults(BaseModel):
    """The rates of faults: shares between 0 and 1 of all requests, creates, deletes or pods."""

    model_config = ConfigDict(extra="forbid")

    errors: float = Field(0.0, ge=0, le=1, description="requests answered with 500, 502 or 503, nothing done")
    too_many: float = Field(0.0, ge=0, le=1, description="requests answered with 429 and Retry-After 1")
    lost_creates: float = Field(0.0, ge=0, le=1, description="creates that are done but never answered")
    sold_out_creates: float = Field(0.0, ge=0, le=1, description="creates refused for want of a free machine")
    failed_deletes: float = Field(0.0, ge=0, le=1, description="pods whose first delete is answered with 500")
    vanish: float = Field(0.0, ge=0, le=1, description="pods that are gone `last_s` after they run")
    exits: float = Field(0.0, ge=0, le=1, description="pods that are EXITED `last_s` after they run")
    last_s: float = Field(5.0, ge=0, description="how long those last at most")
    start_s: float = Field(0.0, ge=0, description="from the order to RUNNING")
    sold_out: list[str] = Field([], description="GPU types of which there is none")
    calls_per_minute: int | None = Field(None, description="above it: 429")


class RunPodError(Exception):
    """An error response of RunPod."""

    def __init__(self, status: int, detail: str, *errors: str, wait_s: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.wait_s = status, detail, list(errors), wait_s


class FakeRunPod:
    """The state of a fake RunPod account."""

    def __init__(
        self, key: str, seed: int = 0, faults: RunPodFaults | None = None, pod_options: PodOptions | None = None
    ) -> None:
        self.key, self.faults = key, faults or RunPodFaults()
        self.rng = random.Random(seed)  # noqa: S311 - must be repeatable
        self.pod_options = pod_options or {}
        self.machines: dict[str, Machine] = {}
        self.past: list[Machine] = []  # deleted and vanished
        self.ordered: dict[str, deque[str]] = defaultdict(deque)
        self.calls: deque[float] = deque()
        self.deletes_failed: set[str] = set()
        self.folder = tempfile.TemporaryDirectory(prefix="fake-runpod-")
        self.proxy = httpx2.AsyncClient(trust_env=False, timeout=120, limits=httpx2.Limits(max_connections=400))

    async def close(self) -> None:
        for machine in self.machines.values():
            machine.stop()
        await self.proxy.aclose()
        self.folder.cleanup()

    # ---- the API ----

    def gpus(self) -> list[dict[str, Any]]:
        return [
            {
                "id": name, "name": name.removeprefix("NVIDIA "), "pool": None, "manufacturer": "NVIDIA",
                "memory": memory, "secure": True, "community": False,
                "price": {"secure": price, "community": price}, "maxCount": {"secure": 8, "community": 0},
                "availability": "NONE" if name in self.faults.sold_out else "HIGH",
            }
            for name, (price, memory) in GPUS.items()
        ]  # fmt: skip

    def create(self, body: Any) -> dict[str, Any]:
        if not isinstance(body, dict):
            raise RunPodError(422, "Request validation failed.", "$: an object is needed")
        if unknown := set(body) - _FIELDS:
            named = [f"$: additional properties '{name}' not allowed" for name in sorted(unknown)]
            raise RunPodError(422, "Request validation failed.", *named)
        gpu = body.get("gpu")
        if not body.get("name") or not isinstance(gpu, dict) or not (body.get("image") or body.get("templateId")):
            raise RunPodError(422, "Request validation failed.", "$: name, gpu, and image or templateId are needed")
        if not re.fullmatch(r"\d+\.\d+", gpu.get("minCudaVersion", "1.0")):
            raise RunPodError(422, "Request validation failed.", "$.gpu.minCudaVersion: does not match")
        if gpu.get("id") not in GPUS:
            raise RunPodError(400, "unknown GPU type")
        if gpu["id"] in self.faults.sold_out or self.rng.random() < self.faults.sold_out_creates:
            raise RunPodError(400, "There are no longer any instances available with the requested specifications.")
        options = dict(self.pod_options)
        if options.get("faults") is not None:
            options["faults"] += len(self.machines) + len(self.past)
        machine = Machine.new(self.rng, body, GPUS[gpu["id"]][0], Path(self.folder.name), options)
        self.machines[machine.id] = machine
        machine.start_after(self.faults.start_s)
        self._schedule_end(machine)
        return machine.as_pod()

    def _schedule_end(self, machine: Machine) -> None:
        lasts_s = self.faults.start_s + self.rng.uniform(0.2, 1.0) * self.faults.last_s
        drawn = self.rng.random()
        if drawn < self.faults.vanish:
            asyncio.get_running_loop().call_later(lasts_s, self.remove, machine.id, "vanished")
        elif drawn < self.faults.vanish + self.faults.exits:
            asyncio.get_running_loop().call_later(lasts_s, machine.end, "EXITED")

    def find(self, pod_id: str) -> Machine:
        if pod_id not in self.machines:
            raise RunPodError(404, "pod not found")
        return self.machines[pod_id]

    def remove(self, pod_id: str, how: str) -> None:
        if machine := self.machines.pop(pod_id, None):
            machine.end("TERMINATED", how)
            self.past.append(machine)

    def delete(self, pod_id: str) -> None:
        machine = self.find(pod_id)
        if machine.id not in self.deletes_failed and self.rng.random() < self.faults.failed_deletes:
            self.deletes_failed.add(machine.id)
            raise RunPodError(500, "internal error")
        self.remove(machine.id, "deleted")

    def ledger(self) -> list[dict[str, Any]]:
        """All pods ever rented, oldest first."""
        every = [*self.machines.values(), *self.past]
        return [machine.as_entry() for machine in sorted(every, key=lambda machine: machine.created_at)]

    # ---- faults ----

    def draw_fault(self, operation: str) -> str | None:
        """The next scripted or random fault of an operation. Faults that are responses are raised as RunPodError."""
        now = time.monotonic()
        self.calls.append(now)
        while self.calls[0] < now - 60:
            self.calls.popleft()
        if self.faults.calls_per_minute is not None and len(self.calls) > self.faults.calls_per_minute:
            raise RunPodError(429, "rate limit exceeded for the minute window", wait_s=int(61 - now + self.calls[0]))
        fault = self.ordered[operation].popleft() if self.ordered[operation] else self._draw(operation)
        if fault is None or fault == "lost":
            return fault
        raise RunPodError(int(fault), "as ordered", wait_s=1 if fault == "429" else None)

    def _draw(self, operation: str) -> str | None:
        drawn = self.rng.random()
        if drawn < self.faults.errors:
            return self.rng.choice(["500", "502", "503"])
        if drawn < self.faults.errors + self.faults.too_many:
            return "429"
        return "lost" if operation == "create" and self.rng.random() < self.faults.lost_creates else None
