"""The application of examples/celery beside a site: its module, its worker, and its journal."""

import importlib.util
import json
import os
import sys
from types import ModuleType
from typing import Any

from celery import _state

from tests.servers.process import ServerProcess
from tests.site import RECIPE, ROOT, Site, until

FOLDER = ROOT / "examples" / "celery"
Facts = dict[str, Any]


class Shop:
    """The application of a site. Its worker is a process of the site: `site.kill("shop")`."""

    def __init__(self, running: Site, *, visibility_timeout_s: int = 3600) -> None:
        self.site = running
        self.journal = running.folder / "journal"
        self.environment = {
            "SHOP_BROKER_URL": str(running.application.conf.broker_url),
            "SHOP_RESULT_URL": str(running.application.conf.result_backend),
            "SHOP_JOURNAL": str(self.journal),
            "SHOP_VISIBILITY_TIMEOUT_S": str(visibility_timeout_s),
        }
        self.module = self._load()

    def _load(self) -> ModuleType:
        """The module with an app of its own, for this site's broker.

        Celery gives the tasks of every app to each app of the process that is made later, also to the shop of the next
        test. Here, as where an application has a process of its own, they belong to their own app.
        """
        spec = importlib.util.spec_from_file_location("shop", FOLDER / "shop.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        kept, shared = dict(os.environ), set(_state._on_app_finalizers)
        os.environ.update(self.environment)
        try:
            spec.loader.exec_module(module)
        finally:
            os.environ.clear()
            os.environ.update(kept)
            _state._on_app_finalizers.intersection_update(shared)
        return module

    def start(self, name: str = "shop") -> None:
        """Start the worker, and wait until it is ready."""
        argv = [sys.executable, "-m", "celery", "-A", "shop", "worker", "-Q", "shop", "-c", "1", "--loglevel", "INFO"]
        argv += ["--without-gossip", "--without-mingle", "-n", f"{name}@shop"]
        log = self.site.log(name)
        mark = log.stat().st_size if log.exists() else 0
        environment = {**os.environ, **self.environment}
        process = ServerProcess(argv, log=log, cwd=FOLDER, env=environment, fresh=True)
        self.site.processes[name] = process
        until(lambda: b" ready." in log.read_bytes()[mark:] or not process.alive, 90, "the shop's worker is ready")
        assert process.alive, log.read_text()

    def request(self, owner_id: str, **changed: Any) -> Facts:
        """The arguments of a training; `owner_id` needs credits."""
        images = self.site.pictures(owner_id)
        return {"owner_id": owner_id, "subject_id": "mascot", "images": images, **RECIPE, **changed}

    def all_written(self) -> list[Facts]:
        """What the shop's tasks wrote, in order."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [json.loads(line) for line in lines]

    def written(self, order: str, task: str = "") -> list[Facts]:
        """What they wrote about an order, in order."""
        return [one for one in self.all_written() if one["order"] == order and task in ("", one["task"])]

    def wait(self, order: str, task: str, timeout_s: float = 90) -> Facts:
        """The first line of a task about an order."""
        try:
            until(lambda: bool(self.written(order, task)), timeout_s, f"{task} of {order}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None
        return self.written(order, task)[0]

    def logs(self) -> str:
        """The ends of the logs, without the sweeps."""
        texts = {log.name: log.read_text().splitlines() for log in sorted(self.site.folder.glob("*.log"))}
        kept = {name: [line for line in lines if "sweep" not in line][-40:] for name, lines in texts.items()}
        return "\n".join(line for name, lines in kept.items() for line in (f"== {name}", *lines))
