"""A layout as numbers, and the facts about the software that runs it."""

from dataclasses import dataclass
from typing import Literal

from toolkit.plan.coefficients import Coefficients
from toolkit.plan.hardware import Hardware

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How a step is dealt to ranks: `stages` x `replicas`, replicas of a stage being neighbours."""

    nodes: float
    """Below 1: a part of a node."""
    stages: int
    replicas: int
    zero_stage: int
    micro_batch: int
    """Samples a replica runs at once."""
    num_micro_batches: int
    """Micro-batches of a step on each replica."""
    recompute: Recompute = "none"
    precision: Literal["fp32", "bf16", "fp8"] = "bf16"
    interleave: int = 1
    """Groups of layers on each stage (virtual stages)."""

    @property
    def world_size(self) -> int:
        """Count the ranks."""
        return self.stages * self.replicas

    @property
    def samples_per_step(self) -> int:
        """Count the samples of a step."""
        return self.replicas * self.micro_batch * self.num_micro_batches


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """What a training program does that is no matter of layout; each field a fact that can be read in its code."""

    attention: Literal["unfused", "flash1", "flash2"]
    """unfused: scores go to memory; flash1, flash2: FlashAttention and its successor (torch's own is the latter)."""
    is_fused: bool
    """Norms, activations, rotary positions and the loss run as fused kernels (a compiler, or kernels written so)."""
    norm_bytes: float
    """Bytes a token and unit of hidden_size that norms and rotary positions move beyond one kernel each, forward,
    16-bit: norms written out in fp32 take 32 each (cast, square, mean, product, cast, weight), rotation 20 to 40."""
    is_loss_split: bool
    """The loss is computed for a vocabulary in slices: many more passes over the logits."""
    sums_in_fp32: bool
    """Gradients of micro-batches are added up in fp32 copies of their own."""
    kept_bytes: float
    """Bytes a token and unit of hidden_size that a block keeps for its backward pass beside keys, values and the
    inner part, 16-bit: what autograd was seen (or can be read) to save."""
    optimizer_bytes: float = 30.0
    """Bytes a parameter that the optimizer's step moves: fused AdamW reads gradient, weight and two moments in fp32,
    writes three, and the 16-bit weight."""
    is_kept_measured: bool = False
    """kept_bytes and the inner part were measured on this program: no less can be held."""
    selective_part: float = 0.0
    """Part of a block's matrix products that `selective` recomputes."""


# Source of kept_bytes: bytes that autograd saved of this toolkit's block in fp32, halved; bf16 on CPU keeps 8 more,
# since its norm works on fp32 copies.
OURS = Stack(
    attention="flash2",
    is_fused=False,
    norm_bytes=20.0,
    is_loss_split=False,
    sums_in_fp32=True,
    kept_bytes=18.5,
    # torch's AdamW operation by operation (decay 8, mean 12, square 20, root 8, quotient 8, addition 8, update 16), the
    # norm of gradients and clipping 12, copies of gradients and weights 18
    optimizer_bytes=110.0,
    is_kept_measured=True,
)
"""This toolkit: torch's scaled_dot_product_attention and rms_norm, eager, DeepSpeed's gradients in fp32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What a step runs on and by: everything a time depends on beside shape and layout."""

    hardware: Hardware
    stack: Stack
    fitted: Coefficients
