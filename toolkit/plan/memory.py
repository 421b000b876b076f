"""Bytes a rank of each stage needs."""

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.config.schema import RunConfig
from toolkit.plan.costs import LayerCost

FRAGMENTATION = 1.06  # assumption: the allocator holds about 6 % more than is in use


@dataclass(frozen=True, kw_only=True, slots=True)
class StageMemory:
    """Peak bytes of one rank of a stage."""

    states_bytes: int
    """Weights, gradients, master weights, moments."""
    activations_bytes: int
    logits_bytes: int

    @property
    def total_bytes(self) -> int:
        """Everything, with what the allocator wastes."""
        return int((self.states_bytes + self.activations_bytes + self.logits_bytes) * FRAGMENTATION)


def in_flight(stage: int, *, num_stages: int, num_micro_batches: int) -> int:
    """Count the micro-batches whose activations a stage holds at its peak under 1F1B.

    Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1.
    """
    return min(num_stages - stage, num_micro_batches)


def stage_memory(
    cfg: RunConfig, costs: Sequence[LayerCost], boundaries: Sequence[int], *, num_micro_batches: int
) -> tuple[StageMemory, ...]:
    """Reckon the peak of every stage of a configuration without open fields."""
    num_stages = len(boundaries) - 1
    stages = []
    for stage in range(num_stages):
        layers = costs[boundaries[stage] : boundaries[stage + 1]]
        parameters = sum(layer.parameters for layer in layers)
        if stage == num_stages - 1 and num_stages > 1 and cfg.model.tie_word_embeddings:
            parameters += costs[0].parameters  # a tied head keeps its copy of the embedding
        held = in_flight(stage, num_stages=num_stages, num_micro_batches=num_micro_batches)
        blocks = sum(layer.kind == "block" for layer in layers)
        stages.append(
            StageMemory(
                states_bytes=int(parameters * _state_bytes(cfg)),
                activations_bytes=held * blocks * _block_activations(cfg) + _working_set(cfg) + _gathered(cfg, layers),
                logits_bytes=_logits(cfg) if stage == num_stages - 1 else 0,
            )
        )
    return tuple(stages)


def _state_bytes(cfg: RunConfig) -> float:
    """Bytes a parameter under ZeRO and mixed precision, gradients summed in fp32.

    Source: Rajbhandari et al. 2020 (ZeRO), arXiv:1910.02054, section 3.1.
    """
    zero, replicas = cfg.parallel.zero_stage or 0, cfg.replicas
    work = 2.0 if cfg.parallel.precision == "bf16" else 4.0
    master = 12.0 if cfg.parallel.precision == "bf16" or zero else 8.0
    gradients = 4.0
    return (
        work / (replicas if zero >= 3 else 1)
        + gradients / (replicas if zero >= 2 else 1)
        + master / (replicas if zero >= 1 else 1)
    )


def _block_activations(cfg: RunConfig) -> int:
    """Bytes a block keeps for the backward pass of one micro-batch.

    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4, without the attention matrix (fused
    attention) and for a gated feed-forward part; 16-bit, doubled for fp32.
    """
    tokens = (cfg.batch.micro_batch or 1) * cfg.data.seq_len
    width = 2 if cfg.parallel.precision == "bf16" else 4
    if cfg.parallel.recompute:
        return tokens * cfg.model.hidden_size * width
    kv = cfg.model.kv_heads / cfg.model.num_attention_heads
    return int(tokens * width * (cfg.model.hidden_size * (6 + 2 * kv) + 4 * cfg.model.intermediate_size))


def _working_set(cfg: RunConfig) -> int:
    """Bytes that one block needs while it runs backward, kept or not."""
    tokens = (cfg.batch.micro_batch or 1) * cfg.data.seq_len
    return tokens * 4 * (6 * cfg.model.hidden_size + 4 * cfg.model.intermediate_size)


def _gathered(cfg: RunConfig, layers: Sequence[LayerCost]) -> int:
    """Weights and gradients of the largest layer, whole for a moment under ZeRO 3.

    Source: deepspeed 0.19.8, runtime/zero/stage3.py, estimate_zero3_model_states_mem_needs.
    """
    if cfg.parallel.zero_stage != 3:
        return 0
    width = 2 if cfg.parallel.precision == "bf16" else 4
    return 2 * width * max(layer.parameters for layer in layers)


def _logits(cfg: RunConfig) -> int:
    """Logits in the working format, their fp32 copy and its gradient."""
    return (cfg.batch.micro_batch or 1) * cfg.data.seq_len * cfg.model.vocab_size * 10
