"""Numbers in, verdict out."""

import random

import pytest

from toolkit.monitor.watch import PhaseClock, Spikes, find_stragglers


def falling_losses(count: int) -> list[float]:
    draw = random.Random(3)
    return [2.5 + 3.0 * 0.99**step + draw.gauss(0, 0.03) for step in range(count)]


def test_losses_that_scatter_and_fall_hold_no_spike() -> None:
    spikes = Spikes(10.0, losses=[])
    assert not any(spikes.take(loss) for loss in falling_losses(2000))


def test_a_loss_far_above_the_others_is_a_spike_and_does_not_count_as_usual() -> None:
    spikes = Spikes(10.0, losses=falling_losses(500))
    before = spikes.highest()
    assert before is not None
    assert before < 3.5
    assert [spikes.take(loss) for loss in (2.5, 6.0, 6.0, float("inf"), 2.52)] == [False, True, True, True, False]
    assert spikes.highest() == pytest.approx(before, rel=0.05)


def test_a_constant_loss_may_still_rise_a_little() -> None:
    spikes = Spikes(10.0, losses=[2.0] * 200)
    assert not spikes.take(2.03)
    assert spikes.take(2.05)


def test_nothing_is_a_spike_before_enough_is_known_or_where_it_is_switched_off() -> None:
    assert not Spikes(10.0, losses=[2.0] * 31).take(100.0)
    assert not Spikes(None, losses=[2.0] * 200).take(100.0)


def test_the_limit_of_a_phase_follows_what_it_took_before() -> None:
    clock = PhaseClock(min_s=60, start_s=1800)
    assert clock.limit_s("step") == 1800
    clock.take("step", 5.0)
    assert clock.limit_s("step") == 60
    for _ in range(50):
        clock.take("step", 20.0)
    assert clock.limit_s("step") == 160
    clock.take("step", 300.0)  # a stall that ended: the next one may last as long
    assert clock.limit_s("step") == 600
    assert clock.limit_s("save") == 1800


def test_slow_ranks_are_found_among_those_with_the_same_layers() -> None:
    seconds = [1.0, 1.02, 1.5, 0.98, 3.0, 3.1, 2.9, 3.0]  # the second stage has more to do
    peers = [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert find_stragglers(seconds, peers=peers, ratio=1.3) == {2: 1.5}
    assert find_stragglers([1.0, 5.0], peers=[[0], [1]], ratio=1.3) == {}
    assert find_stragglers([1.0, 2.0], peers=[[0, 1]], ratio=1.3) == {1: 2.0}
