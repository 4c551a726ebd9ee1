"""Whether a broker speaks TLS as its address says. Clients wait a minute or for ever for one that does not."""

import socket
import ssl
from urllib.parse import urlsplit

_ANSWER_S = 3.0
# How each protocol begins without TLS, how its servers answer, and its ports. RabbitMQ answers a version that it does
# not know with its own.
_REDIS = (b"PING\r\n", (b"+", b"-"))
_AMQP = (b"AMQP\x00\x00\x09\x01", (b"\x01\x00\x00", b"AMQP"))
_SCHEMES = {
    "redis": (_REDIS, 6379), "rediss": (_REDIS, 6379),
    "amqp": (_AMQP, 5672), "pyamqp": (_AMQP, 5672), "amqps": (_AMQP, 5671),
}  # fmt: skip
_WITH_TLS = {"redis": "rediss", "amqp": "amqps", "pyamqp": "amqps"}
_WITHOUT_TLS = {"rediss": "redis", "amqps": "amqp"}


def check_tls(setting: str, url: str) -> None:
    """Raises ValueError, which names the setting, if the address says TLS and its server speaks none, or inversely.

    A server that does not answer is not checked: clients wait for it.
    """
    for part in url.split(";"):
        scheme = part.partition("://")[0]
        address = urlsplit(part)
        if scheme not in _SCHEMES or not address.hostname:
            continue
        hello, port = _SCHEMES[scheme]
        server = (address.hostname, address.port or port)
        is_plain = _is_plain(server, *hello)
        if is_plain and scheme in _WITHOUT_TLS:
            raise ValueError(
                f"{setting}: {server[0]}:{server[1]} does not speak TLS, but the address begins with {scheme}://: "
                f"begin it with {_WITHOUT_TLS[scheme]}://, or give the port on which the server speaks TLS"
            )
        if not is_plain and scheme in _WITH_TLS and _speaks_tls(server):
            raise ValueError(
                f"{setting}: {server[0]}:{server[1]} speaks TLS only, but the address begins with {scheme}://: "
                f"begin it with {_WITH_TLS[scheme]}://, or give the port on which the server speaks without TLS"
            )


def _is_plain(server: tuple[str, int], hello: bytes, answers: tuple[bytes, ...]) -> bool:
    """Whether a server answers without TLS. A Redis that wants a password answers too."""
    try:
        with socket.create_connection(server, _ANSWER_S) as connection:
            connection.sendall(hello)
            return connection.recv(8).startswith(answers)
    except OSError:
        return False


def _speaks_tls(server: tuple[str, int]) -> bool:
    """Whether a server answers a TLS handshake, even with a refusal. Its certificate does not matter here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(server, _ANSWER_S) as connection,
            context.wrap_socket(connection, server_hostname=server[0]),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False
