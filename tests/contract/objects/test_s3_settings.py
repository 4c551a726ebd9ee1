"""How the S3 store reaches its server: host names of buckets, a private authority, tokens, the AWS configuration."""

import datetime
import ipaddress
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from core.errors import StoreUnavailable
from core.settings import Settings
from jobs.services import open_store
from storage.objects import s3

HOST, BUCKET = "localhost.test", "test-bucket"  # moto takes the first label of other hosts for the bucket


class PrivateServer:
    """moto's S3 behind HTTPS with a certificate of a private authority; `seen` has the hosts and tokens of requests."""

    def __init__(self, folder: Path) -> None:
        self.ca = folder / "ca.pem"
        certificate, key = certificates(folder)
        self.seen: list[tuple[str, str | None]] = []
        application = DomainDispatcherApplication(create_backend_app)

        def recording(environ: dict[str, Any], start_response: Any) -> Any:
            self.seen.append((environ["HTTP_HOST"].partition(":")[0], environ.get("HTTP_X_AMZ_SECURITY_TOKEN")))
            return application(environ, start_response)

        self._server = make_server("127.0.0.1", 0, recording, threaded=True, ssl_context=(str(certificate), str(key)))
        self.url = f"https://{HOST}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._server.shutdown()
        self._thread.join()


def certificates(folder: Path) -> tuple[Path, Path]:
    """A server's certificate and key in `folder`, signed by an authority whose certificate is `ca.pem`."""
    now = datetime.datetime.now(datetime.UTC)
    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def name(common: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

    def build(subject: str, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject)).issuer_name(name("authority")).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        )  # fmt: skip
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    names: list[x509.GeneralName] = [x509.DNSName(HOST), x509.DNSName(f"*.{HOST}")]
    names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    (folder / "ca.pem").write_bytes(build("authority", authority, x509.BasicConstraints(ca=True, path_length=None)))
    (folder / "server.pem").write_bytes(build(HOST, own, x509.SubjectAlternativeName(names)))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(
        own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return folder / "server.pem", folder / "key.pem"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateServer]:
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        """A DNS that knows the server and its buckets."""
        return real("127.0.0.1" if str(host).endswith(HOST) else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    s3._session.cache_clear()
    running = PrivateServer(tmp_path)
    yield running
    running.end()
    s3._session.cache_clear()


def settings(server: PrivateServer, **changed: Any) -> Settings:
    own = {
        "store_url": f"s3://{BUCKET}/imprint", "s3_endpoint_url": server.url, "s3_ca_file": server.ca,
        "s3_access_key_id": "key", "s3_secret_access_key": "secret",
    }  # fmt: skip
    return Settings(_env_file=None, **{**own, **changed})


def make_bucket(server: PrivateServer) -> None:
    store = open_store(settings(server))
    assert isinstance(store, s3.S3Store)
    store._client.create_bucket(Bucket=BUCKET)
    server.seen.clear()


@pytest.mark.parametrize(("addressing", "host"), [("auto", HOST), ("path", HOST), ("virtual", f"{BUCKET}.{HOST}")])
def test_the_bucket_is_in_the_path_or_in_the_host_name(server: PrivateServer, addressing: str, host: str) -> None:
    make_bucket(server)
    store = open_store(settings(server, s3_addressing=addressing))
    store.put("a/b", b"x")
    assert (store.get("a/b"), list(store.list(""))) == (b"x", ["a/b"])
    assert {seen for seen, _ in server.seen} == {host}
    assert urlsplit(store.url("a/b", 60)).hostname == host
    assert store.uri("a/b") == f"s3://{BUCKET}/imprint/a/b"


def test_a_server_of_another_authority_is_refused(server: PrivateServer) -> None:
    with pytest.raises(StoreUnavailable, match="SSLError"):
        open_store(settings(server, s3_ca_file=None)).exists("a/b")


def test_a_session_token_goes_with_every_request_and_into_presigned_addresses(server: PrivateServer) -> None:
    make_bucket(server)
    store = open_store(settings(server, s3_session_token="token"))
    store.put("a/b", b"x")
    assert {token for _, token in server.seen} == {"token"}
    assert parse_qs(urlsplit(store.url("a/b", 60)).query)["X-Amz-Security-Token"] == ["token"]


def test_what_is_not_set_here_comes_from_the_aws_configuration(
    server: PrivateServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bucket(server)
    (tmp_path / "config").write_text(
        f"[profile house]\nregion = eu-central-2\nendpoint_url = {server.url}\nca_bundle = {server.ca}\n"
        "s3 =\n  addressing_style = virtual\n"
    )
    (tmp_path / "credentials").write_text(
        "[house]\naws_access_key_id = key\naws_secret_access_key = secret\naws_session_token = of-the-profile\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "house")
    s3._session.cache_clear()
    store = open_store(Settings(_env_file=None, store_url=f"s3://{BUCKET}/imprint"))
    store.put("a/b", b"x")
    assert store.get("a/b") == b"x"
    assert set(server.seen) == {(f"{BUCKET}.{HOST}", "of-the-profile")}
    assert "eu-central-2" in store.url("a/b", 60)


def test_without_any_configuration_the_region_is_amazons_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    s3._session.cache_clear()
    store = s3.S3Store(bucket=BUCKET, access_key_id="key", secret_access_key="secret")
    assert "us-east-1" in store.url("a/b", 60)
    s3._session.cache_clear()
