"""The bill of materials has every pin, and says the same each time."""

import re

from tests.site import ROOT
from tools import audit


def test_it_has_every_package_of_the_lock_and_torch() -> None:
    locked = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    bill = audit.bill_of_materials(audit.pins())
    named = {(part["name"], part["version"]) for part in bill["components"]}
    assert named - {part for part in named if part[0] == "torch"} == set(locked)
    assert len(locked) > 100
    assert [part["version"] for part in bill["components"] if part["name"] == "torch"]
    references = [part["bom-ref"] for part in bill["components"]]
    assert len(set(references)) == len(references)
    assert all(re.fullmatch(r"pkg:pypi/[a-z0-9-]+@[^ ]+", reference) for reference in references)


def test_every_locked_file_has_its_hash_and_most_have_a_license() -> None:
    components = audit.bill_of_materials(audit.pins())["components"]
    for part in components:
        hashes = [one["value"] for one in part.get("properties", []) if one["name"] == "imprint:sha256"]
        assert hashes or part["name"] == "torch", part["name"]
    assert sum("licenses" in part for part in components) > len(components) / 2


def test_the_same_pins_give_the_same_document() -> None:
    assert audit.bill_of_materials(audit.pins()) == audit.bill_of_materials(audit.pins())
