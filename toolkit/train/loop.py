"""The one loop: batches in, numbers and state out, until the tokens are done or there is a reason to stop."""

import contextlib
import dataclasses
import enum
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from toolkit.checkpoint import layout, restore
from toolkit.checkpoint.saver import Saved, Saver
from toolkit.checkpoint.upload import Mirror
from toolkit.config.schema import RunConfig
from toolkit.data.loader import PrefetchingLoader, StepLoader, open_streams
from toolkit.data.mixture import Member, identify
from toolkit.data.places import ShardPlaces
from toolkit.distributed import World
from toolkit.errors import CheckpointError
from toolkit.log import RankFormatter
from toolkit.monitor import metrics
from toolkit.monitor.rate import RateMeter
from toolkit.monitor.sinks import Sinks
from toolkit.monitor.watch import check_finite
from toolkit.topology import Topology
from toolkit.train.cadence import SavePacer
from toolkit.train.engine import Engine, StepResult, batch_shape, build_engine
from toolkit.train.evaluate import Validation
from toolkit.train.schedule import rate_of_run
from toolkit.train.stop import Judge, Stop

log = logging.getLogger(__name__)

_SAVE_S = 1500.0  # a save at the end may take so long: less than a collective may
_NEWEST = 20  # steps whose times say how long a step may take


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
    seconds: dict[str, float] = field(default_factory=dict)
    """How long parts of the attempt took: load, first_step, save, stall."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What the loop works with and does not make itself."""

    world: World
    members: Sequence[Member]
    """The datasets that are read."""
    places: ShardPlaces
    checkpoints_dir: Path
    mirror: Mirror | None
    """Copies checkpoints to a URL; on rank 0, where one is asked for."""
    judge: Judge
    failures_per_hour: float
    """Of the whole job, as far as is known: how often to save depends on it."""
    guard_run: Callable[[], None]
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
        self.newest_s: deque[float] = deque(maxlen=_NEWEST)
        self.pacer = SavePacer(
            cfg.checkpoint.save_every, failures_per_hour=around.failures_per_hour, now=time.monotonic()
        )
        self.replica = Topology(stages=cfg.parallel.stages, replicas=cfg.replicas).replica_of(around.world.rank)
        self.engine: Engine = build_engine(cfg, boundaries=around.boundaries, device=around.world.device)
        loader = self._open_loader()
        self.saver = Saver(
            around.checkpoints_dir,
            world=around.world,
            replica=self.replica,
            replicas=cfg.replicas,
            keep=cfg.checkpoint.keep,
            keep_every=cfg.checkpoint.keep_every,
            mirror=around.mirror,
        )
        self.step = self._load()
        self.saved_step = self.step
        if around.world.place.local_rank == 0:
            around.places.prefetch(loader.shards_ahead(self.step))
        self.loader = PrefetchingLoader(loader, replica=self.replica, device=around.world.device)

    def run(self, sinks: Sinks) -> Outcome:
        """Train until the end, a stop or a bad number."""
        try:
            with contextlib.closing(self.loader), contextlib.closing(self.around.places):
                outcome = self._run(sinks)
            self.saver.finish(_SAVE_S)  # one may be on its way when a bad number ends the run
        except BaseException:
            self.saver.discard()
            raise
        self._tell_saves()
        self.saver.close()
        return outcome

    def _run(self, sinks: Sinks) -> Outcome:
        first_step = self.step
        validation = self._open_validation()
        ending, _ = self._agree()  # a signal may have come during start-up
        while self.step < self.cfg.num_steps and ending is None:
            started = time.monotonic()
            values, result = self._train_step()
            self.step += 1
            self._tell_saves()
            trouble = check_finite(step=self.step, loss=result.loss, grad_norm=result.grad_norm)
            if trouble:
                return self._outcome(End.FAILED, trouble, first_step)
            if validation and self._is_due(self.cfg.monitor.eval_every):
                values |= validation.losses(self.engine)
            sinks.write(self.step, values)
            self.newest_s.append(time.monotonic() - started)
            ending, is_save_due = self._agree()
            if is_save_due and ending is None:
                self._save()
        self._save_last()
        end, reason = ending or (End.FINISHED, "all tokens are done")
        return self._outcome(end, reason, first_step)

    def _train_step(self) -> tuple[dict[str, float], StepResult]:
        self.around.formatter.step = self.step + 1
        started = time.monotonic()
        micro_batches = self.loader.micro_batches(self.step)
        read = time.monotonic()
        learning_rate = rate_of_run(self.cfg, step=self.step)
        result = self.engine.train_step(micro_batches, learning_rate=learning_rate)
        now = time.monotonic()
        values = {
            metrics.LOSS: result.loss,
            metrics.LEARNING_RATE: learning_rate,
            metrics.TOKENS: float((self.step + 1) * self.cfg.batch.tokens_per_step),
            **self.around.rate.step(step_s=now - started, data_s=read - started),
        }
        if result.grad_norm is not None:
            values[metrics.GRAD_NORM] = result.grad_norm
        if self.around.world.device.type == "cuda":
            values[metrics.PEAK_GIB] = torch.cuda.max_memory_allocated() / 2**30
        eta_s = self.around.rate.eta_s(self.cfg.num_steps - self.step - 1)
        if eta_s is not None:
            values[metrics.ETA_S] = eta_s
        return values, result

    def _agree(self) -> tuple[tuple[End, str] | None, bool]:
        """Ask all ranks whether one of them has a reason to stop, and rank 0 whether to save: all act alike."""
        judge, pacer = self.around.judge, self.pacer
        step_s = max(self.newest_s, default=0.0)
        mine = judge.reason(now=time.time(), step_s=step_s, save_s=pacer.longest_save_s)
        is_due = self.around.world.rank == 0 and pacer.is_due(self.step, now=time.monotonic())
        agreed, is_save_due = self.around.world.agree([mine, is_due])
        judge.hear(Stop(agreed))
        if self.step < self.cfg.num_steps and agreed == Stop.TIME_LIMIT:
            return (End.REQUEUE, judge.why), False
        if self.step < self.cfg.num_steps and agreed == Stop.TERMINATED:
            return (End.STOPPED, "told to end (SIGTERM)"), False
        return None, bool(is_save_due)

    def _is_due(self, every: int | None) -> bool:
        return bool(every) and self.step % (every or 1) == 0

    def _open_validation(self) -> Validation | None:
        if self.cfg.monitor.eval_every is None:
            return None
        return Validation(self.cfg, self.around.members, locate_in=self.around.places.locate_in, replica=self.replica)

    def _open_loader(self) -> StepLoader:
        data, members = self.cfg.data, self.around.members
        loader = StepLoader(
            open_streams(
                members,
                "train",
                seq_len=data.seq_len,
                locate_in=self.around.places.locate_in,
                max_mapped=self.around.places.max_mapped,
            ),
            shares=[member.share for member in members],
            seq_len=data.seq_len,
            batch=batch_shape(self.cfg),
            seed=self.cfg.run.seed,
            shuffle=data.shuffle,
            replica_split=data.replica_split,
            document_end=members[0].manifest.tokenizer.eos_id if data.document_mask else None,
            pin_memory=self.around.world.device.type == "cuda",
        )
        for member, epochs in zip(members, loader.count_epochs(self.cfg.num_steps), strict=True):
            log.info("the run reads %s %.2f times", member.dataset_dir, epochs)
        return loader

    def _load(self) -> int:
        loaded = restore.load(
            self.engine.deepspeed,
            self.engine.named_weights(),
            self.around.checkpoints_dir,
            world=self.around.world,
            expected=self._index(step=0),
            mirror=self.around.mirror,
            up_to=None,
        )
        if loaded is None:
            return 0
        log.info("resumed from %s", loaded.path)
        return loaded.index.step

    def _save(self) -> None:
        """Begin a save and go on; one that cannot begin is tried again when the next is due."""
        try:
            self._start_save()
        except CheckpointError as error:
            self.pacer.begun(stall_s=0.0, now=time.monotonic())  # or it would be tried at every step
            if self.around.world.rank == 0:  # all ranks have the same error
                log.warning("step %d is not saved; training goes on: %s", self.step, error)

    def _save_last(self) -> None:
        """See to it that the last step is saved before leaving."""
        problem = self.saver.finish(_SAVE_S)
        if self.step != self.saved_step or problem is not None:
            self._start_save()
            problem = self.saver.finish(_SAVE_S)
        if problem is not None:
            raise CheckpointError(
                f"step {self.step} could not be saved\n  {problem}\n  free space, or set checkpoint.dir elsewhere"
            )

    def _start_save(self) -> None:
        index = self._index(step=self.step)
        stall_s = self.saver.start(self.engine.deepspeed, self.engine.named_weights(), index=index)
        self.pacer.begun(stall_s=stall_s, now=time.monotonic())
        self.saved_step = self.step

    def _tell_saves(self) -> None:
        """Log on rank 0 what came of the saves in the background."""
        while (ended := self.saver.poll()) is not None:
            if isinstance(ended, Saved):
                self.pacer.completed(save_s=ended.seconds)
                log.info("saved %s in %.1f s; training waited %.2f s", ended.path, ended.seconds, ended.stall_s)
            else:
                log.warning("step %d is not saved; training goes on: %s", ended.step, ended.problem)

    def _index(self, *, step: int) -> layout.Index:
        return run_index(self.cfg, self.around.members, step=step)

    def _outcome(self, end: End, reason: str, first_step: int) -> Outcome:
        return Outcome(end=end, reason=reason, first_step=first_step, last_step=self.step)


def run_index(cfg: RunConfig, members: Sequence[Member], *, step: int) -> layout.Index:
    """Say which run a checkpoint belongs to: what must be the same for its steps to mean the same."""
    return layout.Index(
        step=step,
        updates=step,
        tokens_per_step=cfg.batch.tokens_per_step,
        seed=cfg.run.seed,
        dataset=identify(members, cfg.data),
        model=dataclasses.asdict(cfg.model),
        parts=(),
    )
