"""Where the broker and the result store are: addresses, TLS and transport options, made from the settings.

An address may carry what Celery takes only as options: `ssl_…` (how certificates are checked) and, for Redis Sentinel,
`master_name`. Certificates are checked unless the address says otherwise.
"""

import re
import ssl
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import sqlalchemy as sa

from core.brokers import embedded_broker, protocol
from core.database_address import engine_arguments
from core.settings import Settings

REDIS = ("redis", "rediss", "sentinel")
_CERT_REQS = {
    **{f"CERT_{name}": getattr(ssl, f"CERT_{name}") for name in ("NONE", "OPTIONAL", "REQUIRED")},
    **{name.lower(): getattr(ssl, f"CERT_{name}") for name in ("NONE", "OPTIONAL", "REQUIRED")},
}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS_PARAMETERS = (*_FILES, "ssl_cert_reqs", "ssl_check_hostname")
_NO_STACK = "redis://127.0.0.1:1/0"  # no broker is set and no stack runs: commands report it


@dataclass(frozen=True)
class BrokerAddress:
    """An address as Celery takes it. `tls` is None without TLS; `options` are the transport's or the engine's."""

    url: str = field(repr=False)
    tls: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    @property
    def is_database(self) -> bool:
        return self.scheme.startswith("db+")

    @property
    def is_redis(self) -> bool:
        return self.scheme in REDIS

    @property
    def shown(self) -> str:
        """The address without passwords, for what Celery prints."""
        return ";".join(
            re.sub(r"://([^:/@]*):[^@]*@", r"://\1:**@", part.partition("?")[0]) for part in self.url.split(";")
        )


def broker(settings: Settings) -> BrokerAddress:
    """The broker: the one that is set, else the private Redis of a running stack."""
    url = settings.broker_url.get_secret_value() if settings.broker_url else embedded_broker.address(settings)
    if url is None:
        return BrokerAddress(_NO_STACK)
    with suppress(OSError):  # `check` reports it
        url = _with_password(url, _password(settings))
    return _parse(url)


def results(settings: Settings) -> BrokerAddress:
    """The result store: the one that is set, else the broker if it is Redis, else the database."""
    if settings.result_url is not None:
        return _parse(settings.result_url.get_secret_value())
    found = broker(settings)
    return found if found.is_redis else _parse(f"db+{settings.database}")


def check(settings: Settings) -> None:
    """Check what Celery would report late or not at all, and ask the servers. Raises ValueError with the setting.

    A server that does not answer is no fault: clients wait for it.
    """
    try:
        _password(settings)
    except OSError as error:
        raise ValueError(f"IMPRINT_BROKER_PASSWORD_FILE: {error.filename} cannot be read ({error.strerror})") from None
    found = broker(settings)
    for setting, address in (("IMPRINT_BROKER_URL", found), ("IMPRINT_RESULT_URL", results(settings))):
        if address.scheme in _TLS and _query(address.url).get("ssl_cert_reqs", "none") not in _CERT_REQS:
            raise ValueError(f"{setting}: ssl_cert_reqs must be required, optional or none")
        if address.scheme == "sentinel" and not address.options.get("master_name"):
            raise ValueError(f"{setting}: add ?master_name=…, the name by which the Sentinels know the Redis")
    for setting, given in (
        ("IMPRINT_BROKER_URL", settings.broker_url),
        ("IMPRINT_RESULT_URL", settings.result_url),
        ("IMPRINT_INGRESS_URL", settings.ingress_url),
    ):
        if given is not None:
            protocol.check_tls(setting, given.get_secret_value())


def _password(settings: Settings) -> str | None:
    file = settings.broker_password_file
    return None if file is None else file.read_text().strip()


def _with_password(url: str, password: str | None) -> str:
    """The address with a password, where it has none of its own."""
    if password is None:
        return url
    parts = []
    for part in url.split(";"):
        scheme, _, rest = part.partition("://")
        user, at, host = rest.rpartition("@")
        has_one = at and ":" in user
        parts.append(part if has_one else f"{scheme}://{user}:{quote(password, safe='')}@{host}")
    return ";".join(parts)


def _parse(url: str) -> BrokerAddress:
    """An address without the parameters that Celery takes as options."""
    scheme, query = url.partition("://")[0], _query(url)
    if scheme == "sentinel":
        options = {"master_name": query["master_name"]} if "master_name" in query else {}
        return BrokerAddress(_without(url, ("master_name",)), None, options)
    if scheme in _TLS and query.get("ssl_cert_reqs", "required") in _CERT_REQS:  # else `check` reports it
        bare = _without(url, _TLS_PARAMETERS)
        return BrokerAddress(bare, _TLS[scheme](query, None if ";" in bare else urlsplit(bare).hostname))
    if scheme.startswith("db+"):
        with suppress(ValueError, sa.exc.ArgumentError):  # opening the database reports it
            plain, options = engine_arguments(url.removeprefix("db+"))
            return BrokerAddress(f"db+{plain}", None, options)
    return BrokerAddress(url)


def _redis_tls(query: Mapping[str, str], _: str | None) -> dict[str, Any]:
    """As redis-py names it."""
    required = _CERT_REQS[query.get("ssl_cert_reqs", "required")]
    return {
        "ssl_cert_reqs": required,
        "ssl_check_hostname": _checks_name(query, required),
        **{name: query[name] for name in _FILES if name in query},
    }


def _amqp_tls(query: Mapping[str, str], host: str | None) -> dict[str, Any]:
    """As py-amqp names it: without a `server_hostname` no name is checked. For None, kombu fills in the present host.

    That would be 127.0.0.1 for localhost.
    """
    required = _CERT_REQS[query.get("ssl_cert_reqs", "required")]
    return {
        "cert_reqs": required,
        **({"server_hostname": host} if _checks_name(query, required) else {}),
        **{name.removeprefix("ssl_"): query[name] for name in _FILES if name in query},
    }


def _checks_name(query: Mapping[str, str], required: ssl.VerifyMode) -> bool:
    return required != ssl.CERT_NONE and query.get("ssl_check_hostname", "true").lower() != "false"


_TLS = {"rediss": _redis_tls, "amqps": _amqp_tls}


def _query(url: str) -> dict[str, str]:
    """The parameters of an address; of several with `;` between them, those of all."""
    return {name: value for part in url.split(";") for name, value in parse_qsl(part.partition("?")[2])}


def _without(url: str, taken: Container[str]) -> str:
    parts = []
    for part in url.split(";"):
        address, _, query = part.partition("?")
        left = [(name, value) for name, value in parse_qsl(query) if name not in taken]
        parts.append(f"{address}?{urlencode(left)}" if left else address)
    return ";".join(parts)
