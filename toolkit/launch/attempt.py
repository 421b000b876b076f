"""One attempt on one rank: connect, train, tell what came of it, act on it."""

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from toolkit.checkpoint.upload import Mirror
from toolkit.cluster.choose import read_own_job
from toolkit.config.schema import CheckpointSection, RunConfig, to_dict
from toolkit.data.mixture import open_members
from toolkit.data.places import ShardPlaces
from toolkit.distributed import Place, World, is_lost_connection, keep_freed_memory, read_place
from toolkit.errors import (
    EXIT_BUG,
    EXIT_DONE,
    CheckpointError,
    ConfigError,
    DataError,
    LostPeersError,
    RefusedError,
    RunError,
    ToolkitError,
    TryAgainError,
)
from toolkit.launch.gate.versions import find_odd, read_versions, say_versions
from toolkit.launch.health import is_wanted, refuse_bad_nodes
from toolkit.launch.identity import read_config
from toolkit.launch.ledger import Attempt, Failure, begin_attempt, change_attempt, read_attempts, write_failure
from toolkit.launch.nodes import NodeLedger
from toolkit.launch.progress import refuse_loss_here
from toolkit.launch.survey import record_bad_nodes
from toolkit.log import RankFormatter, setup_logging
from toolkit.monitor.history import newest_steps
from toolkit.monitor.rate import RateMeter
from toolkit.monitor.sinks import Sinks, open_sinks
from toolkit.plan.costs import layer_costs, train_flops_per_token
from toolkit.plan.hardware import find_hardware
from toolkit.plan.split import split_layers
from toolkit.redact import redact_values
from toolkit.rundir import RunDir
from toolkit.train.cadence import failure_rate
from toolkit.train.loop import End, Outcome, Surroundings, Training
from toolkit.train.stop import JobClock, Stop, StopFlag, StopJudge
from toolkit.train.watchdog import Hang, Watchdog

log = logging.getLogger(__name__)

Beat: TypeAlias = Callable[[str, int], None]

_NOTE_S = 10.0
_TIMEOUT_S = 1800.0  # of a collective: longer than any evaluation or save of one rank


def run_rank(run_dir: RunDir, stop: StopFlag) -> int:
    """Run one rank to the end of the attempt; give its exit code. What comes after it is decided in after.py."""
    place = read_place(os.environ)
    formatter = setup_logging(rank=place.rank, node=place.node)
    try:
        if run_dir.halt_path.exists():
            stop.take(Stop.TERMINATED)  # its signal came before there was anyone to hear it
        cfg = read_config(run_dir)
        world = World(place, timeout_s=_TIMEOUT_S)
        if world.device.type == "cpu":
            keep_freed_memory()
        outcome = _attempt(cfg, run_dir, world, stop, formatter)
        world.close()
    except Exception as error:
        return _fail(run_dir, place, error)
    return EXIT_BUG if outcome.end is End.FAILED else EXIT_DONE


def _attempt(cfg: RunConfig, run_dir: RunDir, world: World, stop: StopFlag, formatter: RankFormatter) -> Outcome:
    start_time = _own_start_time()
    seconds = {"connect": time.time() - start_time}
    record = Attempt(
        attempt=world.place.attempt,
        job_id=world.place.job_id,
        nodes=_gather_nodes(run_dir, world),
        layout=f"{cfg.parallel.stages} x {cfg.replicas}, ZeRO {cfg.parallel.zero_stage}",
        start_time=start_time,
        seconds=seconds,
    )
    if world.rank == 0:
        begin_attempt(run_dir, record)
    with contextlib.ExitStack() as closing:
        watchdog = closing.enter_context(contextlib.closing(_watch(cfg, run_dir, world)))
        clock = JobClock(_ask_for_deadline()) if world.rank == 0 else None
        if clock is not None:
            closing.callback(clock.close)
        if is_wanted(cfg):
            watchdog.beat("health", 0)
            started = time.monotonic()
            refuse_bad_nodes(cfg, run_dir, world, environ=os.environ)
            seconds["health"] = time.monotonic() - started
        judge = StopJudge(stop, clock, reserve_s=cfg.cluster.signal_delay_s)
        beat = _with_drill(watchdog.beat, judge, step=cfg.faults.drill_step)
        training = Training(cfg, _surround(cfg, run_dir, world, judge, beat, formatter))
        _refuse_loss(cfg, run_dir, world, step=training.step)
        if world.rank == 0:
            seconds |= training.seconds
            _tell_start(run_dir, record.attempt, step=training.step, seconds=seconds)
        sinks = _open_sinks(cfg, run_dir, world, step=training.step)
        outcome = training.run(sinks)
        if world.rank == 0:
            _tell_end(run_dir, record.attempt, outcome, seconds=seconds)
        sinks.close(outcome.end.value)  # may take minutes; srun ends a rank that outlives the others by one
    return outcome


def _gather_nodes(run_dir: RunDir, world: World) -> tuple[str, ...]:
    """List the nodes of the attempt, the ranks of which must have the same versions. Collective.

    Raises:
        TryAgainError: they do not; on every rank, with the same words. The few are left out of the next attempt.
    """
    place = world.place
    by_node: dict[str, str] = dict(world.gather((place.node, say_versions(read_versions()))))
    odd = find_odd(by_node)
    if not odd:
        return tuple(by_node)
    if world.rank == 0 and 2 * len(odd) < len(by_node):
        ledger = NodeLedger(run_dir.root.parent)
        record_bad_nodes(ledger, odd, run=run_dir.name, attempt=place.attempt, now=time.time())
    said = "; ".join(f"{node}: {words}" for node, words in list(odd.items())[:8])
    raise TryAgainError(
        f"nodes differ: {said}\n  all ranks of a run have the same versions\n"
        "  mend the environment of those nodes, or leave them out with cluster.exclude"
    )


def _own_start_time() -> float:
    """Tell when this process began, in Unix seconds; psutil's answer is off by up to a second.

    Source: proc(5), field 22 of /proc/[pid]/stat.
    """
    ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rsplit(") ", 1)[1].split()[19])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {part: round(value, 3) for part, value in seconds.items()}


def _watch(cfg: RunConfig, run_dir: RunDir, world: World) -> Watchdog:
    def tell(hang: Hang) -> None:
        failure = Failure(
            rank=world.rank,
            node=world.place.node,
            time=time.time(),
            is_echo=False,
            error=f"hang: {hang.text}",
            cause="hang",
            culprits=tuple(dict.fromkeys(world.node_of(rank) for rank in hang.late)),
        )
        write_failure(run_dir, world.place.attempt, failure)

    return Watchdog(
        cfg.faults,
        rank=world.rank,
        size=world.size,
        name_of=world.name_of,
        open_channel=lambda: world.open_channel("watchdog", timeout_s=_NOTE_S),
        on_hang=tell,
    )


def _with_drill(beat: Beat, judge: StopJudge, *, step: int | None) -> Beat:
    """Have the run stop after a step, as at its time limit; an attempt that begins with that step does not stop."""
    if step is None:
        return beat

    def beat_and_drill(phase: str, done: int) -> None:
        if phase == "step" and done == step - 1:
            judge.drill()
        beat(phase, done)

    return beat_and_drill


def _refuse_loss(cfg: RunConfig, run_dir: RunDir, world: World, *, step: int) -> None:
    """Keep a run that has lost its checkpoints from doing all again; before anything is written. Collective.

    Raises:
        RunError: it has; on every rank.
    """
    refusal = world.gather(refuse_loss_here(run_dir, cfg, step=step) if world.rank == 0 else None)[0]
    if refusal is not None:
        raise RunError(refusal)


def _tell_start(run_dir: RunDir, attempt: str, *, step: int, seconds: Mapping[str, float]) -> None:
    newest = next(newest_steps(run_dir.metrics_path), None)
    redone = max(0, newest["step"] - step) if newest else 0
    change_attempt(run_dir, attempt, first_step=step, redone=redone, seconds=_rounded(seconds))


def _tell_end(run_dir: RunDir, attempt: str, outcome: Outcome, *, seconds: Mapping[str, float]) -> None:
    log.info("%s at step %d: %s", outcome.end.value, outcome.last_step, outcome.reason)
    change_attempt(
        run_dir,
        attempt,
        end_time=time.time(),
        outcome=outcome.end.value,
        reason=outcome.reason,
        last_step=outcome.last_step,
        seconds=_rounded({**seconds, **outcome.seconds}),
    )


def _observe_failures(cfg: RunConfig, attempts: Sequence[Attempt]) -> float:
    """Estimate the failures an hour from the run's own attempts so far."""
    ended = [one for one in attempts if one.end_time is not None]
    return failure_rate(
        failures=sum(one.outcome in {"CRASHED", "KILLED"} for one in ended),
        gpu_hours=sum((one.end_time or 0) - one.start_time for one in ended) / 3600 * cfg.world_size,
        num_gpus=cfg.world_size,
    )


def _ask_for_deadline() -> Callable[[], float | None]:
    job = read_own_job(os.environ, patience_s=0.0)
    return lambda: job.cluster.deadline(job.job_id)


def _refuse_ghost(run_dir: RunDir, attempt: str) -> None:
    """Keep an attempt that the scheduler has given up, and could not end, from writing where the next one does."""
    newest = read_attempts(run_dir)[-1].attempt
    if newest != attempt:
        raise RunError(f"attempt {newest} has begun\n  attempt {attempt} was given up by the scheduler, and ends here")


def _surround(
    cfg: RunConfig, run_dir: RunDir, world: World, judge: StopJudge, beat: Beat, formatter: RankFormatter
) -> Surroundings:
    assert cfg.parallel.stages is not None, "parallel.stages is not resolved"
    costs = layer_costs(cfg.model, seq_len=cfg.data.seq_len)
    is_gpu = world.device.type == "cuda"
    hardware = find_hardware(cfg.cluster.gpu_type) if is_gpu and cfg.cluster.gpu_type else None
    members = open_members(cfg.data.weights)
    return Surroundings(
        world=world,
        run_dir=run_dir,
        members=members,
        places=ShardPlaces(members, cfg.data, os.environ),
        checkpoints_dir=run_dir.find_checkpoints(cfg.checkpoint.dir),
        mirror=_open_mirror(cfg.checkpoint, run_dir) if world.rank == 0 else None,
        judge=judge,
        # rank 0 alone says when to save, and a thousand ranks need not read one file
        failures_per_hour=_observe_failures(cfg, read_attempts(run_dir) if world.rank == 0 else ()),
        beat=beat,
        refuse_ghost=partial(_refuse_ghost, run_dir, world.place.attempt),
        formatter=formatter,
        rate=RateMeter(
            tokens_per_step=cfg.batch.tokens_per_step,
            flops_per_token=train_flops_per_token(cfg.model, seq_len=cfg.data.seq_len),
            peak_flops=hardware.peak_bf16_flops * cfg.world_size if hardware else None,
        ),
        boundaries=split_layers(costs, stages=cfg.parallel.stages, split_by=cfg.parallel.split_by),
    )


def _open_sinks(cfg: RunConfig, run_dir: RunDir, world: World, *, step: int) -> Sinks:
    if world.rank != 0:
        return Sinks([])
    sinks = open_sinks(
        cfg.monitor,
        run_dir,
        name=cfg.run.name,
        attempt=world.place.attempt,
        num_steps=cfg.num_steps,
        config=to_plain(cfg),
    )
    sinks.rewind(step)
    return sinks


def to_plain(cfg: RunConfig) -> dict[str, object]:
    """Give what W&B shows of a configuration: all but the job's environment, shell lines and secrets."""
    sections = redact_values(to_dict(cfg))
    sections["cluster"] = {k: v for k, v in sections["cluster"].items() if k not in {"env", "setup"}}
    return dict(sections)


def _open_mirror(section: CheckpointSection, run_dir: RunDir) -> Mirror | None:
    if section.mirror_url is None:
        return None
    return Mirror(section.mirror_url, run_dir.checkpoints_dir, keep=section.keep, keep_every=section.keep_every)


_LASTING = (ConfigError, RefusedError, DataError, CheckpointError, RunError)
"""What the same job would meet again; all else may pass: a file system, a peer, a device."""


def _fail(run_dir: RunDir, place: Place, error: Exception) -> int:
    """Leave the reason where `status` and what comes after find it."""
    is_known = isinstance(error, ToolkitError)
    is_echo = isinstance(error, LostPeersError) or is_lost_connection(error)
    text = str(error) if is_known else f"{type(error).__name__}: {error}"
    failure = Failure(
        rank=place.rank,
        node=place.node,
        time=time.time(),
        is_echo=is_echo,
        error=text,
        is_lasting=isinstance(error, _LASTING),
    )
    write_failure(run_dir, place.attempt, failure)
    log.error("%s", text if is_known else traceback.format_exc())
    return error.exit_code if isinstance(error, ToolkitError) else EXIT_BUG
