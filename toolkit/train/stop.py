"""Why and when to stop: signals set a flag on any rank, a clock knows when the job ends, all ranks agree."""

import enum
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType

log = logging.getLogger(__name__)

_ASK_EVERY_S = 60.0
_NEWEST = 20  # steps whose times say how long a step may take
_SLACK_S = 10.0  # the ends of the ranks, and whatever comes after them
_EARLY_S = 60.0  # by so much Slurm may send its warning before the time that was asked for; sbatch(1), --signal


class Stop(enum.IntEnum):
    """Reasons to stop, the stronger one larger: ranks agree on the largest."""

    NONE = 0
    WARNED = 1  # SIGUSR2: the scheduler's warning, or somebody who wants the run to be requeued
    TIME_LIMIT = 2  # rank 0 has decided that it is time to save and go on in another attempt
    TERMINATED = 3  # SIGTERM: stopped, cancelled or preempted; save and end, the scheduler knows what comes next


class StopFlag:
    """Listens to the signals of the scheduler; a handler sets a flag and nothing else.

    SIGUSR2, since NCCL uses SIGUSR1.
    """

    def __init__(self) -> None:
        self.reason = Stop.NONE
        signal.signal(signal.SIGUSR2, self._handle)
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.take(Stop.TERMINATED if number == signal.SIGTERM else Stop.WARNED)

    def take(self, reason: Stop) -> None:
        """Take in a reason to stop; the strongest one counts."""
        self.reason = max(self.reason, reason)


class JobClock:
    """Knows when the time limit ends the job; asks the scheduler now and then, beside the main thread. Close it."""

    def __init__(self, ask: Callable[[], float | None]) -> None:
        """Begin to ask.

        Args:
            ask: gives the Unix time of the end, None where there is no limit; or raises.
        """
        self.deadline: float | None = None
        self.answers = 0
        """How often the scheduler has been asked, and has answered or has not."""
        self._ask = ask
        self._wake = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="job-clock", daemon=True)
        self._thread.start()

    def ask_now(self) -> None:
        """Let the thread ask at once; the answer comes later."""
        self._wake.set()

    def close(self) -> None:
        """End the thread; one that hangs in a question is left behind."""
        self._is_closed = True
        self._wake.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._is_closed:
            try:
                deadline = self._ask()
            except Exception as error:  # the last answer holds; without this thread no later one would come
                log.warning("the end of the job is not known anew: %s", error)
            else:
                if deadline is not None and self.deadline is not None and abs(deadline - self.deadline) > 1.0:
                    log.info("the job now ends at %s", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(deadline)))
                self.deadline = deadline
            self.answers += 1
            self._wake.wait(_ASK_EVERY_S)
            self._wake.clear()


class StopJudge:
    """Says on each rank what it knows of a reason to stop; rank 0 knows the clock as well."""

    def __init__(self, flag: StopFlag, clock: JobClock | None, *, reserve_s: float) -> None:
        """Begin with nothing to say.

        Args:
            flag: what signals told this rank.
            clock: on rank 0.
            reserve_s: the time before the end of a job at which the scheduler warns it, and that is kept for a save
                as long as none was measured.
        """
        self._flag = flag
        self._clock = clock
        self._reserve_s = reserve_s
        self._is_warned = False
        self._answers_before = 0
        self.why = "the time limit is near"
        """Of TIME_LIMIT, in words."""

    def drill(self) -> None:
        """Stop at the end of the step that runs, as if the time limit were near."""
        self._flag.take(Stop.TIME_LIMIT)
        self.why = "a drill of the time limit (faults.drill_step)"

    def hear(self, agreed: Stop) -> None:
        """Take in what the ranks agreed on: a warning may have reached another rank only."""
        if agreed is Stop.WARNED and not self._is_warned:
            self._is_warned = True
            if self._clock is not None:  # the limit may have been changed: the deadline that is known may be an old one
                self._answers_before = self._clock.answers
                self._clock.ask_now()

    def reason(self, *, now: float, step_s: float, save_s: float | None) -> Stop:
        """Give this rank's reason to stop.

        Args:
            now: Unix time.
            step_s: the longest of the newest steps, with whatever came between.
            save_s: the longest that a save took until it was complete; None: not measured yet.
        """
        if self._clock is None or self._flag.reason is Stop.TERMINATED:
            return self._flag.reason
        deadline = self._clock.deadline
        if deadline is not None:
            need_s = needed_s(step_s=step_s, save_s=save_s, reserve_s=self._reserve_s)
            if deadline - now <= need_s:
                return Stop.TIME_LIMIT
        is_heard = self._is_warned and self._clock.answers > self._answers_before
        if is_heard and not is_early_warning(now=now, deadline=deadline, signal_delay_s=self._reserve_s):
            self.why = "told to save and to go on in another attempt (SIGUSR2)"
            return Stop.TIME_LIMIT
        return self._flag.reason


class StepTimes:
    """Knows how long the next step may take, with whatever comes between."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=_NEWEST)
        self._longest_evaluated = 0.0

    def take(self, seconds: float, *, evaluated: bool) -> None:
        """Take in a step, and whether validation was measured after it."""
        self._newest.append(seconds)
        if evaluated:
            self._longest_evaluated = max(self._longest_evaluated, seconds)

    def longest(self, *, evaluates: bool) -> float:
        """Give the longest of the newest steps, or of those like the one to come where it measures validation."""
        return max([*self._newest, self._longest_evaluated if evaluates else 0.0])


def needed_s(*, step_s: float, save_s: float | None, reserve_s: float) -> float:
    """Reckon the time before the end of a job at which it must stop, so that its state is saved in time."""
    # one more step may run before the next look, and a shared file system is not always equally fast
    return 2 * step_s + (reserve_s if save_s is None else 2 * save_s + _SLACK_S)


def is_early_warning(*, now: float, deadline: float | None, signal_delay_s: float) -> bool:
    """Tell Slurm's warning that the job's end comes near from somebody's wish that the run be requeued now."""
    return deadline is not None and deadline - now <= signal_delay_s + 2 * _EARLY_S
