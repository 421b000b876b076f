"""What comes after an attempt: `python -m toolkit.launch.after RUN_DIR CODE`, once, on the job's first node.

It runs when the ranks are gone, however they ended, and is the only place that decides whether the run goes on:
in the same job (requeue), in a new one that avoids bad nodes, or not at all. No torch: it takes a moment.
"""

import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit import records
from toolkit.checkpoint import layout
from toolkit.cluster.base import Fate, JobStatus
from toolkit.cluster.batchlog import find_lost_nodes
from toolkit.cluster.choose import OwnJob, read_own_job
from toolkit.cluster.hostlist import expand_nodes
from toolkit.cluster.marks import follower_mark
from toolkit.config.schema import RunConfig
from toolkit.errors import EXIT_BUG, EXIT_DONE, ClusterError, ToolkitError
from toolkit.launch.identity import read_config, settle
from toolkit.launch.ledger import (
    Attempt,
    Failure,
    JobRecord,
    begin_attempt,
    change_attempt,
    find_job_record,
    read_attempts,
    read_failures,
    write_job_record,
)
from toolkit.launch.measured import keep_measurement
from toolkit.launch.nodes import CRASH, NodeLedger, choose_exclusions
from toolkit.launch.placement import usable_nodes
from toolkit.launch.verdict import BY_SCHEDULER, NODE_FAIL, PREEMPTED, Ending, blame, decide, first_line
from toolkit.log import setup_logging
from toolkit.modes import PRIVATE_UMASK
from toolkit.monitor.history import newest_steps
from toolkit.rundir import RunDir

log = logging.getLogger("toolkit.launch.after")  # run as a program its __name__ is another, of which nothing is shown

# Without its controller the job's nodes serve nobody else either, so there is nothing better to do than to wait.
_PATIENCE_S = 86400.0
_MEASURE_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class After:
    """An attempt whose ranks are gone, with the run and the job it belongs to."""

    run_dir: RunDir
    cfg: RunConfig
    job: OwnJob
    status: JobStatus
    """Of the job."""
    code: int
    """Exit code of the ranks."""

    def act(self) -> int:
        """Close the attempt, decide whether the run goes on, see to it; give the exit code of the job."""
        failures = read_failures(self.run_dir, self.job.attempt)
        fate = self._ask_fate()
        # told to end without that, it is preempted: its nodes are wanted, and it goes on later
        is_halted = self.run_dir.halt_path.exists() or fate is Fate.CANCELLED
        self._blame(self._close_attempt(failures, fate, is_halted=is_halted))
        if fate not in {Fate.OUT_OF_TIME, Fate.BROKEN_OFF}:  # then there is no time to lose
            self._keep_measurement()
        if fate is Fate.REQUEUED:
            self._tell_next(BY_SCHEDULER)
            return EXIT_DONE
        section = self.cfg.cluster
        attempts = read_attempts(self.run_dir)[self._record.attempts_before :]
        ending = Ending(attempts=attempts, failures=failures, is_halted=is_halted)
        verdict = decide(ending, max_requeues=section.max_requeues, max_fruitless=section.max_fruitless)
        if verdict.goes_on:
            return self._go_on()
        self._tell_next(f"nothing: {verdict.reason}")
        log.info("the run ends here: %s", verdict.reason)
        return EXIT_BUG if verdict.is_failure else EXIT_DONE

    def _ask_fate(self) -> Fate:
        return self.status.fate(restarts=int(self.job.attempt.rpartition(".")[2]))

    def _blame(self, attempt: Attempt) -> None:
        """Write the culprits into the ledger of nodes; that it cannot be written must not end the run."""
        about: dict[str, Any] = {"reason": attempt.reason, "run": self.run_dir.name, "attempt": attempt.attempt}
        try:
            for node in attempt.culprits:
                self._nodes.record(node, attempt.cause, now=time.time(), **about)
        except (OSError, ToolkitError) as error:
            log.warning("%s cannot be written: %s", self._nodes.path, error)

    def _keep_measurement(self) -> None:
        """Let later plans learn from this run, for a moment: the site's folder may hang where the run's does not."""

        def keep() -> None:
            try:
                log.info("%s", keep_measurement(self.run_dir))
            except Exception as error:  # told; what is measured never stops a run
                log.warning("later plans are not corrected by this run: %s", first_line(str(error)))

        thread = threading.Thread(target=keep, name="measurement", daemon=True)
        thread.start()
        thread.join(_MEASURE_S)
        if thread.is_alive():
            log.warning("later plans are not corrected by this run: no answer within %.0f s", _MEASURE_S)

    @property
    def _nodes(self) -> NodeLedger:
        return NodeLedger(self.run_dir.root.parent)

    def _close_attempt(self, failures: list[Failure], fate: Fate, *, is_halted: bool) -> Attempt:
        """Complete the line of the attempt with what is known now."""
        attempts = read_attempts(self.run_dir)
        known = next((one for one in attempts if one.attempt == self.job.attempt), None)
        if known is None:  # it did not get as far as to add its line
            nodes = tuple(dict.fromkeys(failure.node for failure in failures)) or self.status.nodes
            known = Attempt(
                attempt=self.job.attempt,
                job_id=self.job.job_id,
                nodes=nodes,
                layout="",
                start_time=self.status.start_time or time.time(),
            )
            begin_attempt(self.run_dir, known)
        saved = layout.list_steps(self.run_dir.find_checkpoints(self.cfg.checkpoint.dir))
        fields: dict[str, Any] = {"end_time": time.time(), "saved_step": saved[-1] if saved else None}
        if known.outcome == "RUNNING":
            causes = [failure for failure in failures if not failure.is_echo]
            fields |= self._tell_crash(known, causes)
            if fate in {Fate.OPEN, Fate.UNKNOWN} and not is_halted:
                fields["culprits"] = blame(causes, self.status.exit_note, num_nodes=len(known.nodes))
        if not is_halted:
            fields |= self._tell_break(known)
        change_attempt(self.run_dir, self.job.attempt, **fields)
        return replace(known, **fields)

    def _tell_break(self, attempt: Attempt) -> dict[str, Any]:
        """Say that the scheduler broke the attempt off; nothing where its ranks ended by themselves.

        A rank that ends with an error then has lost its peers, or what it was told to leave.
        """
        note = self.status.exit_note
        if self.status.has_failed_node and attempt.outcome == "RUNNING":
            nodes = tuple(expand_nodes(find_lost_nodes(note)))
            return {
                "outcome": NODE_FAIL,
                "reason": note if nodes else "a node failed",
                "culprits": nodes,
                "cause": CRASH,
            }
        if self.status.is_preempted and attempt.outcome in {"RUNNING", "STOPPED"}:
            return {"outcome": PREEMPTED, "reason": "its nodes were wanted for another job (preempted)"}
        return {}

    def _tell_crash(self, attempt: Attempt, causes: list[Failure]) -> dict[str, Any]:
        exit_note = self.status.exit_note
        newest = next(newest_steps(self.run_dir.metrics_path), None)
        is_own = newest is not None and newest.get("attempt") == attempt.attempt
        return {
            "outcome": "CRASHED" if causes else "KILLED",
            "cause": causes[0].cause if causes else "crash",
            "reason": first_line(causes[0].error) if causes else exit_note or f"exit code {self.code}",
            "last_step": newest["step"] if newest is not None and is_own else attempt.first_step,
        }

    @property
    def _record(self) -> JobRecord:
        known = find_job_record(self.run_dir)  # none: handed in by hand, with sbatch/train.sbatch
        return known or JobRecord(scheduler=self.job.cluster.name, job_id=self.job.job_id, attempts_before=0)

    def _go_on(self) -> int:
        """Requeue the job, or hand in another one where nodes must be avoided or a requeue is forbidden."""
        bad = self._choose_exclusions()
        cluster, job_id = self.job.cluster, self.job.job_id
        mark = follower_mark(settle(self.run_dir).run_id, f"after-{self.job.attempt}")
        try:
            fate = replace(self, status=cluster.state(job_id))._ask_fate()  # meanwhile
            if fate is Fate.CANCELLED:
                self._tell_next("nothing: it was stopped")
                return EXIT_DONE
            can_requeue = self.status.can_requeue and fate is not Fate.BROKEN_OFF
            if can_requeue and set(bad) <= set(self.status.exclude) and self._requeue():
                return EXIT_DONE
            new_id = cluster.follow_up(
                job_id,
                script_path=self.run_dir.script_path,
                exclude=tuple(bad),
                mark=mark,
                pass_env=self.cfg.cluster.pass_env,
            )
        except ClusterError as error:
            self._tell_next(f"nothing: {first_line(str(error))}")
            log.error("the run cannot go on by itself: %s", error)
            return EXIT_BUG
        write_job_record(self.run_dir, replace(self._record, job_id=new_id, mark=mark, submit_time=None))
        without = "".join(f", without {node} ({reason})" for node, reason in bad.items())
        self._tell_next(f"job {new_id}{without}")
        log.info("job %s goes on with the run%s", new_id, without)
        return self.code

    def _requeue(self) -> bool:
        """Requeue the job; False: it is forbidden here, though the job asked for it."""
        cluster, job_id = self.job.cluster, self.job.job_id
        self._tell_next("requeued")
        log.info("requeueing job %s", job_id)
        try:
            cluster.requeue(job_id)  # Slurm ends this process here, and the command that asked
        except ClusterError as error:
            fate = replace(self, status=cluster.state(job_id))._ask_fate()
            log.warning("after the requeue job %s is %s: %s", job_id, fate.value, error)
            return fate is Fate.REQUEUED
        return True

    def _choose_exclusions(self) -> dict[str, str]:
        """Give the nodes that the next attempt is to leave out, with the reason; none where that cannot be told."""
        section = self.cfg.cluster
        try:
            bad = self._nodes.excluded(time.time())
            usable = usable_nodes(self.job.cluster, section) if bad else []
        except (OSError, ToolkitError) as error:
            log.warning("no node is left out: %s", error)
            return {}
        return {node: bad[node].reason for node in choose_exclusions(bad, usable, section.nodes)}

    def _tell_next(self, text: str) -> None:
        change_attempt(self.run_dir, self.job.attempt, next=text)


def main(run_root: Path, code: int) -> int:
    """Look after an attempt that has ended; give the exit code of the job."""
    # A time limit that is reached now must not end the run; Slurm leaves KillWait until it kills.
    signal.signal(signal.SIGTERM, lambda *_: None)
    setup_logging(rank=0, node="after")
    os.umask(PRIVATE_UMASK)
    run_dir = RunDir(run_root)
    job = read_own_job(os.environ, patience_s=_PATIENCE_S)
    if (refusal := run_dir.refusal_path(job.attempt)).is_file():
        log.error("this job ends, and the run stays as it is: %s", first_line(records.read_text(refusal) or ""))
        return EXIT_BUG
    cfg = read_config(run_dir)
    return After(run_dir=run_dir, cfg=cfg, job=job, status=job.cluster.state(job.job_id), code=code).act()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
