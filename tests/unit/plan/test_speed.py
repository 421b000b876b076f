"""Step times against identities, limits and published figures."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planner_calibration import play_1f1b
from toolkit.plan.costs import Shape, shape_flops_per_token
from toolkit.plan.fitted import FITTED
from toolkit.plan.hardware import CPU, EFA_32, find_hardware, share_cores
from toolkit.plan.layout import OURS, Conditions, Layout
from toolkit.plan.speed import StageShare, bubble_s, step_time
from toolkit.plan.traffic import gather_s, reduce_s

SHAPE = Shape(
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    vocab_size=32000,
    is_tied=False,
    is_gated=True,
    seq_len=4096,
)
ON = Conditions(hardware=find_hardware("h100"), stack=OURS, fitted=FITTED)


def layout(stages: int = 1, replicas: int = 8, micro_batches: int = 16, **others: object) -> Layout:
    words = {"nodes": 1, "zero_stage": 1, "micro_batch": 1, **others}
    return Layout(stages=stages, replicas=replicas, num_micro_batches=micro_batches, **words)  # type: ignore[arg-type]


def shares(*blocks: int) -> tuple[StageShare, ...]:
    last = len(blocks) - 1
    return tuple(StageShare(blocks=n, has_embedding=s == 0, has_head=s == last) for s, n in enumerate(blocks))


def step(where: Layout, *blocks: int, on: Conditions = ON) -> float:
    return step_time(SHAPE, where, shares(*blocks), on=on).total_s


def test_no_step_is_faster_than_the_peak() -> None:
    where = layout()
    least = shape_flops_per_token(SHAPE) / 2 * 4096 * 16 / ON.hardware.peak_bf16_flops  # half: attention looks back
    assert step(where, 32) > least


def test_equal_stages_have_the_bubble_of_the_formula() -> None:
    middle = StageShare(blocks=8, has_embedding=False, has_head=False)
    where = layout(stages=4, replicas=2, micro_batches=12)
    times = step_time(SHAPE, where, (middle,) * 4, on=ON)
    slots_s = times.total_s - times.sync_s - times.optimizer_s - FITTED.step_s
    assert times.bubble_s / slots_s == pytest.approx(3 / (12 + 3))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.floats(1.0, 1.5), min_size=2, max_size=8), st.integers(0, 24), st.sampled_from([1 / 3, 1 / 4]))
def test_stages_that_differ_wait_as_long_as_in_the_schedule_played(
    slots: list[float], more: int, forward_part: float
) -> None:
    count = len(slots) + more
    passes = ([slot * forward_part for slot in slots], [slot * (1 - forward_part) for slot in slots])
    played = play_1f1b(*passes, num_micro_batches=count)
    idle = bubble_s(slots, count, forward_part=forward_part)
    assert idle / (count * max(slots) + idle) == pytest.approx(played, abs=0.01)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_where_micro_batches_are_few_no_stage_waits_longer_than_all_others_work(count: int) -> None:
    slots = [1.0, 1.2, 0.9, 1.1]
    idle = bubble_s(slots, count, forward_part=1 / 3)
    played = play_1f1b([s / 3 for s in slots], [s * 2 / 3 for s in slots], num_micro_batches=count)
    least = played * count * 1.2 / (1 - played)
    assert least - 1e-9 <= idle <= sum(slots) - 1.2 + 1e-9


def test_ranks_that_share_a_core_take_as_many_times_as_long() -> None:
    where = layout(stages=1, replicas=1, precision="fp32")
    steps = [step(where, 32, on=replace(ON, hardware=share_cores(CPU, ranks=ranks, cores=2))) for ranks in (1, 2, 8)]
    assert steps == pytest.approx([steps[0], steps[0], 4 * steps[0]])


def test_interleaving_divides_the_bubble() -> None:
    plain, groups = layout(stages=4, replicas=2), layout(stages=4, replicas=2, interleave=2)
    bubbles = [step_time(SHAPE, where, shares(8, 8, 8, 8), on=ON).bubble_s for where in (plain, groups)]
    assert bubbles[1] == pytest.approx(bubbles[0] / 2, rel=0.05)


def test_the_slowest_stage_sets_the_pace() -> None:
    where = layout(stages=2, replicas=4, micro_batches=64)
    assert step(where, 20, 12) > 1.1 * step(where, 17, 15)


@given(nodes=st.integers(1, 128), zero_stage=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_more_nodes_of_the_same_work_each_are_never_faster(nodes: int, zero_stage: int) -> None:
    few = layout(replicas=8 * nodes, nodes=nodes, zero_stage=zero_stage)
    many = layout(replicas=16 * nodes, nodes=2 * nodes, zero_stage=zero_stage)
    assert step(many, 32) >= step(few, 32) * (1 - (0.02 if zero_stage else 0))  # slices of the optimizer shrink


def test_recompute_costs_a_quarter_to_a_third_of_the_arithmetic() -> None:
    ratio = step(layout(recompute="full"), 32) / step(layout(), 32)
    assert 1.2 < ratio < 1.34


def test_measured_bandwidths_are_met_and_lie_between() -> None:
    efa = replace(ON, hardware=replace(ON.hardware, network=EFA_32))
    for nodes, rate in EFA_32.gather_points:
        took_s = gather_s(1e12, ranks=8 * nodes, nodes=nodes, on=efa)
        assert took_s == pytest.approx(1e12 * (1 - 1 / (8 * nodes)) / rate, rel=0.01)
    rates = [1e12 / gather_s(1e12, ranks=64, nodes=nodes, on=efa) for nodes in (8, 10, 12, 16)]
    assert rates == sorted(rates, reverse=True)
    assert reduce_s(1e12, ranks=1, nodes=1, on=efa) == 0


def test_a_published_run_is_met() -> None:
    """MPT-7B on 8 H100: 1.15 s a step (llm-foundry, scripts/train/benchmarking/README.md)."""
    stack = replace(OURS, attention="flash1", norm_bytes=0.0, sums_in_fp32=False)
    mpt = replace(SHAPE, intermediate_size=16384, vocab_size=50368, is_gated=False, seq_len=2048)
    where = layout(micro_batches=1, micro_batch=6, zero_stage=3)
    times = step_time(mpt, where, shares(32), on=replace(ON, stack=stack))
    assert times.total_s == pytest.approx(1.1546, rel=0.08)
