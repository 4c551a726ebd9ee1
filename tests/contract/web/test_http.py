"""What HTTP asks of every route: HEAD beside GET, CORS by setting, and one meaning of a subject's id everywhere."""

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from core.settings import Settings
from jobs import service
from jobs.services import Services
from jobs.subjects import loras, subject_settings
from storage.tables.jobs import Status
from tests.contract.web.conftest import RECIPE, REX, Api, make_api, problem
from tests.servers.process import ServerProcess
from tests.site import Site

APP = "https://app.example"


@pytest.fixture(scope="module")
def open_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An installation whose API pages of one origin may call."""
    home = tmp_path_factory.mktemp("home")
    yield from make_api(Settings(_env_file=None, home=home, web_cors_origins=[APP]))


class TestHead:
    @pytest.mark.parametrize(
        "path", ["/healthz", "/openapi.json", "/docs", "/sign-in", "/static/imprint.css", "/api/account",
                 f"{REX}/lora/status", f"{REX}/lora/settings", "/no/such/address", f"{REX}/images"]
    )  # fmt: skip
    def test_it_answers_like_get_without_a_body(self, lone_api: Api, path: str) -> None:
        secret = lone_api.token("ada")
        whole, head = (lone_api.call(method, path, secret) for method in ("GET", "HEAD"))
        assert (head.status_code, head.content) == (whole.status_code, b"")
        for name in ("content-type", "content-length", "cache-control", "allow"):
            assert head.headers.get(name) == whole.headers.get(name), name

    def test_it_checks_the_token_and_changes_nothing(self, lone_api: Api) -> None:
        assert lone_api.call("HEAD", "/api/account").status_code == 401
        assert lone_api.call("HEAD", f"{REX}/lora/train", lone_api.token("ada")).status_code == 405

    def test_it_does_not_follow_an_event_stream(self, lone_api: Api) -> None:
        ada = lone_api.token("ada")
        job_id = lone_api.train(ada, lone_api.upload(ada, 5)).json()["id"]
        begun = time.monotonic()
        answer = lone_api.call("HEAD", f"/api/trainings/{job_id}/events", ada)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert time.monotonic() - begun < 60
        assert lone_api.client.app.state.streams.count == 0  # type: ignore[attr-defined]
        service.cancel(lone_api.services, job_id)

    def test_over_a_socket_too(self, tmp_path: Path) -> None:
        """Case 23: `curl -I`. A server that sees another length than was announced closes the connection."""
        made = Site(tmp_path / "site", tmp_path, "redis://127.0.0.1:1/0")
        made.start("web")
        process = ServerProcess(
            ["curl", "--silent", "--head", f"{made.web_url}/healthz", f"{made.web_url}/docs"],
            log=tmp_path / "curl", cwd=tmp_path,
        )  # fmt: skip
        process._server.wait(30)
        assert (tmp_path / "curl").read_text().count("HTTP/1.1 200 OK") == 2
        assert "Traceback" not in made.log("web").read_text()
        made.end()


class TestCors:
    def preflight(self, api: Api, origin: str, method: str = "POST") -> dict[str, str]:
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
        }
        answer = api.call("OPTIONS", f"{REX}/lora/train", headers=headers)
        return {"status": str(answer.status_code), **answer.headers}

    def test_a_page_of_the_origin_may_call(self, open_api: Api) -> None:
        allowed = self.preflight(open_api, APP)
        assert (allowed["status"], allowed["access-control-allow-origin"]) == ("200", APP)
        assert "Idempotency-Key" in allowed["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in allowed  # the session of our page stays with our page
        answer = open_api.call("GET", "/api/account", open_api.token("ada"), headers={"Origin": APP})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, APP)
        refused = open_api.call("GET", "/api/account", headers={"Origin": APP})
        problem(refused, 401, "unauthorized")
        assert refused.headers["access-control-allow-origin"] == APP  # the page can read why
        assert "X-Request-Id" in refused.headers["access-control-expose-headers"]

    def test_other_pages_may_not(self, open_api: Api) -> None:
        assert "access-control-allow-origin" not in self.preflight(open_api, "https://evil.example")
        answer = open_api.call("GET", "/healthz", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in answer.headers

    def test_by_default_there_is_none(self, lone_api: Api) -> None:
        refused = self.preflight(lone_api, APP)
        assert (refused["status"], refused["allow"]) == ("405", "POST")
        assert "access-control-allow-origin" not in refused


class TestSubjectIds:
    @pytest.mark.parametrize("subject", ["a/b", "/", "José 田中", "100% rex?", "a%2Fb", "a+b", "x/images", "..."])
    def test_any_text_works_at_every_door(self, lone_api: Api, subject: str) -> None:
        ada, services = lone_api.token("ada"), lone_api.services
        images = lone_api.upload(ada, 5, subject=quote(subject, safe="."))
        at = f"/api/influencer/{quote(subject, safe='.')}"
        listed = _images(lone_api, at, ada)
        assert [image["id"] for image in listed] == images
        assert listed[0]["previewUrl"].startswith(f"/api/influencer/{quote(subject, safe='')}/images/")
        assert lone_api.call("GET", listed[0]["previewUrl"], ada).status_code == 200
        view = lone_api.call("POST", f"{at}/lora/train", ada, json={**RECIPE, "imageIds": images}).json()
        assert view["subjectId"] == service.get(services, view["id"]).subject_id == subject
        service.cancel(services, view["id"])
        request = {"owner_id": "ada", "subject_id": subject, "images": images, "base_model": "sd15",
                   "trigger_word": "sks", "resolution": 64, "max_steps": 2}  # fmt: skip
        job = service.submit(services, request)
        assert job.subject_id == subject
        assert service.jobs(services, subject_id=subject)[0].job_id == job.job_id
        service.cancel(services, job.job_id)

    def test_blanks_around_it_do_not_count_at_any_door(self, lone_api: Api) -> None:
        ada, services = lone_api.token("ada"), lone_api.services
        images = lone_api.upload(ada, 5, subject="%20blank%20")
        assert len(_images(lone_api, "/api/influencer/blank", ada)) == 5
        job = service.submit(services, {
            "owner_id": "ada", "subject_id": "  blank", "images": images, "base_model": "sd15", "trigger_word": "sks",
        })  # fmt: skip
        assert job.subject_id == "blank"
        assert lone_api.call("GET", "/api/influencer/%20blank/lora/status", ada).json()["latest"]["id"] == job.job_id
        with pytest.raises(loras.LoraNotReady, match=job.job_id):
            loras.resolve(services, "ada", " blank ")
        assert subject_settings.profile_set_completed(services, "ada", " blank").reason == "disabled"
        service.cancel(services, job.job_id)

    def test_bytes_that_are_no_utf8_are_refused_at_every_door(self, lone_api: Api) -> None:
        ada, services = lone_api.token("ada"), lone_api.services
        answer = lone_api.call("GET", "/api/influencer/re%FFx/lora/status", ada)
        assert problem(answer, 400, "bad_request")["detail"] == "the address is not UTF-8"
        for broken in ("re\ufffdx", "re\udcffx"):
            with pytest.raises(subject_settings.SpecInvalid) as caught:
                service.submit(services, {
                    "owner_id": "ada", "subject_id": broken, "images": ["pic_1"] * 5, "base_model": "sd15",
                    "trigger_word": "sks",
                })  # fmt: skip
            assert set(caught.value.faults) == {"subject_id"}
            for door in (loras.resolve, subject_settings.profile_set_completed):
                with pytest.raises(subject_settings.SpecInvalid):
                    door(services, "ada", broken)
        content = problem(lone_api.call("GET", "/api/influencer/re%EF%BF%BDx/lora/status", ada), 422, "spec_invalid")
        assert content["faults"] == {"id": "is not UTF-8 text"}


def _images(api: Api, at: str, secret: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = api.call("GET", f"{at}/lora/available-images", secret).json()["images"]
    return found


class TestPaths:
    def test_a_path_among_the_ids_is_no_id(self, lone_api: Api) -> None:
        ada = lone_api.token("ada")
        images = ["/srv/a.jpg", "C:\\a.jpg", "a.jpg", "pic_1", "pic_2"]
        for query in ("", "?dryRun=true"):
            answer = lone_api.call("POST", f"{REX}/lora/train{query}", ada, json={**RECIPE, "imageIds": images})
            wanted = {f"imageIds.{index}": "this is not the id of a stored picture" for index in range(3)}
            assert problem(answer, 422, "spec_invalid")["faults"] == wanted


def test_listing_filters_by_status_and_subject(services: Services, job_id: str) -> None:
    assert [view.job_id for view in service.jobs(services, statuses=[Status.PENDING])] == [job_id]
    assert service.jobs(services, statuses=[Status.READY, Status.FAILED]) == []
    service.cancel(services, job_id)
    assert [view.job_id for view in service.jobs(services, statuses=[Status.READY, Status.CANCELLED])] == [job_id]
    assert service.jobs(services, statuses=[Status.CANCELLED], subject_id="no-such") == []
    assert service.jobs(services, statuses=[Status.CANCELLED], active=True) == []
