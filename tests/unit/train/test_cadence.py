"""How often to save."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.train.cadence import FIRST_S, SavePacer, failure_rate, save_interval_s


def lost_per_s(interval_s: float, *, stall_s: float, mean_s: float) -> float:
    """The part of the time that saves and failures cost, failures being exponential: Daly 2006, equation 13."""
    return mean_s / interval_s * (math.exp((interval_s + stall_s) / mean_s) - 1) - 1


@given(stall_s=st.floats(0.01, 60), mean_s=st.floats(1800, 1e6))
def test_no_other_interval_loses_noticeably_less(stall_s: float, mean_s: float) -> None:
    best_s = save_interval_s(stall_s=stall_s, save_s=0.0, failures_per_hour=3600 / mean_s)
    lost = lost_per_s(best_s, stall_s=stall_s, mean_s=mean_s)
    for factor in (0.5, 0.8, 1.25, 2.0):
        other_s = best_s * factor
        if other_s <= 3600:
            assert lost <= lost_per_s(other_s, stall_s=stall_s, mean_s=mean_s) * 1.001 + 1e-9


def test_no_save_begins_before_the_one_before_can_be_complete() -> None:
    assert save_interval_s(stall_s=0.1, save_s=300, failures_per_hour=10) == 600


def test_the_rate_begins_with_what_others_saw_and_follows_what_is_seen_here() -> None:
    # Llama 3: 419 unexpected interruptions in 54 days on 16,384 GPUs are one in about 3 hours
    assert 1 / failure_rate(failures=0, gpu_hours=0, num_gpus=16_384) == pytest.approx(3.05, rel=0.01)
    seen = failure_rate(failures=100, gpu_hours=50_000, num_gpus=8)
    assert seen == pytest.approx(8 * 101 / 100_000)


def test_the_first_save_measures_and_the_next_ones_follow_from_it() -> None:
    pacer = SavePacer("auto", failures_per_hour=0.1, now=0.0)
    assert not pacer.is_due(1, now=FIRST_S - 1)
    assert pacer.is_due(2, now=FIRST_S)
    pacer.begun(stall_s=0.5, now=FIRST_S)
    pacer.completed(save_s=20.0)
    assert pacer.interval_s == pytest.approx(math.sqrt(2 * 0.5 * 36_000), rel=0.02)
    assert not pacer.is_due(3, now=FIRST_S + pacer.interval_s - 1)
    assert pacer.is_due(4, now=FIRST_S + pacer.interval_s)


def test_a_number_of_steps_is_kept_to_whatever_the_clock_says() -> None:
    pacer = SavePacer(10, failures_per_hour=100, now=0.0)
    assert [step for step in range(1, 31) if pacer.is_due(step, now=1e9)] == [10, 20, 30]


def test_a_save_that_failed_is_tried_again_in_a_minute_and_not_at_every_step() -> None:
    pacer = SavePacer("auto", failures_per_hour=0.01, now=0.0)
    pacer.failed(now=FIRST_S)
    assert not pacer.is_due(2, now=FIRST_S + 1)
    assert pacer.is_due(3, now=2 * FIRST_S)
    pacer.begun(stall_s=1.0, now=100.0)
    pacer.completed(save_s=20.0)
    assert pacer.interval_s > 2 * FIRST_S
    pacer.failed(now=200.0)
    assert not pacer.is_due(4, now=200.0 + FIRST_S - 1)
    assert pacer.is_due(5, now=200.0 + FIRST_S)
