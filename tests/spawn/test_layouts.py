"""Every layout learns what a plain torch loop in one process learns."""

import dataclasses
import functools
import math
from typing import Any

import pytest

from tests.spawn.ranks import run_ranks
from tests.spawn.tiny import make_batch, make_config, reference_losses, train_each
from toolkit.config.schema import RunConfig

pytestmark = [pytest.mark.spawn, pytest.mark.timeout(900)]

TOLERANCE = 1e-5
"""Largest difference of a loss (about 5 nats) over 20 steps, fp32: the order of sums differs."""

LAYOUTS = [
    # stages, replicas, zero_stage
    (1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 1, 3),
    (1, 2, 0), (1, 2, 1), (1, 2, 2), (1, 2, 3),
    (1, 4, 1), (1, 4, 3), (2, 1, 1), (2, 2, 1), (4, 1, 1), (2, 4, 1), (4, 2, 1), (8, 1, 1), (1, 8, 2),
]  # fmt: skip
BF16_LAYOUTS = [(1, 1, 1), (1, 2, 2), (1, 2, 3), (2, 2, 1)]
SPLITS = ["uniform", "parameters"]
RECOMPUTE_LAYOUTS = [(1, 2, 1), (2, 1, 1)]
MASKED_LAYOUTS = [(1, 1, 1), (1, 2, 1), (1, 2, 3), (2, 1, 1), (2, 2, 1), (4, 1, 1)]


def configure(stages: int, replicas: int, zero_stage: int, *, tied: bool = False, **parallel: Any) -> RunConfig:
    return make_config(stages=stages, replicas=replicas, zero_stage=zero_stage, tied=tied, **parallel)


def keep_documents_apart(cfg: RunConfig) -> RunConfig:
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, document_mask=True))


CASES = [
    *(configure(*layout, tied=tied) for layout in LAYOUTS for tied in (False, True)),
    *(configure(*layout, precision="bf16") for layout in BF16_LAYOUTS),
    *(configure(2, 1, 1, split_by=split_by) for split_by in SPLITS),
    *(configure(*layout, recompute=True) for layout in RECOMPUTE_LAYOUTS),
    *(keep_documents_apart(configure(*layout, recompute=on)) for layout in MASKED_LAYOUTS for on in (False, True)),
]


@functools.cache
def train_world(world_size: int) -> list[tuple[RunConfig, list[list[float]]]]:
    """Train all cases of a number of ranks by the same processes: starting them costs more than 20 steps."""
    # plain engines first: DeepSpeed keeps the groups of a pipeline, and a plain engine after it would take them
    cases = sorted((cfg for cfg in CASES if cfg.world_size == world_size), key=lambda cfg: cfg.parallel.stages or 1)
    by_rank = run_ranks(train_each, world_size=world_size, args=(cases,))
    return [(cfg, [losses[number] for losses in by_rank]) for number, cfg in enumerate(cases)]


def losses_by_rank(cfg: RunConfig) -> list[list[float]]:
    return next(losses for trained, losses in train_world(cfg.world_size) if trained == cfg)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("stages", "replicas", "zero_stage"), LAYOUTS)
def test_every_layout_agrees_with_a_plain_loop(stages: int, replicas: int, zero_stage: int, tied: bool) -> None:
    cfg = configure(stages, replicas, zero_stage, tied=tied)
    wanted = reference_losses(cfg)
    assert wanted[-1] < 0.6 * wanted[0], "the reference does not learn, so agreeing with it shows nothing"
    for rank, losses in enumerate(losses_by_rank(cfg)):
        worst = max(abs(a - b) for a, b in zip(losses, wanted, strict=True))
        assert worst < TOLERANCE, f"rank {rank} differs by {worst:.1e}: {losses} instead of {wanted}"


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("stages", "replicas", "zero_stage"), MASKED_LAYOUTS)
def test_documents_are_kept_apart_on_every_layout(stages: int, replicas: int, zero_stage: int, recompute: bool) -> None:
    cfg = keep_documents_apart(configure(stages, replicas, zero_stage, recompute=recompute))
    counts = [int((part >= 0).sum()) for part in make_batch(cfg, 0)[1].split(cfg.batch.micro_batch or 1)]
    assert max(counts) > 1.5 * min(counts), "with equal counts a mean of means would pass"
    wanted = reference_losses(cfg)
    for losses in losses_by_rank(cfg):
        assert losses == pytest.approx(wanted, abs=TOLERANCE)


@pytest.mark.parametrize("split_by", SPLITS)
def test_the_split_does_not_change_the_losses(split_by: str) -> None:
    cfg = configure(2, 1, 1, split_by=split_by)
    for losses in losses_by_rank(cfg):
        assert losses == pytest.approx(reference_losses(cfg), abs=TOLERANCE)


@pytest.mark.parametrize(("stages", "replicas", "zero_stage"), RECOMPUTE_LAYOUTS)
def test_recompute_does_not_change_the_losses(stages: int, replicas: int, zero_stage: int) -> None:
    cfg = configure(stages, replicas, zero_stage)
    again = dataclasses.replace(cfg, parallel=dataclasses.replace(cfg.parallel, recompute=True))
    assert losses_by_rank(again) == losses_by_rank(cfg)


@pytest.mark.parametrize(("stages", "replicas", "zero_stage"), BF16_LAYOUTS)
def test_bf16_learns_what_fp32_learns_up_to_its_rounding(stages: int, replicas: int, zero_stage: int) -> None:
    cfg = configure(stages, replicas, zero_stage, precision="bf16")
    wanted = reference_losses(cfg)
    for losses in losses_by_rank(cfg):
        assert all(math.isclose(a, b, rel_tol=0.03) for a, b in zip(losses, wanted, strict=True)), (losses, wanted)
