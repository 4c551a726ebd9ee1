"""Hostile task messages: what is put on the queue, and what comes of it."""

import json
import pickle
from dataclasses import dataclass, field
from typing import Any

SECRET = "FOREIGN-planted-and-not-for-logs"
JOB = "job_01m804w5gaakt0m1296p7r7xd8"  # of the right form, and of nobody
DROPPED = "dropped"  # no answer, for there is nobody to answer or nothing to answer to


@dataclass
class Message:
    """One message. `task` and `id` are headers; None leaves one out. `body` is JSON text unless it says otherwise."""

    wanted: str  # DROPPED, "done", or the answer's error: its type, a colon, how its message begins
    task: Any = "imprint.job"
    body: bytes = b"[[], {}, {}]"
    content_type: str = "application/json"
    encoding: str = "utf-8"
    headers: dict[str, Any] = field(default_factory=dict)
    with_id: bool = True


def call(wanted: str, task: str, *args: Any, **kwargs: Any) -> Message:
    return Message(wanted, task, json.dumps([args, kwargs, {}]).encode())


def asks(wanted: str, task: str = "imprint.quote", **changed: Any) -> Message:
    """A request that is right but for `changed`."""
    request: dict[str, Any] = {
        "owner_id": "owner", "subject_id": "rex", "base_model": "sd15", "trigger_word": "sks",
        "images": [f"https://images.example.com/{n}.png?X-Amz-Signature={SECRET}" for n in range(5)],
    }  # fmt: skip
    return call(wanted, task, **{**request, **changed})


def deep(depth: int) -> Any:
    made: Any = SECRET
    for _ in range(depth):
        made = [made]
    return made


ODD = "SpecInvalid: the request has 1 fault(s): "
ID = "SpecInvalid: the request has 1 fault(s): job_id: must be the id of a job"
NO_JOB = "NotFound: there is no job "

MESSAGES: dict[str, Message] = {
    # bodies that are none
    "nothing": Message(DROPPED, body=b""),
    "text": Message(DROPPED, body=SECRET.encode()),
    "a number": Message(DROPPED, body=b"5"),
    "null": Message(DROPPED, body=b"null"),
    "true": Message(DROPPED, body=b"true"),
    "a string": Message(DROPPED, body=json.dumps(SECRET).encode()),
    "an empty list": Message(DROPPED, body=b"[]"),
    "a list of one": Message(DROPPED, body=b"[[]]"),
    "a list of five": Message(DROPPED, body=b"[[], {}, {}, {}, {}]"),
    "half a body": Message(DROPPED, body=b'[["job_1"], {}, {'),
    "not utf-8": Message(DROPPED, body=b'[["\xff\xfe"], {}, {}]'),
    "null bytes": Message(DROPPED, body=bytes(100)),
    "deep lists": Message(DROPPED, body=b"[" * 100_000),
    "deep tables": Message(DROPPED, body=b'{"a":' * 100_000),
    "a number of 5,000 digits": Message(DROPPED, body=b"[[" + b"9" * 5000 + b"], {}, {}]"),
    "arguments that are no list": Message(DROPPED, body=b"[5, {}, {}]"),
    "names that are no table": Message(DROPPED, body=b"[[], 5, {}]"),
    "no names": Message(DROPPED, body=b"[[], null, {}]"),
    "a chain that is a number": Message(DROPPED, "imprint.step_failed", f'[["{JOB}"], {{}}, {{"chain": 5}}]'.encode()),
    "callbacks that are text": Message(
        DROPPED, "imprint.step_failed", f'[["{JOB}"], {{}}, {{"callbacks": "x", "chord": "z"}}]'.encode()
    ),
    "error callbacks that are no signatures": Message(
        "SpecInvalid: ", "imprint.lora",
        b'[[], {}, {"errbacks": [5, {}, {"task": null}, {"task": "x", "options": {"queue": ["io"]}}]}]',
    ),
    "an error callback of ours that is none": Message(
        "SpecInvalid: ", "imprint.lora", b'[[], {}, {"errbacks": [{"task": "imprint.none", "options": 7}]}]'
    ),
    # programs instead of data
    "a pickle": Message(DROPPED, body=pickle.dumps(SECRET), content_type="application/x-python-serialize"),
    "a pickle by another name": Message(DROPPED, body=pickle.dumps([SECRET]), content_type="application/x-pickle"),
    "a pickle that calls itself json": Message(DROPPED, body=pickle.dumps(SECRET), encoding="binary"),
    "yaml": Message(DROPPED, body=b"!!python/object/apply:os.system [id]", content_type="application/x-yaml"),
    "msgpack": Message(DROPPED, body=b"\x93\x90\x80\x80", content_type="application/x-msgpack"),
    "xml": Message(DROPPED, body=b"<a/>", content_type="text/xml"),
    "a coding that there is not": Message(ODD, body=b"[[], {}, {}]", encoding="rot13-of-nowhere"),
    # headers that lie
    "a task that there is not": call("NotRegistered", "imprint.nothing", SECRET),
    "a task of the library": call("NotRegistered", "os.system", "id"),
    "a task without a name": Message(DROPPED, task=""),
    "a task that is a number": Message(DROPPED, task=5),
    "a task that is a list": Message(DROPPED, task=["imprint.job"]),
    "no task": Message(DROPPED, task=None),
    "no id": Message(DROPPED, with_id=False),
    "no id, and no such task": Message(DROPPED, task="imprint.nothing", with_id=False),
    "an id that is a table": Message(DROPPED, headers={"id": {"a": 1}}),
    "an id with a path": Message(DROPPED, headers={"id": "../../etc/passwd"}),
    "an id of 100 kB": Message(DROPPED, headers={"id": "x" * 100_000}),
    "a date that is none": Message(DROPPED, headers={"eta": "yesterday, or so"}),
    "a date that is a table": Message(DROPPED, headers={"eta": {"a": 1}}),
    "an end that is none": Message(DROPPED, headers={"expires": [1]}),
    "retries that are text": Message(DROPPED, headers={"retries": "many"}),
    "a limit that is text": Message(DROPPED, headers={"timelimit": "forever"}),
    # arguments that a task does not have
    "no arguments": call(ODD + "the task's arguments: missing a required argument: 'job_id'", "imprint.job"),
    "too many": call(ODD + "the task's arguments: too many positional arguments", "imprint.job", JOB, SECRET),
    "an unknown one": call(ODD + "the task's arguments: got an unexpected keyword", "imprint.job", JOB, x=SECRET),
    "positions for names": call(ODD + "positional arguments: str, dict", "imprint.quote", SECRET, {"a": 1}),
    "one of the machinery": call(ODD + "the task's arguments: got an unexpected keyword", "imprint.job", JOB, self=1),
    # ids that are none of ours
    "a number for an id": call(ID, "imprint.job", 5),
    "a list for an id": call(ID, "imprint.job", [JOB]),
    "a table for an id": call(ID, "imprint.job", {"$ne": None}),
    "null for an id": call(ID, "imprint.job", None),
    "a path for an id": call(ID, "imprint.job", "../../../etc/passwd"),
    "sql for an id": call(ID, "imprint.job", "'; DROP TABLE job; --"),
    "more sql for an id": call(ID, "imprint.cancel", f"{JOB}' OR '1'='1"),
    "a null byte in an id": call(ID, "imprint.job", JOB[:-1] + "\0"),
    "a line break in an id": call(ID, "imprint.job", JOB + "\n"),
    "half a character in an id": call(ID, "imprint.job", "job_\ud800"),
    "an id of a megabyte for a job": call(ID, "imprint.job", "job_" + "0" * 10**6),
    "an id of another kind": call(ID, "imprint.job", JOB.replace("job_", "pic_")),
    "deep lists for an id": call(DROPPED, "imprint.job", deep(500)),
    "nan for an id": Message(ID, body=b"[[NaN], {}, {}]"),
    # ids of nobody
    "a look at nobody's job": call(NO_JOB, "imprint.job", JOB),
    "an end to nobody's job": call(NO_JOB, "imprint.cancel", JOB),
    "a stage of nobody's job": call(DROPPED, "imprint.dataset", JOB),
    "a training of nobody's job": call(DROPPED, "imprint.train", JOB),
    "a charge for nobody's job": call(DROPPED, "imprint.settle", JOB),
    "a picture of nobody's job": call("done", "imprint.preprocess", JOB, 0),
    "a failure of nobody's job": call("done", "imprint.step_failed", JOB),
    "a clean-up of nobody's job": call("done", "imprint.clean_up", JOB, "msg_01m804w5gaakt0m1296p7r7xd8"),
    "a notice of nobody's job": call("done", "imprint.notify", JOB, "msg_01m804w5gaakt0m1296p7r7xd8"),
    # a stage with odd arguments
    "a stage of a path": call(ID, "imprint.train", "../../x"),
    "a charge for sql": call(ID, "imprint.settle", "x' OR 1=1 --"),
    "a picture before the first": call(ODD + "position: ", "imprint.preprocess", JOB, -1),
    "a picture that is text": call(ODD + "position: ", "imprint.preprocess", JOB, "0"),
    "a picture that is true": call(ODD + "position: ", "imprint.preprocess", JOB, True),
    "a picture far away": call(ODD + "position: ", "imprint.preprocess", JOB, 10**30),
    # drawings
    "a lora of nobody's subject": call("LoraNotReady: this subject was never trained", "imprint.resolve", "bob", "rex"),
    "a lora of a table": call(ODD + "owner_id: must be one line of text", "imprint.resolve", {"$ne": None}, "rex"),
    "a lora of a line break": call(ODD + "base_model: must be one line", "imprint.resolve", "bob", "rex", "sd15\n"),
    "a drawing of nothing": call("SpecInvalid: the request has 2 fault(s): owner_id: ", "imprint.generate"),
    "a drawing on a server of the sender's": call(
        ODD + "comfyui_url: ", "imprint.generate", owner_id="bob", subject_id="rex", workflow={}, comfyui_url=SECRET
    ),
    "a drawing where there is no server": call(
        "GeneratorError: no ComfyUI server is configured", "imprint.generate", owner_id="bob", subject_id="rex",
        workflow={"1": deep(3)},
    ),
    "a drawing by position": call(ODD + "the task's arguments: too many", "imprint.generate", {"workflow": SECRET}),
    # requests
    "a request of nothing": call("SpecInvalid: the request has ", "imprint.train_lora"),
    "an unknown argument": asks(ODD + "price: unknown argument", price=0),
    "an argument with a long name": asks(ODD, **{"x" * 10**6: 1}),
    "a thousand unknown arguments": asks(
        "SpecInvalid: the request has 10 fault(s): x0: ", **{f"x{n}": 1 for n in range(1000)}
    ),
    "an owner that is a table": asks(ODD + "owner_id: ", owner_id={"a": 1}),
    "an owner with a null byte": asks(ODD + "owner_id: ", owner_id="a\0b"),
    "an owner of half a character": asks(ODD + "owner_id: ", owner_id="\ud800"),
    "an owner of a megabyte": asks(ODD + "owner_id: ", owner_id="x" * 10**6),
    "a trigger of half a character": asks(ODD + "trigger_word: ", trigger_word="sks\udfff"),
    "a trigger with a line break": asks(ODD + "trigger_word: ", trigger_word="sks\nHost: x"),
    "an alpha that is no number": Message(
        ODD + "alpha: ", "imprint.quote", asks("", alpha=7.5).body.replace(b"7.5", b"NaN"),
    ),
    "a rate without end": Message(
        ODD + "learning_rate: ", "imprint.quote", asks("", learning_rate=7.5).body.replace(b"7.5", b"Infinity"),
    ),
    "a rank of 10^30": asks(ODD + "rank: ", rank=10**30),
    "a rank below zero": asks(ODD + "rank: ", rank=-4),
    "a seed that is true": asks(ODD + "seed: ", seed="9" * 400),
    "a base model of a path": asks(ODD + "base_model: ", base_model="/etc", family="sd15"),
    "a base model of dots": asks(ODD + "base_model: ", base_model="../../x", family="sd15"),
    "pictures that are a text": asks(ODD + "images: ", images="https://images.example.com/1.png"),
    "a million pictures": asks(ODD + "images: ", images=["x"] * 10**6),
    "pictures in pictures": asks(DROPPED, images=[deep(30)] * 5),
    "a picture with more": asks(ODD + "images.0.", images=[{"ref": "a", "x": 1}, *"bcde"]),
    "pictures of others": asks(
        "SpecInvalid: the request has 5 fault(s): images.0: picture 1: the owner has no stored picture with this id",
        "imprint.train_lora", images=[f"pic_{n}" for n in range(5)],
    ),
    "pictures of the metadata service": asks(
        "SpecInvalid: the request has 5 fault(s): images.0: ", images=["http://169.254.169.254/latest/meta-data"] * 5
    ),
    "pictures of this machine": asks("SpecInvalid: the request has 5 fault(s): ", images=["file:///etc/passwd"] * 5),
    "a webhook of this machine": asks(ODD + "webhook_url: ", webhook_url="http://127.0.0.1:6379/"),
    "a webhook of another kind": asks(ODD + "webhook_url: ", webhook_url="gopher://127.0.0.1:6379/_FLUSHALL"),
}  # fmt: skip
