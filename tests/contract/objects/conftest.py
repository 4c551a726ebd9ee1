"""The stores, each on a server of its own; an S3 server is started on first use and shared by all tests here."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from storage.objects import ObjectStore
from storage.objects.local import LocalStore
from tests.servers.process import NotStarted
from tests.servers.s3 import S3Server, s3_server
from tests.servers.swift import swift_server

MULTIPART_BYTES = 5 << 20  # the least that S3 servers take for all parts but the last
SERVERS = ["moto", "swift"]


@pytest.fixture(scope="package")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], S3Server]]:
    """The S3 server of a name, started on first use; a test fails, with the reason, where it cannot run."""
    started: dict[str, S3Server] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:

        def open_server(name: str) -> S3Server:
            if name not in started and name not in missing:
                block = s3_server() if name == "moto" else swift_server(tmp_path_factory.mktemp("swift"))
                try:
                    started[name] = stack.enter_context(block)
                except NotStarted as error:
                    missing[name] = f"{name} cannot be had here: {str(error)[:300]}"
            if name in missing:
                pytest.fail(missing[name])
            return started[name]

        yield open_server


@pytest.fixture(params=["local", *SERVERS])
def store(request: pytest.FixtureRequest, tmp_path: Path, open_server: Callable[[str], S3Server]) -> ObjectStore:
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    server = open_server(request.param)
    return server.store(server.bucket(), prefix="some/where", multipart_bytes=MULTIPART_BYTES)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, open_server: Callable[[str], S3Server]) -> S3Server:
    return open_server(request.param)
