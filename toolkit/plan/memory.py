"""Bytes a rank of each stage needs."""

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.plan.coefficients import Coefficients
from toolkit.plan.costs import Shape
from toolkit.plan.layout import Layout, Stack
from toolkit.plan.speed import StageShare

# A parameter of a ZeRO 1 slice, beside its optimizer. assumption: not in the code of nanotron or deepspeed, but its
# layouts on 1 to 16 nodes show about that much; AdamW's root of the second moment, made anew in each step, is as large.
_SLICE_BYTES = 4.0
_OPTIMIZER_BYTES = 12.0  # a parameter: fp32 weight and two moments
_SCORE_BYTES = 5.0  # a head, token and position
_NO_WASTE_WIDTH = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class StageMemory:
    """Peak bytes of one rank of a stage, as the allocator holds them."""

    states_bytes: int
    """Weights, gradients, master weights, moments."""
    activations_bytes: int
    """What micro-batches in flight keep, and what a block needs while it runs."""
    logits_bytes: int
    fixed_bytes: int = 0
    """Context, libraries, buffers of collectives."""

    @property
    def total_bytes(self) -> int:
        """Give the sum."""
        return self.states_bytes + self.activations_bytes + self.logits_bytes + self.fixed_bytes


def in_flight(stage: int, *, num_stages: int, num_micro_batches: int) -> int:
    """Count the micro-batches whose activations a stage holds at its peak under 1F1B.

    Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1.
    """
    return min(num_stages - stage, num_micro_batches)


def stage_memory(
    shape: Shape, layout: Layout, shares: Sequence[StageShare], *, stack: Stack, fitted: Coefficients
) -> tuple[StageMemory, ...]:
    """Reckon the peak of every stage."""
    block = _block_bytes(shape, layout, stack=stack, fitted=fitted)
    working = _working_bytes(shape, layout, stack=stack, fitted=fitted)
    tokens = layout.micro_batch * shape.seq_len
    width = 2.0 if layout.precision == "fp32" else 1.0
    fixed = int(fitted.fixed_gib * 2**30)
    found = []
    for stage, share in enumerate(shares):
        held = in_flight(stage, num_stages=layout.stages, num_micro_batches=layout.num_micro_batches)
        # Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.3: interleaved, the first stage holds more
        more = 1.0 + (layout.stages - 1) / (layout.stages * layout.interleave) if layout.interleave > 1 else 1.0
        beside = tokens * fitted.in_flight * width * min(1.0, shape.hidden_size / _NO_WASTE_WIDTH)
        beside *= layout.recompute != "full"  # 22 runs that recompute show none of it
        found.append(
            StageMemory(
                states_bytes=int(_states_bytes(shape, layout, share, stack=stack)),
                activations_bytes=int(
                    held * more * (share.blocks * block + (beside if share.has_embedding else 0.0)) + working
                ),
                logits_bytes=int(tokens * shape.vocab_size * fitted.logits * width) if share.has_head else 0,
                fixed_bytes=fixed,
            )
        )
    return tuple(found)


def _states_bytes(shape: Shape, layout: Layout, share: StageShare, *, stack: Stack) -> float:
    """Count bytes of weights, gradients and optimizer, dealt out to replicas as ZeRO says.

    Under ZeRO 3 a block's weights and gradients are whole for a moment.

    Source: Rajbhandari et al. 2020 (ZeRO), arXiv:1910.02054, section 3.1.
    """
    zero, replicas = layout.zero_stage, layout.replicas
    is_fp32 = layout.precision == "fp32"
    weight = 4.0 if is_fp32 else 2.0
    sums = 4.0 if stack.sums_in_fp32 and not is_fp32 else 0.0
    optimizer = 8.0 if is_fp32 and zero == 0 else _OPTIMIZER_BYTES + (_SLICE_BYTES if sums and zero == 1 else 0.0)
    each = (
        weight / (replicas if zero >= 3 else 1)
        + (weight + sums) / (replicas if zero >= 2 else 1)
        + optimizer / (replicas if zero >= 1 else 1)
    )
    whole = 2.0 * weight * max(shape.block_parameters, shape.table_parameters) if zero >= 3 else 0.0
    return share.parameters(shape) * each + whole


def _block_bytes(shape: Shape, layout: Layout, *, stack: Stack, fitted: Coefficients) -> float:
    """Count bytes a block keeps for the backward pass of one micro-batch.

    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4 (what recompute leaves).
    """
    tokens = float(layout.micro_batch * shape.seq_len)
    width = 2.0 if layout.precision == "fp32" else 1.0
    if layout.recompute == "full":
        return tokens * width * 2.0 * shape.hidden_size
    kept = _whole_block_bytes(shape, stack=stack, fitted=fitted)
    if layout.recompute == "selective":
        if stack.selective_part:
            kept *= 1.0 - stack.selective_part
        elif stack.attention == "unfused":
            kept -= _SCORE_BYTES * shape.num_attention_heads * shape.seq_len
    return tokens * width * kept


def _whole_block_bytes(shape: Shape, *, stack: Stack, fitted: Coefficients) -> float:
    """Count bytes a token of everything a block keeps, 16-bit.

    Keys and values 6 kv (before and after rotation), the inner part 8 f where it is gated (gate, up, activation,
    product) and 4 f where not, the rest as the program does it. Unfused attention keeps scores, probabilities and
    their mask. The allocator holds more than that of large blocks; never less than was measured.

    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1.
    """
    hidden, inner = shape.hidden_size, shape.intermediate_size
    kv = hidden * shape.num_key_value_heads / shape.num_attention_heads
    counted = stack.kept_bytes * hidden + 6.0 * kv + inner * (8.0 if shape.is_gated else 4.0)
    held = fitted.activations * max(1.0, float((hidden / _NO_WASTE_WIDTH) ** fitted.activations_growth))
    counted *= max(1.0, held) if stack.is_kept_measured else held
    scores = _SCORE_BYTES * shape.num_attention_heads * shape.seq_len if stack.attention == "unfused" else 0.0
    return counted + scores


def _working_bytes(shape: Shape, layout: Layout, *, stack: Stack, fitted: Coefficients) -> float:
    """Count bytes one block needs while it runs backward after it was recomputed: all it would have kept."""
    if layout.recompute == "none":
        return 0.0
    width = 2.0 if layout.precision == "fp32" else 1.0
    tokens = float(layout.micro_batch * shape.seq_len)
    return tokens * width * _whole_block_bytes(shape, stack=stack, fitted=fitted)
