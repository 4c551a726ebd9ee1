"""Settings: read once from the environment and `.env`, nothing secret in what they print, sensible with none at all."""

import json
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

import celeryconfig
from core import settings as module
from core.settings import Settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no `.env` of a developer is read."""
    monkeypatch.chdir(tmp_path)


def test_without_any_all_is_below_one_folder(tmp_path: Path) -> None:
    none = Settings()
    assert none.broker_url is None
    assert none.database == f"sqlite:///{tmp_path}/.imprint/imprint.db"
    assert none.store == str(tmp_path / ".imprint" / "store")
    assert none.run_dir == tmp_path / ".imprint" / "run"
    assert none.log_dir == tmp_path / ".imprint" / "logs"


def test_the_environment_comes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("IMPRINT_SWEEP_S=11\nIMPRINT_LEASE_S=12\nOTHERS=x\n")
    monkeypatch.setenv("IMPRINT_LEASE_S", "13")
    assert (Settings().sweep_s, Settings().lease_s) == (11, 13)


def test_lists_and_objects_come_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRINT_FETCH_ALLOW_HOSTS", '["minio:9000"]')
    monkeypatch.setenv("IMPRINT_BASE_MODELS", '{"sd15": "/models/sd15"}')
    monkeypatch.setenv("IMPRINT_PRICES", json.dumps({"sd15": 7}))
    read = Settings()
    assert (read.fetch_allow_hosts, read.base_models, read.prices) == (
        ["minio:9000"], {"sd15": "/models/sd15"}, {"sd15": 7}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEASE_S", "0"),
        ("SWEEP_S", "-1"),
        ("MAX_ATTEMPTS", "0"),
        ("VISIBILITY_TIMEOUT_S", "9"),
        ("FLOWER_PORT", "65536"),
        ("DEVICE", "tpu"),
        ("PRICES", '{"sd15": "much"}'),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"IMPRINT_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_nothing_secret_is_printed() -> None:
    secrets = {
        "broker_url": "redis://:hush-1@h/0",
        "result_url": "redis://:hush-2@h/0",
        "database_url": "postgresql+psycopg://u:hush-3@h/d",
        "s3_access_key_id": "hush-4",
        "s3_secret_access_key": "hush-5",
        "webhook_secret": "whsec_hush-6",
        "flower_auth": "imprint:hush-7",
    }
    read = Settings(**secrets)
    assert "hush" not in f"{read!r} {read} {read.model_dump()} {read.model_dump_json()}"
    assert read.database == secrets["database_url"]


def test_whatever_could_hold_a_secret_is_kept_as_one() -> None:
    """A new setting whose name says secret, or an address that may hold a password, cannot be forgotten here."""
    # Their credentials have settings of their own.
    plain = {"store_url", "s3_endpoint_url", "ai_toolkit_url", "runpod_url", "public_url", "flower_url"}
    plain |= {"web_top_up_url", "web_docs_url", "broker_password_file"}  # pages for owners; where the password is
    for name, field in Settings.model_fields.items():
        if any(word in name for word in ("secret", "auth", "password", "token", "_url", "access_key")):
            assert name in plain or SecretStr in getattr(field.annotation, "__args__", ()), name


def test_every_setting_says_what_it_is_for() -> None:
    silent = [name for name, field in Settings.model_fields.items() if name != "home" and not field.description]
    assert silent == []


def test_they_are_read_once_and_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    module.settings.cache_clear()
    try:
        first = module.settings()
        monkeypatch.setenv("IMPRINT_LEASE_S", "99")
        assert module.settings() is first
        with pytest.raises(ValidationError, match="frozen"):
            first.lease_s = 1.0
    finally:
        module.settings.cache_clear()


def test_a_dead_worker_is_found_within_a_minute_whatever_the_broker_does() -> None:
    """At worst it dies right after a heartbeat and right before its lease's end a sweep has passed: both in full."""
    none = Settings()
    assert none.lease_s + none.sweep_s < 60
    assert celeryconfig.beat_schedule["sweep"]["schedule"] == module.settings().sweep_s
    # Nothing that beat sends ends at a time: its clock may not be the worker's.
    assert not any("expires" in entry["options"] for entry in celeryconfig.beat_schedule.values())
    # The broker's own redelivery is no part of it: it comes after the longest training only.
    assert none.visibility_timeout_s > none.training_timeout_s
    # A message that nobody took, or that died with its worker before the stage was claimed, has no lease to miss.
    assert none.relaunch_after_s + none.sweep_s <= 90
