"""What a run reads: its samples in their order, and the words by which a checkpoint knows it again."""

import dataclasses
import logging
from collections.abc import Sequence

import torch

from toolkit.checkpoint import layout
from toolkit.config.schema import RunConfig
from toolkit.data.loader import StepLoader, open_streams
from toolkit.data.mixture import Member, identify
from toolkit.data.places import ShardPlaces
from toolkit.train.engine import batch_shape

log = logging.getLogger(__name__)


def open_loader(cfg: RunConfig, members: Sequence[Member], places: ShardPlaces, *, device: torch.device) -> StepLoader:
    """Open the training split of a run's datasets; nothing is read yet."""
    data = cfg.data
    loader = StepLoader(
        open_streams(members, "train", seq_len=data.seq_len, locate_in=places.locate_in, max_mapped=places.max_mapped),
        shares=[member.share for member in members],
        seq_len=data.seq_len,
        batch=batch_shape(cfg),
        seed=cfg.run.seed,
        shuffle=data.shuffle,
        replica_split=data.replica_split,
        document_end=members[0].manifest.tokenizer.eos_id if data.document_mask else None,
        pin_memory=device.type == "cuda",
    )
    for member, epochs in zip(members, loader.count_epochs(cfg.num_steps), strict=True):
        log.info("the run reads %s %.2f times", member.dataset_dir, epochs)
    return loader


def run_index(cfg: RunConfig, members: Sequence[Member], *, step: int) -> layout.Index:
    """Say which run a checkpoint belongs to: what must be the same for its steps to mean the same."""
    return layout.Index(
        step=step,
        updates=step,
        tokens_per_step=cfg.batch.tokens_per_step,
        seed=cfg.run.seed,
        dataset=identify(members, cfg.data),
        model=dataclasses.asdict(cfg.model),
        parts=(),
    )
