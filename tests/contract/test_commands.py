"""What commands print about errors, and their exit codes."""

import json
from pathlib import Path

from tests.servers.launcher import run
from tests.site import ROOT


def test_a_job_that_does_not_exist_has_the_code_of_the_http_api(tmp_path: Path) -> None:
    environment = {"IMPRINT_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    imprint = ["celery", "-A", "tasks.app", "imprint"]
    for more, printed in (([], "not_found: there is no job job_x"), (["--json"], "")):
        done = run([*imprint, "cancel", "job_x", *more], cwd=ROOT, env=environment, folder=tmp_path, timeout=120)
        assert done.returncode == 1
        assert done.stderr.strip() == printed
    assert json.loads(done.stdout) == {"error": "not_found", "message": "there is no job job_x", "details": {}}
