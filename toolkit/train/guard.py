"""What to do about bad numbers: leave samples out, go back to a checkpoint, or give up; all ranks decide the same."""

import enum
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from toolkit import storage
from toolkit.config.schema import FaultsSection
from toolkit.data.loader import MicroBatch, StepLoader
from toolkit.data.skips import Skip, Skips, add_skip, group_samples, join_skips, read_skips
from toolkit.distributed import World
from toolkit.errors import StorageError
from toolkit.monitor.history import newest_steps
from toolkit.monitor.metrics import LOSS
from toolkit.monitor.watch import WINDOW, Spikes, check_finite
from toolkit.rundir import RunDir
from toolkit.topology import Topology
from toolkit.train.engine import StepResult

log = logging.getLogger(__name__)


class Act(str, enum.Enum):
    """What follows from a step."""

    GO_ON = "go on"
    SKIP = "skip"
    """The step changed nothing: do it again with the next samples."""
    ROLL_BACK = "roll back"
    """Load an older checkpoint and leave out the samples that did the harm."""
    GIVE_UP = "give up"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What follows from a step, and why."""

    act: Act
    reason: str = ""
    first_step: int = 0
    """The samples of the steps from this one to before `stop_step` are to be left out."""
    stop_step: int = 0
    back_to: int | None = None
    """Step of the checkpoint to load; 0: none is old enough, begin again. None: nothing is loaded."""


_GO_ON = Verdict(act=Act.GO_ON)


class Judge:
    """Decides from the numbers of the steps, which are equal on all ranks; it knows no files and no time."""

    def __init__(self, section: FaultsSection, *, past: Sequence[Skip], losses: Sequence[float]) -> None:
        """Begin, or go on after a requeue.

        Args:
            section: the limits.
            past: what was skipped before.
            losses: of the newest steps, oldest first.
        """
        self._section = section
        self._past = list(past)
        self._spikes = Spikes(section.spike_limit, losses=losses)
        self._first_spike: int | None = None

    @property
    def is_calm(self) -> bool:
        """Whether the newest loss was usual: state from within a spike is no good to go back to."""
        return self._first_spike is None

    def judge(self, step: int, result: StepResult, *, saved_steps: Callable[[], Sequence[int]]) -> Verdict:
        """Say what follows from a step.

        Args:
            step: its number, from 0 on: as many were done before it.
            result: what came of it.
            saved_steps: lists the steps of whole checkpoints, the same on all ranks; asked only for a rollback.
        """
        if not result.applied:
            reason = check_finite(step=step + 1, loss=result.loss, grad_norm=result.grad_norm)
            tries = self._count_tries(step) + 1
            reason = f"{reason or f'step {step + 1} was not applied'}, try {tries}{_name_bad(result)}"
            if tries < self._section.max_bad_steps:
                return Verdict(act=Act.SKIP, reason=reason, first_step=step, stop_step=step + 1)
            return self._roll_back(reason, first_step=step, step=step, saved_steps=saved_steps)
        highest = self._spikes.highest()
        if not self._spikes.take(result.loss):
            self._first_spike = None
            return _GO_ON
        first = self._first_spike = step if self._first_spike is None else self._first_spike
        if step - first + 1 < self._section.spike_patience:
            return Verdict(act=Act.GO_ON, reason=f"the loss of step {step + 1} is {result.loss:.4g}, a spike")
        reason = (
            f"the losses of steps {first + 1} to {step + 1} are above {highest:.4g}, the newest is {result.loss:.4g}"
        )
        # The samples before the first high loss are those that led to it: they are left out too.
        first = max(0, first - self._section.spike_patience)
        return self._roll_back(reason, first_step=first, step=step, saved_steps=saved_steps)

    def note(self, line: Skip) -> None:
        """Take in what was skipped."""
        self._past.append(line)
        self._first_spike = None

    def _count_tries(self, step: int) -> int:
        """Count the tries of this step that the newest lines tell of."""
        count = 0
        for line in reversed(self._past):
            if line.step != step or line.back_to is not None:
                break
            count += 1
        return count

    def _roll_back(
        self, reason: str, *, first_step: int, step: int, saved_steps: Callable[[], Sequence[int]]
    ) -> Verdict:
        """Go back to the newest checkpoint from before the harm, or further than the last time if that did not help.

        Source: Chowdhery et al. 2022, arXiv:2204.02311, section 5.1, on going back and leaving out the batches around
        a spike.
        """
        rollbacks = [line for line in self._past if line.back_to is not None]
        if len(rollbacks) >= self._section.max_rollbacks:
            reason = f"{reason}; faults.max_rollbacks={self._section.max_rollbacks} is used up"
            return Verdict(act=Act.GIVE_UP, reason=reason)
        newest = first_step
        last = rollbacks[-1] if rollbacks else None
        if (
            last is not None
            and last.back_to is not None
            and last.back_to <= step <= last.step + self._section.spike_patience
        ):
            newest = min(newest, last.back_to - 1)  # what was loaded may be bad itself
        saved = [saved for saved in saved_steps() if saved <= newest]
        back_to = max(saved, default=0)
        return Verdict(
            act=Act.ROLL_BACK,
            reason=reason,
            first_step=max(first_step, back_to),
            stop_step=step + 1,
            back_to=back_to,
        )


def _name_bad(result: StepResult) -> str:
    names = [
        f"micro-batch {one.micro_index} of replica {one.replica}: loss {one.loss:.4g}, seen on rank {one.rank}"
        for one in result.bad
    ]
    shown = names[:8] + ([f"and {len(names) - 8} more"] if len(names) > 8 else [])
    return f" ({'; '.join(shown)})" if shown else ""


class Guard:
    """Judges the steps of a run on this rank, keeps what was bad, and remembers what is left out."""

    def __init__(
        self,
        section: FaultsSection,
        run_dir: RunDir,
        world: World,
        *,
        topology: Topology,
        loader: StepLoader,
        names: Sequence[str],
    ) -> None:
        """Go on where the run is; every rank calls it.

        Args:
            section: the limits.
            run_dir: where skips.jsonl and bad_steps/ are.
            world: the ranks; the files are read by rank 0.
            topology: which rank keeps which samples.
            loader: knows the samples.
            names: of the datasets.
        """
        self._run_dir = run_dir
        self._world = world
        self._topology = topology
        self._loader = loader
        self._names = tuple(names)
        mine = _read_past(run_dir) if world.rank == 0 else None
        lines, losses = world.gather(mine)[0]
        self._lines: list[Skip] = list(lines)
        self._judge = Judge(section, past=lines, losses=losses)

    @property
    def skips(self) -> Skips:
        """Which positions are left out."""
        return join_skips(self._lines)

    @property
    def is_calm(self) -> bool:
        """Whether this is a good time to save."""
        return self._judge.is_calm

    def judge(self, step: int, result: StepResult, *, saved_steps: Callable[[], Sequence[int]]) -> Verdict:
        """Say what follows from a step: see `Judge.judge`; the same on every rank."""
        verdict = self._judge.judge(step, result, saved_steps=saved_steps)
        if verdict.reason and self._world.rank == 0:
            log.warning("%s%s", verdict.reason, _say(verdict))
        return verdict

    def keep(self, step: int, micro_batches: Sequence[MicroBatch], result: StepResult, *, saved_step: int) -> None:
        """Write down a step that was not applied, so that it can be done again by hand; every rank calls it.

        The last stage's ranks write the samples: those whose loss is bad, or all where only the gradient is.

        Args:
            step: its number, from 0 on.
            micro_batches: what this rank's replica read.
            result: what came of it.
            saved_step: the newest checkpoint before it.
        """
        rank, topology = self._world.rank, self._topology
        replica, stage = topology.replica_of(rank), topology.stage_of(rank)
        first, stop = self._find_positions(step, step + 1)
        directory = self._run_dir.bad_step_dir(step + 1, position=first)
        mine = [one.micro_index for one in result.bad if one.replica == replica]
        chosen = mine if result.bad else list(range(len(micro_batches)))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if stage == topology.stages - 1 and chosen:
                _write_samples(directory / f"rank-{rank}.safetensors", micro_batches, chosen)
            if rank == 0:
                record = {
                    "step": step + 1,
                    "checkpoint": saved_step,
                    "loss": _plain(result.loss),
                    "grad_norm": _plain(result.grad_norm),
                    "bad": [{**asdict(one), "loss": _plain(one.loss)} for one in result.bad],
                    "ranks": [self._world.name_of(other) for other in sorted({one.rank for one in result.bad})],
                    "attempt": self._world.place.attempt,
                    "positions": [first, stop],
                    "samples": group_samples(*self._loader.samples_at(first, stop), names=self._names),
                }
                storage.write_atomic(str(directory / "step.json"), (json.dumps(record, indent=1) + "\n").encode())
        except (
            OSError,
            SafetensorError,
            StorageError,
        ) as error:  # a full disk must not end a run that goes on without these files
            log.warning("%s could not be written: %s", directory, error)

    def record(self, verdict: Verdict, *, step: int) -> Skips:
        """Leave out the samples of a verdict for good; every rank calls it, after newer checkpoints were deleted.

        Args:
            verdict: SKIP or ROLL_BACK.
            step: that was judged.

        Returns:
            All that is left out now.
        """
        first, stop = self._find_positions(verdict.first_step, verdict.stop_step)
        line = Skip(
            first_position=first,
            stop_position=stop,
            step=step,
            back_to=verdict.back_to,
            reason=verdict.reason,
            attempt=self._world.place.attempt,
            time=round(time.time(), 3),
            samples=group_samples(*self._loader.samples_at(first, stop), names=self._names),
        )
        if self._world.rank == 0:
            add_skip(self._run_dir.skips_path, line)
        self._lines.append(line)
        self._judge.note(line)
        return self.skips

    def _find_positions(self, first_step: int, stop_step: int) -> tuple[int, int]:
        size = self._loader.batch.samples_per_step
        return self.skips.range_of_steps(first_step, stop_step, samples_per_step=size)


def _read_past(run_dir: RunDir) -> tuple[tuple[Skip, ...], list[float]]:
    losses = []
    for line in newest_steps(run_dir.metrics_path):
        if math.isfinite(loss := line.get(LOSS, math.nan)):
            losses.append(float(loss))
        if len(losses) == WINDOW:
            break
    return read_skips(run_dir.skips_path), losses[::-1]


def _say(verdict: Verdict) -> str:
    if verdict.act is Act.GO_ON:
        return ""
    if verdict.act is Act.GIVE_UP:
        return ": the run gives up"
    first, last = verdict.first_step + 1, verdict.stop_step
    left_out = f"the samples of step{f's {first} to {last}' if first < last else f' {first}'} are left out"
    if verdict.back_to is None:
        return f": nothing was learned, {left_out}"
    return f": back to step {verdict.back_to}, {left_out}"


def _write_samples(path: Path, micro_batches: Sequence[MicroBatch], chosen: Sequence[int]) -> None:
    tensors: dict[str, Tensor] = {}
    for number in chosen:
        inputs, labels = micro_batches[number]
        parts = {"tokens": inputs} if isinstance(inputs, Tensor) else {"tokens": inputs[0], "documents": inputs[1]}
        for name, tensor in {**parts, "labels": labels}.items():
            tensors[f"{number}/{name}"] = tensor.detach().cpu().contiguous().clone()
    save_file(tensors, path)


def _plain(number: float) -> float | str:
    """Write what is not finite as a word: JSON has no NaN."""
    return number if math.isfinite(number) else str(number)
