"""Every layout learns what a plain torch loop in one process learns."""

import dataclasses
import math

import pytest

from tests.spawn.ranks import run_ranks
from tests.spawn.tiny import make_config, reference_losses, train

pytestmark = pytest.mark.spawn

TOLERANCE = 1e-5
"""Largest difference of a loss (about 5 nats) over 20 steps, fp32: the order of sums differs."""

LAYOUTS = [
    # stages, replicas, zero_stage
    (1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 1, 3),
    (1, 2, 0), (1, 2, 1), (1, 2, 2), (1, 2, 3),
    (1, 4, 1), (1, 4, 3), (2, 1, 1), (2, 2, 1), (4, 1, 1), (2, 4, 1), (4, 2, 1), (8, 1, 1), (1, 8, 2),
]  # fmt: skip


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("stages", "replicas", "zero_stage"), LAYOUTS)
def test_every_layout_agrees_with_a_plain_loop(stages: int, replicas: int, zero_stage: int, tied: bool) -> None:
    cfg = make_config(stages=stages, replicas=replicas, zero_stage=zero_stage, tied=tied)
    wanted = reference_losses(cfg)
    assert wanted[-1] < 0.6 * wanted[0], "the reference does not learn, so agreeing with it shows nothing"
    for rank, losses in enumerate(run_ranks(train, world_size=stages * replicas, args=(cfg,))):
        worst = max(abs(a - b) for a, b in zip(losses, wanted, strict=True))
        assert worst < TOLERANCE, f"rank {rank} differs by {worst:.1e}: {losses} instead of {wanted}"


@pytest.mark.parametrize("split_by", ["uniform", "parameters"])
def test_the_split_does_not_change_the_losses(split_by: str) -> None:
    cfg = make_config(stages=2, replicas=1, zero_stage=1, tied=False, split_by=split_by)
    for losses in run_ranks(train, world_size=2, args=(cfg,)):
        assert losses == pytest.approx(reference_losses(cfg), abs=TOLERANCE)


@pytest.mark.parametrize(("stages", "replicas"), [(1, 2), (2, 1)])
def test_recompute_does_not_change_the_losses(stages: int, replicas: int) -> None:
    cfg = make_config(stages=stages, replicas=replicas, zero_stage=1, tied=False)
    again = dataclasses.replace(cfg, parallel=dataclasses.replace(cfg.parallel, recompute=True))
    assert run_ranks(train, world_size=2, args=(cfg,)) == run_ranks(train, world_size=2, args=(again,))


@pytest.mark.parametrize(("stages", "replicas", "zero_stage"), [(1, 1, 1), (1, 2, 2), (1, 2, 3), (2, 2, 1)])
def test_bf16_learns_what_fp32_learns_up_to_its_rounding(stages: int, replicas: int, zero_stage: int) -> None:
    cfg = make_config(stages=stages, replicas=replicas, zero_stage=zero_stage, tied=False, precision="bf16")
    wanted = reference_losses(cfg)
    for losses in run_ranks(train, world_size=stages * replicas, args=(cfg,)):
        assert all(math.isclose(a, b, rel_tol=0.03) for a, b in zip(losses, wanted, strict=True)), (
            losses,
            wanted,
        )
