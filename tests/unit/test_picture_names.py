"""Every message names a picture by its number from 1 and the name of its source, and shows nothing of its address."""

import pytest

from core.picture_names import picture_label, plain_name, source_name


def test_people_count_from_one() -> None:
    assert picture_label(5, "rex-05.png") == "picture 6 (rex-05.png)"
    assert picture_label(0, None) == "picture 1"


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("https://pictures.example/rex/a%20b.png?X-Amz-Signature=hush#hush", "a b.png"),
        ("s3://bucket/rex/c.png", "c.png"),
        ("file:///srv/rex/d.png", "d.png"),
        ("https://pictures.example", None),
        ("https://pictures.example/", None),
        ("http://[::1", None),
        ("pic_01m804v1z0c4x9m3w7b2n5k8q6", None),
    ],
)
def test_the_name_of_a_source_is_its_file_name(reference: str, name: str | None) -> None:
    assert source_name(reference) == name


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (None, None),
        ("", None),
        (" \t", None),
        ("a\nb\u202e.png", "a b .png"),
        ("x" * 101, "x" * 99 + "…"),
        ("x" * 100, "x" * 100),
    ],
)
def test_a_name_in_a_message_is_short_and_on_one_line(given: str | None, shown: str | None) -> None:
    assert plain_name(given) == shown
