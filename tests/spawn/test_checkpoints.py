"""A stopped run that goes on equals one that never stopped, on any layout."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.spawn.ranks import run_ranks
from tests.spawn.tiny import (
    SAMPLES,
    SEQ_LEN,
    build,
    go_on,
    load_into,
    make_config,
    open_saver,
    tiny_index,
    train_and_save,
)
from toolkit.checkpoint import layout
from toolkit.checkpoint.reader import TensorReader
from toolkit.config.schema import RunConfig

pytestmark = [pytest.mark.spawn, pytest.mark.timeout(1800)]

RELATIVE = 1e-5
SAVE_AT = 4
NUM_STEPS = SAVE_AT + 20

Layout = tuple[int, int, int]  # stages, replicas, zero_stage

LAYOUTS: list[Layout] = [
    (1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 1, 3),
    (1, 2, 0), (1, 2, 1), (1, 2, 2), (1, 2, 3), (2, 1, 1),
    (1, 4, 0), (1, 4, 1), (1, 4, 2), (1, 4, 3), (2, 2, 1), (4, 1, 1),
]  # fmt: skip
TIED: list[Layout] = [(1, 1, 0), (1, 2, 3), (1, 4, 1), (2, 2, 1), (4, 1, 1)]
BF16: list[Layout] = [(1, 1, 1), (1, 2, 1), (1, 2, 2), (1, 2, 3), (2, 1, 1), (1, 4, 3), (2, 2, 1)]


def configure(where: Layout, *, tied: bool, precision: str) -> RunConfig:
    stages, replicas, zero_stage = where
    cfg = make_config(stages=stages, replicas=replicas, zero_stage=zero_stage, tied=tied, precision=precision)
    return dataclasses.replace(
        cfg,
        run=dataclasses.replace(cfg.run, tokens=NUM_STEPS * SAMPLES * SEQ_LEN),
        batch=dataclasses.replace(cfg.batch, micro_batch=4),  # fewer passes: 4500 steps follow a load
    )


def place(directory: Path, where: Layout) -> Path:
    return directory / "-".join(map(str, where))


def run_all(function: Callable[..., Any], cfgs: Sequence[tuple[Layout, RunConfig]], *args: Any) -> dict[Layout, Any]:
    """Run a function over layouts, many by the same processes; ranks must agree."""
    # DeepSpeed keeps the groups of a pipeline, and a plain engine after it would take them: never in one process.
    sets = defaultdict(list)
    for where, cfg in cfgs:
        sets[cfg.world_size, where[0] > 1].append((where, cfg))
    results = {}
    for (world_size, _), cases in sets.items():
        by_rank = run_ranks(function, world_size=world_size, args=(cases, *args))
        assert all(told == by_rank[0] for told in by_rank), "ranks differ"
        results |= by_rank[0]
    return results


def save_each(world: Any, cases: list[tuple[Layout, RunConfig]], directory: Path) -> dict[Layout, list[float]]:
    return {
        where: train_and_save(world, cfg, place(directory, where), save_at=SAVE_AT)[SAVE_AT:] for where, cfg in cases
    }


def load_each(
    world: Any, cases: list[tuple[Layout, RunConfig]], directory: Path, sources: list[Layout]
) -> dict[Layout, dict[Layout, list[float]]]:
    """Load every checkpoint, one after the other, into each layout's engine."""
    results = {}
    for where, cfg in cases:
        engine, replica = build(world, cfg)
        results[where] = {one: go_on(world, cfg, engine, replica, place(directory, one)) for one in sources}
    return results


def save_and_go_on(world: Any, cases: list[tuple[Layout, RunConfig]], directory: Path) -> dict[Layout, Any]:
    results = {}
    for where, cfg in cases:
        whole = train_and_save(world, cfg, place(directory, where), save_at=SAVE_AT)
        results[where] = whole[SAVE_AT:], go_on(world, cfg, *build(world, cfg), place(directory, where))
    return results


def load_and_save(
    world: Any, cases: list[tuple[Layout, RunConfig]], directory: Path, source: Path
) -> dict[Layout, None]:
    for where, cfg in cases:
        engine, replica = build(world, cfg)
        load_into(world, engine, source)
        saver = open_saver(world, cfg, place(directory, where), replica)
        saver.start(engine.deepspeed, engine.named_weights(), index=tiny_index(SAVE_AT))
        assert saver.finish(300) is None
    return {where: None for where, _ in cases}


@pytest.mark.parametrize(("before", "after"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_another_precision_of_the_working_copy_keeps_every_bit_of_the_state(
    before: str, after: str, tmp_path: Path
) -> None:
    source = (1, 2, 1)
    run_all(save_each, [(source, configure(source, tied=True, precision=before))], tmp_path / before)
    layouts = [(1, 2, 1), (1, 2, 2), (1, 2, 3), (2, 1, 1)]
    cfgs = [(where, configure(where, tied=True, precision=after)) for where in layouts]
    run_all(load_and_save, cfgs, tmp_path / after, place(tmp_path / before, source))
    wanted = read_all(place(tmp_path / before, source))
    assert len(wanted) > 30
    for where in layouts:
        found = read_all(place(tmp_path / after, where))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted), where


def read_all(checkpoints_dir: Path) -> dict[tuple[str, str], torch.Tensor]:
    path = layout.newest(checkpoints_dir)
    assert path is not None
    with TensorReader(path, layout.read_index(path)) as reader:
        return {(kind, name): reader.read(kind, name) for name in reader.names() for kind in layout.KINDS}


@pytest.mark.parametrize(
    ("tied", "precision", "layouts"),
    [(False, "fp32", LAYOUTS), (True, "fp32", TIED), (True, "bf16", BF16)],
    ids=["fp32", "tied", "bf16"],
)
def test_the_same_layout_goes_on_bit_for_bit(tied: bool, precision: str, layouts: list[Layout], tmp_path: Path) -> None:
    cfgs = [(where, configure(where, tied=tied, precision=precision)) for where in layouts]
    for where, (whole, again) in run_all(save_and_go_on, cfgs, tmp_path).items():
        assert again == whole, where
        assert whole[-1] < whole[0], "it does not learn, so agreeing shows nothing"


@pytest.mark.parametrize(("tied", "layouts"), [(False, LAYOUTS), (True, TIED)], ids=["untied", "tied"])
def test_every_layout_goes_on_from_every_other(tied: bool, layouts: list[Layout], tmp_path: Path) -> None:
    cfgs = [(where, configure(where, tied=tied, precision="fp32")) for where in layouts]
    whole = run_all(save_each, cfgs, tmp_path)
    loaded = run_all(load_each, cfgs, tmp_path, layouts)
    wrong = [
        f"{before} -> {after}: {losses} instead of {whole[before]}"
        for after, by_source in loaded.items()
        for before, losses in by_source.items()
        if losses != (whole[before] if before == after else pytest.approx(whole[before], rel=RELATIVE))
    ]
    assert len(loaded) == len(layouts)
    assert not wrong, "\n".join(wrong)
