"""The first start on one machine: whose address is printed, and who gets a link to sign in."""

import shutil
import socket
from pathlib import Path

import pytest

from cli import first_run, stack_members
from core.errors import BackendUnreachable
from core.settings import Settings
from jobs.owners import accounts, sign_in_links, tokens
from jobs.services import Services
from jobs.subjects import subject_pictures, subject_settings
from tests.site import MASCOT
from training.families import on_this_machine


def test_a_taken_port_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BackendUnreachable, match=f"port {port} is taken by another program"):
            stack_members.Layout(Settings(_env_file=None, home=tmp_path, web_port=port))
    monkeypatch.setattr(stack_members, "is_free", lambda host, port: port != 8080)
    made = stack_members.Layout(Settings(_env_file=None, home=tmp_path))
    assert not made.web_url.endswith(":8080")
    assert made.notes == ["Port 8080 is taken by another program, so the page has another one."]


def test_only_a_new_installation_gets_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(sorted(MASCOT.glob("*.png"))[0], pictures)
    services = Services(Settings(_env_file=None, home=tmp_path / "home"))
    monkeypatch.setattr(first_run, "_PICTURES", pictures)
    monkeypatch.setattr(first_run, "settings", lambda: services.settings)
    for _ in range(2):  # the second start: no second credits and pictures
        secret = first_run.sign_in_link(services)
        assert secret is not None
        assert sign_in_links.owner_of(services, secret) == "me"
        assert accounts.balance(services, "me").available == first_run.CREDITS
        assert len(subject_pictures.list_pictures(services, "me", "mascot")) == 1
        assert subject_settings.get(services, "me", "mascot").trigger_word == "imp mascot"
    opened = services.settings.model_copy(update={"web_host": "0.0.0.0"})  # noqa: S104
    monkeypatch.setattr(first_run, "settings", lambda: opened)
    assert first_run.sign_in_link(services) is None, "other machines reach the page"
    monkeypatch.setattr(first_run, "settings", lambda: services.settings)
    tokens.create(services, "shop", owner_id="somebody")
    assert first_run.sign_in_link(services) is None, "there are others"
    services.database.close()
    services.decoder.close()


def test_a_worker_tells_which_base_models_it_has(base_model: Path, tmp_path: Path) -> None:
    configured = {"sd15": str(base_model), "sdxl": str(tmp_path / "missing")}
    assert on_this_machine.find(["sd15", "sdxl"], configured) == {"sd15": "here"}
    assert "z-image" not in on_this_machine.find(["sd15"], configured)
