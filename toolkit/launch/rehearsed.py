"""What comes after an attempt of a rehearsal on a cluster: `python -m toolkit.launch.rehearsed RUN_DIR CODE`.

The run waits for this job with `afterok`, so its exit code decides whether the run starts.
"""

import logging
import os
import sys
import time
from pathlib import Path

from toolkit.cluster.choose import OwnJob, read_own_job
from toolkit.errors import EXIT_BUG, EXIT_DONE, ToolkitError
from toolkit.launch import after
from toolkit.launch.identity import read_config
from toolkit.launch.ledger import Attempt, find_job_record, read_attempts
from toolkit.launch.nodes import NodeLedger
from toolkit.launch.phases import find_gap
from toolkit.launch.rehearsal import remove_checkpoints
from toolkit.rundir import RunDir

log = logging.getLogger("toolkit.launch.rehearsed")  # run as a program its __name__ is another


def conclude(run_dir: RunDir, code: int, own: OwnJob) -> int:
    """Act on the end of an attempt; give the exit code of its job: 0 lets the run start.

    Args:
        run_dir: of the rehearsal.
        code: what came after the attempt.
        own: its job.
    """
    attempts = read_attempts(run_dir)
    _blame(run_dir, attempts)
    record = find_job_record(run_dir)
    if record is not None and record.job_id != own.job_id:
        own.cluster.cancel(record.job_id)  # the run waits for this job, not for the one that follows it
        log.error("the rehearsal could not go on in its own job: %s", attempts[-1].next if attempts else "no attempt")
        return code or EXIT_BUG
    if code != EXIT_DONE or (attempts and attempts[-1].next.startswith("requeued")):
        return code
    if not attempts or attempts[-1].outcome != "FINISHED":
        log.error("the rehearsal did not finish: %s", attempts[-1].next if attempts else "no attempt")
        return EXIT_BUG
    gap = find_gap(run_dir)
    if gap is not None:
        log.error("%s", gap.what)
        return EXIT_BUG
    try:
        remove_checkpoints(read_config(run_dir), run_dir)
    except (OSError, ToolkitError) as error:  # the rehearsal was good all the same
        log.warning("checkpoints of the rehearsal are left: %s", error)
    return EXIT_DONE


def _blame(run_dir: RunDir, attempts: list[Attempt]) -> None:
    """Write the culprits into the ledger of the run: it is to leave them out too, when it is submitted again."""
    nodes = NodeLedger(run_dir.root.parents[2])
    try:
        for attempt in attempts:
            about = {"reason": attempt.reason, "run": run_dir.name, "attempt": attempt.attempt}
            for node in attempt.culprits:
                nodes.record(node, attempt.cause, now=time.time(), hours=None, **about)
    except (OSError, ToolkitError) as error:
        log.warning("%s cannot be written: %s", nodes.path, error)


def main(run_root: Path, code: int) -> int:
    """Look after a rehearsal's attempt that has ended; give the exit code of its job."""
    after_code = after.main(run_root, code)
    return conclude(RunDir(run_root), after_code, read_own_job(os.environ, patience_s=0.0))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
