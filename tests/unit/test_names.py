"""Owners' names: one spelling of each, and none that people cannot see."""

import unicodedata
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.names import intended_name, is_owner_name, owner_name, owner_name_from_header

SPELLINGS = {
    "me": ["me", " me", "me ", "\tme\n", "\u00a0me\u3000"],
    "José": ["José", "Jose\u0301", "  Jose\u0301 "],
    "田中": ["田中", "\u3000田中"],
    "Å": ["\u212b", "A\u030a"],  # the sign of the unit is the letter
    "two words": ["two words"],
    "o'Brien & <b>": ["o'Brien & <b>"],
    "100%": ["100%"],
}
REFUSED = [
    "", "   ", "x" * 201, "me\0", "a\nb", "a\tb", "a\x1bb", "a\x7fb", "a\x85b", "bo\u200bb", "bo\u200db", "bob\u2060",
    "\ufeffbob", "bo\u00adb", "\u202ebob", "bo\u2066b", "bo\u2028b", "bo\u2029b", "bo\u034fb", "\u3164", "\u2800",
    "bo\ufe0fb", "bo\u180bb", "bo\U000e0100b", "bo\U000e0041b", "bo\ud800b", "bo\ue000b", "bo\u0378b", "a\u00a0b",
    "a\u2003b", "a\u3000b", "a\u1680b", "a\u202fb",
]  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_one_name(name: str) -> None:
    assert {owner_name(spelling) for spelling in SPELLINGS[name]} == {name}
    assert is_owner_name(name)
    assert [spelling for spelling in SPELLINGS[name] if is_owner_name(spelling)] in ([name], [])


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_what_nobody_can_see_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"must have 1 to 200|is invisible or a control|looks like a plain space"):
        owner_name(name)
    assert not is_owner_name(name)


def test_a_fault_names_the_character() -> None:
    with pytest.raises(ValueError, match=r"character 3 \(U\+200B ZERO WIDTH SPACE\) is invisible"):
        owner_name(" bo\u200bb")


@given(st.text(max_size=40))
def test_a_name_is_its_own_spelling_and_comes_through_a_header(text: str) -> None:
    try:
        name = owner_name(text)
    except ValueError:
        return
    assert owner_name(name) == name
    assert unicodedata.is_normalized("NFC", name)
    assert not {unicodedata.category(letter) for letter in name} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert owner_name_from_header(quote(name, safe="")) == name
    if "%" not in name:
        assert owner_name_from_header(name.encode().decode("latin-1")) == name


@pytest.mark.parametrize("value", ["Jos\xe9", "%E9", "%ff%fe", "\xff", "%E7%94", "bob%00", "bo%0Ab", "%E2%80%8Bbob"])
def test_a_header_that_is_no_name_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"must be UTF-8|is invisible or a control"):
        owner_name_from_header(value)


def test_a_percent_sign_that_encodes_nothing_stands_for_itself() -> None:
    assert owner_name_from_header("100%") == "100%"
    assert owner_name_from_header("100%25") == "100%"
    assert owner_name_from_header("5%zz") == "5%zz"


def test_what_was_read_as_latin_1_is_found_again() -> None:
    for name in ("José", "田中", "Zoë"):
        assert intended_name(name.encode().decode("latin-1")) == name
        assert intended_name(name) == name
    assert intended_name("me ") == "me"
