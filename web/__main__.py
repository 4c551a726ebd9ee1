"""`python -m web`: serve the API (and the page) until SIGTERM or Ctrl-C."""

import signal
import socket
import sys
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp

from core.errors import ImprintError
from core.private import keep_private
from core.settings import Settings, settings
from core.telemetry.logging import set_up
from jobs.services import services
from storage.database import AWAY
from tasks.app import app as celery
from tasks.redis_rights import check_redis_rights
from web.app import create_app
from web.server.idle_connections import IdleConnections
from web.server.open_files import raise_open_files_limit
from web.streams import Streams

_TICKS = 20  # of 0.1 s, between two looks at idle connections
_GRACE_S = 20  # for responses in progress; event streams end at once, and their clients reconnect


class WebServer(uvicorn.Server):
    """uvicorn's server. It ends the event streams before it waits for open connections, and closes idle ones."""

    def __init__(self, config: uvicorn.Config, streams: Streams) -> None:
        super().__init__(config)
        self._streams = streams
        self._idle = IdleConnections()

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS == 0:
            self._idle.close_old(list(self.server_state.connections))
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._streams.close_all()
        await super().shutdown(sockets)


def server_config(app: ASGIApp, configured: Settings) -> uvicorn.Config:
    """How uvicorn serves the app."""
    return uvicorn.Config(
        app,
        host=configured.web_host,
        port=configured.web_port,
        log_config=None,
        access_log=False,  # /metrics has the counts; addresses may contain signatures
        server_header=False,
        ws="none",  # no route speaks WebSocket
        # None: uvicorn's own default, which is this machine, or the variable FORWARDED_ALLOW_IPS.
        forwarded_allow_ips=configured.web_trusted_proxies,
        timeout_graceful_shutdown=_GRACE_S,
    )


def main() -> int:
    configured = settings()
    keep_private(configured.home)
    raise_open_files_limit()
    set_up(configured.log_dir, configured.log_level, configured.log_format)
    try:
        services().check()
        check_redis_rights(celery)
        with suppress(*AWAY):  # if it does not answer now, /readyz says so until it does
            services().database  # noqa: B018 - made on first use, its schema brought up to date
    except (ValueError, ImprintError) as error:
        print(f"the API cannot start: {error}", file=sys.stderr)
        return 1
    app = create_app(services())
    try:
        app.state.metrics.serve(configured)
    except OSError as error:
        print(f"the metrics cannot be served on port {configured.metrics_port}: {error.strerror}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises its signal once more at the end: an orderly end is 0
    WebServer(server_config(app, configured), app.state.streams).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
