"""The process of the fake ai-toolkit server."""

import os
import socket
import threading
from collections.abc import Callable

import uvicorn

from fakes.ai_toolkit.api import ToolkitApi
from fakes.ai_toolkit.faults import FaultInjector, FaultMiddleware, Journal
from fakes.ai_toolkit.options import FakeToolkitOptions
from fakes.ai_toolkit.server_data import ServerData
from fakes.ai_toolkit.worker import QueueWorker


def serve_pod(
    options: FakeToolkitOptions, *, host: str = "127.0.0.1", port: int = 0, announce: Callable[[str], None]
) -> None:
    """Serve until a signal ends the process. Calls `announce` with the address once it listens. Port 0: any."""
    with socket.create_server((host, port), backlog=512) as listening:
        server_data = ServerData(options.folder)
        faults, journal = FaultInjector(options.faults, options.hang_s), Journal(options.journal)
        worker = QueueWorker(server_data.rows, options, faults)
        app = FaultMiddleware(
            ToolkitApi(server_data, worker, faults, options).app(), faults, journal, options.ready_after_s
        )
        if options.vanish_after_s is not None:
            timer = threading.Timer(options.vanish_after_s, os._exit, (1,))
            timer.daemon = True
            timer.start()
        worker.start()
        announce(f"http://{host}:{listening.getsockname()[1]}")
        config = uvicorn.Config(
            app, log_level="error", access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=1
        )
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            worker.close()
            server_data.rows.close()
            journal.close()
