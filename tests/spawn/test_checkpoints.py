"""A stopped run that goes on equals one that never stopped, on any layout."""

from pathlib import Path
from typing import Any

import pytest

from tests.spawn.ranks import run_ranks
from tests.spawn.tiny import NUM_STEPS, make_config, train
from toolkit.checkpoint import layout
from toolkit.config.schema import RunConfig

pytestmark = pytest.mark.spawn

HALF = NUM_STEPS // 2
RELATIVE = 1e-5

Layout = tuple[int, int, int]  # stages, replicas, zero_stage

SAME = [(1, 1, 0), (1, 2, 1), (1, 2, 2), (1, 2, 3), (2, 2, 1)]
OTHER = [
    ((2, 2, 1), (1, 2, 3)),
    ((1, 2, 3), (2, 2, 1)),
    ((2, 2, 1), (1, 1, 0)),
    ((1, 1, 0), (4, 1, 1)),
    ((4, 1, 1), (1, 4, 2)),
    ((1, 2, 2), (2, 1, 1)),
]


def configure(where: Layout, *, tied: bool, precision: str) -> RunConfig:
    stages, replicas, zero_stage = where
    return make_config(stages=stages, replicas=replicas, zero_stage=zero_stage, tied=tied, precision=precision)


def run(cfg: RunConfig, function: Any, *args: Any) -> Any:
    results = run_ranks(function, world_size=cfg.world_size, args=(cfg, *args))
    assert all(losses == results[0] for losses in results)
    return results[0]


def train_whole_and_halves(world: Any, cfg: RunConfig, directory: Path) -> tuple[list[float], list[float], list[float]]:
    """Train without a stop, then with one; the engine after the stop is a new one."""
    whole = train(world, cfg)
    return whole, train(world, cfg, range(HALF), directory), train(world, cfg, range(HALF, NUM_STEPS), directory)


def train_whole_and_first_half(world: Any, cfg: RunConfig, directory: Path) -> list[float]:
    whole = train(world, cfg)
    train(world, cfg, range(HALF), directory)
    return whole


@pytest.mark.parametrize("where", SAME)
@pytest.mark.parametrize(("tied", "precision"), [(False, "fp32"), (True, "bf16")])
def test_resume_on_the_same_layout_is_bit_exact(where: Layout, tied: bool, precision: str, tmp_path: Path) -> None:
    if precision == "bf16" and where[2] == 0:
        pytest.skip("ZeRO 0 with bf16 is refused")
    whole, first, second = run(configure(where, tied=tied, precision=precision), train_whole_and_halves, tmp_path)
    assert first + second == whole
    assert first[-1] != second[0]


@pytest.mark.parametrize(("before", "after"), OTHER)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_resume_on_another_layout_agrees(before: Layout, after: Layout, tied: bool, tmp_path: Path) -> None:
    whole = run(configure(before, tied=tied, precision="fp32"), train_whole_and_first_half, tmp_path)
    cfg = configure(after, tied=tied, precision="fp32")
    second = run(cfg, train, range(HALF, NUM_STEPS), tmp_path)
    assert second == pytest.approx(whole[HALF:], rel=RELATIVE)
    assert layout.list_steps(tmp_path) == [HALF, NUM_STEPS]
