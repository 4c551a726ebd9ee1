"""moto's S3 server in this process: quick, but it takes wrong checksums and wrong secrets. `swift.py` does not."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from boto3.session import Session
from botocore.config import Config
from moto.server import ThreadedMotoServer

from storage.objects.s3 import S3Store


@dataclass(frozen=True)
class S3Server:
    """Where an S3 server is and how to get in. Other processes may use it as long as this one lives."""

    endpoint_url: str
    access_key_id: str
    secret_access_key: str
    region: str = "us-east-1"

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"test-{secrets.token_hex(6)}"
        self.client.create_bucket(Bucket=name)
        return name

    def store(self, bucket: str, **options: Any) -> S3Store:
        """Our store on it."""
        return S3Store(
            bucket=bucket,
            **{
                "endpoint_url": self.endpoint_url,
                "region": self.region,
                "access_key_id": self.access_key_id,
                "secret_access_key": self.secret_access_key,
                **options,
            },
        )

    @cached_property
    def client(self) -> Any:
        """A plain boto3 client, to look at the server without our store."""
        return Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(s3={"addressing_style": "path"}),
        )


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """moto on a free loopback port; ends with the block."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3Server(f"http://{host}:{port}", "moto-key", "moto-secret")
    finally:
        server.stop()
