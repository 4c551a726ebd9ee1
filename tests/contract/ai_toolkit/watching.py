"""Ways to see what became of jobs on a fake server."""

from tests.servers.fake_pod import FakePod
from tests.site import until
from training.backends.ai_toolkit import work
from training.backends.ai_toolkit.server import ToolkitServer
from training.backends.ai_toolkit.work import RemoteTraining

FINAL = ("completed", "failed", "stopped")


def ended(server: ToolkitServer, name: str) -> str:
    """The status that a job ends in."""
    until(lambda: work.poll(server, server.jobs()[name]).status in FINAL, 120, f"{name} ends")
    return work.poll(server, server.jobs()[name]).status


def was_done_once(pod: FakePod, order: RemoteTraining) -> bool:
    """Whether the job was created and started once, and each of its pictures is there once."""
    done = {
        what: [line for line in pod.journal(path=path, about=order.name) if line["fault"] in (None, "lost")]
        for what, path in (("created", "^/api/jobs$"), ("started", r"^/api/jobs/[^/]+/start$"))
    }
    created = [line for line in done["created"] if line["method"] == "POST" and line["fault"] == "lost"]
    created += [line for line in done["created"] if line["method"] == "POST" and line["status"] == 200]
    return len(created) == 1 and len(done["started"]) == 1
