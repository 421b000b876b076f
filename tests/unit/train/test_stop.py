"""When to stop: just in time for a save, from the scheduler's clock and from what was measured."""

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from toolkit.errors import ClusterError
from toolkit.train.stop import JobClock, StepTimes, Stop, StopFlag, StopJudge, needed_s

NOW = 1_000_000.0
RESERVE_S = 120.0


class Clock:
    """A scheduler's clock that a test sets."""

    def __init__(self, left_s: float | None) -> None:
        self.deadline = None if left_s is None else NOW + left_s
        self.answers = 0

    def ask_now(self) -> None:
        self.answers += 1


@pytest.fixture
def flag() -> Iterator[StopFlag]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    yield StopFlag()
    for number, handler in before.items():
        signal.signal(number, handler)


def reason(flag: StopFlag, clock: Clock | None, *, step_s: float = 1.0, save_s: float | None = 5.0) -> Stop:
    judge = StopJudge(flag, clock, reserve_s=RESERVE_S)  # type: ignore[arg-type]
    judge.hear(flag.reason)
    return judge.reason(now=NOW, step_s=step_s, save_s=save_s)


def test_the_run_stops_when_two_steps_and_two_saves_just_fit(flag: StopFlag) -> None:
    need_s = needed_s(step_s=10.0, save_s=30.0, reserve_s=RESERVE_S)
    assert 80 <= need_s <= 100
    assert reason(flag, Clock(need_s + 1), step_s=10.0, save_s=30.0) is Stop.NONE
    assert reason(flag, Clock(need_s), step_s=10.0, save_s=30.0) is Stop.TIME_LIMIT


def test_an_unmeasured_save_gets_the_time_of_the_warning(flag: StopFlag) -> None:
    assert reason(flag, Clock(RESERVE_S + 3), save_s=None) is Stop.NONE
    assert reason(flag, Clock(RESERVE_S), save_s=None) is Stop.TIME_LIMIT


def test_no_limit_is_no_reason(flag: StopFlag) -> None:
    assert reason(flag, Clock(None)) is Stop.NONE


def test_slurms_warning_does_not_end_a_run_that_still_has_time(flag: StopFlag) -> None:
    signal.raise_signal(signal.SIGUSR2)
    assert reason(flag, Clock(RESERVE_S + 60)) is Stop.WARNED
    assert reason(flag, Clock(15)) is Stop.TIME_LIMIT


def test_the_same_signal_far_from_the_limit_is_somebodys_wish(flag: StopFlag) -> None:
    signal.raise_signal(signal.SIGUSR2)
    assert reason(flag, Clock(3600)) is Stop.TIME_LIMIT
    assert reason(flag, Clock(None)) is Stop.TIME_LIMIT


def test_a_warning_that_only_another_rank_got_reaches_the_clock(flag: StopFlag) -> None:
    clock = Clock(3600)
    judge = StopJudge(flag, clock, reserve_s=RESERVE_S)  # type: ignore[arg-type]
    for _ in range(3):
        judge.hear(Stop.WARNED)
    assert clock.answers == 1
    assert judge.reason(now=NOW, step_s=1.0, save_s=1.0) is Stop.TIME_LIMIT
    assert "SIGUSR2" in judge.why


def test_a_warning_waits_for_the_deadline_as_it_is_now(flag: StopFlag) -> None:
    clock = Clock(3600)
    clock.ask_now = lambda: None  # type: ignore[method-assign]  # the answer is on its way
    judge = StopJudge(flag, clock, reserve_s=RESERVE_S)  # type: ignore[arg-type]
    judge.hear(Stop.WARNED)
    assert judge.reason(now=NOW, step_s=1.0, save_s=1.0) is Stop.NONE
    clock.answers, clock.deadline = 1, NOW + 100
    assert judge.reason(now=NOW, step_s=1.0, save_s=1.0) is Stop.NONE
    assert judge.reason(now=NOW + 90, step_s=1.0, save_s=1.0) is Stop.TIME_LIMIT
    assert judge.why == "the time limit is near"


def test_sigterm_wins_on_every_rank(flag: StopFlag) -> None:
    signal.raise_signal(signal.SIGUSR2)
    signal.raise_signal(signal.SIGTERM)
    assert reason(flag, None) is Stop.TERMINATED
    assert reason(flag, Clock(1)) is Stop.TERMINATED


def test_a_limit_that_is_changed_is_seen_and_a_silent_scheduler_changes_nothing() -> None:
    answers: list[float | ClusterError | None] = [NOW, ClusterError("no answer"), NOW + 500]
    seen = threading.Semaphore(0)

    def ask() -> float | None:
        seen.release()
        answer = answers.pop(0)
        if isinstance(answer, ClusterError):
            raise answer
        return answer

    clock = JobClock(ask)
    deadlines = []
    for _ in range(3):
        assert seen.acquire(timeout=5)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and (clock.deadline is None or clock.deadline in deadlines[1:]):
            time.sleep(0.005)
        time.sleep(0.02)
        deadlines.append(clock.deadline)
        if answers:
            clock.ask_now()
    clock.close()
    assert deadlines == [NOW, NOW, NOW + 500]


def test_no_error_of_the_scheduler_ends_the_clock() -> None:
    answers = iter([ValueError("garbled"), OSError("no fork"), NOW])

    def ask() -> float:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    clock = JobClock(ask)
    try:
        for number in (1, 2, 3):
            deadline = time.monotonic() + 5
            while clock.answers < number and time.monotonic() < deadline:
                time.sleep(0.01)
            clock.ask_now()
        assert clock.deadline == NOW
    finally:
        clock.close()


def test_a_step_that_will_measure_validation_needs_the_time_of_one_that_did_long_ago() -> None:
    times = StepTimes()
    assert times.longest(evaluates=True) == 0.0
    times.take(300.0, evaluated=True)
    for _ in range(30):
        times.take(1.0, evaluated=False)
    assert times.longest(evaluates=False) == 1.0
    assert times.longest(evaluates=True) == 300.0


def test_a_drill_stops_as_the_time_limit_does_and_says_so(flag: StopFlag) -> None:
    judge = StopJudge(flag, None, reserve_s=RESERVE_S)
    judge.drill()
    assert judge.reason(now=NOW, step_s=1.0, save_s=None) is Stop.TIME_LIMIT
    assert "drill" in judge.why
