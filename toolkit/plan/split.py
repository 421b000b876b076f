"""Layers dealt to pipeline stages: the slowest stage sets the pace of all."""

from collections.abc import Sequence
from typing import Literal

from toolkit.plan.costs import LayerCost

SplitBy = Literal["cost", "parameters", "uniform"]


def split_layers(costs: Sequence[LayerCost], *, stages: int, split_by: SplitBy) -> tuple[int, ...]:
    """Choose where stages begin, so that the largest stage is as small as it can be.

    Every stage has a block at least; the embedding is on the first, norm and head are on the last.

    Args:
        costs: the model's list of layers.
        stages: at most the number of blocks.
        split_by: what makes a stage large: time, parameters, or its number of blocks.

    Returns:
        `stages + 1` boundaries: stage s runs layers [boundaries[s], boundaries[s + 1]).
    """
    num_blocks = sum(cost.kind == "block" for cost in costs)
    assert 1 <= stages <= num_blocks, f"{stages} stages for {num_blocks} blocks"
    weights = [_weigh(cost, split_by) for cost in costs]
    first, block, last = weights[0], weights[1], sum(weights[1 + num_blocks :])
    best: list[int] | None = None
    for blocks_first in range(1, num_blocks - stages + 2):
        counts = _deal(num_blocks, blocks_first, stages, first=first, block=block, last=last)
        if best is None or _largest(counts, first, block, last) < _largest(best, first, block, last):
            best = counts
    assert best is not None, "there is always the split with one block on the first stage"
    boundaries = [0]
    for count in best[:-1]:
        boundaries.append(max(1, boundaries[-1]) + count)
    return (*boundaries, len(costs))


def _deal(num_blocks: int, blocks_first: int, stages: int, *, first: float, block: float, last: float) -> list[int]:
    """Give `blocks_first` blocks to the first stage, the best number to the last, the rest evenly between."""
    if stages == 1:
        return [num_blocks]
    left = num_blocks - blocks_first
    if stages == 2:
        return [blocks_first, left]
    candidates = []
    for blocks_last in range(1, left - (stages - 2) + 1):
        share, extra = divmod(left - blocks_last, stages - 2)
        middle = [share + (number < extra) for number in range(stages - 2)]
        candidates.append([blocks_first, *middle, blocks_last])
    return min(candidates, key=lambda counts: _largest(counts, first, block, last))


def _largest(counts: Sequence[int], first: float, block: float, last: float) -> float:
    loads = [count * block for count in counts]
    loads[0] += first
    loads[-1] += last
    return max(loads)


def _weigh(cost: LayerCost, split_by: SplitBy) -> float:
    if split_by == "uniform":
        return float(cost.kind == "block")
    return float(cost.parameters) if split_by == "parameters" else cost.forward_flops_per_token
