"""Faults of a run on emulated nodes, a function each: it does harm, and what a person would do about it.

Most faults need nobody. Where a run was stopped by a person, or its job is gone as a whole, a person goes on with it.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import psutil
from emulated import Run

from toolkit.checkpoint import layout
from toolkit.errors import ClusterError

GRACE_S = 5.0
"""Of a preemption."""
LIMIT_S = 14.0
"""What a shortened time limit leaves."""
_LONG_S = 1e6
_WAIT_S = 120.0
_NOT_SAVED = re.compile(r"step \d+ (is not|could not be) saved")


class MissedError(Exception):
    """There was nothing to hit: the run has just ended, or starts again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What faults are done to."""

    run: Run
    rng: random.Random
    checkpoints_dir: Path
    disk_bytes: int
    """Size of the small file system that holds the checkpoints; 0: they lie elsewhere."""
    hit: list[str] = field(default_factory=list)
    """Attempts that were harmed, as `<job>.<restarts>`."""

    def mark(self) -> None:
        """Record the attempt that is about to be harmed."""
        self.hit.append(self.run.attempt())


Fault: TypeAlias = Callable[[Scene], str]
"""Does the harm and says what it did, in words."""


def kill_rank(scene: Scene) -> str:
    """End a rank with SIGKILL."""
    rank, process = _choose_rank(scene)
    with _missing():
        process.kill()
    return f"rank {rank} killed"


def stop_rank(scene: Scene) -> str:
    """Let a rank hang: SIGSTOP."""
    rank, process = _choose_rank(scene)
    with _missing():
        process.suspend()
    return f"rank {rank} stands still"


def kill_node(scene: Scene) -> str:
    """Let a node crash."""
    node = scene.rng.choice(scene.run.status().nodes)
    scene.mark()
    with _missing():
        scene.run.cluster.kill_node(scene.run.job_id(), int(node.removeprefix("node")))
    return f"{node} crashed"


def ask_for_requeue(scene: Scene) -> str:
    """Tell one rank to save and go on in another attempt: SIGUSR2."""
    rank, process = _choose_rank(scene)
    with _missing():
        process.send_signal(signal.SIGUSR2)
    return f"rank {rank} got USR2"


def preempt(scene: Scene) -> str:
    """Let another job have the nodes: SIGTERM, and the end a few seconds later."""
    scene.mark()
    with _missing():
        scene.run.cluster.preempt(scene.run.job_id(), grace_s=GRACE_S)
    return f"preempted with {GRACE_S:.0f} s grace"


def shorten_limit(scene: Scene) -> str:
    """Let the time limit come near; once the run has gone on, it is long again."""
    run, job_id, attempt = scene.run, scene.run.job_id(), scene.run.attempt()
    started = run.status().start_time
    if started is None:
        raise MissedError
    scene.mark()
    with _missing():
        run.cluster.set_time_limit(job_id, limit_s=time.time() - started + LIMIT_S)
    _await(lambda: run.attempt() != attempt or not run.status().state.is_live)
    with contextlib.suppress(ClusterError):  # it may just have done its last step
        run.cluster.set_time_limit(run.job_id(), limit_s=_LONG_S)
    return f"the time limit came {LIMIT_S:.0f} s near"


def stop_and_resume(scene: Scene) -> str:
    """Stop the run by command, and go on with it by command."""
    scene.mark()
    _stop(scene.run)
    _go_on(scene.run)
    return "stopped and resumed"


def move(scene: Scene) -> str:
    """Stop the run, and go on with as many ranks on another number of nodes."""
    scene.mark()
    _stop(scene.run)
    nodes, ranks = (1, 2) if len(scene.run.status().nodes) == 2 else (2, 1)
    _go_on(scene.run, "--nodes", str(nodes), "--gpus-per-node", str(ranks))
    return f"moved to {nodes} x {ranks} ranks"


def kill_controller(scene: Scene) -> str:
    """Kill what looks after the job, and with it the job; submit again by command."""
    controller, ranks = scene.run.controller(), scene.run.ranks()
    if controller is None:
        raise MissedError
    scene.mark()
    with _missing():
        controller.kill()
    psutil.wait_procs([controller, *ranks], timeout=_WAIT_S)
    _go_on(scene.run)
    return "controller killed, resumed"


def damage_checkpoint(scene: Scene) -> str:
    """Cut off the newest checkpoint's file, or flip a bit in it, and kill a rank so that it is read."""
    steps = layout.list_steps(scene.checkpoints_dir)
    if len(steps) < 2:
        raise MissedError  # to go back to nothing is refused, rightly
    newest = layout.step_dir(scene.checkpoints_dir, step=steps[-1])
    try:
        path = scene.rng.choice([entry for entry in sorted(newest.iterdir()) if entry.stat().st_size])
        done = scene.rng.choice((_cut_off, _flip_bit))(path, scene.rng)
    except FileNotFoundError:  # it has just been deleted
        raise MissedError from None
    return f"{newest.name}/{path.name} {done}; {kill_rank(scene)}"


def fill_disk(scene: Scene) -> str:
    """Leave no space for checkpoints until one could not be saved, then free it; training goes on meanwhile."""
    if not scene.disk_bytes:
        raise MissedError
    scene.mark()
    filler = scene.checkpoints_dir / "filler"
    logs = sorted(scene.run.run_dir.attempt_dir(scene.hit[-1]).glob("*.out"))
    before = _count_failed_saves(logs)

    def is_felt() -> bool:
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:  # room is made for a save: fill it
            while True:
                file.write(b"\0" * 65536)
        return _count_failed_saves(logs) > before or not scene.run.ranks()

    try:
        _await(is_felt)
        num_failed = _count_failed_saves(logs) - before
    finally:
        filler.unlink(missing_ok=True)
    if not num_failed:
        raise MissedError  # the attempt has ended by itself
    return "disk full until a save failed"


def kill_during_start(scene: Scene) -> str:
    """Kill a rank, and another one while the next attempt starts."""
    attempt = scene.run.attempt()
    first = kill_rank(scene)
    _await(lambda: scene.run.attempt() != attempt and len(scene.run.ranks()) > 1)
    time.sleep(scene.rng.uniform(0.1, 3.0))
    return f"{first}; while it started again, {kill_rank(scene)}"


def do_two(scene: Scene) -> str:
    """Do two faults at once."""
    pairs: list[tuple[Fault, Fault]] = [
        (kill_rank, kill_rank),
        (kill_rank, kill_node),
        (stop_rank, ask_for_requeue),
        (stop_rank, kill_rank),
        (preempt, kill_rank),
        (preempt, kill_node),
        (ask_for_requeue, kill_rank),
        (ask_for_requeue, preempt),
        (damage_checkpoint, kill_node),
    ]
    told = []
    for fault in scene.rng.choice(pairs):
        with contextlib.suppress(MissedError):  # the first may have hit so hard that nothing is left
            told.append(fault(scene))
    if not told:
        raise MissedError
    return " and ".join(told)


FAULTS: dict[str, Fault] = {
    "rank killed": kill_rank,
    "rank hangs": stop_rank,
    "node killed": kill_node,
    "USR2": ask_for_requeue,
    "preempted": preempt,
    "time limit": shorten_limit,
    "stop, resume": stop_and_resume,
    "other nodes": move,
    "controller killed": kill_controller,
    "checkpoint damaged": damage_checkpoint,
    "disk full": fill_disk,
    "during start-up": kill_during_start,
    "two at once": do_two,
}
"""By the name in the tables."""

IN_PLACE = frozenset({"disk full"})
"""Those that the same attempt outlives."""


@contextlib.contextmanager
def small_disk(directory: Path, *, num_bytes: int) -> Iterator[int]:
    """Mount a small file system in memory; give its size, or 0 where that is not allowed."""
    directory.mkdir(parents=True, exist_ok=True)
    options = f"size={num_bytes},mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    is_mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield num_bytes if is_mounted else 0
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=False)


def _choose_rank(scene: Scene) -> tuple[int, psutil.Process]:
    ranks = scene.run.ranks()
    if not ranks:
        raise MissedError
    scene.mark()
    rank = scene.rng.randrange(len(ranks))
    return rank, ranks[rank]


@contextlib.contextmanager
def _missing() -> Iterator[None]:
    try:
        yield
    except (psutil.Error, ClusterError) as error:
        raise MissedError from error


def _await(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise MissedError
        time.sleep(0.05)


def _stop(run: Run) -> None:
    if run.verb("stop").returncode != 0:
        raise MissedError  # it has just ended
    run.await_end(timeout_s=_WAIT_S)


def _go_on(run: Run, *words: str) -> None:
    done = run.verb("resume", *words)
    if done.returncode != 0 and not is_finished(run):
        raise RuntimeError(f"resume was refused: {done.stderr}")


def is_finished(run: Run) -> bool:
    """Whether all its tokens are done."""
    return any(attempt.outcome == "FINISHED" for attempt in run.attempts())


def _cut_off(path: Path, rng: random.Random) -> str:
    size = path.stat().st_size
    os.truncate(path, rng.randrange(size))
    return "cut off"


def _flip_bit(path: Path, rng: random.Random) -> str:
    place, bit = rng.randrange(path.stat().st_size), 1 << rng.randrange(8)
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ bit]))
    return f"has a flipped bit in byte {place}"


def _count_failed_saves(logs: list[Path]) -> int:
    return sum(len(_NOT_SAVED.findall(path.read_text(encoding="utf-8", errors="replace"))) for path in logs)
