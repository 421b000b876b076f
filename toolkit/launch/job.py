"""What each task of a job runs: `python -m toolkit.launch.job RUN_DIR`, in the frozen code."""

import gc
import sys
from pathlib import Path

from toolkit.rundir import RunDir
from toolkit.train.stop import StopFlag


def main(run_root: Path) -> int:
    """Run one rank to the end of the attempt; give its exit code."""
    stop = StopFlag()
    # deferred: torch and deepspeed take seconds to import, and a signal of the scheduler would kill the rank meanwhile
    # Nothing that is imported is garbage; to look through all of it again and again takes 6 % of the time (measured).
    gc.disable()
    from toolkit.launch.attempt import run_rank  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    return run_rank(RunDir(run_root), stop)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
