"""`make demo`. Sets the few settings that make it small and private, then runs it."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = HERE.parent / ".imprint"

if __name__ == "__main__":
    for name in [name for name in os.environ if name.startswith("IMPRINT_")]:
        del os.environ[name]  # the demo shows the defaults, whatever this machine is set up for
    os.chdir(HERE.parent)
    os.environ.update(
        IMPRINT_HOME=str(HOME / "demo"),
        IMPRINT_BASE_MODELS=f'{{"sd15": "{HOME / "bases" / "tiny-sd15"}"}}',
        IMPRINT_FLOWER_PORT="0",
        IMPRINT_LOG_LEVEL="INFO",
        OMP_NUM_THREADS="1",  # the tensors are tiny: a second thread would only wait
        OMP_WAIT_POLICY="PASSIVE",
    )
    from demo.run import main

    sys.exit(main())
