"""What each route does, on both kinds of database."""

import io
import json
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
import sqlalchemy as sa
from PIL import Image
from pydantic import SecretStr
from sqlmodel import col

from core.errors import ImprintError
from core.settings import Settings
from jobs import service
from jobs.lifecycle import transitions
from jobs.owners import accounts, tokens
from jobs.stages import intake
from storage.tables.jobs import EndTask, Job, Stage, Status
from storage.tables.pictures import StoredPicture
from tests.contract.jobs import row
from tests.contract.web.conftest import RECIPE, REX, Api, make_api, problem
from tests.servers.pictures import picture_server
from web.server.limits import RateLimit
from web.uploads import MAX_BODY_BYTES


@pytest.fixture
def ada(api: Api) -> str:
    return api.token("ada")


def stored(api: Api, count: int = 5) -> list[str]:
    """Ids of stored files that nobody has looked at: enough where no picture is decoded."""
    return [intake.store_picture(api.services, "ada", "rex", b"picture %d" % number) for number in range(count)]


class TestPictures:
    def test_upload_verdicts_preview_caption_removal(self, api: Api, ada: str) -> None:
        first, *_ = ids = api.upload(ada, 3)
        small = Image.new("RGB", (100, 80), "red")
        files = [("files", ("a.png", png(small))), ("files", ("b.png", b"<svg onload=alert(1)>"))]
        answer = api.call("POST", f"{REX}/images", ada, files=files)
        assert answer.status_code == 201
        [bad], [refused] = answer.json()["images"], answer.json()["refused"]
        assert bad["verdict"] == "bad"
        [fault] = [fault for fault in bad["faults"] if fault["code"] == "too_small"]
        assert fault["text"].startswith("too small: 100 by 80 pixels would be enlarged 6.4 times for 512;")
        assert (refused["index"], refused["code"]) == (1, "image_invalid")
        assert "svg" not in answer.text

        assert api.upload(ada, 1) == [first]  # the same bytes are the same picture
        listed = api.call("GET", f"{REX}/lora/available-images", ada).json()
        assert [image["id"] for image in listed["images"]] == [*ids, bad["id"]]
        assert (listed["good"], listed["needed"]) == (3, 5)

        preview = api.call("GET", listed["images"][0]["previewUrl"], ada)
        assert preview.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(preview.content)).size == (256, 256)

        captioned = api.call("PATCH", f"{REX}/images/{first}", ada, json={"caption": " sks on a sofa "})
        assert captioned.json()["caption"] == "sks on a sofa"

        assert api.call("DELETE", f"{REX}/images/{first}", ada).status_code == 204
        assert api.call("DELETE", f"{REX}/images/{first}", ada).status_code == 204
        problem(api.call("GET", listed["images"][0]["previewUrl"], ada), 404, "not_found")
        listed = api.call("GET", f"{REX}/lora/available-images", ada).json()
        assert first not in [image["id"] for image in listed["images"]]
        answered = problem(api.train(ada, [*ids, *stored(api, 4)]), 422, "spec_invalid")
        assert set(answered["faults"]) == {"imageIds.0"}
        assert api.upload(ada, 1) == [first]  # uploaded once more, it is there again

    def test_a_copy_of_a_picture_is_a_near_duplicate(self, api: Api, ada: str) -> None:
        [first] = api.upload(ada, 1)
        with Image.open(io.BytesIO(api.services.store.get(key_of(api, first)))) as picture:
            copy = io.BytesIO()
            picture.convert("RGB").save(copy, "JPEG", quality=60)
        answer = api.call("POST", f"{REX}/images", ada, files=[("files", ("copy.jpg", copy.getvalue()))])
        [image] = answer.json()["images"]
        assert (image["verdict"], [fault["code"] for fault in image["faults"]]) == ("bad", ["near_duplicate"])

    def test_by_address_through_the_guard(self, api: Api, ada: str) -> None:
        with picture_server() as server:
            address = server.put("/a.png", png(Image.new("RGB", (600, 600), "blue")))
            asked = {"url": f"{address}?signature=hush"}
            answered = problem(api.call("POST", f"{REX}/images", ada, json=asked), 422, "image_unreachable")
            assert answered["faults"]["0"].startswith("picture 1 (a.png): http://127.0.0.1:")
            assert "hush" not in json.dumps(answered)
            assert server.asked == {}  # a private address is not even dialled
        for url in ("http://169.254.169.254/latest", "file:///etc/passwd", "s3://other/key", "gopher://x/"):
            problem(api.call("POST", f"{REX}/images", ada, json={"urls": [url]}), 422, "image_unreachable")
        problem(api.call("POST", f"{REX}/images", ada, json={}), 422, "spec_invalid")
        problem(api.call("POST", f"{REX}/images", ada, json={"urls": [1], "odd": 2}), 422, "spec_invalid")
        problem(api.call("POST", f"{REX}/images", ada, content=b"x"), 415, "unsupported_media_type")
        problem(api.call("POST", f"{REX}/images", ada, files=[("other", ("a", b"x"))]), 422, "spec_invalid")

    def test_sizes_are_capped_whether_they_are_told_or_not(self, api: Api, ada: str) -> None:
        long = b"{" + b" " * MAX_BODY_BYTES
        answered = api.call("PATCH", f"{REX}/lora/settings", ada, content=long)
        problem(answered, 413, "too_large")
        trickled = api.call(
            "PATCH", f"{REX}/lora/settings", ada, content=(long[at : at + 9000] for at in range(0, len(long), 9000))
        )
        problem(trickled, 413, "too_large")
        large = api.services.settings.max_picture_bytes + 1
        answer = api.call("POST", f"{REX}/images", ada, files=[("files", ("a.png", bytes(large)))])
        problem(answer, 422, "image_invalid")
        many = [("files", (f"{number}.png", b"x")) for number in range(21)]
        answered = problem(api.call("POST", f"{REX}/images", ada, files=many), 400, "bad_request")
        assert answered["faults"] == {"files": answered["detail"]}
        assert answered["detail"] == "send at most 20 at a time, and the others in further requests"
        urls = {"urls": ["https://pictures.example/1.png"] * 21}
        faults = problem(api.call("POST", f"{REX}/images", ada, json=urls), 422, "spec_invalid")["faults"]
        assert faults == {"urls": answered["detail"]}


class TestTrain:
    def test_price_then_start_then_the_same_again(self, api: Api, ada: str) -> None:
        images = stored(api)
        path, body = f"{REX}/lora/train", {**RECIPE, "imageIds": images}
        quote = api.call("POST", f"{path}?dryRun=true", ada, json=body)
        assert quote.status_code == 200
        assert quote.json()["steps"] == 10
        assert api.call("GET", f"{REX}/lora/status", ada).json() == {"latest": None, "history": []}

        key = {"Idempotency-Key": "invoice-17"}
        started = api.call("POST", path, ada, json=body, headers=key)
        assert started.status_code == 202
        training = started.json()
        assert started.headers["location"] == f"/api/trainings/{training['id']}"
        assert (training["status"], training["credits"]["held"]) == ("pending", quote.json()["credits"])
        assert training["spec"]["triggerWord"] == "sks"
        assert api.call("POST", path, ada, json=body, headers=key).json()["id"] == training["id"]
        answered = problem(api.call("POST", path, ada, json={**body, "rank": 8}, headers=key), 409, "key_reused")
        assert "invoice-17" not in json.dumps(answered)
        assert api.call("POST", path, ada, json=body).json()["id"] != training["id"]

        status = api.call("GET", f"{REX}/lora/status", ada).json()
        assert status["history"][0]["id"] == training["id"]
        account = api.call("GET", "/api/account?limit=2", ada).json()
        assert account["held"] == 2 * quote.json()["credits"]
        assert {hold["trainingId"] for hold in account["holds"]} == {training["id"], status["latest"]["id"]}
        older = api.call("GET", f"/api/account?limit=2&before={account['next']}", ada).json()
        assert [entry["kind"] for entry in account["entries"] + older["entries"]] == ["hold", "hold", "grant"]
        assert older["next"] is None

    def test_all_faults_at_once_and_nothing_of_the_request_repeated(self, api: Api, ada: str) -> None:
        body = {
            "imageIds": ["https://inner/secret", *stored(api, 4)], "baseModel": "no-such", "rank": 0, "epochs": "many",
            "maxSteps": -1, "webhookUrl": "ftp://hush", "<script>": 1, "base_model": "sd15", "triggerWord": "\n",
            "adapter": {"targets": "hush"},
            "optimization": {"warmupSteps": -1, **{f"<script>{number}": 1 for number in range(99)}},
        }  # fmt: skip
        answered = problem(api.call("POST", f"{REX}/lora/train", ada, json=body), 422, "spec_invalid")
        wanted = {"imageIds.0", "family", "rank", "epochs", "maxSteps", "webhookUrl", "triggerWord", "?", "baseModel"}
        wanted |= {"adapter.targets", "optimization.warmupSteps", "optimization.?"}
        assert set(answered["faults"]) == wanted
        assert "base_model" not in answered["faults"]["family"]
        for word in ("script", "secret", "hush", "many", "no-such"):
            assert word not in json.dumps(answered)
        headers = {"content-type": "application/json"}
        problem(api.call("POST", f"{REX}/lora/train", ada, content=b"\xff", headers=headers), 400, "bad_request")
        for junk in (b"", b"[", b"null", b"[]", b'"x"'):
            problem(api.call("POST", f"{REX}/lora/train", ada, content=junk, headers=headers), 422, "spec_invalid")

    def test_no_credits(self, api: Api, ada: str) -> None:
        answer = api.train(ada, stored(api), maxSteps=100_000, resolution=512)
        assert "1000 are available" in problem(answer, 402, "insufficient_credits")["detail"]
        assert api.call("GET", f"{REX}/lora/status", ada).json()["latest"] is None

    def test_the_subjects_settings_fill_in_what_is_silent(self, api: Api, ada: str) -> None:
        change = {"baseModel": "sd15", "triggerWord": " imp ", "classWord": "toy"}
        assert api.call("PATCH", f"{REX}/lora/settings", ada, json=change).json()["triggerWord"] == "imp"
        body = {"imageIds": stored(api), "maxSteps": 3, "classWord": "dog"}
        body |= {"optimization": {"warmupSteps": 5, "schedule": "cosine"}, "data": {"flip": True}}
        spec = api.call("POST", f"{REX}/lora/train", ada, json=body).json()["spec"]
        assert (spec["optimization"]["warmupSteps"], spec["optimization"]["emaDecay"]) == (5, 0.0)
        assert (spec["data"]["flip"], spec["adapter"]["targets"]) == (True, "attention")
        assert (spec["triggerWord"], spec["classWord"], spec["maxSteps"]) == ("imp", "dog", 3)
        assert api.call("PATCH", f"{REX}/lora/settings", ada, json={"classWord": None}).json()["classWord"] is None
        bad = {"baseModel": "sd9", "triggerWord": "a\nb", "webhookUrl": "http://127.0.0.1/"}
        answered = problem(api.call("PATCH", f"{REX}/lora/settings", ada, json=bad), 422, "spec_invalid")
        assert set(answered["faults"]) == set(bad)

    def test_without_a_trigger_word_a_subject_gets_one_of_its_own(self, api: Api, ada: str) -> None:
        """The seed's own call, as it stands there."""
        images = stored(api)
        words = {}
        for subject in ("rex", "Rex", "rex!", "田中", "an influencer with a long name"):
            at = f"/api/influencer/{quote(subject, safe='')}"
            body = {"baseModel": "z-image-turbo", "imageIds": images, "maxSteps": 1}
            answer = api.call("POST", f"{at}/lora/train?dryRun=true", ada, json=body)
            assert answer.status_code == 200, answer.text
            assert api.call("GET", f"{at}/lora/settings", ada).json()["triggerWord"] is None  # a quote stores nothing
            training = api.call("POST", f"{at}/lora/train", ada, json=body).json()
            words[subject] = training["spec"]["triggerWord"]
            assert api.call("GET", f"{at}/lora/settings", ada).json()["triggerWord"] == words[subject]
            assert service.cancel(api.services, training["id"]).spec.trigger_word == words[subject]
            again = api.call("POST", f"{at}/lora/train", ada, json=body).json()
            assert again["spec"]["triggerWord"] == words[subject]
            service.cancel(api.services, again["id"])
        assert len(set(words.values())) == len(words)
        assert [word.isascii() and word.isalnum() and word.islower() for word in words.values()] == [True] * 5
        assert words["rex"].startswith("rex")
        # A word of one's own comes first, and does not become the subject's.
        training = api.call("POST", f"{REX}/lora/train", ada, json={**body, "triggerWord": "imp"}).json()
        assert training["spec"]["triggerWord"] == "imp"
        assert api.call("GET", f"{REX}/lora/settings", ada).json()["triggerWord"] == words["rex"]

    def test_a_refused_training_gives_no_trigger_word(self, api: Api, ada: str) -> None:
        body = {"baseModel": "sd15", "imageIds": ["pic_1"] * 5}
        problem(api.call("POST", f"{REX}/lora/train", ada, json=body), 422, "spec_invalid")
        assert api.call("GET", f"{REX}/lora/settings", ada).json()["triggerWord"] is None

    def test_the_subjects_recipe_fills_in_what_is_silent(self, api: Api, ada: str) -> None:
        recipe = {"rank": 16, "maxSteps": 7, "resolution": 64, "optimization": {"warmupSteps": 5}}
        change = {"baseModel": "sd15", "triggerWord": "imp", "recipe": recipe}
        kept = api.call("PATCH", f"{REX}/lora/settings", ada, json=change).json()
        assert kept["recipe"] == recipe == api.call("GET", f"{REX}/lora/settings", ada).json()["recipe"]
        images = stored(api)

        def trained(**more: Any) -> dict[str, Any]:
            training = api.call("POST", f"{REX}/lora/train", ada, json={"imageIds": images, **more}).json()
            service.cancel(api.services, training["id"])
            spec: dict[str, Any] = training["spec"]
            return spec

        spec = trained(rank=8)
        assert (spec["rank"], spec["maxSteps"], spec["resolution"]) == (8, 7, 64)
        assert (spec["optimization"]["warmupSteps"], spec["alpha"]) == (5, 32.0)
        assert trained(epochs=10)["maxSteps"] is None  # or it would replace them
        cleared = api.call("PATCH", f"{REX}/lora/settings", ada, json={"recipe": None}).json()
        assert cleared["recipe"] is None
        bad = {"rank": 0, "optimization": {"warmupSteps": -1, "what": 1}, "colour": "red", "baseModel": "sdxl"}
        answered = problem(api.call("PATCH", f"{REX}/lora/settings", ada, json={"recipe": bad}), 422, "spec_invalid")
        assert set(answered["faults"]) == {
            "recipe.rank", "recipe.optimization.warmupSteps", "recipe.optimization.what", "recipe.colour",
            "recipe.baseModel",
        }  # fmt: skip

    def test_cancel_retry_log(self, api: Api, ada: str) -> None:
        job_id = api.train(ada, stored(api)).json()["id"]
        problem(api.call("POST", f"/api/trainings/{job_id}/retry", ada), 409, "illegal_move")
        problem(api.call("GET", f"/api/trainings/{job_id}/download", ada), 409, "illegal_move")
        for _ in range(2):
            cancelled = api.call("POST", f"/api/trainings/{job_id}/cancel", ada)
            assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
        again = api.call("POST", f"/api/trainings/{job_id}/retry", ada)
        assert again.status_code == 202
        assert again.headers["location"] != f"/api/trainings/{job_id}"
        finish(api, again.json()["id"], Status.READY)
        problem(api.call("POST", f"/api/trainings/{again.json()['id']}/cancel", ada), 409, "illegal_move")
        log = api.call("GET", f"/api/trainings/{job_id}/log", ada).text.splitlines()
        assert log[0].endswith("status: status pending")
        assert "cancelled" in log[-1]

    def test_a_failure_is_told_without_what_is_ours(self, api: Api, ada: str) -> None:
        job_id = api.train(ada, stored(api)).json()["id"]
        with api.services.database.writing() as session:
            transitions.fail(session, job_id, ImprintError("the disk is full", {"key": "models/x"}))
        answer = api.call("GET", f"/api/trainings/{job_id}", ada)
        assert answer.json()["failure"] == {"code": "internal", "message": "the disk is full"}
        assert "models/" not in answer.text


def test_on_s3_the_file_is_presigned_for_a_quarter_of_an_hour(settings: Settings) -> None:
    server = {"store_url": "s3://bucket/ours", "s3_endpoint_url": "http://127.0.0.1:9"}  # presigning calls nobody
    keys = {"s3_access_key_id": SecretStr("us"), "s3_secret_access_key": SecretStr("hush")}
    for api in make_api(settings.model_copy(update=server | keys)):
        recipe = {"owner_id": "ada", "subject_id": "rex", "base_model": "sd15", "trigger_word": "sks"}
        images = [f"https://pictures.example/{number}.png" for number in range(5)]
        job_id = service.submit(api.services, recipe | {"images": images}).job_id
        finish(api, job_id, Status.READY, lora_key="models/x/lora_weights.safetensors")
        answer = api.call("GET", f"/api/trainings/{job_id}/download", api.token("ada"))
        address = httpx2.URL(answer.headers["location"])
        assert (answer.status_code, address.path) == (307, "/bucket/ours/models/x/lora_weights.safetensors")
        assert int(address.params["X-Amz-Expires"]) <= 900
        assert "hush" not in str(address)


class TestEvents:
    def test_from_the_start_from_a_number_and_after_the_end(self, api: Api, ada: str) -> None:
        job_id = api.train(ada, stored(api)).json()["id"]
        service.cancel(api.services, job_id)
        path = f"/api/trainings/{job_id}/events"
        events = read(api.call("GET", path, ada).text)
        assert [event["event"] for event in events] == ["status", "stage", "status"]
        assert json.loads(events[-1]["data"])["status"] == "cancelled"
        rest = read(api.call("GET", path, ada, headers={"Last-Event-ID": events[0]["id"]}).text)
        assert rest == events[1:]
        for last in (events[-1]["id"], str(2**62)):  # had all, or says so
            assert api.call("GET", path, ada, headers={"Last-Event-ID": last}).status_code == 204
        for junk in ("x", "-1", str(2**70)):
            problem(api.call("GET", path, ada, headers={"Last-Event-ID": junk}), 422, "spec_invalid")


class TestTheFrame:
    def test_request_ids(self, api: Api, caplog: pytest.LogCaptureFixture) -> None:
        assert (
            api.call("GET", "/healthz", headers={"X-Request-Id": "shop-12345"}).headers["x-request-id"] == "shop-12345"
        )
        for odd in ("short", "x" * 65, 'a"b<script>c'):
            given = api.call("GET", "/healthz", headers={"X-Request-Id": odd}).headers["x-request-id"]
            assert given.startswith("req_")

    def test_unknown_addresses_and_methods(self, api: Api, ada: str) -> None:
        problem(api.call("GET", "/api/nothing/<script>"), 404, "not_found")
        answer = api.call("PUT", "/api/account", ada)
        problem(answer, 405, "method_not_allowed")
        assert "GET" in answer.headers["allow"]

    def test_an_error_of_ours_is_told_by_its_request_id_alone(
        self, api: Api, ada: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("hush: a detail of ours")

        monkeypatch.setattr(accounts, "balance", broken)
        answer = api.call("GET", "/api/account", ada, headers={"X-Request-Id": "shop-12345"})
        assert "hush" not in answer.text
        assert problem(answer, 500, "internal")["requestId"] == "shop-12345"

    def test_rate_limit_of_one_token_leaves_others_alone(self, api: Api, ada: str) -> None:
        api.client.app.state.rate_limit = RateLimit(0.5)  # type: ignore[attr-defined]
        assert api.call("GET", "/api/account", ada).status_code == 200
        answer = api.call("GET", "/api/account", ada)
        problem(answer, 429, "rate_limited")
        assert 1 <= int(answer.headers["retry-after"]) <= 2
        assert api.call("GET", "/api/account", api.token("ada")).status_code == 200
        service_token = api.token(None, "read")
        for owner in ("bob", "eve"):  # a service token has a share for each owner
            headers = {"Imprint-Owner": owner}
            assert api.call("GET", "/api/account", service_token, headers=headers).status_code == 200

    def test_nothing_comes_from_another_host(self, api: Api) -> None:
        page = api.call("GET", "/docs")
        assert "/api/trainings/{id}/events" in page.text
        assert "http://" not in page.text.replace("http://127.0.0.1", "")
        assert "<script" not in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]

    def test_metrics(self, api: Api, ada: str) -> None:
        job_id = api.train(ada, stored(api)).json()["id"]
        service.cancel(api.services, job_id)
        api.call("GET", "/api/nothing")
        text = api.call("GET", "/metrics", api.token(None, "operate")).text
        for line in (
            'imprint_jobs{code="cancelled",status="cancelled"} 1.0',
            'imprint_credits{state="granted"} 1000.0',
            "imprint_leaks 0.0",
            'imprint_outbox_waiting{kind="cleanup"} 1.0',
            'imprint_http_requests_total{method="POST",route="/api/influencer/{id}/lora/train",status="202"} 1.0',
            'imprint_http_requests_total{method="GET",route="none",status="404"} 1.0',
        ):
            assert line in text.splitlines(), text


class TestTokens:
    def test_what_a_token_may_be(self, api: Api) -> None:
        for fault in ({"scopes": ("all",)}, {"scopes": ()}, {"scopes": ("operate",), "owner_id": "x"}, {"days": 0}):
            with pytest.raises(ImprintError) as refused:
                tokens.create(api.services, "name", **fault)
            assert refused.value.details["faults"].keys() == {next(iter(fault))}
        assert tokens.authenticate(api.services, "imp_" + "é" * 43) is None


def read(text: str) -> list[dict[str, str]]:
    """The events of a stream."""
    blocks = [block for block in text.split("\n\n") if block.startswith("event:")]
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


def finish(api: Api, job_id: str, status: Status, **values: Any) -> None:
    with api.services.database.writing() as session:
        done = sa.update(Job).where(col(Job.id) == job_id).values(status=status, stage=Stage.SETTLE, **values)
        session.connection().execute(done)


def key_of(api: Api, picture_id: str) -> str:
    with api.services.database.reading() as session:
        return session.get_one(StoredPicture, picture_id).key


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def test_a_token_of_one_owner_may_only_name_the_tasks_that_the_operator_lists(settings: Settings) -> None:
    on_end = {"task": "shop.notice", "queue": "shop", "kwargs": {"order": 7}}
    listed = settings.model_copy(update={"on_end_tasks": ["shop.listed"]})
    for api in make_api(listed):
        own, service_token = api.token("ada"), api.token()
        images = api.upload(own, 5)
        answered = problem(api.train(own, images, onEnd=on_end), 422, "spec_invalid")
        assert "IMPRINT_ON_END_TASKS" in answered["faults"]["onEnd"]
        accepted = [
            api.train(own, images, onEnd={"task": "shop.listed"}),
            api.train(service_token, images, onEnd=on_end, headers={"Imprint-Owner": "ada"}),
        ]
        assert [answer.status_code for answer in accepted] == [202, 202]
        kept = [row(api.services, answer.json()["id"]).on_end for answer in accepted]
        assert kept == [EndTask(task="shop.listed"), EndTask.model_validate(on_end)]
