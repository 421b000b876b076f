"""Tells when a run hangs, and who it waits for: a thread beside the main one, on every rank."""

import faulthandler
import json
import linecache
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

from toolkit.config.schema import FaultsSection
from toolkit.distributed import Channel
from toolkit.errors import EXIT_TRY_AGAIN, TryAgainError
from toolkit.monitor.watch import PhaseClock

log = logging.getLogger(__name__)

_TICK_S = 1.0  # a question to rank 0 from each rank: 1000 a second on 1000 ranks
_ANSWER_S = 8.0  # the living answer within a tick or two, also where the machine is busy
_REPLY_S = 4.0
_FILE_S = 30.0  # a shared file system may be what hangs
_LAST_RESORT = 3.0
_WAITING = (".wait(", ".synchronize(", ".item(", ".tolist(", "float(")
"""In a line: a GPU whose queue waits for other ranks is waited for where a number is taken from it."""
_WAITS = ("torch/distributed/", "deepspeed/comm/", "toolkit/distributed.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sign:
    """What a rank says of itself when it is asked."""

    rank: int
    num_beats: int
    """All ranks beat alike, so the ones that are behind have fewer."""
    phase: str
    step: int
    waited_s: float
    where: str
    """The innermost line of the main thread."""
    is_waiting: bool
    """Whether that line waits for other ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hang:
    """A run that makes no progress."""

    text: str
    late: tuple[int, ...]
    """Ranks that the others wait for; empty where that cannot be told."""
    step: int
    waited_s: float


class Watchdog:
    """Ends this process with exit code 75 when the run has made no progress for longer than it ever took.

    The rank that notices asks all of them over rank 0's notes; each writes the stacks of its threads into its own log
    and says where it is. Rank 0 names those that are silent (stopped, or dead) or behind. Where rank 0 itself is silent
    the others name it, each for itself. A process in which no Python can run any more is ended by a timer of the
    kernel, later.
    """

    def __init__(
        self,
        section: FaultsSection,
        *,
        rank: int,
        size: int,
        name_of: Callable[[int], str],
        open_channel: Callable[[], Channel],
        on_hang: Callable[[Hang], None],
    ) -> None:
        """Begin to watch; close it at the end.

        Args:
            section: the limits.
            rank: of this process.
            size: number of ranks.
            name_of: says a rank with its node.
            open_channel: opens a connection for notes.
            on_hang: is told the verdict before the process ends: on rank 0, or where rank 0 is silent on all others.
        """
        self._rank = rank
        self._size = size
        self._name_of = name_of
        self._open_channel = open_channel
        self._on_hang = on_hang
        self._clock = PhaseClock(min_s=section.hang_min_s, start_s=section.hang_start_s)
        self._lock = threading.Lock()  # between the main thread and ours
        self._num_beats, self._phase, self._step = 0, "start", 0
        self._since = time.monotonic()
        self._notes: _Notes | None = None
        self._num_alarms = 0
        self._main = threading.get_ident()
        self._closed = threading.Event()
        faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, phase: str, step: int) -> None:
        """Say that a phase begins, from the main thread; all ranks go through the same phases.

        Args:
            phase: a word: what begins takes about as long as it took before under the same word.
            step: steps done before.
        """
        now = time.monotonic()
        with self._lock:
            self._clock.take(self._phase, now - self._since)
            self._num_beats, self._phase, self._step, self._since = self._num_beats + 1, phase, step, now
            limit_s = self._clock.limit_s(phase)
        signal.setitimer(signal.ITIMER_REAL, _LAST_RESORT * (limit_s + _ANSWER_S + _FILE_S))

    def close(self) -> None:
        """End the watch."""
        self._closed.set()
        self._thread.join()
        self._drop_notes()
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.unregister(signal.SIGALRM)

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._closed.wait(_TICK_S):
            if time.monotonic() - looked > _ANSWER_S:
                # This process was stopped itself: others know more of what happened meanwhile.
                log.warning("this process did not run for %.0f s", time.monotonic() - looked)
                self._wait_anew()
            try:
                self._look()
            except TryAgainError:
                # A late reply would be taken for that to the next question: begin with a new connection.
                self._drop_notes()
                self._blame_rank_0()
            except Exception:  # a fault of the watchdog must not end a training that goes well
                log.exception("the watchdog failed; it goes on")
            looked = time.monotonic()

    def _look(self) -> None:
        if self._notes is None:
            self._notes = _Notes(self._open_channel)
        notes, number = self._notes, self._num_alarms
        if notes.read(f"alarm/{number}") is None:
            if not self._is_overdue():
                return
            notes.post(f"alarm/{number}", str(self._rank))
        sign = self._make_sign()
        self._write_stacks()
        notes.post(f"sign/{number}/{self._rank}", json.dumps(asdict(sign)))
        hang = self._decide(notes, sign) if self._rank == 0 else self._hear(notes)
        self._num_alarms += 1
        if hang is not None:
            self._end(hang)
        self._wait_anew()  # it went on meanwhile

    def _wait_anew(self) -> None:
        with self._lock:
            self._since = time.monotonic()

    def _drop_notes(self) -> None:
        if self._notes is not None:
            self._notes.close()
            self._notes = None

    def _is_overdue(self) -> bool:
        with self._lock:
            return time.monotonic() - self._since > self._clock.limit_s(self._phase)

    def _make_sign(self) -> Sign:
        frame = sys._current_frames().get(self._main)
        with self._lock:
            return Sign(
                rank=self._rank,
                num_beats=self._num_beats,
                phase=self._phase,
                step=self._step,
                waited_s=round(time.monotonic() - self._since, 1),
                where=_say_line(frame),
                is_waiting=_is_waiting(frame),
            )

    def _write_stacks(self) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            stack = "".join(traceback.format_stack(frame))
            log.warning("no progress; thread %s:\n%s", names.get(ident, ident), stack)

    def _decide(self, notes: "_Notes", own: Sign) -> Hang | None:
        """Collect what the ranks say; None: the run has gone on meanwhile."""
        signs = {0: own}
        deadline = time.monotonic() + _ANSWER_S
        while time.monotonic() < deadline:
            for rank in set(range(self._size)) - signs.keys():
                if (note := notes.read(f"sign/{self._num_alarms}/{rank}")) is not None:
                    signs[rank] = Sign(**json.loads(note))
            time.sleep(_TICK_S / 4)
        with self._lock:
            has_gone_on = self._num_beats != own.num_beats
        hang = None if has_gone_on else describe_hang(signs, size=self._size, name_of=self._name_of)
        notes.post(f"verdict/{self._num_alarms}", json.dumps(asdict(hang) if hang else None))
        if hang is not None:
            self._await_readers(notes, sorted(signs.keys() - {0}))
        return hang

    def _await_readers(self, notes: "_Notes", ranks: Sequence[int]) -> None:
        """Keep the notes for those who have not read the verdict yet: they end with this process."""
        deadline = time.monotonic() + _ANSWER_S
        for rank in ranks:
            while notes.read(f"read/{self._num_alarms}/{rank}") is None and time.monotonic() < deadline:
                time.sleep(_TICK_S / 10)

    def _hear(self, notes: "_Notes") -> Hang | None:
        """Wait for what rank 0 says.

        Raises:
            TryAgainError: it says nothing.
        """
        deadline = time.monotonic() + 2 * _ANSWER_S + 2 * _TICK_S
        while (note := notes.read(f"verdict/{self._num_alarms}")) is None:
            if time.monotonic() > deadline:
                raise TryAgainError("rank 0 gives no verdict")
            time.sleep(_TICK_S / 4)
        notes.post(f"read/{self._num_alarms}/{self._rank}", "")
        told: dict[str, Any] | None = json.loads(note)
        return None if told is None else Hang(**{**told, "late": tuple(told["late"])})

    def _blame_rank_0(self) -> None:
        """End where rank 0 does not answer and this rank has waited too long; else the next tick asks again."""
        if self._rank == 0 or not self._is_overdue():
            return
        self._write_stacks()
        sign = self._make_sign()
        text = f"no progress for {sign.waited_s:.0f} s at step {sign.step + 1} ({sign.phase}): "
        text += f"{self._name_of(0)} does not answer"
        self._end(Hang(text=text, late=(0,), step=sign.step, waited_s=sign.waited_s))

    def _end(self, hang: Hang) -> None:
        log.error("%s", hang.text)
        if self._rank == 0 or 0 in hang.late:
            writer = threading.Thread(target=self._on_hang, args=(hang,), daemon=True)
            writer.start()
            writer.join(_FILE_S)
        for handler in logging.getLogger().handlers:
            handler.flush()
        os._exit(EXIT_TRY_AGAIN)  # the main thread cannot be asked


class _Notes:
    """A channel whose calls come back in time.

    Those of torch's store wait without a limit while the process that holds it is stopped (torch 2.13, measured), so
    they are made by a thread that may be left behind.
    """

    def __init__(self, open_channel: Callable[[], Channel]) -> None:
        self._calls: queue.SimpleQueue[Callable[[Channel], str | None] | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[str | TryAgainError | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, args=(open_channel,), name="notes", daemon=True).start()

    def read(self, key: str) -> str | None:
        """Read a note; None: it has not been left yet.

        Raises:
            TryAgainError: rank 0 is gone or does not answer.
        """
        return self._call(lambda channel: channel.read(key))

    def post(self, key: str, note: str) -> None:
        """Leave a note.

        Raises:
            TryAgainError: rank 0 is gone or does not answer.
        """
        self._call(lambda channel: channel.post(key, note))

    def close(self) -> None:
        """End the thread."""
        self._calls.put(None)

    def _call(self, act: Callable[[Channel], str | None]) -> str | None:
        self._calls.put(act)
        try:
            reply = self._replies.get(timeout=_REPLY_S)
        except queue.Empty:
            raise TryAgainError(f"rank 0 does not answer within {_REPLY_S:.0f} s") from None
        if isinstance(reply, TryAgainError):
            raise reply
        return reply

    def _serve(self, open_channel: Callable[[], Channel]) -> None:
        try:
            channel = open_channel()
            while (act := self._calls.get()) is not None:
                self._replies.put(act(channel))
        except Exception as error:  # reported to the one who asked
            self._replies.put(TryAgainError(f"rank 0 does not answer\n  {error}\n  see its log"))


def describe_hang(signs: Mapping[int, Sign], *, size: int, name_of: Callable[[int], str]) -> Hang:
    """Say who a run waits for.

    Those that do not answer; else those that are behind; else those that do not wait for others while others do. Where
    one is silent, ranks that are behind prove nothing: they may have been in its way.

    Args:
        signs: of the ranks that answered.
        size: number of ranks.
        name_of: says a rank with its node.
    """
    silent = [rank for rank in range(size) if rank not in signs]
    most = max(sign.num_beats for sign in signs.values())
    behind = [sign for sign in signs.values() if sign.num_beats < most]
    busy = [sign for sign in behind or signs.values() if not sign.is_waiting]
    late = [] if not behind and len(busy) == len(signs) else busy or behind
    first = max(signs.values(), key=lambda sign: sign.waited_s)
    text = f"no progress for {first.waited_s:.0f} s at step {first.step + 1} ({first.phase}): "
    if silent:
        text += f"{_say_ranks([name_of(rank) for rank in silent])} not answer"
    elif late:
        names = [f"{name_of(sign.rank)} (in {sign.phase} at {sign.where})" for sign in late]
        text += f"the others wait for {_shorten(names)}"
    else:
        text += f"all ranks answer, and none is behind; {name_of(first.rank)} is at {first.where}"
    ranks = silent or [sign.rank for sign in late]
    return Hang(text=text, late=tuple(sorted(ranks)), step=first.step, waited_s=first.waited_s)


def _say_ranks(names: Sequence[str]) -> str:
    return f"{_shorten(names)} {'does' if len(names) == 1 else 'do'}"


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")


def _say_line(frame: FrameType | None) -> str:
    if frame is None:
        return "an unknown line"
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"


def _is_waiting(frame: FrameType | None) -> bool:
    """Whether the innermost line of a thread waits for other ranks."""
    if frame is None:
        return False
    path = frame.f_code.co_filename
    line = linecache.getline(path, frame.f_lineno)
    return any(part in path for part in _WAITS) or any(word in line for word in _WAITING)
