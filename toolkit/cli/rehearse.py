"""`submit --rehearse`: what a person sees of a rehearsal."""

import argparse
import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from toolkit.cluster.base import NEVER_STARTS
from toolkit.errors import RefusedError, RunError
from toolkit.launch.jobs import job_status
from toolkit.launch.ledger import JobRecord
from toolkit.launch.phases import count, find_trouble
from toolkit.launch.rehearsal import (
    LIMIT_S,
    Rehearsal,
    claim,
    hand_in,
    plan_here,
    plan_on_cluster,
    remove,
    watch,
)
from toolkit.launch.shrink import NUM_STEPS
from toolkit.launch.snapshot import newest_code
from toolkit.launch.submit import Request
from toolkit.rundir import RunDir


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Let a verb that submits rehearse first."""
    verb.add_argument(
        "--rehearse",
        action="store_true",
        help="first run the same job, shrunken, on emulated nodes here, for a minute; submit when it is good",
    )
    verb.add_argument(
        "--on-cluster",
        action="store_true",
        help=f"with --rehearse: as a job of {LIMIT_S // 60} minutes in the run's partition; the run waits for it",
    )


@contextlib.contextmanager
def rehearsed(request: Request, asked: argparse.Namespace, console: Console) -> Iterator[Request]:
    """Rehearse a run as it is asked for; give the request with what the rehearsal adds to it.

    Raises:
        RunError: it cannot be rehearsed so.
        RefusedError: the rehearsal failed; its files stay.
    """
    if asked.on_cluster and not asked.rehearse:
        raise RunError("--on-cluster without --rehearse\n  it says where to rehearse\n  add --rehearse")
    if not asked.rehearse:
        yield request
    elif asked.on_cluster:
        rehearsal = plan_on_cluster(request.plan.cfg, request.spec, request.cluster)
        _tell_plan(rehearsal, console)
        console.print(f"the run starts when it is good: {rehearsal.run_dir.root}", markup=False)
        if asked.dry_run:
            script = rehearsal.cluster.render(rehearsal.spec)
            console.print(f"\n{rehearsal.run_dir.script_path} would be:\n\n{script}", markup=False)
        yield replace(request, rehearsal=rehearsal)
    else:
        rehearsal = plan_here(request.plan.cfg)
        with claim(rehearsal):
            _rehearse_here(rehearsal, console)
            try:
                yield replace(request, code_dir=newest_code(rehearsal.run_dir.code_dir))
            finally:
                remove(rehearsal)


def _rehearse_here(rehearsal: Rehearsal, console: Console) -> None:
    _tell_plan(rehearsal, console)
    started = time.monotonic()
    try:
        hand_in(rehearsal, code_dir=None, dependency=None)
        with console.status("rehearsing"):
            problem = watch(
                rehearsal,
                tell=lambda phase: console.print(f"{time.monotonic() - started:5.0f} s  {phase}", markup=False),
            )
    except BaseException:  # Ctrl-C, too: what was broken off tells nothing
        remove(rehearsal)
        raise
    if problem is not None:
        raise RefusedError([problem])
    console.print("rehearsed  good: with its code, data, layout, places and shell lines the run starts, trains, saves,")
    console.print("           stops, is requeued, goes on from its checkpoint and finishes")
    if rehearsal.cfg.checkpoint.mirror_url is not None:
        console.print(f"           its checkpoints arrive in {rehearsal.cfg.checkpoint.mirror_url}", markup=False)
    console.print(f"not seen   {'; '.join(rehearsal.not_seen)}", markup=False)


def _tell_plan(rehearsal: Rehearsal, console: Console) -> None:
    cfg = rehearsal.cfg
    is_here = rehearsal.cluster.name == "local"
    nodes = count(cfg.cluster.nodes, "emulated node" if is_here else "node")
    where = f"on {nodes} here" if is_here else f"on {nodes}, twice {LIMIT_S // 60} minutes at most"
    size = f"{count(cfg.parallel.stages or 1, 'stage')} x {count(cfg.replicas, 'replica')}"
    console.print(f"rehearsal  {size} {where}: {NUM_STEPS} steps, a stop and a resume")


def describe_rehearsal(record: JobRecord | None, *, num_attempts: int) -> dict[str, Any] | None:
    """Say how the rehearsal stands that a run waits for; None: it waits for none, or has begun."""
    if record is None or record.rehearsed_in is None or num_attempts > record.attempts_before:
        return None
    run_dir = RunDir(Path(record.rehearsed_in))
    status = job_status(run_dir)
    if status is None:
        return None
    problem = None if status.state.is_live else find_trouble(run_dir, status)
    if status.state.is_live or problem is None:
        said = f"its rehearsal: job {status.job_id} {status.state.value}, {run_dir.root}"
    elif status.reason == NEVER_STARTS:
        said = "its rehearsal never started"
    else:
        said = str(problem)
    return {"directory": str(run_dir.root), "job": status.job_id, "state": status.state.value,
            "reason": status.reason, "said": said}  # fmt: skip
