"""A tiny run on made data, and the plain torch loop it is compared with."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from toolkit.config.schema import (
    BatchSection,
    ClusterSection,
    DataSection,
    ModelSection,
    OptimSection,
    ParallelSection,
    RunConfig,
    RunSection,
)
from toolkit.model.llama import NOT_LEARNED, Llama
from toolkit.train.schedule import rate_of_run

NUM_STEPS = 20
SEQ_LEN = 32
SAMPLES = 16


def make_config(*, stages: int, replicas: int, zero_stage: int, tied: bool, **parallel: Any) -> RunConfig:
    return RunConfig(
        run=RunSection(name="layouts", tokens=NUM_STEPS * SAMPLES * SEQ_LEN, seed=3),
        model=ModelSection(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=8 if stages > 4 else 4,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=128,
            tie_word_embeddings=tied,
        ),
        data=DataSection(path="unused", seq_len=SEQ_LEN),
        optim=OptimSection(peak_lr=1e-2, warmup_tokens=5 * SAMPLES * SEQ_LEN, clip_norm=0.5),
        parallel=ParallelSection(
            stages=stages, zero_stage=zero_stage, **{"precision": "fp32", "recompute": False, **parallel}
        ),
        batch=BatchSection(tokens_per_step=SAMPLES * SEQ_LEN, micro_batch=2),
        cluster=ClusterSection(nodes=stages * replicas, gpus_per_node=1),
    )


def make_rows(cfg: RunConfig) -> torch.Tensor:
    """A second-order pattern that a small model learns in a few steps."""
    generator = torch.Generator().manual_seed(7)
    start = torch.randint(cfg.model.vocab_size, (cfg.num_steps, SAMPLES, 1), generator=generator)
    return (start + torch.arange(SEQ_LEN + 1) * 3) % cfg.model.vocab_size


def make_batch(cfg: RunConfig, step: int) -> tuple[Any, torch.Tensor]:
    """Tokens and labels of a step; with document_mask, samples are cut into documents, later ones into more."""
    rows = make_rows(cfg)[step]
    tokens, labels = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    if not cfg.data.document_mask:
        return tokens, labels
    chance = torch.linspace(0, 0.5, SAMPLES)[:, None]
    is_end = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(step)) < chance
    documents = (is_end.cumsum(1) - is_end.int()).int()
    return (tokens, documents), labels.masked_fill(is_end, NOT_LEARNED)


def reference_losses(cfg: RunConfig) -> list[float]:
    torch.manual_seed(0)
    module = Llama(cfg.model, seed=cfg.run.seed, recompute=False)
    matrices = [p for p in module.parameters() if p.dim() >= 2]
    vectors = [p for p in module.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": cfg.optim.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=(cfg.optim.beta1, cfg.optim.beta2),
        eps=cfg.optim.eps,
    )
    losses = []
    for step in range(NUM_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate_of_run(cfg, step=step)
        inputs, labels = make_batch(cfg, step)
        loss = F.cross_entropy(module(inputs).flatten(0, 1), labels.flatten(), ignore_index=NOT_LEARNED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), cfg.optim.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_each(world: Any, cfgs: list[RunConfig]) -> list[list[float]]:
    return [train(world, cfg) for cfg in cfgs]


def build(world: Any, cfg: RunConfig) -> tuple[Any, int]:
    """Give the engine of a configuration on this rank, and the rank's replica."""
    from toolkit.plan.costs import layer_costs
    from toolkit.plan.split import split_layers
    from toolkit.topology import Topology
    from toolkit.train.engine import build_engine

    costs = layer_costs(cfg.model, seq_len=cfg.data.seq_len)
    boundaries = split_layers(costs, stages=cfg.parallel.stages, split_by=cfg.parallel.split_by)
    engine = build_engine(cfg, boundaries=boundaries, device=world.device)
    return engine, Topology(stages=cfg.parallel.stages, replicas=cfg.replicas).replica_of(world.rank)


def run_steps(cfg: RunConfig, engine: Any, replica: int, steps: range) -> list[float]:
    from toolkit.train.engine import batch_shape

    shape = batch_shape(cfg)
    losses = []
    for step in steps:
        inputs, labels = make_batch(cfg, step)
        micro_batches = []
        for number in range(shape.num_micro_batches):
            positions = shape.positions(replica=replica, micro_index=number)
            part = slice(positions.start, positions.stop)
            mine = (inputs[0][part], inputs[1][part]) if isinstance(inputs, tuple) else inputs[part]
            micro_batches.append((mine, labels[part]))
        losses.append(engine.train_step(micro_batches, learning_rate=rate_of_run(cfg, step=step)).loss)
    return losses


def tiny_index(step: int) -> Any:
    from toolkit.checkpoint.layout import Index

    return Index(step=step, updates=step, tokens_per_step=1, seed=0, dataset="x", model={}, parts=())


def open_saver(world: Any, cfg: RunConfig, checkpoints_dir: Path, replica: int, **options: Any) -> Any:
    from toolkit.checkpoint.saver import Saver

    place = {"replica": replica, "replicas": cfg.replicas}
    return Saver(checkpoints_dir, world=world, **place, **{"keep": 9, "keep_every": None, "mirror": None, **options})


def load_into(world: Any, engine: Any, checkpoints_dir: Path) -> Any:
    from toolkit.checkpoint.restore import load

    options: Any = {"world": world, "expected": tiny_index(0), "mirror": None, "up_to": None}
    return load(engine.deepspeed, engine.named_weights(), checkpoints_dir, **options)


def train(world: Any, cfg: RunConfig) -> list[float]:
    """Run the tiny run from its start to its end."""
    engine, replica = build(world, cfg)
    return run_steps(cfg, engine, replica, range(cfg.num_steps))


def train_and_save(world: Any, cfg: RunConfig, checkpoints_dir: Path, *, save_at: int) -> list[float]:
    """Run the tiny run to its end; save at a step, in the background of those that follow."""
    engine, replica = build(world, cfg)
    saver = open_saver(world, cfg, checkpoints_dir, replica)
    losses = run_steps(cfg, engine, replica, range(save_at))
    saver.start(engine.deepspeed, engine.named_weights(), index=tiny_index(save_at))
    losses += run_steps(cfg, engine, replica, range(save_at, cfg.num_steps))
    assert saver.finish(300) is None
    return losses


def go_on(world: Any, cfg: RunConfig, engine: Any, replica: int, checkpoints_dir: Path) -> list[float]:
    """Load the newest checkpoint and run the steps that follow."""
    loaded = load_into(world, engine, checkpoints_dir)
    assert loaded.index.updates == loaded.index.step
    return run_steps(cfg, engine, replica, range(loaded.index.step, cfg.num_steps))
