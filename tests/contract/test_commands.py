"""What commands print about errors, and their exit codes."""

import json
import subprocess
import sys
from pathlib import Path

from tests.site import ROOT


def test_a_job_that_does_not_exist_has_the_code_of_the_http_api(tmp_path: Path) -> None:
    environment = {"IMPRINT_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    imprint = [sys.executable, "-m", "celery", "-A", "tasks.app", "imprint"]
    for more, printed in (([], "not_found: there is no job job_x"), (["--json"], "")):
        done = subprocess.run(
            [*imprint, "cancel", "job_x", *more], cwd=ROOT, env=environment, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.strip() == printed
    assert json.loads(done.stdout) == {"error": "not_found", "message": "there is no job job_x", "details": {}}
