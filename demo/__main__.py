"""`make demo`, and with `--remote` `make demo-remote`: configure a small, isolated stack and run the demo."""

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from core.private import keep_private
from demo.pocket import MODEL

HERE = Path(__file__).resolve().parent
HOME = HERE.parent / ".imprint"


def main(arguments: list[str] | None = None) -> int:
    """Run the demo on this machine's worker, or on a rented pod."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="ten pictures become a LoRA, live")
    parser.add_argument("--remote", action="store_true", help="on a rented GPU: a stand-in for it on this machine")
    parser.add_argument("--jobs", type=int, default=1, choices=range(1, 9), metavar="1..8", help="sent at once")
    given = parser.parse_args(arguments)
    remote, jobs = given.remote, given.jobs
    for name in [name for name in os.environ if name.startswith("IMPRINT_")]:
        del os.environ[name]  # the demo uses the defaults, not the settings of this machine
    os.chdir(HERE.parent)
    os.environ.update(
        IMPRINT_HOME=str(HOME / ("demo-remote" if remote else "demo")),
        IMPRINT_FLOWER_PORT="0",
        IMPRINT_LOG_LEVEL="INFO",
        OMP_NUM_THREADS="1",  # the tensors are tiny: a second thread would only wait
        OMP_WAIT_POLICY="PASSIVE",
    )
    keep_private(Path(os.environ["IMPRINT_HOME"]))
    from demo.cloud import stand_in

    with ExitStack() as stack:
        cloud = stack.enter_context(stand_in(MODEL)) if remote else None
        local = {"IMPRINT_BASE_MODELS": json.dumps({"sd15": str(MODEL)})}
        if jobs > 1:
            local["IMPRINT_COHORT"] = str(jobs)  # the default on a CPU is one
        os.environ.update(cloud.environment if cloud else local)
        from demo.run import main as run

        return run(MODEL, cloud, jobs)


if __name__ == "__main__":
    sys.exit(main())
