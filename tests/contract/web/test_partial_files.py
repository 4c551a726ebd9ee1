"""Large files in pieces: an upload goes on where it stopped, and what is not finished is bounded and swept."""

import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import count
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import httpx2
import pytest

from jobs.subjects import subject_pictures
from tests.contract.web.conftest import Api
from tests.contract.web.page import HERE, Visit
from tests.site import MASCOT
from web.pages.session import COOKIE
from web.partial_files import PIECE_BYTES, FileOfPieces, PartialFiles
from web.problems import RequestRefused

FILE = sorted(MASCOT.glob("*.png"))[0].read_bytes()


def send(page: Visit, offset: int, piece: bytes, **about: Any) -> httpx2.Response:
    """One piece of a file."""
    params = {"name": "rex.png", "size": len(FILE), "modified": 7, "offset": offset} | about
    page.api.client.cookies.clear()
    headers = {**HERE, "accept": "application/json", "cookie": f"{COOKIE}={page.cookie}"}
    return page.api.call("POST", "/subjects/rex/uploads", headers=headers, params=params, content=piece)


def test_a_file_in_pieces_is_stored_once_and_goes_on_where_it_stopped(api: Api) -> None:
    page = Visit.of(api, "ada")
    half = len(FILE) // 2
    assert send(page, 0, b"").json() == {"offset": 0}
    assert send(page, 0, FILE[:half]).json() == {"offset": half}
    assert send(page, 0, FILE[:half]).json() == {"offset": half}  # sent twice, as after a lost answer
    assert send(page, half + 5, FILE[half + 5 :]).json() == {"offset": half}  # a gap
    assert send(page, half, FILE[half:] + b"more").json() == {"offset": half}  # more than was announced
    # Of another owner, or another file, there is nothing yet.
    assert send(Visit.of(api, "bob"), 0, b"").json() == {"offset": 0}
    assert send(page, 0, b"", modified=8).json() == {"offset": 0}
    done = send(page, half, FILE[half:])
    assert done.status_code == 201, done.text
    [stored] = subject_pictures.list_pictures(api.services, "ada", "rex")
    assert (stored.name, done.json()["images"][0]["id"]) == ("rex.png", stored.id)
    assert send(page, 0, b"").json() == {"offset": 0}  # nothing is left of it


def test_the_last_piece_sent_twice_at_once_is_stored_once_and_both_requests_learn_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second request has found the file whole when the first one deletes it."""
    page = Visit.of(api, "ada")
    half = len(FILE) // 2
    assert send(page, 0, FILE[:half]).json() == {"offset": half}
    order, appended, is_answered = count(), Barrier(2, timeout=60), Event()
    append = PartialFiles.append

    def gated(*given: Any) -> Any:
        found, number = append(*given), next(order)
        appended.wait()
        assert number == 0 or is_answered.wait(60)
        return found

    monkeypatch.setattr(PartialFiles, "append", gated)
    with ThreadPoolExecutor(2) as pool:
        sent = [pool.submit(send, page, half, FILE[half:]) for _ in range(2)]
        first = next(as_completed(sent)).result()
        is_answered.set()
        answers = [first, *(one.result() for one in sent if one.result() is not first)]
    assert [answer.status_code for answer in answers] == [201, 201], [answer.text for answer in answers]
    [stored] = subject_pictures.list_pictures(api.services, "ada", "rex")
    assert {answer.json()["images"][0]["id"] for answer in answers} == {stored.id}


def test_what_is_refused_leaves_nothing(api: Api) -> None:
    page = Visit.of(api, "ada")
    bad = b"no picture" * 9
    assert send(page, 0, bad[:40], size=90).json() == {"offset": 40}
    refused = send(page, 40, bad[40:], size=90)
    assert (refused.status_code, refused.json()["code"]) == (422, "image_invalid")
    assert send(page, 0, b"", size=90).json() == {"offset": 0}
    assert send(page, 0, b"", size=10**12).status_code == 413
    assert send(page, 0, b"x" * (PIECE_BYTES + 1), size=2 * PIECE_BYTES).status_code == 413


def test_unfinished_files_are_bounded_and_swept(api: Api, tmp_path: Path) -> None:
    settings = api.services.settings.model_copy(update={"home": tmp_path / "another"})
    files = PartialFiles(settings, 1000)
    one, two, three = (FileOfPieces("rex", name, 300, 0) for name in "abc")
    assert files.append("ada", one, 0, b"x" * 299) == 299
    with pytest.raises(RequestRefused, match="too many unfinished") as caught:
        files.append("ada", two, 0, b"")  # 600 of 500
    assert caught.value.code == "rate_limited"
    files.append("bob", two, 0, b"")
    files.append("carl", two, 0, b"")
    with pytest.raises(RequestRefused) as caught:
        files.append("dora", three, 0, b"")
    assert caught.value.code == "unavailable"
    files.sweep(time.time() + 3000)
    assert files.append("ada", one, 0, b"") == 299
    files.sweep(time.time() + 4000)
    assert files.append("ada", one, 0, b"") == 0
    files.delete("ada", one)
    assert files.append("dora", three, 0, b"xyz") == 3
    files.delete("dora", three)
