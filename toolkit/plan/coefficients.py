"""The few numbers of the cost model that no data sheet has; their values are in `fitted`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Coefficients:
    """What was fitted to published runs; every one has a meaning of its own and could be measured alone."""

    matmul: float
    """Part of the measured rate of matrix products that those of a training step reach."""
    small: float
    """Part of a product's own memory traffic that its arithmetic does not hide."""
    attention: float
    """Part of FlashAttention-2's published rate that is reached."""
    flash1: float
    """Rate of the first FlashAttention over that of the second."""
    attention_ramp: float
    """Tokens of a sample at which attention reaches half of its rate."""
    unfused: float
    """Bytes that move for each attention score where scores go to memory, forward."""
    elementwise: float
    """Traffic of norms, residuals and activations over what counting their tensors gives."""
    fused: float
    """Part of that traffic which is left when kernels are fused."""
    loss: float
    """Bytes that move for each logit, forward and backward."""
    loss_split: float
    """The same where the vocabulary is worked on in slices."""
    fp8: float
    """Rate of the blocks' matrix products in fp8 over 16-bit, casts counted."""
    link: float
    """Part of the link's nominal rate that collectives inside a node reach."""
    wire: float
    """Part of all ports' nominal rate that collectives of two nodes reach."""
    wire_decay: float
    """Collectives of n nodes reach (n / 2) to the power of minus this of it."""
    overlap: float
    """How gathers and reductions hide behind arithmetic: 1 nothing, large all of the shorter one."""
    sync: float
    """Part of the traffic at the end of a step (ZeRO 0 and 1) that nothing hides."""
    peer: float
    """Part of the traffic between stages that nothing hides."""
    micro_batch_s: float
    """Seconds each micro-batch costs a stage whatever its size."""
    step_s: float
    """Seconds each step costs whatever its size: norms, clipping, the optimizer's start, the loop."""
    activations: float
    """Bytes kept of a block over what counting its tensors gives."""
    activations_growth: float
    """Above hidden_size 2048 that ratio goes with (hidden_size / 2048) to the power of this: the allocator wastes more
    of large blocks."""
    in_flight: float
    """Bytes a token of each micro-batch in flight takes on the first stage beside its blocks; less where hidden_size
    is below 2048, in proportion. Seen in nanotron's layouts, not explained."""
    logits: float
    """Bytes each logit takes at the peak."""
    fixed_gib: float
    """GiB that are used whatever the layout: context, libraries, buffers of collectives."""
