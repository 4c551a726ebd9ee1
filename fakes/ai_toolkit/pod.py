"""The process of a fake server."""

import os
import socket
import threading
from collections.abc import Callable

import uvicorn

from fakes.ai_toolkit.api import Api
from fakes.ai_toolkit.faults import Faults, Gate, Journal
from fakes.ai_toolkit.options import Options
from fakes.ai_toolkit.worker import Worker
from fakes.ai_toolkit.world import World


def serve(options: Options, *, host: str = "127.0.0.1", port: int = 0, announce: Callable[[str], None]) -> None:
    """Serve until a signal ends the process. `announce` is told the address once it takes connections; port 0: any."""
    with socket.create_server((host, port), backlog=512) as listening:
        world = World(options.folder)
        faults, journal = Faults(options.faults, options.hang_s), Journal(options.journal)
        worker = Worker(world.rows, options, faults, world.outputs)
        app = Gate(Api(world, worker, faults, options).app(), faults, journal, options.ready_after_s)
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
            world.rows.close()
            journal.close()
