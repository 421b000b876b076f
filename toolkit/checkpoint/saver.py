"""Save while training goes on: the state is copied out of device memory, a thread on each rank writes it.

`start` is all that training waits for. The threads tell rank 0's thread over a channel what they wrote; it writes index
and marker, and renames. Until then a checkpoint has a name that no reader looks at.
"""

import contextlib
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from toolkit import storage
from toolkit.checkpoint import layout
from toolkit.checkpoint.layout import INDEX_NAME, MARK_NAME, Index, Part, Slice
from toolkit.checkpoint.parts import DiscardedError, places, tensor_bytes, write_part
from toolkit.checkpoint.reshard import Held, Weights, count_updates, list_held
from toolkit.checkpoint.upload import Mirror
from toolkit.distributed import World
from toolkit.errors import CheckpointError, LostPeersError

log = logging.getLogger(__name__)

_ANSWER_S = 120.0  # rank 0 answers a note at once, unless its node is in trouble
_DISCARD_S = 5.0  # a dead rank must end the others within seconds; the thread ends with the process
_SPARE = 1.02  # of the space: headers, index, blocks that are not full
_LOOK_S = (0.02, 1.0)  # how often rank 0 looks for notes: soon at first


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A checkpoint that is whole and has its name."""

    step: int
    path: Path
    num_bytes: int
    """Of all ranks."""
    stall_s: float
    """How long training stood still for it."""
    seconds: float
    """From the start to the name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveFailed:
    """A checkpoint that did not come about; nothing of it is left."""

    step: int
    problem: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    token: str
    """Another one for each save; notes that carry an older one are not for this save."""
    directory: Path
    index: Index
    slices: tuple[Slice, ...]
    data: memoryview
    started: float
    stall_s: float
    is_discarded: threading.Event


class Saver:
    """Writes a run's checkpoints in the background; every rank has one. Close it."""

    def __init__(
        self,
        checkpoints_dir: Path,
        *,
        world: World,
        replica: int,
        replicas: int,
        keep: int,
        keep_every: int | None,
        mirror: Mirror | None,
        timeout_s: float = 1500.0,
    ) -> None:
        """Prepare; every rank calls it.

        Args:
            checkpoints_dir: directory that holds the checkpoints of the run.
            world: the ranks.
            replica: this rank's data-parallel index.
            replicas: how many there are.
            keep: newest checkpoints that are kept.
            keep_every: besides, steps that are a multiple of it are kept.
            mirror: gets each checkpoint once it is whole; on rank 0.
            timeout_s: how long a rank's writing may take; less than a collective may.
        """
        self._dir = checkpoints_dir
        self._world = world
        self._place = {"replica": replica, "replicas": replicas}
        self._keeping: dict[str, Any] = {"keep": keep, "keep_every": keep_every}
        self._mirror = mirror
        self._timeout_s = timeout_s
        self._channel = world.open_channel("checkpoint", timeout_s=_ANSWER_S)
        self._buffer = torch.empty(0)
        self._total_bytes: int | None = None
        self._thread: threading.Thread | None = None
        self._discard_current = threading.Event()
        self._problem: str | None = None
        self._ended: deque[Saved | SaveFailed] = deque()

    @property
    def is_writing(self) -> bool:
        """Whether this rank is at work on a checkpoint; rank 0 is until it has its name."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, engine: Any, weights: Weights, *, index: Index) -> float:
        """Copy the state and begin to write it; waits for the former checkpoint first. All ranks together.

        Args:
            engine: the DeepSpeed engine.
            weights: this rank's parameters under layout-free names, the same order on all replicas of a stage.
            index: what to record; `parts` and `updates` are filled in.

        Returns:
            The seconds that training stood still on this rank.

        Raises:
            CheckpointError: there is no room, or the former one is stuck; on every rank.
        """
        started = time.monotonic()
        held = list_held(engine, weights, **self._place)
        slices = tuple(one.slice for one in held)
        problem = self._wait(self._timeout_s) or self._reserve(tensor_bytes(slices))
        if self._total_bytes is None:  # the same at every save
            self._total_bytes = sum(self._world.gather(tensor_bytes(slices)))
        mine = uuid.uuid4().hex[:8]
        if self._world.rank == 0 and problem is None:
            problem = self._prepare(layout.partial_dir(self._dir, step=index.step, token=mine))
        told = self._world.gather((problem, mine))
        self._raise_together([problem for problem, _ in told])
        token: str = told[0][1]
        data = self._copy_out(held)
        self._problem = None
        self._discard_current = threading.Event()
        stall_s = time.monotonic() - started
        job = _Job(
            token=token,
            directory=layout.partial_dir(self._dir, step=index.step, token=token),
            index=replace(index, updates=count_updates(engine)),
            slices=slices,
            data=data,
            started=started,
            stall_s=stall_s,
            is_discarded=self._discard_current,
        )
        self._thread = threading.Thread(target=self._work, args=(job,), name="checkpoint", daemon=True)
        self._thread.start()
        return stall_s

    def poll(self) -> Saved | SaveFailed | None:
        """Tell on rank 0 what has ended and was not told yet, the oldest first; None: nothing."""
        return self._ended.popleft() if self._ended else None

    def finish(self, timeout_s: float) -> str | None:
        """Wait for what is on its way; all ranks together.

        Returns:
            Why the newest checkpoint that was started is not whole; None: it is. The same on all ranks.
        """
        problem = self._wait(timeout_s) or self._problem
        told = self._world.gather(problem)
        return told[0] or next((problem for problem in told if problem), None)

    def discard(self) -> None:
        """Give up what is on its way, without the other ranks; nothing is left that could be taken for whole.

        Where time is short and all ranks do so, `start` saves a newer step at once.
        """
        self._discard_current.set()
        if self._thread is not None:
            self._thread.join(_DISCARD_S)

    def close(self) -> None:
        """Wait for rank 0's mirror to have the newest checkpoint; all ranks together, after `finish`.

        srun --wait ends a rank that outlives the others by a minute, and a checkpoint takes longer to copy.
        """
        is_mirrored = self._world.gather(self._mirror is not None)[0]
        if self._mirror is not None:
            newest = layout.newest(self._dir)
            self._mirror.close(layout.step_of(newest.name) if newest else None)
            self._delete_old()  # one stayed while it was copied
            self._channel.post("mirrored", "")
        elif is_mirrored:
            with contextlib.suppress(LostPeersError):  # rank 0 has ended
                while self._channel.read("mirrored") is None:
                    time.sleep(_LOOK_S[1])

    def _wait(self, timeout_s: float) -> str | None:
        if self._thread is None:
            return None
        self._thread.join(timeout_s)
        return f"still being written after {timeout_s:.0f} s" if self._thread.is_alive() else None

    def _reserve(self, num_bytes: int) -> str | None:
        """Get host memory once: its pages cost as much to get as to fill. Pinned where a GPU copies into it."""
        if self._buffer.numel() * 4 == num_bytes:
            return None
        try:
            is_cuda = self._world.device.type == "cuda"
            self._buffer = torch.empty(num_bytes // 4, dtype=torch.float32, pin_memory=is_cuda)
        except RuntimeError as error:
            return f"no host memory for a copy of {num_bytes / 2**30:.1f} GiB: {error}"
        return None

    def _copy_out(self, held: Sequence[Held]) -> memoryview:
        if not held:  # fewer elements than replicas
            return memoryview(b"")
        tensors = {one.slice: one.tensors for one in held}
        for kind, one, start in places([one.slice for one in held]):
            self._buffer[start : start + one.num_elements].copy_(tensors[one][kind], non_blocking=True)
        if self._world.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        view: memoryview = self._buffer.numpy().data
        return view.cast("B")

    def _prepare(self, directory: Path) -> str | None:
        """Clear away what killed attempts have left, make room and the directory."""
        try:
            for stale in layout.list_partial(self._dir):
                shutil.rmtree(stale, ignore_errors=True)
            problem = self._make_room()
            if problem is None:
                directory.mkdir(parents=True)
        except (OSError, CheckpointError) as error:
            return str(error)
        return problem

    def _make_room(self) -> str | None:
        """Compare the free space with the need; delete what the new checkpoint makes superfluous where it lacks."""
        needed = int((self._total_bytes or 0) * _SPARE)
        if storage.free_bytes(self._dir) >= needed:
            return None
        for path in layout.list_damaged(self._dir):
            log.warning("deleting %s to make room", path)
            shutil.rmtree(path)
        fewer = {**self._keeping, "keep": max(1, self._keeping["keep"] - 1)}
        self._delete_doomed(**fewer)
        free = storage.free_bytes(self._dir)
        if free >= needed:
            return None
        return f"{self._dir} has {storage.say_bytes(free)} free; a checkpoint takes {storage.say_bytes(needed)}"

    def _raise_together(self, problems: Sequence[str | None]) -> None:
        told = [f"{self._world.name_of(rank)}: {text}" for rank, text in enumerate(problems) if text]
        if told:
            raise CheckpointError(
                "the checkpoint could not be written\n  "
                + "\n  ".join(told[:8])
                + "\n  free space, or set checkpoint.dir elsewhere"
            )

    def _work(self, job: _Job) -> None:
        """Write this rank's part and tell rank 0 (the thread's only function)."""
        try:
            self._channel.post(f"rank/{self._world.rank}", json.dumps({"save": job.token}))
            note = self._write(job)
            self._channel.post(f"rank/{self._world.rank}", json.dumps({"save": job.token, **note}))
            if self._world.rank == 0:
                self._end(job)
        except DiscardedError:
            self._problem = "discarded"
            self._ended.append(SaveFailed(step=job.index.step, problem=self._problem))
        except Exception as error:
            log.warning("step %d is not saved: %s", job.index.step, error)
            self._problem = f"{type(error).__name__}: {error}"
            self._ended.append(SaveFailed(step=job.index.step, problem=self._problem))

    def _write(self, job: _Job) -> dict[str, str]:
        if not job.slices:
            return {"part": ""}
        path = job.directory / layout.part_name(self._world.rank)
        try:
            part = write_part(path, job.data, slices=job.slices, is_discarded=job.is_discarded.is_set)
        except OSError as error:
            return {"problem": f"{path}: {error.strerror or error}"}
        return {"part": layout.render_part(part)}

    def _end(self, job: _Job) -> None:
        """Wait for all parts on rank 0, then complete the checkpoint or remove it."""
        notes, problem = self._collect_notes(job)
        if problem is None:
            told = [f"{self._world.name_of(rank)}: {note['problem']}" for rank, note in notes if "problem" in note]
            problem = "\n  ".join(told[:8]) or None
        parts = tuple(layout.parse_part(note["part"]) for _, note in notes if note.get("part"))
        problem = problem or "; ".join(layout.find_gaps(parts)[:8]) or self._complete(job, parts)
        if problem is not None:
            shutil.rmtree(job.directory, ignore_errors=True)  # its room may be what the next one lacks
            self._problem = problem
            self._ended.append(SaveFailed(step=job.index.step, problem=problem))
            return
        seconds = time.monotonic() - job.started
        final = layout.step_dir(self._dir, step=job.index.step)
        num_bytes = sum(part.num_bytes for part in parts)
        saved = Saved(step=job.index.step, path=final, num_bytes=num_bytes, stall_s=job.stall_s, seconds=seconds)
        self._ended.append(saved)
        if self._mirror is not None:
            self._mirror.upload(job.index.step)
        self._delete_old()

    def _collect_notes(self, job: _Job) -> tuple[list[tuple[int, dict[str, str]]], str | None]:
        notes: dict[int, dict[str, str]] = {}
        pause_s, deadline = _LOOK_S[0], time.monotonic() + self._timeout_s
        while len(notes) < self._world.size:
            for rank in set(range(self._world.size)) - set(notes):
                note = json.loads(self._channel.read(f"rank/{rank}") or "{}")
                if note.get("save") == job.token and len(note) > 1:
                    notes[rank] = note
            if job.is_discarded.is_set():
                raise DiscardedError
            if time.monotonic() > deadline:
                missing = [self._world.name_of(rank) for rank in range(self._world.size) if rank not in notes]
                return [], f"not written after {self._timeout_s:.0f} s by {', '.join(missing[:8])}"
            if len(notes) < self._world.size:
                job.is_discarded.wait(pause_s)
                pause_s = min(1.5 * pause_s, _LOOK_S[1])
        return sorted(notes.items()), None

    def _complete(self, job: _Job, parts: tuple[Part, ...]) -> str | None:
        final = layout.step_dir(self._dir, step=job.index.step)
        try:
            layout.write_index(job.directory, replace(job.index, parts=parts))
            for path in (job.directory / INDEX_NAME, job.directory / MARK_NAME, job.directory):
                _fsync(path)
            if final.exists():  # redone after a rollback, or left without its marker
                layout.delete(final)
            job.directory.rename(final)
            _fsync(final.parent)
        except OSError as error:
            return str(error)
        return None if layout.is_whole(final) else f"{final} is not what was written"

    def _delete_old(self) -> None:
        self._delete_doomed(**self._keeping)

    def _delete_doomed(self, *, keep: int, keep_every: int | None) -> None:
        for step in layout.find_doomed(self._dir, keep=keep, keep_every=keep_every):
            if self._mirror is not None and step == self._mirror.step_in_work:
                continue
            try:
                layout.delete(layout.step_dir(self._dir, step=step))
            except OSError as error:  # the new one is whole all the same
                log.warning("step %d could not be deleted: %s", step, error)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
