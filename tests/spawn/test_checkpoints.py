"""A stopped run that goes on equals one that never stopped, on any layout."""

from pathlib import Path

import pytest

from tests.spawn.ranks import run_ranks
from tests.spawn.tiny import NUM_STEPS, make_config, train
from toolkit.checkpoint import layout

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


def run(where: Layout, steps: range, checkpoints_dir: Path | None, *, tied: bool, precision: str) -> list[float]:
    stages, replicas, zero_stage = where
    cfg = make_config(stages=stages, replicas=replicas, zero_stage=zero_stage, tied=tied, precision=precision)
    results = run_ranks(train, world_size=stages * replicas, args=(cfg, steps, checkpoints_dir))
    assert all(losses == results[0] for losses in results)
    return results[0]


@pytest.mark.parametrize("where", SAME)
@pytest.mark.parametrize(("tied", "precision"), [(False, "fp32"), (True, "bf16")])
def test_resume_on_the_same_layout_is_bit_exact(where: Layout, tied: bool, precision: str, tmp_path: Path) -> None:
    if precision == "bf16" and where[2] == 0:
        pytest.skip("ZeRO 0 with bf16 is refused")
    whole = run(where, range(NUM_STEPS), None, tied=tied, precision=precision)
    first = run(where, range(HALF), tmp_path, tied=tied, precision=precision)
    second = run(where, range(HALF, NUM_STEPS), tmp_path, tied=tied, precision=precision)
    assert first + second == whole


@pytest.mark.parametrize(("before", "after"), OTHER)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_resume_on_another_layout_agrees(before: Layout, after: Layout, tied: bool, tmp_path: Path) -> None:
    whole = run(before, range(NUM_STEPS), None, tied=tied, precision="fp32")
    run(before, range(HALF), tmp_path, tied=tied, precision="fp32")
    second = run(after, range(HALF, NUM_STEPS), tmp_path, tied=tied, precision="fp32")
    assert second == pytest.approx(whole[HALF:], rel=RELATIVE)
    assert layout.list_steps(tmp_path) == [HALF, NUM_STEPS]
