"""`make demo`, and with `--remote` `make demo-remote`: sets what makes it small and private, then runs it."""

import os
import sys
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = HERE.parent / ".imprint"
BASE = HERE.parent / "training" / "pocket" / "model"


def main(remote: bool) -> int:
    """Run the demo on this machine's worker, or on a rented pod."""
    for name in [name for name in os.environ if name.startswith("IMPRINT_")]:
        del os.environ[name]  # the demo shows the defaults, whatever this machine is set up for
    os.chdir(HERE.parent)
    os.environ.update(
        IMPRINT_HOME=str(HOME / ("demo-remote" if remote else "demo")),
        IMPRINT_FLOWER_PORT="0",
        IMPRINT_LOG_LEVEL="INFO",
        OMP_NUM_THREADS="1",  # the tensors are tiny: a second thread would only wait
        OMP_WAIT_POLICY="PASSIVE",
    )
    from demo.cloud import stand_in

    with ExitStack() as stack:
        cloud = stack.enter_context(stand_in(BASE)) if remote else None
        os.environ.update(cloud.environment if cloud else {"IMPRINT_BASE_MODELS": f'{{"sd15": "{BASE}"}}'})
        from demo.run import main as run

        return run(BASE, cloud)


if __name__ == "__main__":
    sys.exit(main("--remote" in sys.argv[1:]))
