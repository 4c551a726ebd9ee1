"""`imprint doctor` without its look at the device, which takes ten seconds of a core."""

from tests.servers.launcher import run
from tests.site import ROOT, Site

DIAGNOSE = """
from cli.operations import doctor
from jobs.services import services

for one in doctor.examine(services(), [doctor._settings, doctor._broker]):
    print(one.status, one.name, one.text)
"""


def diagnosed(made: Site, **environment: str) -> str:
    """What `imprint doctor` says of the settings, the broker and the workers, without its other checks."""
    program = made.folder / "diagnose.py"
    program.write_text(DIAGNOSE)
    done = run([str(program)], cwd=ROOT, env=made.surroundings(**environment), folder=made.folder, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
