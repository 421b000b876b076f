"""The validation loss is a property of the weights and the samples: no batch and no layout changes it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.dataset import make_dataset
from tests.spawn.ranks import run_ranks
from tests.spawn.tiny import SEQ_LEN, build, make_config
from toolkit.config.schema import RunConfig

pytestmark = [pytest.mark.spawn, pytest.mark.timeout(600)]

# stages, replicas, samples of a step, micro-batch
SHAPES = [
    *((1, 1, 16, 2), (1, 1, 16, 16), (1, 1, 4, 1), (1, 1, 2, 2)),
    *((1, 2, 16, 2), (1, 2, 4, 1), (2, 1, 16, 2), (2, 1, 4, 4)),
]


def configure(dataset: Path, shape: tuple[int, int, int, int], *, document_mask: bool) -> RunConfig:
    stages, replicas, samples, micro_batch = shape
    cfg = make_config(stages=stages, replicas=replicas, zero_stage=1, tied=False)
    return replace(
        cfg,
        model=replace(cfg.model, vocab_size=320),
        data=replace(cfg.data, path=str(dataset), document_mask=document_mask),
        batch=replace(cfg.batch, tokens_per_step=samples * SEQ_LEN, micro_batch=micro_batch),
        monitor=replace(cfg.monitor, eval_samples=16),
    )


def measure(world: Any, cfgs: list[RunConfig]) -> list[float]:
    from toolkit.data.mixture import open_members
    from toolkit.monitor.metrics import VALIDATION_LOSS
    from toolkit.train.evaluate import Validation

    losses = []
    for cfg in cfgs:
        engine, replica = build(world, cfg)
        members = open_members(cfg.data.weights)
        validation = Validation(
            cfg, members, locate_in=lambda path: lambda entry: Path(path) / entry.path, replica=replica
        )
        losses.append(validation.losses(engine)[VALIDATION_LOSS])
    return losses


@pytest.mark.parametrize("document_mask", [False, True])
def test_neither_the_batch_nor_the_layout_changes_the_validation_loss(document_mask: bool, tmp_path: Path) -> None:
    dataset, _ = make_dataset(tmp_path)
    found: dict[tuple[int, ...], list[float]] = {}
    for world_size in (1, 2):
        shapes = [shape for shape in SHAPES if shape[0] * shape[1] == world_size]
        cfgs = [configure(dataset, shape, document_mask=document_mask) for shape in shapes]
        by_rank = run_ranks(measure, world_size=world_size, args=(cfgs,))
        found |= {shape: [losses[place] for losses in by_rank] for place, shape in enumerate(shapes)}
    wanted = found[SHAPES[0]][0]
    assert wanted == pytest.approx(5.77, abs=0.3), "weights that have learned nothing: the logarithm of 320"
    for shape, losses in found.items():
        assert losses == pytest.approx([wanted] * len(losses), abs=2e-6), shape
