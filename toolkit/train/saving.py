"""When a run saves, and what becomes of it."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from toolkit.checkpoint import layout
from toolkit.checkpoint.saver import Saved, Saver
from toolkit.checkpoint.upload import Mirror
from toolkit.config.schema import RunConfig
from toolkit.distributed import World
from toolkit.errors import CheckpointError, TryAgainError
from toolkit.train.cadence import SavePacer
from toolkit.train.engine import Engine

log = logging.getLogger(__name__)

_SAVE_S = 1500.0  # a save at the end may take so long: less than a collective may


class Saving:
    """Saves a run's state, in the background while it trains; a context manager, on every rank."""

    def __init__(
        self,
        cfg: RunConfig,
        checkpoints_dir: Path,
        *,
        world: World,
        replica: int,
        mirror: Mirror | None,
        failures_per_hour: float,
        refuse_ghost: Callable[[], None],
    ) -> None:
        """Prepare; every rank calls it.

        Args:
            cfg: of the run.
            checkpoints_dir: directory of its checkpoints.
            world: the ranks.
            replica: this rank's data-parallel index.
            mirror: gets each checkpoint too; on rank 0.
            failures_per_hour: of the whole job.
            refuse_ghost: raises when another attempt has taken over; asked on rank 0 before a save.
        """
        self.saved_step = 0
        """The newest step whose state is saved, or on its way."""
        self._dir = checkpoints_dir
        self._world = world
        self._refuse_ghost = refuse_ghost
        self._pacer = SavePacer(cfg.checkpoint.save_every, failures_per_hour=failures_per_hour, now=time.monotonic())
        self._saver = Saver(
            checkpoints_dir,
            world=world,
            replica=replica,
            replicas=cfg.replicas,
            keep=cfg.checkpoint.keep,
            keep_every=cfg.checkpoint.keep_every,
            mirror=mirror,
        )

    def __enter__(self) -> "Saving":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self._saver.discard()
            return
        self.settle()  # one may be on its way when bad numbers end the run
        self.tell()
        self._saver.close()

    @property
    def longest_save_s(self) -> float | None:
        """How long a save took at most until it was complete; None: not known. On rank 0."""
        return self._pacer.longest_save_s

    @property
    def seconds(self) -> dict[str, float]:
        """The longest `save` until it was complete, and the longest `stall` of the training; on rank 0."""
        known = {"save": self._pacer.longest_save_s, "stall": self._pacer.longest_stall_s}
        return {name: round(value, 4) for name, value in known.items() if value is not None}

    def is_due(self, step: int) -> bool:
        """Tell on rank 0 whether to save after a step; it speaks for all."""
        return self._world.rank == 0 and self._pacer.is_due(step, now=time.monotonic())

    def begin(self, engine: Engine, index: layout.Index) -> None:
        """Begin a save and go on; one that cannot begin is tried again when the next is due, by time in a minute."""
        try:
            self._start(engine, index)
        except CheckpointError as error:
            self._pacer.failed(now=time.monotonic())
            if self._world.rank == 0:
                log.warning("step %d could not be saved; training goes on: %s", index.step, error)

    def finish(self, engine: Engine, index: layout.Index) -> None:
        """See to it that the state as it is now is saved.

        Raises:
            TryAgainError: it could not be; on every rank.
        """
        problem = self._saver.finish(_SAVE_S)
        try:
            if index.step != self.saved_step or problem is not None:
                self._start(engine, index)
                problem = self._saver.finish(_SAVE_S)
        except CheckpointError as error:
            problem = str(error)
        if problem is not None:
            raise TryAgainError(
                f"step {index.step} could not be saved: {problem}\n  free space, or set checkpoint.dir elsewhere"
            )

    def settle(self) -> None:
        """Wait for what is on its way; all ranks together."""
        self._saver.finish(_SAVE_S)

    def list_steps(self) -> list[int]:
        """List the steps of the whole checkpoints; all ranks together."""
        self.settle()
        return list(self._world.gather(layout.list_steps(self._dir) if self._world.rank == 0 else None)[0])

    def forget_all(self) -> int:
        """Delete every checkpoint: the run begins again. Gives its step."""
        if self._world.rank == 0:
            for step in layout.list_steps(self._dir):
                layout.delete(layout.step_dir(self._dir, step=step))
        self._world.barrier()
        return 0

    def tell(self) -> None:
        """Log on rank 0 what came of the saves in the background."""
        while (ended := self._saver.poll()) is not None:
            if isinstance(ended, Saved):
                self._pacer.completed(save_s=ended.seconds)
                log.info("saved %s in %.1f s; training waited %.2f s", ended.path, ended.seconds, ended.stall_s)
            else:
                self._pacer.failed(now=time.monotonic())
                log.warning("step %d could not be saved; training goes on: %s", ended.step, ended.problem)

    def _start(self, engine: Engine, index: layout.Index) -> None:
        if self._world.rank == 0:
            self._refuse_ghost()
        stall_s = self._saver.start(engine.deepspeed, engine.named_weights(), index=index)
        self._pacer.begun(stall_s=stall_s, now=time.monotonic())
        self.saved_step = index.step
