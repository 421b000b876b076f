"""What each task of a job runs: `python -m toolkit.launch.job RUN_DIR`, in the frozen code."""

import gc
import os
import sys
from pathlib import Path

from toolkit import storage
from toolkit.errors import EXIT_DONE, ToolkitError
from toolkit.launch.introduce import introduce
from toolkit.log import hide_secrets
from toolkit.modes import PRIVATE_UMASK
from toolkit.rundir import RunDir
from toolkit.train.stop import StopFlag


def main(run_root: Path) -> int:
    """Run one rank to the end of the attempt; give its exit code."""
    hide_secrets()
    os.umask(PRIVATE_UMASK)  # the job may have been handed in by hand
    stop = StopFlag()
    run_dir = RunDir(run_root)
    if os.environ.get("SLURM_PROCID") == "0" and (code := _introduce(run_dir)) != EXIT_DONE:
        return code
    # deferred: torch and deepspeed take seconds to import, and a signal of the scheduler would kill the rank meanwhile
    # Nothing that is imported is garbage; to look through all of it again and again takes 6 % of the time (measured).
    gc.disable()
    from toolkit.launch.attempt import run_rank  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    return run_rank(run_dir, stop)


def _introduce(run_dir: RunDir) -> int:
    """Tell the run which job it has now; where it may not be that job's, say so to what comes after the ranks."""
    try:
        introduce(run_dir, os.environ)
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  no log is set up yet
        storage.write_atomic(str(run_dir.refusal_path(os.environ["TOOLKIT_ATTEMPT"])), f"{error}\n".encode())
        return error.exit_code
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
