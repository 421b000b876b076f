"""The one loop: batches in, numbers and state out, until the tokens are done or there is a reason to stop."""

import contextlib
import enum
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from toolkit.checkpoint import layout, restore
from toolkit.checkpoint.upload import Mirror
from toolkit.config.schema import RunConfig
from toolkit.data.loader import MicroBatch, PrefetchingLoader
from toolkit.data.mixture import Member
from toolkit.data.places import ShardPlaces
from toolkit.distributed import World
from toolkit.errors import TryAgainError
from toolkit.log import RankFormatter
from toolkit.monitor import metrics
from toolkit.monitor.rate import RateMeter
from toolkit.monitor.sinks import Sinks
from toolkit.rundir import RunDir
from toolkit.topology import Topology
from toolkit.train.engine import Engine, StepResult, build_engine
from toolkit.train.evaluate import Validation
from toolkit.train.guard import Act, Guard, Verdict
from toolkit.train.pace import Pace
from toolkit.train.reading import open_loader, run_index
from toolkit.train.saving import Saving
from toolkit.train.schedule import rate_of_run
from toolkit.train.stop import StepTimes, Stop, StopJudge

log = logging.getLogger(__name__)


class End(str, enum.Enum):
    """How an attempt ended."""

    FINISHED = "FINISHED"
    REQUEUE = "REQUEUE"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What the loop gives back; steps are counted in optimizer steps done."""

    end: End
    reason: str
    first_step: int
    last_step: int
    seconds: dict[str, float]
    """How long parts of the attempt took: build, load, first_step, save, stall."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What the loop works with and does not make itself."""

    world: World
    run_dir: RunDir
    members: Sequence[Member]
    """The datasets that are read."""
    places: ShardPlaces
    checkpoints_dir: Path
    mirror: Mirror | None
    """Copies checkpoints to a URL; on rank 0, where one is asked for."""
    judge: StopJudge
    failures_per_hour: float
    """Of the whole job, as far as is known: how often to save depends on it."""
    beat: Callable[[str, int], None]
    """Is told each phase that begins, and the steps done before it: who hears none for long ends the process."""
    refuse_ghost: Callable[[], None]
    """Raises when another attempt has begun in the run's directory: before anything is written there."""
    formatter: RankFormatter
    rate: RateMeter
    boundaries: Sequence[int]


class Training:
    """A run on this rank: engine, data and the step it has reached."""

    def __init__(self, cfg: RunConfig, around: Surroundings) -> None:
        assert cfg.parallel.stages is not None, "parallel.stages is not resolved"
        self.cfg = cfg
        self.around = around
        self.topology = Topology(stages=cfg.parallel.stages, replicas=cfg.replicas)
        self.replica = self.topology.replica_of(around.world.rank)
        self.step_times = StepTimes()
        self.peak_bytes = 0
        self.seconds: dict[str, float] = {}
        with self._timed("build"):
            self.engine: Engine = build_engine(cfg, boundaries=around.boundaries, device=around.world.device)
            loader = open_loader(cfg, around.members, around.places, device=around.world.device)
            self.saving = Saving(
                cfg,
                around.checkpoints_dir,
                world=around.world,
                replica=self.replica,
                mirror=around.mirror,
                failures_per_hour=around.failures_per_hour,
                refuse_ghost=around.refuse_ghost,
            )
        with self._timed("load"):
            self.step = self._load(up_to=None)
        self.guard = Guard(
            cfg.faults,
            around.run_dir,
            around.world,
            topology=self.topology,
            loader=loader,
            names=[member.name for member in around.members],
        )
        self.pace = Pace(cfg.faults, around.world, topology=self.topology)
        loader = loader.skipping(self.guard.skips)
        if around.world.place.local_rank == 0:
            around.places.prefetch(loader.shards_ahead(self.step))
        self.loader = PrefetchingLoader(loader, replica=self.replica, device=around.world.device)

    def run(self, sinks: Sinks) -> Outcome:
        """Train until the end, a stop, or numbers that stay bad."""
        first_step = self.step
        with contextlib.closing(self.loader), contextlib.closing(self.around.places), self.saving:
            end, reason = self._run(sinks)
            if end is not End.FAILED:
                self.around.beat("last save", self.step)
                self.saving.finish(self.engine, self._index())
        return Outcome(
            end=end,
            reason=reason,
            first_step=first_step,
            last_step=self.step,
            seconds={**self.seconds, **self.saving.seconds},
        )

    def _run(self, sinks: Sinks) -> tuple[End, str]:
        validation = self._open_validation()
        ending, _ = self._agree()  # a signal may have come during start-up
        while self.step < self.cfg.num_steps and ending is None:
            started = time.monotonic()
            self.around.beat("data", self.step)
            micro_batches = self.loader.micro_batches(self.step)
            self.around.beat("step", self.step)
            values, result = self._train_step(micro_batches, started=started)
            verdict = self.guard.judge(self.step, result, saved_steps=self.saving.list_steps)
            if verdict.act is not Act.GO_ON:
                ending = self._mend(verdict, micro_batches, result, sinks) or self._agree()[0]
                continue
            self.step += 1
            self.saving.tell()
            if validation and self._is_due(self.cfg.monitor.eval_every, step=self.step):
                self.around.beat("evaluation", self.step)
                values |= validation.losses(self.engine)
            values |= self.pace.take(result.forward_s)
            sinks.write(self.step, values)
            self._time_step(time.monotonic() - started)
            ending, is_save_due = self._agree()
            if is_save_due and ending is None and self.guard.is_calm:
                self.around.beat("save", self.step)
                self.saving.begin(self.engine, self._index())
        return ending or (End.FINISHED, "all tokens are done")

    def _train_step(
        self, micro_batches: Sequence[MicroBatch], *, started: float
    ) -> tuple[dict[str, float], StepResult]:
        self.around.formatter.step = self.step + 1
        read = time.monotonic()
        learning_rate = rate_of_run(self.cfg, step=self.step)
        result = self.engine.train_step(micro_batches, learning_rate=learning_rate)
        now = time.monotonic()
        values = {
            metrics.LOSS: result.loss,
            metrics.GRAD_NORM: result.grad_norm,
            metrics.LEARNING_RATE: learning_rate,
            metrics.TOKENS: float((self.step + 1) * self.cfg.batch.tokens_per_step),
            **self.around.rate.step(step_s=now - started, data_s=read - started),
        }
        if self.peak_bytes:
            values[metrics.PEAK_GIB] = self.peak_bytes / 2**30
        eta_s = self.around.rate.eta_s(self.cfg.num_steps - self.step - 1)
        if eta_s is not None:
            values[metrics.ETA_S] = eta_s
        return values, result

    def _mend(
        self, verdict: Verdict, micro_batches: Sequence[MicroBatch], result: StepResult, sinks: Sinks
    ) -> tuple[End, str] | None:
        """Leave out the samples of a bad step, and go back where it must be; an ending where nothing helps."""
        if not result.applied:
            self.guard.keep(self.step, micro_batches, result, saved_step=self.saving.saved_step)
        if verdict.act is Act.GIVE_UP:
            return End.FAILED, verdict.reason
        bad_step = self.step
        if verdict.back_to is not None:
            self.around.beat("load", self.step)
            self.saving.settle()
            self.step = self._load(up_to=verdict.back_to) if verdict.back_to else self.saving.forget_all()
            sinks.rewind(self.step)
        self.loader.skip(self.guard.record(verdict, step=bad_step))
        if verdict.back_to == 0:
            raise TryAgainError(f"{verdict.reason}\n  no checkpoint is old enough\n  the run begins again")
        return None

    def _agree(self) -> tuple[tuple[End, str] | None, bool]:
        """Ask all ranks whether one of them has a reason to stop, and rank 0 whether to save: all act alike.

        On the way they learn how full the fullest of them is.
        """
        judge = self.around.judge
        step_s = self.step_times.longest(evaluates=self._is_due(self.cfg.monitor.eval_every, step=self.step + 1))
        mine = judge.reason(now=time.time(), step_s=step_s, save_s=self.saving.longest_save_s)
        # not what the allocator keeps: that grows to fill a device whose tensors have room
        peak_bytes = torch.cuda.max_memory_allocated() if self.around.world.device.type == "cuda" else 0
        told = [mine, self.saving.is_due(self.step), peak_bytes]
        agreed, is_save_due, self.peak_bytes = self.around.world.agree(told)
        judge.hear(Stop(agreed))
        if self.step < self.cfg.num_steps and agreed == Stop.TIME_LIMIT:
            return (End.REQUEUE, judge.why), False
        if self.step < self.cfg.num_steps and agreed == Stop.TERMINATED:
            return (End.STOPPED, "told to end (SIGTERM)"), False
        return None, bool(is_save_due)

    def _time_step(self, seconds: float) -> None:
        self.step_times.take(seconds, evaluated=self._is_due(self.cfg.monitor.eval_every, step=self.step))
        self.seconds.setdefault("first_step", seconds)

    def _is_due(self, every: int | None, *, step: int) -> bool:
        return bool(every) and step % (every or 1) == 0

    def _open_validation(self) -> Validation | None:
        if self.cfg.monitor.eval_every is None:
            return None
        return Validation(self.cfg, self.around.members, locate_in=self.around.places.locate_in, replica=self.replica)

    def _load(self, *, up_to: int | None) -> int:
        loaded = restore.load(
            self.engine.deepspeed,
            self.engine.named_weights(),
            self.around.checkpoints_dir,
            world=self.around.world,
            expected=run_index(self.cfg, self.around.members, step=0),
            mirror=self.around.mirror,
            up_to=up_to,
        )
        if loaded is None:
            assert up_to is None, f"the checkpoint of step {up_to} has gone"
            return 0
        log.info("resumed from %s", loaded.path)
        self.saving.saved_step = loaded.index.step
        return loaded.index.step

    def _index(self) -> layout.Index:
        return run_index(self.cfg, self.around.members, step=self.step)

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        self.around.beat(phase, 0)
        started = time.monotonic()
        yield
        self.seconds[phase] = time.monotonic() - started
