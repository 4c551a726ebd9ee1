"""The shop on a running Imprint: every way in which Celery ties tasks to a training, on both brokers."""

from typing import Any

import pytest
from celery import chain, chord, group
from kombu import Queue
from kombu.utils.uuid import uuid

from jobs import service
from tests.servers.shop import Shop
from tests.site import until

# Each broker has a shop of its own in this process, and Celery shares the tasks of all apps.
pytestmark = pytest.mark.filterwarnings("ignore:Task name 'shop")

BAD: dict[str, Any] = {"rank": 0}  # an argument that is refused


def test_callbacks_of_an_accepted_training(shop: Shop, owner: str) -> None:
    """`train_lora` ends when the training is accepted: callback and chain get the view of that moment."""
    tasks = shop.module
    request = shop.request(owner)
    link = tasks.on_shop(tasks.use_lora.s(order=owner))
    after = tasks.on_shop(tasks.after_all.s(order=owner))
    sent = chain(
        tasks.train_lora(**request).set(link=link),
        group(tasks.on_shop(tasks.use_lora.s(order=f"{owner} {number}")) for number in range(2)),
        after,
    )()
    accepted = shop.wait(owner, "use_lora")
    assert accepted["status"] in ("pending", "training")
    assert shop.wait(f"{owner} 1", "use_lora")["job_id"] == accepted["job_id"]
    assert shop.wait(owner, "after_all")["jobs"] == [accepted["job_id"]] * 2
    assert sent.get(timeout=60) == 2
    assert shop.site.wait(accepted["job_id"])["status"] == "ready"


def test_a_group_and_a_chord_of_accepted_trainings(shop: Shop, owner: str) -> None:
    tasks = shop.module
    requests = [shop.request(owner, seed=seed) for seed in (1, 2)]
    both = group(tasks.train_lora(**request) for request in requests)()
    jobs = [view["job_id"] for view in both.get(timeout=60)]
    assert len(set(jobs)) == 2
    made = [tasks.train_lora(**request, rank=8) for request in requests]
    again = chord(made, tasks.on_shop(tasks.after_all.s(order=owner)))()
    assert again.get(timeout=60) == 2
    assert len(set(shop.wait(owner, "after_all")["jobs"])) == 2


def test_a_refused_training_calls_the_error_callbacks_of_both_kinds(shop: Shop, owner: str) -> None:
    tasks = shop.module
    request = shop.request(owner, **BAD)
    errbacks = [tasks.on_shop(tasks.failed.s(order=owner)), tasks.on_shop(tasks.failed_by_id.s(order=owner))]
    for task in (tasks.train_lora, tasks.lora):
        sent = task(**request).apply_async(link=tasks.on_shop(tasks.use_lora.s(order=owner)), link_error=errbacks)
        with pytest.raises(Exception, match="rank"):
            sent.get(timeout=60)
        until(lambda: len(shop.written(owner)) >= 2, 60, "both were called")
        until(lambda: {one["task_id"] for one in shop.written(owner)} >= {sent.id}, 60, "with this task's id")  # noqa: B023
    until(lambda: len(shop.written(owner)) == 4, 60, "two for each")
    assert all("rank" in one["error"] for one in shop.written(owner, "failed"))
    assert {(one["kind"], one["code"]) for one in shop.written(owner, "failed")} == {("SpecInvalid", "spec_invalid")}
    assert {one["kind"] for one in shop.written(owner, "failed_by_id")} == {"SpecInvalid"}


def test_a_callback_without_a_queue_goes_to_the_operators_queue(shop: Shop, owner: str) -> None:
    """By default to `celery`. The worker of the shop begins to take from there only now."""
    tasks = shop.module
    options = {"link": tasks.use_lora.s(order=owner), "link_error": tasks.failed.s(order=owner)}
    tasks.train_lora(**shop.request(owner)).apply_async(**options)
    tasks.train_lora(**shop.request(owner, **BAD)).apply_async(**options)
    tasks.app.control.add_consumer("celery", destination=["shop@shop"], reply=True)
    shop.wait(owner, "use_lora")
    shop.wait(owner, "failed")
    tasks.app.control.cancel_consumer("celery", destination=["shop@shop"], reply=True)


def test_a_chain_goes_on_with_the_finished_lora(shop: Shop, owner: str) -> None:
    tasks = shop.module
    request = shop.request(owner, on_end={"task": "shop.notice", "queue": "shop", "kwargs": {"order": owner}})
    before = tasks.upload_pictures.si(owner)
    link = tasks.on_shop(tasks.use_lora.s(order=f"{owner} link"))
    made = tasks.lora(**request).set(link=link)
    sent = chain(
        before,
        made,
        tasks.on_shop(tasks.use_lora.s(order=owner)),
        tasks.on_shop(tasks.use_lora.si({"job_id": "", "subject_id": "", "status": ""}, order="x")),
    )
    result = sent()
    used = shop.wait(owner, "use_lora")
    assert used["status"] == "ready"
    assert shop.wait(f"{owner} link", "use_lora") == used | {"order": f"{owner} link"}
    assert shop.wait(owner, "notice") == used | {"task": "notice"}
    assert shop.written(owner)[0]["task"] == "upload_pictures"
    assert result.parent.parent.get(timeout=60)["lora"]["key"] == f"models/{used['job_id']}/lora_weights.safetensors"
    assert result.parent.get(timeout=60) == used["job_id"]


def test_groups_and_chords_wait_for_all_loras(shop: Shop, owner: str) -> None:
    tasks = shop.module
    made = [tasks.lora(**shop.request(owner, seed=seed)) for seed in (1, 2)]
    assert chord(made, tasks.on_shop(tasks.after_all.s(order=owner)))().get(timeout=120) == 2
    jobs = shop.wait(owner, "after_all")["jobs"]
    assert {shop.site.view(job_id)["status"] for job_id in jobs} == {"ready"}
    assert [view["status"] for view in group(made)().get(timeout=120)] == ["ready", "ready"]


def test_a_cancelled_training_ends_the_task_with_its_code(shop: Shop, owner: str) -> None:
    tasks = shop.module
    errbacks = [tasks.on_shop(tasks.failed.s(order=owner)), tasks.on_shop(tasks.failed_by_id.s(order=owner))]
    request = shop.request(owner, max_steps=9_000, idempotency_key="k")
    sent = chain(tasks.lora(**request).set(link_error=errbacks), tasks.on_shop(tasks.use_lora.s(order=owner)))()
    job_id = tasks.train_lora(**request).apply_async().get(timeout=60)["job_id"]  # the same key: the same job
    tasks.app.send_task("imprint.cancel", (job_id,), queue="io").get(timeout=60)
    with pytest.raises(Exception, match="cancelled by the owner") as caught:
        sent.get(timeout=60)  # the end of the chain
    assert type(caught.value).__name__ == "TrainingCancelled"
    assert caught.value.args[1]["job_id"] == job_id
    assert shop.wait(owner, "failed")["task_id"] == sent.parent.id
    content = shop.wait(owner, "failed")
    assert "cancelled: cancelled by the owner" in content["error"]
    assert (content["kind"], content["code"]) == ("TrainingCancelled", "cancelled")
    assert shop.wait(owner, "failed_by_id")["code"] == "cancelled"
    assert shop.written(owner, "use_lora") == []


def test_a_chord_with_a_training_that_is_cancelled_calls_its_error_callbacks(shop: Shop, owner: str) -> None:
    tasks = shop.module
    requests = [shop.request(owner), shop.request(owner, max_steps=9_000, idempotency_key="k")]
    after = tasks.on_shop(tasks.after_all.s(order=owner))
    for errback in (tasks.failed, tasks.failed_by_id):
        after.link_error(tasks.on_shop(errback.s(order=owner)))
    sent = chord([tasks.lora(**request) for request in requests], after)()
    job_id = tasks.train_lora(**requests[1]).apply_async().get(timeout=60)["job_id"]
    tasks.app.send_task("imprint.cancel", (job_id,), queue="io").get(timeout=60)
    with pytest.raises(Exception, match="cancelled by the owner"):
        sent.get(timeout=90)
    assert "TrainingCancelled" in shop.wait(owner, "failed")["error"]
    shop.wait(owner, "failed_by_id")
    assert shop.written(owner, "after_all") == []


@pytest.mark.parametrize("kind", ["classic", "quorum", "not there yet"])
def test_a_queue_is_taken_as_the_application_declares_it(shop: Shop, owner: str, kind: str) -> None:
    tasks, name = shop.module, f"queue of {owner}"
    queue = Queue(name, routing_key=name, queue_arguments=None if kind == "classic" else {"x-queue-type": "quorum"})
    with tasks.app.connection_for_write() as connection:
        if kind != "not there yet":
            queue.bind(connection.default_channel).declare()
        tasks.train_lora(**shop.request(owner)).apply_async(link=tasks.use_lora.s(order=owner).set(queue=name))
        with connection.SimpleQueue(Queue(name, no_declare=True)) as waiting:
            until(lambda: _exists(connection, name), 60, "the queue is there")
            args, kwargs, _ = waiting.get(timeout=30).payload
    assert (args[0]["owner_id"], kwargs) == (owner, {"order": owner})


def _exists(connection: Any, name: str) -> bool:
    """Whether a broker that has queues before they have messages knows the queue."""
    if connection.transport.driver_type != "amqp":
        return True
    try:
        with connection.channel() as channel:
            channel.queue_declare(name, passive=True)
    except connection.channel_errors:
        return False
    return True


def test_the_same_key_gives_each_caller_its_own_callbacks(shop: Shop, owner: str) -> None:
    tasks = shop.module
    request = shop.request(owner, idempotency_key="k")
    sent = [
        tasks.lora(**request).apply_async(link=tasks.on_shop(tasks.use_lora.s(order=f"{owner} {number}")))
        for number in range(2)
    ]
    jobs = {one.get(timeout=90)["job_id"] for one in sent}
    late = tasks.lora(**request).apply_async(link=tasks.on_shop(tasks.use_lora.s(order=f"{owner} 2")))
    jobs |= {late.get(timeout=60)["job_id"]}
    assert {shop.wait(f"{owner} {number}", "use_lora")["job_id"] for number in range(3)} == jobs
    assert len(jobs) == 1


def test_a_callback_that_cannot_be_sent_fails_no_accepted_training(shop: Shop, owner: str) -> None:
    tasks = shop.module
    good = tasks.on_shop(tasks.use_lora.s(order=owner))
    for bad in ({"task": None}, {"task": "x", "options": {"queue": 5}}, {"task": "x", "args": 7}, 5):
        options: dict[str, Any] = {"callbacks": [bad, dict(good)]}
        view = _send_raw(shop, "imprint.train_lora", shop.request(owner, seed=1), options)
        assert shop.site.view(view["job_id"])["status"] in ("pending", "training", "ready")
    until(lambda: len(shop.written(owner, "use_lora")) == 4, 60, "the good callback of each")
    letters = shop.site.imprint("letters").stdout
    assert "callback" in letters


def _send_raw(shop: Shop, name: str, request: dict[str, Any], embed: dict[str, Any]) -> Any:
    """Send a task with an embed that Celery's own functions do not build."""
    task_id = uuid()
    app = shop.module.app
    with app.producer_or_acquire() as producer:
        producer.publish(
            [[], request, {"callbacks": None, "errbacks": None, "chain": None, "chord": None, **embed}],
            routing_key="io", exchange="", serializer="json",
            headers={"lang": "py", "task": name, "id": task_id, "root_id": task_id, "parent_id": None, "group": None,
                     "argsrepr": "", "kwargsrepr": ""},
            correlation_id=task_id, reply_to="",
        )  # fmt: skip
    return app.AsyncResult(task_id).get(timeout=60)


@pytest.mark.drawn
def test_the_result_outlives_a_restart_of_everything(shop: Shop, owner: str) -> None:
    """Last in this module, because all processes are new afterwards."""
    tasks, site = shop.module, shop.site
    link = tasks.on_shop(tasks.use_lora.s(order=owner))
    # Long enough that the training is not done before the restart.
    sent = tasks.lora(**shop.request(owner, max_steps=120)).apply_async(link=link)
    until(lambda: _begun(shop, owner), 60, "the training has begun")
    for name in ("io", "train", "beat", "shop"):
        site.kill(name)
    assert site.broker is not None
    site.broker.restart()
    site.start_together("io", "train", "beat")
    shop.start()
    view = tasks.app.AsyncResult(sent.id).get(timeout=200)
    assert view["status"] == "ready"
    assert shop.wait(owner, "use_lora")["job_id"] == view["job_id"]


def _begun(shop: Shop, owner: str) -> bool:
    return any(view.step > 0 for view in service.jobs(shop.site.services, owner_id=owner))
