"""`imprint doctor` without its look at the device, which takes ten seconds of a core."""

import subprocess

from tests.servers.launcher import run
from tests.site import ROOT, Site

DIAGNOSE = """
from cli.operations import doctor

doctor.CHECKS = tuple(check for check in doctor.CHECKS if check is not doctor._device)
doctor.doctor()
"""


def run_doctor(made: Site, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `imprint doctor` with all its checks but that of the device."""
    program = made.folder / "diagnose.py"
    program.write_text(DIAGNOSE)
    argv, surroundings = [str(program), *arguments], made.surroundings(**environment)
    return run(argv, cwd=ROOT, env=surroundings, folder=made.folder, timeout=120)


def diagnosed(made: Site, **environment: str) -> str:
    """What it prints."""
    done = run_doctor(made, **environment)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout
