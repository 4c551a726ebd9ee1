"""Addresses of broker and results: what Celery takes from them as options, and what it prints."""

import ssl
from pathlib import Path
from typing import Any

import pytest

from core.brokers import broker
from core.settings import Settings


def settings(tmp_path: Path, **values: Any) -> Settings:
    return Settings(_env_file=None, home=tmp_path, **values)


CHECKED = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}


@pytest.mark.parametrize(
    ("given", "url", "tls", "options"),
    [
        ("redis://:p@h:6379/0", "redis://:p@h:6379/0", None, {}),
        ("rediss://h/0", "rediss://h/0", CHECKED, {}),
        ("rediss://h/0?ssl_ca_certs=/ca.pem&virtual_host=1", "rediss://h/0?virtual_host=1",
         {**CHECKED, "ssl_ca_certs": "/ca.pem"}, {}),
        ("rediss://h/0?ssl_cert_reqs=none", "rediss://h/0",
         {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}, {}),
        ("rediss://h/0?ssl_cert_reqs=CERT_OPTIONAL&ssl_check_hostname=false", "rediss://h/0",
         {"ssl_cert_reqs": ssl.CERT_OPTIONAL, "ssl_check_hostname": False}, {}),
        ("amqps://u:p@h//", "amqps://u:p@h//", {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "h"}, {}),
        ("amqps://h//?ssl_cert_reqs=none", "amqps://h//", {"cert_reqs": ssl.CERT_NONE}, {}),
        ("amqp://h//?ssl_cert_reqs=none", "amqp://h//?ssl_cert_reqs=none", None, {}),
        ("sentinel://a:1/0;sentinel://b:2/0?master_name=m", "sentinel://a:1/0;sentinel://b:2/0", None,
         {"master_name": "m"}),
        # Nothing is prepared on the server: pgbouncer may answer there.
        ("db+postgresql+psycopg://u:p@h/d?ssl=x", "db+postgresql+psycopg://u:p@h/d?ssl=x", None,
         {"connect_args": {"prepare_threshold": None}}),
    ],
)  # fmt: skip
def test_what_is_an_option_leaves_the_address(
    tmp_path: Path, given: str, url: str, tls: dict[str, Any] | None, options: dict[str, Any]
) -> None:
    for found in (
        broker.broker(settings(tmp_path, broker_url=given)),
        broker.results(settings(tmp_path, broker_url="amqp://h//", result_url=given)),
    ):
        assert (found.url, found.tls, found.options) == (url, tls, options)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("redis://:hush@h:6379/0", "redis://:**@h:6379/0"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("amqp://user:hu%40sh@h//", "amqp://user:**@h//"),
        ("sentinel://:hush@a/0;sentinel://:hush@b/0?master_name=m", "sentinel://:**@a/0;sentinel://:**@b/0"),
        ("db+postgresql+psycopg://u:hush@h/d?password=hush", "db+postgresql+psycopg://u:**@h/d"),
    ],
)
def test_what_is_printed_has_no_password(tmp_path: Path, given: str, shown: str) -> None:
    found = broker.results(settings(tmp_path, result_url=given))
    assert found.shown == shown
    assert "hu" not in repr(found).replace("shown", "")


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("redis://h/0", "redis://:p%40%2F@h/0"),
        ("redis://user@h/0", "redis://user:p%40%2F@h/0"),
        ("redis://:other@h/0", "redis://:other@h/0"),
        ("sentinel://a/0;sentinel://b/0?master_name=m", "sentinel://:p%40%2F@a/0;sentinel://:p%40%2F@b/0"),
    ],
)
def test_a_file_has_the_password_of_an_address_without_one(tmp_path: Path, given: str, url: str) -> None:
    (tmp_path / "password").write_text("p@/\n")
    set_ = settings(tmp_path, broker_url=given, broker_password_file=tmp_path / "password")
    assert broker.broker(set_).url == url
    assert broker.results(set_).url == url


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"broker_url": "rediss://h/0?ssl_cert_reqs=maybe"}, "IMPRINT_BROKER_URL: ssl_cert_reqs must be"),
        ({"result_url": "rediss://h/0?ssl_cert_reqs=maybe"}, "IMPRINT_RESULT_URL: ssl_cert_reqs must be"),
        ({"broker_url": "sentinel://h/0"}, r"IMPRINT_BROKER_URL: add \?master_name="),
        ({"broker_password_file": "/no/such"}, "IMPRINT_BROKER_PASSWORD_FILE: /no/such cannot be read"),
    ],
)
def test_what_would_be_found_late_is_found_at_the_start(tmp_path: Path, values: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        broker.check(settings(tmp_path, **values))
    broker.broker(settings(tmp_path, **values))  # reading the configuration raises nothing
    broker.check(settings(tmp_path))
