"""Captions by API: listed, set, replaced, put in front, and taken back."""

from typing import Any

import pytest

from jobs.subjects import captions
from tests.contract.web.conftest import REX, Api, problem

PATH = f"{REX}/captions"


def texts(api: Api, secret: str) -> list[str | None]:
    return [one["caption"] for one in api.call("GET", PATH, secret).json()["captions"]]


def change(api: Api, secret: str, **body: Any) -> dict[str, Any]:
    answer = api.call("POST", PATH, secret, json=body)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def undo(api: Api, secret: str) -> dict[str, Any]:
    answer = api.call("POST", f"{PATH}/undo", secret)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def test_captions_are_changed_together_and_taken_back_in_turn(api: Api) -> None:
    ada = api.token("ada")
    ids = api.upload(ada, 4)
    assert texts(api, ada) == [None] * 4
    content = change(api, ada, captions={ids[0]: " a puppy on grass ", ids[1]: "a puppy, a Puppy", ids[2]: "rain"})
    assert content["kind"] == "set"
    assert [one["caption"] for one in content["captions"]] == ["a puppy on grass", "a puppy, a Puppy", "rain"]
    assert [one["id"] for one in change(api, ada, find="puppy", replace="sks dog")["captions"]] == ids[:2]
    assert texts(api, ada) == ["a sks dog on grass", "a sks dog, a Puppy", "rain", None]
    change(api, ada, prepend="photo, ", imageIds=ids[1:])
    assert texts(api, ada) == ["a sks dog on grass", "photo, a sks dog, a Puppy", "photo, rain", None]
    api.call("PATCH", f"{REX}/images/{ids[3]}", ada, json={"caption": "sks"})
    assert texts(api, ada)[3] == "sks"

    assert undo(api, ada) == {"kind": "undo", "captions": [{"id": ids[3], "name": None, "caption": None}]} | {
        "captions": [{"id": ids[3], "name": "04.png", "caption": None}]
    }
    undo(api, ada)
    assert texts(api, ada) == ["a sks dog on grass", "a sks dog, a Puppy", "rain", None]
    api.call("DELETE", f"{REX}/images/{ids[1]}", ada)
    undo(api, ada)
    assert texts(api, ada) == ["a puppy on grass", "rain", None]
    undo(api, ada)
    assert texts(api, ada) == [None] * 3
    problem(api.call("POST", f"{PATH}/undo", ada), 409, "illegal_move")


def test_a_change_that_does_not_fit_changes_nothing(api: Api) -> None:
    ada, bob = api.token("ada"), api.token("bob")
    ids = api.upload(ada, 2)
    change(api, ada, captions={ids[0]: "x" * 999, ids[1]: "b"})
    before = texts(api, ada)
    problem(api.call("POST", PATH, ada, json={"prepend": "sks, "}), 422, "spec_invalid")
    problem(api.call("POST", PATH, ada, json={"captions": {ids[0]: "a", "pic_0": "b"}}), 404, "not_found")
    problem(api.call("POST", PATH, bob, json={"captions": {ids[0]: "a"}}), 404, "not_found")
    for body in (
        {}, {"find": "a"}, {"replace": "a"}, {"find": "", "replace": "b"}, {"prepend": " "}, {"captions": {}},
        {"find": "a", "replace": "b", "prepend": "c"}, {"captions": {ids[0]: "a"}, "imageIds": ids}, {"odd": 1},
    ):  # fmt: skip
        problem(api.call("POST", PATH, ada, json=body), 422, "spec_invalid")
    assert texts(api, ada) == before
    assert change(api, ada, find="zzz", replace="y")["captions"] == []
    undo(api, ada)  # of the first change: one that changed nothing is none
    assert texts(api, ada) == [None, None]


def test_only_the_newest_changes_are_kept(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "MAX_KEPT", 3)
    ada = api.token("ada")
    [first] = api.upload(ada, 1)
    for number in range(6):
        change(api, ada, captions={first: str(number)})
    for number in (4, 3, 2):
        undo(api, ada)
        assert texts(api, ada) == [str(number)]
    problem(api.call("POST", f"{PATH}/undo", ada), 409, "illegal_move")
