"""A run made small for its rehearsal: the same parts and paths, fewer of them, and narrow. Pure."""

from dataclasses import dataclass, replace

from toolkit import storage
from toolkit.config.schema import (
    BatchSection,
    CheckpointSection,
    ClusterSection,
    DataSection,
    FaultsSection,
    ModelSection,
    MonitorSection,
    RunConfig,
)

NUM_STEPS = 6
SAVE_EVERY = 2
DRILL_STEP = 4
"""After it the rehearsal stops as at a time limit; a save before it, and steps and a save after it."""
EVAL_EVERY = 3

_REPLICAS = 2
_MICRO_BATCH = 2
_KV_HEADS = 2
_HEAD_DIM = 4
_SEQ_LEN = 32
_HANG_START_S = 180
_SIGNAL_DELAY_S = 30
_MAX_REQUEUES = 3  # the drill, and a preemption or two


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """How far a run is shrunk besides; None: it stays as it is."""

    hidden_size: int | None
    """Width that heads share, until each has 4."""
    seq_len: int | None
    """Most tokens of a sample."""
    logits: int | None
    """Most logits of a sample, until it has 32 tokens: most of the time on a CPU goes into them."""


ON_CPU = Bounds(hidden_size=64, seq_len=128, logits=1 << 22)
ON_GPU = Bounds(hidden_size=None, seq_len=None, logits=None)  # attention takes the same kernel as the run


def shrink(cfg: RunConfig, bounds: Bounds) -> RunConfig:
    """Make a resolved configuration small.

    What decides which code runs stays: stages, ZeRO, recompute, precision, ratio of heads, vocabulary, mask, kind of
    the data and of what is written. Width, blocks, replicas, batch and steps shrink.

    Args:
        cfg: of the run, with nothing open.
        bounds: what else is bounded.

    Returns:
        A resolved configuration with the run's name, places, and account of the cluster.
    """
    stages = cfg.parallel.stages
    assert stages is not None, "parallel.stages is not resolved"
    replicas = min(_REPLICAS, cfg.replicas)
    data = _shrink_data(cfg.data, bounds, vocab_size=cfg.model.vocab_size)
    batch = _shrink_batch(cfg, replicas=replicas, seq_len=data.seq_len)
    return replace(
        cfg,
        run=replace(cfg.run, tokens=NUM_STEPS * batch.tokens_per_step),
        model=_shrink_model(cfg.model, bounds, stages=stages),
        data=data,
        optim=replace(cfg.optim, warmup_tokens=min(cfg.optim.warmup_tokens, batch.tokens_per_step)),
        batch=batch,
        checkpoint=_shrink_checkpoint(cfg.checkpoint),
        faults=_shrink_faults(cfg.faults),
        monitor=_shrink_monitor(cfg.monitor, num_samples=batch.tokens_per_step // data.seq_len),
        cluster=_shrink_cluster(cfg.cluster, num_ranks=stages * replicas),
    )


def _shrink_model(model: ModelSection, bounds: Bounds, *, stages: int) -> ModelSection:
    group = model.num_attention_heads // model.kv_heads
    kv_heads = min(model.kv_heads, _KV_HEADS)
    heads = kv_heads * group
    head_dim = model.head_dim
    if bounds.hidden_size is not None:
        head_dim = min(head_dim, max(_HEAD_DIM, bounds.hidden_size // heads // 2 * 2))
    hidden_size = heads * head_dim
    return replace(
        model,
        hidden_size=hidden_size,
        intermediate_size=max(1, round(model.intermediate_size * hidden_size / model.hidden_size)),
        num_hidden_layers=min(model.num_hidden_layers, max(2, stages)),
        num_attention_heads=heads,
        num_key_value_heads=None if model.num_key_value_heads is None else kv_heads,
    )


def _shrink_data(data: DataSection, bounds: Bounds, *, vocab_size: int) -> DataSection:
    seq_len = data.seq_len if bounds.seq_len is None else min(data.seq_len, bounds.seq_len)
    if bounds.logits is not None:
        seq_len = min(seq_len, max(_SEQ_LEN, bounds.logits // vocab_size))
    # shuffled, a few samples would have as many remote shards brought here
    is_near = all(storage.is_local(path) for path in data.weights)
    return replace(data, seq_len=seq_len, shuffle=data.shuffle and is_near)


def _shrink_batch(cfg: RunConfig, *, replicas: int, seq_len: int) -> BatchSection:
    micro_batch, stages = cfg.batch.micro_batch, cfg.parallel.stages
    assert micro_batch is not None, "batch.micro_batch is not resolved"
    assert stages is not None, "parallel.stages is not resolved"
    num_micro_batches = cfg.samples_per_step // (cfg.replicas * micro_batch)
    few = min(num_micro_batches, stages + 1)  # enough that every stage is busy at once
    small = min(micro_batch, _MICRO_BATCH)
    return replace(cfg.batch, tokens_per_step=replicas * small * few * seq_len, micro_batch=small)


def _shrink_checkpoint(section: CheckpointSection) -> CheckpointSection:
    keep_every = None if section.keep_every is None else SAVE_EVERY
    return replace(section, save_every=SAVE_EVERY, keep=min(2, section.keep), keep_every=keep_every)


def _shrink_faults(faults: FaultsSection) -> FaultsSection:
    start_s = min(faults.hang_start_s, _HANG_START_S)
    return replace(faults, drill_step=DRILL_STEP, hang_start_s=start_s, hang_min_s=min(faults.hang_min_s, start_s))


def _shrink_monitor(monitor: MonitorSection, *, num_samples: int) -> MonitorSection:
    return replace(
        monitor,
        log_every=1,
        eval_every=None if monitor.eval_every is None else EVAL_EVERY,
        eval_samples=min(monitor.eval_samples, num_samples),
        wandb="off" if monitor.wandb == "off" else "offline",
    )


def _shrink_cluster(section: ClusterSection, *, num_ranks: int) -> ClusterSection:
    assert section.gpus_per_node is not None, "cluster.gpus_per_node is not resolved"
    nodes = count_nodes(num_ranks, gpus_per_node=section.gpus_per_node, nodes=section.nodes)
    return replace(
        section,
        nodes=nodes,
        gpus_per_node=num_ranks // nodes,
        signal_delay_s=min(section.signal_delay_s, _SIGNAL_DELAY_S),
        max_requeues=_MAX_REQUEUES,
        max_fruitless=1,
    )


def count_nodes(num_ranks: int, *, gpus_per_node: int, nodes: int) -> int:
    """Find the fewest nodes that share ranks evenly; two at least where the run has several.

    What lies between nodes fails more often than what is in them.
    """
    least = max(min(2, nodes, num_ranks), -(-num_ranks // gpus_per_node))
    return next(count for count in range(least, num_ranks + 1) if num_ranks % count == 0)
