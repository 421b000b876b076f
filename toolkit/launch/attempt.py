"""One attempt on one rank: connect, train, tell what came of it, act on it."""

import logging
import os
import time
import traceback
from dataclasses import replace
from pathlib import Path

from toolkit.checkpoint.upload import Mirror
from toolkit.cluster.choose import open_cluster
from toolkit.config.load import load_config
from toolkit.config.schema import CheckpointSection, RunConfig, to_dict
from toolkit.data.mixture import open_members
from toolkit.data.places import ShardPlaces
from toolkit.distributed import Place, World, is_lost_connection, read_place
from toolkit.errors import EXIT_BUG, EXIT_DONE, ToolkitError, TryAgainError
from toolkit.launch.ledger import Attempt, Failure, begin_attempt, end_attempt, fail_attempt, write_failure
from toolkit.log import RankFormatter, setup_logging
from toolkit.monitor.rate import RateMeter
from toolkit.monitor.sinks import Sinks, open_sinks, rewind_jsonl
from toolkit.plan.costs import layer_costs, train_flops_per_token
from toolkit.plan.hardware import find_hardware
from toolkit.plan.split import split_layers
from toolkit.rundir import RunDir
from toolkit.train.loop import End, Outcome, Surroundings, Training
from toolkit.train.stop import Stop, StopFlag

log = logging.getLogger(__name__)

_TIMEOUT_S = 1800.0  # of a collective: longer than any evaluation or save of one rank
_REQUEUE_WAIT_S = 120.0


def run_rank(run_dir: RunDir, stop: StopFlag) -> int:
    """Run one rank to the end of the attempt; give its exit code."""
    place = read_place(os.environ)
    formatter = setup_logging(rank=place.rank, node=place.node)
    try:
        cfg = load_config(run_dir.config_path).config
        world = World(place, timeout_s=_TIMEOUT_S)
        outcome = _attempt(cfg, run_dir, world, stop, formatter)
        world.close()
    except Exception as error:
        return _fail(run_dir, place, error)
    if outcome.end is End.REQUEUE and place.rank == 0:
        _requeue(run_dir, place, stop)
    return EXIT_BUG if outcome.end is End.FAILED else EXIT_DONE


def _attempt(cfg: RunConfig, run_dir: RunDir, world: World, stop: StopFlag, formatter: RankFormatter) -> Outcome:
    record = Attempt(
        attempt=world.place.attempt,
        job_id=world.place.job_id,
        nodes=tuple(dict.fromkeys(world.gather(world.place.node))),
        layout=f"{cfg.parallel.stages} x {cfg.replicas}, ZeRO {cfg.parallel.zero_stage}",
        start_time=time.time(),
    )
    if world.rank == 0:
        begin_attempt(run_dir, record)
    training = Training(cfg, _surround(cfg, run_dir, world, stop, formatter))
    sinks = _open_sinks(cfg, run_dir, world, step=training.step)
    outcome = _bound_requeues(training.run(sinks), world.place, limit=cfg.cluster.max_requeues)
    sinks.close(outcome.end.value)
    if world.rank == 0:
        log.info("%s at step %d: %s", outcome.end.value, outcome.last_step, outcome.reason)
        end = replace(record, end_time=time.time(), outcome=outcome.end.value, reason=outcome.reason)
        end = replace(end, first_step=outcome.first_step, last_step=outcome.last_step)
        end_attempt(run_dir, end)
    return outcome


def _surround(cfg: RunConfig, run_dir: RunDir, world: World, stop: StopFlag, formatter: RankFormatter) -> Surroundings:
    assert cfg.parallel.stages is not None, "parallel.stages is not resolved"
    costs = layer_costs(cfg.model, seq_len=cfg.data.seq_len)
    is_gpu = world.device.type == "cuda"
    hardware = find_hardware(cfg.cluster.gpu_type) if is_gpu and cfg.cluster.gpu_type else None
    members = open_members(cfg.data.weights)
    return Surroundings(
        world=world,
        members=members,
        places=ShardPlaces(members, cfg.data, os.environ),
        checkpoints_dir=run_dir.find_checkpoints(cfg.checkpoint.dir),
        mirror=_open_mirror(cfg.checkpoint, run_dir) if world.rank == 0 else None,
        stop=stop,
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
    rewind_jsonl(run_dir.metrics_path, step=step)
    return open_sinks(
        cfg.monitor,
        run_dir,
        name=cfg.run.name,
        attempt=world.place.attempt,
        num_steps=cfg.num_steps,
        config=to_plain(cfg),
    )


def to_plain(cfg: RunConfig) -> dict[str, object]:
    """Give what W&B shows of a configuration: all but the job's environment and shell lines."""
    sections = to_dict(cfg)
    sections["cluster"] = {k: v for k, v in sections["cluster"].items() if k not in {"env", "setup"}}
    return dict(sections)


def _open_mirror(section: CheckpointSection, run_dir: RunDir) -> Mirror | None:
    if section.mirror_url is None:
        return None
    return Mirror(section.mirror_url, run_dir.checkpoints_dir, keep=section.keep, keep_every=section.keep_every)


def _fail(run_dir: RunDir, place: Place, error: Exception) -> int:
    """Leave the reason where `status` finds it."""
    is_known = isinstance(error, ToolkitError)
    is_echo = isinstance(error, TryAgainError) or is_lost_connection(error)
    text = str(error) if is_known else f"{type(error).__name__}: {error}"
    failure = Failure(rank=place.rank, node=place.node, time=time.time(), is_echo=is_echo, error=text)
    write_failure(run_dir, place.attempt, failure)
    if place.rank == 0:
        fail_attempt(run_dir, place.attempt, reason=text.splitlines()[0], time=failure.time)
    log.error("%s", text if is_known else traceback.format_exc())
    return error.exit_code if isinstance(error, ToolkitError) else EXIT_BUG


def _bound_requeues(outcome: Outcome, place: Place, *, limit: int) -> Outcome:
    restarts = int(place.attempt.rpartition(".")[2])
    if outcome.end is not End.REQUEUE or restarts < limit:
        return outcome
    return replace(outcome, end=End.FAILED, reason=f"{outcome.reason}, and cluster.max_requeues={limit} is used up")


def _requeue(run_dir: RunDir, place: Place, stop: StopFlag) -> None:
    """Put the job back into the queue, then wait to be ended: leaving first would complete the job."""
    cluster = open_cluster(place.cluster, state_dir=Path(os.environ.get("TOOLKIT_LOCAL_STATE", run_dir.root)))
    cluster.requeue(place.job_id)
    deadline = time.monotonic() + _REQUEUE_WAIT_S
    while stop.reason is not Stop.TERMINATED and time.monotonic() < deadline:
        time.sleep(0.1)
