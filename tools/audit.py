"""A software bill of materials of everything that is pinned, and known vulnerabilities of the pins.

`python tools/audit.py` writes build/sbom.cdx.json (CycloneDX 1.6) and asks OSV for advisories with pip-audit, over the
network. `--sbom` only writes the file. Exit code 1: a pin has a known vulnerability; 2: no source of advisories
answers.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
SBOM = _ROOT / "build" / "sbom.cdx.json"
_PIP_AUDIT = "pip-audit==2.10.1"
_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?==(?P<version>[^ ;\\]+)\s*(;\s*(?P<marker>[^\\]+?))?\s*\\?$")
_FOUND = 1  # what pip-audit ends with if a pin has a vulnerability


@dataclass(frozen=True)
class Pin:
    """A package at one version; `marker` says where it is installed, and `sha256` lists the files that may be."""

    name: str
    version: str
    marker: str | None = None
    sha256: tuple[str, ...] = ()


def pins() -> list[Pin]:
    """Every package of requirements.lock, and torch, which is pinned in pyproject.toml."""
    found = list(_locked((_ROOT / "requirements.lock").read_text()))
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    torch = next(line for line in project["dependencies"] if line.startswith("torch=="))
    return [*found, Pin("torch", torch.partition("==")[2])]


def _locked(lock: str) -> Iterator[Pin]:
    for block in re.split(r"^(?=\S)", lock, flags=re.MULTILINE):
        if match := _PIN.match(block.partition("\n")[0]):
            hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", block))
            yield Pin(match["name"], match["version"], match["marker"], hashes)


def bill_of_materials(found: list[Pin]) -> dict[str, Any]:
    """The pins as CycloneDX. The same pins give the same document."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    components = [_component(pin) for pin in found]
    content = json.dumps(components, sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": project["name"], "version": project["version"]},
        },
        "components": components,
    }


def _component(pin: Pin) -> dict[str, Any]:
    purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', pin.name).lower()}@{pin.version}"
    component: dict[str, Any] = {
        "type": "library", "bom-ref": purl, "name": pin.name, "version": pin.version, "purl": purl,
    }  # fmt: skip
    if license_name := _license_of(pin):
        component["licenses"] = [{"license": {"name": license_name}}]
    # A hash of CycloneDX is of the component; which of these files is installed depends on the platform.
    notes = {"imprint:marker": pin.marker} if pin.marker else {}
    properties = [*notes.items(), *(("imprint:sha256", digest) for digest in pin.sha256)]
    if properties:
        component["properties"] = [{"name": name, "value": value} for name, value in properties]
    return component


def _license_of(pin: Pin) -> str | None:
    """The license that the installed package names; None if it is not installed here or names none."""
    try:
        package = metadata.metadata(pin.name)
    except metadata.PackageNotFoundError:
        return None
    named = package.get("License-Expression") or (package.get("License") or "").strip().partition("\n")[0]
    return named[:100] or None


def ask_for_advisories(found: list[Pin]) -> int:
    """Run pip-audit in an environment of its own. Returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="imprint-audit-") as folder:
        listed = Path(folder) / "pins.txt"
        listed.write_text("".join(f"{pin.name}=={pin.version}\n" for pin in found))
        python = Path(folder) / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
        installed = subprocess.run([python, "-m", "pip", "install", "-q", _PIP_AUDIT], check=False)
        if installed.returncode:
            print(f"audit: {_PIP_AUDIT} cannot be installed; docs/security.md says how else to ask", file=sys.stderr)
            return 2
        command = [python, "-m", "pip_audit", "--requirement", listed, "--no-deps", "--disable-pip"]
        done = subprocess.run([*command, "--vulnerability-service", "osv"], capture_output=True, text=True, check=False)
    print(done.stdout, end="")
    if done.returncode == 0 or (done.returncode == _FOUND and "Traceback" not in done.stderr and done.stdout):
        print(done.stderr, end="", file=sys.stderr)
        return done.returncode
    lines = done.stderr.strip().splitlines()
    print(
        f"audit: no source of advisories answers ({lines[-1][:200] if lines else 'no reason given'})", file=sys.stderr
    )
    return 2


def main(arguments: list[str]) -> int:
    found = pins()
    SBOM.parent.mkdir(exist_ok=True)
    SBOM.write_text(json.dumps(bill_of_materials(found), indent=2) + "\n")
    print(f"{SBOM.relative_to(_ROOT)}: {len(found)} packages")
    return 0 if "--sbom" in arguments else ask_for_advisories(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
