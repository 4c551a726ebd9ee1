"""The client of RunPod against the fake one: what it makes of every answer, and of none."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from core.errors import BackendFailed, BackendFull, BackendUnreachable, ImprintError
from tests.servers.runpod import KEY, RunPodServer, runpod_server
from training.backends.runpod import PodRequest, RunPod

RTX, A6000 = "NVIDIA GeForce RTX 4090", "NVIDIA RTX A6000"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunPodServer]:
    # Pods that never come to run: nothing here needs their servers.
    with runpod_server(tmp_path_factory.mktemp("runpod"), sold_out=[A6000], start_s=3600) as server:
        yield server


class Patience(list[float]):
    """Instead of waiting: how long was to be waited."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def waits() -> Patience:
    return Patience()


@pytest.fixture
def runpod(cloud: RunPodServer, waits: Patience) -> Iterator[RunPod]:
    client = RunPod(cloud.url, KEY, timeout_s=20, pause=waits)
    yield client
    client.close()


def order(name: str, **changed: object) -> PodRequest:
    given = {"gpu": RTX, "disk_gb": 60, "env": {"AI_TOOLKIT_AUTH": "secret-word"}, "image": "ostris/aitoolkit:latest"}
    return PodRequest(name, **(given | changed))  # type: ignore[arg-type]


def refused(action: object, *arguments: object) -> ImprintError:
    with pytest.raises(ImprintError) as caught:
        action(*arguments)  # type: ignore[operator]
    assert "secret-word" not in str(caught.value)
    assert KEY not in str(caught.value)
    return caught.value


def test_a_pod_from_catalogue_to_deletion(cloud: RunPodServer, runpod: RunPod) -> None:
    gpus = runpod.gpus()
    assert gpus[RTX].available
    assert not gpus[A6000].available
    made = runpod.create(order("life-1"))
    assert (made.name, made.status, made.gpu) == ("life-1", "PROVISIONING", RTX)
    assert made.cost_microdollars_per_h == gpus[RTX].price_microdollars_per_h == 690_000
    assert made.created_at is not None
    assert runpod.get(made.id) in runpod.pods()
    content = cloud.http.get(f"/v2/pods/{made.id}", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert (content["ports"], content["env"], content["disk"]) == (
        ["8675/http"],
        {"AI_TOOLKIT_AUTH": "secret-word"},
        60,
    )
    runpod.delete(made.id)
    runpod.delete(made.id)
    assert runpod.get(made.id) is None
    assert "life-1" not in cloud.left()


def test_a_template_brings_the_image(runpod: RunPod) -> None:
    runpod.delete(runpod.create(order("by-template", image=None, template="0fqzfjy6f3")).id)


@pytest.mark.parametrize(
    ("faults", "kind", "status"),
    [
        (["400"], BackendFull, 400),
        (["402"], BackendFull, 402),
        (["403"], BackendFull, 403),
        (["404"], BackendFailed, 404),
        (["422"], BackendFailed, 422),
        (["429"] * 4, BackendUnreachable, 429),
        (["503"] * 4, BackendUnreachable, 503),
    ],
)
def test_each_refusal_of_a_pod_has_its_error(
    cloud: RunPodServer, runpod: RunPod, faults: list[str], kind: type[ImprintError], status: int
) -> None:
    cloud.order(create=faults)
    error = refused(runpod.create, order(f"refused-{status}"))
    assert type(error) is kind
    assert error.details == {"status": status}
    assert f"refused-{status}" not in [pod["name"] for pod in cloud.ledger()]


def test_what_is_sold_out_or_unknown_is_full_and_a_wrong_order_failed(cloud: RunPodServer, runpod: RunPod) -> None:
    assert type(refused(runpod.create, order("sold-out", gpu=A6000))) is BackendFull
    assert type(refused(runpod.create, order("unknown", gpu="NVIDIA Abacus"))) is BackendFull
    assert type(refused(runpod.create, order("no-image", image=None))) is BackendFailed
    stranger = RunPod(cloud.url, "wrong", pause=Patience())
    assert type(refused(stranger.pods)) is BackendFailed


def test_too_many_calls_wait_as_long_as_they_are_told(cloud: RunPodServer, runpod: RunPod, waits: Patience) -> None:
    cloud.order(create=["429"], list=["429", "502"], delete=["500"])
    made = runpod.create(order("patient"))
    assert waits == [1.0]
    assert made in runpod.pods()
    runpod.delete(made.id)
    assert waits[1] == 1.0
    assert all(0 < wait <= 4 for wait in waits[2:])
    assert len(waits) == 4


@pytest.mark.parametrize("list_faults", [[], ["500", "503"]])
def test_a_create_that_was_never_answered_is_found_by_its_name(
    cloud: RunPodServer, runpod: RunPod, list_faults: list[str]
) -> None:
    name = f"lost-{len(list_faults)}"
    cloud.order(create=["lost"], list=list_faults)
    made = runpod.create(order(name))
    assert [pod["id"] for pod in cloud.ledger() if pod["name"] == name] == [made.id]
    runpod.delete(made.id)


def test_an_error_answer_to_a_create_is_tried_again_only_if_nothing_was_made(
    cloud: RunPodServer, runpod: RunPod
) -> None:
    cloud.order(create=["503", "500"])
    made = runpod.create(order("third-time"))
    assert [pod["id"] for pod in cloud.ledger() if pod["name"] == "third-time"] == [made.id]
    runpod.delete(made.id)


def test_a_create_without_answer_is_not_sent_again_when_nothing_is_found(cloud: RunPodServer) -> None:
    """Whether it was made is not known: the caller looks for the name later."""
    sent: list[str] = []

    class Deaf(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            sent.append(request.method)
            if request.method == "POST":
                raise httpx2.ReadTimeout("no answer")
            return httpx2.Response(200, json={"pods": []})

    client = RunPod(cloud.url, KEY, pause=Patience())
    client._http = httpx2.Client(base_url=cloud.url, transport=Deaf())
    assert type(refused(client.create, order("deaf"))) is BackendUnreachable
    assert sent.count("POST") == 1


def test_nobody_there_is_unreachable(waits: Patience) -> None:
    client = RunPod("http://127.0.0.1:1/v2", KEY, pause=waits)
    assert type(refused(client.create, order("nobody"))) is BackendUnreachable
    assert type(refused(client.pods)) is BackendUnreachable
    assert len(waits) == 6


def test_the_fake_repeats_itself_by_its_seed(tmp_path: Path) -> None:
    def run(number: int) -> list[str]:
        with runpod_server(tmp_path / str(number), seed=7, errors=0.3, sold_out_creates=0.3, start_s=3600) as server:
            answers = []
            headers = {"Authorization": f"Bearer {KEY}"}
            for name in range(12):
                answers.append(server.http.post("/v2/pods", json=order(f"pod-{name}").body(), headers=headers))
            return [str(answer.status_code) for answer in answers]

    first = run(1)
    assert first == run(2)
    assert {"201", "400"} < set(first)
