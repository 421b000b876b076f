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

from toolkit.checkpoint import layout, saver
from toolkit.checkpoint.upload import Mirror
from toolkit.config.schema import RunConfig
from toolkit.data.loader import PrefetchingLoader, StepLoader, open_streams
from toolkit.data.mixture import Member, identify
from toolkit.data.places import ShardPlaces
from toolkit.distributed import World
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
        self.step = self._load()
        self.saved_step = self.step
        if around.world.place.local_rank == 0:
            around.places.prefetch(loader.shards_ahead(self.step))
        self.loader = PrefetchingLoader(loader, replica=self.replica, device=around.world.device)

    def run(self, sinks: Sinks) -> Outcome:
        """Train until the end, a stop or a bad number."""
        with contextlib.closing(self.loader), contextlib.closing(self.around.places):
            outcome = self._run(sinks)
        if self.around.mirror is not None:
            self.around.mirror.close(self.saved_step or None)
            self._delete_old()  # one stayed while it was copied
        return outcome

    def _run(self, sinks: Sinks) -> Outcome:
        first_step = self.step
        validation = self._open_validation()
        ending, _ = self._agree()  # a signal may have come during start-up
        while self.step < self.cfg.num_steps and ending is None:
            started = time.monotonic()
            values, result = self._train_step()
            self.step += 1
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
        if self.step != self.saved_step:
            self._save()
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
        if self.around.mirror is not None:
            self.around.mirror.restore()
        newest = layout.newest(self.around.checkpoints_dir)
        # The answer of one rank counts for all: a shared file system may show others an older state.
        newest = self.around.world.gather(newest)[0]
        if newest is None:
            return 0
        weights = self.engine.named_weights()
        index = saver.load(
            self.engine.deepspeed, weights, newest, world=self.around.world, expected=self._index(step=0)
        )
        log.info("resumed from %s", newest)
        return index.step

    def _save(self) -> None:
        started = time.monotonic()
        saved = saver.save(
            self.engine.deepspeed,
            self.engine.named_weights(),
            self.around.checkpoints_dir,
            world=self.around.world,
            replica=self.replica,
            replicas=self.cfg.replicas,
            index=self._index(step=self.step),
        )
        self.saved_step = self.step
        log.info("saved %s in %.1f s", saved, time.monotonic() - started)
        if self.around.mirror is not None:
            self.around.mirror.upload(self.step)
        self._delete_old()

    def _delete_old(self) -> None:
        if self.around.world.rank != 0:
            return
        mirror, kept = self.around.mirror, self.cfg.checkpoint
        steps = layout.list_steps(self.around.checkpoints_dir)
        for step in layout.doomed_steps(steps, keep=kept.keep, keep_every=kept.keep_every):
            if mirror is None or step != mirror.step_in_work:
                layout.delete(layout.step_dir(self.around.checkpoints_dir, step=step))

    def _index(self, *, step: int) -> layout.Index:
        return run_index(self.cfg, self.around.members, step=step)

    def _outcome(self, end: End, reason: str, first_step: int) -> Outcome:
        return Outcome(end=end, reason=reason, first_step=first_step, last_step=self.step)


def run_index(cfg: RunConfig, members: Sequence[Member], *, step: int) -> layout.Index:
    """Say which run a checkpoint belongs to: what must be the same for its steps to mean the same."""
    return layout.Index(
        step=step,
        tokens_per_step=cfg.batch.tokens_per_step,
        seed=cfg.run.seed,
        dataset=identify(members, cfg.data),
        model=dataclasses.asdict(cfg.model),
        parts=(),
    )
