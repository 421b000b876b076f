"""How long one micro-batch computes: matrix products, attention, what only moves memory, and starting kernels."""

from dataclasses import dataclass

from toolkit.plan.costs import Shape
from toolkit.plan.hardware import Hardware
from toolkit.plan.layout import Conditions, Layout, Stack

_STREAM = 0.9  # part of the memory's nominal rate that a plain copy reaches. assumption
_KERNELS = 65  # of a block, forward and backward, eager; counted in this toolkit's block
_LAUNCH_POWER = 4.0  # how sharply the longer one of arithmetic and launches wins. assumption


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockTime:
    """Seconds of one block and one micro-batch, forward and backward, recompute counted."""

    matmul_s: float
    attention_s: float
    elementwise_s: float
    launch_s: float
    """What starting kernels adds."""

    @property
    def total_s(self) -> float:
        """Give the sum."""
        return self.matmul_s + self.attention_s + self.elementwise_s + self.launch_s


def matmul_s(rows: float, inputs: int, outputs: int, *, width: int, rate: float, on: Conditions) -> float:
    """Time one matrix product: its FLOPs at the rate, and the part of its memory traffic that stays visible.

    The second term is what makes small and narrow products slow: FLOPs grow with the volume, traffic with the surface.

    Source: Williams et al. 2009 (roofline), doi:10.1145/1498765.1498785, with both terms added instead of the larger.
    """
    moved = width * (rows * inputs + inputs * outputs + rows * outputs) if on.hardware.is_gpu else 0.0
    return 2.0 * rows * inputs * outputs / rate + on.fitted.small * moved / (on.hardware.memory_bytes_per_s * _STREAM)


def matmul_rate(layout: Layout, *, on: Conditions) -> float:
    """Give FLOP/s of large matrix products in the layout's precision, fp8 left out."""
    peak = on.hardware.peak_fp32_flops if layout.precision == "fp32" else on.hardware.peak_bf16_flops
    return peak * on.hardware.matmul_part * on.fitted.matmul


def block_time(shape: Shape, layout: Layout, *, on: Conditions) -> BlockTime:
    """Time one block: forward, backward (twice the products), and what is recomputed.

    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 5 (what recompute runs again).
    """
    tokens = float(layout.micro_batch * shape.seq_len)
    width = 4 if layout.precision == "fp32" else 2
    rate = matmul_rate(layout, on=on)
    if layout.precision == "fp8":
        rate *= on.fitted.fp8
    products = sum(
        matmul_s(tokens, inputs, outputs, width=width, rate=rate, on=on) for inputs, outputs in shape.block_matrices
    )
    is_full, is_selective = layout.recompute == "full", layout.recompute == "selective"
    again = 1.0 if is_full else on.stack.selective_part if is_selective else 0.0
    forward_s, backward_s = _attention(shape, layout, on=on)
    passes = 3.0 + (1.0 if is_full else 0.5 if is_selective else 0.0)
    moved = tokens * width / 2 * _elementwise_bytes(shape, on.stack) * on.fitted.elementwise
    if on.stack.is_fused:
        moved *= on.fitted.fused
    busy_s = [
        products * (3.0 + again),
        forward_s * (2.0 if is_full else 1.0) + backward_s,
        passes * moved / (on.hardware.memory_bytes_per_s * _STREAM),
    ]
    launch_s = on.hardware.launch_s * _KERNELS * (0.5 if on.stack.is_fused else 1.0) * passes / 3.0
    return BlockTime(
        matmul_s=busy_s[0],
        attention_s=busy_s[1],
        elementwise_s=busy_s[2],
        launch_s=_launches(sum(busy_s), launch_s, on.hardware),
    )


def _launches(busy_s: float, launch_s: float, hardware: Hardware) -> float:
    """Kernels are started ahead of a GPU that is busy: only where they are tiny does starting them take longer."""
    if not hardware.is_gpu:
        return launch_s
    return float((busy_s**_LAUNCH_POWER + launch_s**_LAUNCH_POWER) ** (1 / _LAUNCH_POWER)) - busy_s


def _elementwise_bytes(shape: Shape, stack: Stack) -> float:
    """Count bytes a token that norms, residuals, rotary positions and activations move, forward, 16-bit.

    Two norms read and write (8 h), two residuals read two and write one (12 h); the activation reads and writes
    the inner width (4 f), gated half as much again.
    """
    return (
        20.0 + (0.0 if stack.is_fused else stack.norm_bytes)
    ) * shape.hidden_size + 4.0 * shape.intermediate_size * (1.5 if shape.is_gated else 1.0)


def _attention(shape: Shape, layout: Layout, *, on: Conditions) -> tuple[float, float]:
    """Time the scores and weighted values of one block, forward and backward.

    Source: Dao 2023 (FlashAttention-2), arXiv:2307.08691, section 4.1: 4 s^2 h forward, halved when causal, 2.5
    times as much backward. Unfused, nothing is left out, and scores of all heads go through memory.
    """
    tokens, seq_len = float(layout.micro_batch * shape.seq_len), shape.seq_len
    products = tokens * seq_len * shape.hidden_size
    if on.stack.attention == "unfused":
        rate = matmul_rate(layout, on=on)
        scores = tokens * seq_len * shape.num_attention_heads
        memory_s = scores * on.fitted.unfused / (on.hardware.memory_bytes_per_s * _STREAM)
        return 4.0 * products / rate + memory_s, 8.0 * products / rate + 1.5 * memory_s
    peak = on.hardware.peak_fp32_flops if layout.precision == "fp32" else on.hardware.peak_bf16_flops
    rate = (
        peak
        * on.hardware.attention_part
        * on.fitted.attention
        * (on.fitted.flash1 if on.stack.attention == "flash1" else 1.0)
    )
    head_dim = shape.hidden_size / shape.num_attention_heads
    ramp = on.fitted.attention_ramp if on.hardware.is_gpu else 0.0
    # assumption: heads narrower than 128 fill the tensor cores worse, those of 64 by about a tenth
    rate *= min(1.0, head_dim / 128) ** 0.15 / (1.0 + ramp / seq_len)
    return 2.0 * products / rate, 5.0 * products / rate


def head_time_s(shape: Shape, layout: Layout, *, on: Conditions) -> float:
    """Time the output head and the loss, forward and backward: three products and passes over the logits."""
    tokens = float(layout.micro_batch * shape.seq_len)
    width = 4 if layout.precision == "fp32" else 2
    rate = matmul_rate(layout, on=on)
    size = (shape.hidden_size, shape.vocab_size)
    products = matmul_s(tokens, *size, width=width, rate=rate, on=on)
    per_logit = (
        on.fitted.loss_split
        if on.stack.is_loss_split
        else on.fitted.loss * (on.fitted.fused if on.stack.is_fused else 1.0)
    )
    logit_s = per_logit / (on.hardware.memory_bytes_per_s * _STREAM) + on.hardware.logit_s
    return 3.0 * products + tokens * shape.vocab_size * logit_s
