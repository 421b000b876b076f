"""How long a step takes: the slowest stage, the bubble, what crosses the wires, and what comes once a step."""

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.plan.compute import BlockTime, block_time, head_time_s
from toolkit.plan.costs import Shape
from toolkit.plan.layout import Conditions, Layout
from toolkit.plan.traffic import gather_s, pass_s, reduce_s

_SUM_BYTES = 10.0  # a parameter: a 16-bit gradient and its fp32 sum are read, the sum is written
_COPY_BYTES = 12.0  # a parameter: gathered weights are copied out twice, gradients in, 16-bit read and written each
_READ_BYTES_PER_S = 0.5e9  # of a node from its file system; assumption: a tenth of what a parallel one gives
_TOKEN_BYTES = 4.0
_COPY_OUT_BYTES_PER_S = 10e9  # from device to host. assumption: a PCIe 4 link shared by two


@dataclass(frozen=True, kw_only=True, slots=True)
class StageShare:
    """What of the model a stage runs."""

    blocks: int
    has_embedding: bool
    has_head: bool

    def parameters(self, shape: Shape) -> int:
        """Count the weights a rank of the stage holds; a tied head on another stage keeps its own copy."""
        tables = int(self.has_embedding) + int(self.has_head)
        if shape.is_tied and tables == 2:
            tables = 1
        return self.blocks * shape.block_parameters + tables * shape.table_parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of one optimizer step, by what takes them."""

    matmul_s: float
    """Matrix products of the slowest stage, all micro-batches."""
    attention_s: float
    elementwise_s: float
    """What only moves memory, kernel starts and sums of gradients."""
    head_s: float
    gather_s: float
    """What gathers and reductions of ZeRO 2 and 3 add."""
    peer_s: float
    """What traffic between stages adds."""
    bubble_s: float
    """The slowest stage waits for the others at both ends of the step."""
    sync_s: float
    """Gradients and weights of ZeRO 0 and 1, at the end."""
    optimizer_s: float
    fixed_s: float

    @property
    def total_s(self) -> float:
        """Give the sum."""
        return float(sum(getattr(self, name) for name in self.__slots__))

    @property
    def bubble(self) -> float:
        """Part of the step in which the slowest stage waits for the pipeline to fill and drain."""
        return self.bubble_s / self.total_s


@dataclass(frozen=True, kw_only=True, slots=True)
class _Slot:
    """Seconds of one micro-batch on one stage."""

    block: BlockTime
    blocks: int
    head_s: float
    sums_s: float
    gather_s: float
    peer_s: float
    fixed_s: float

    @property
    def total_s(self) -> float:
        rest = self.head_s + self.sums_s + self.gather_s + self.peer_s + self.fixed_s
        return self.blocks * self.block.total_s + rest


def step_time(shape: Shape, layout: Layout, shares: Sequence[StageShare], *, on: Conditions) -> StepTime:
    """Time a step: the work of the slowest stage, what it waits in 1F1B, and what comes once."""
    block = block_time(shape, layout, on=on)
    head_s = head_time_s(shape, layout, on=on)
    # stages that hold the same take the same: a thousand stages are a handful of cases
    known: dict[StageShare, _Slot] = {}
    for share in shares:
        if share not in known:
            head_part_s = head_s if share.has_head else 0.0
            known[share] = _slot(shape, layout, share, block, head_part_s, on=on)
    slots = [known[share] for share in shares]
    slowest = max(slots, key=lambda slot: slot.total_s)
    count = layout.num_micro_batches
    idle_s = bubble_s([slot.total_s for slot in slots], count, forward_part=_forward_part(layout))
    largest = max(share.parameters(shape) for share in known)
    return StepTime(
        matmul_s=count * slowest.blocks * block.matmul_s,
        attention_s=count * slowest.blocks * block.attention_s,
        elementwise_s=count * (slowest.blocks * (block.elementwise_s + block.launch_s) + slowest.sums_s),
        head_s=count * slowest.head_s,
        gather_s=count * slowest.gather_s,
        peer_s=count * slowest.peer_s,
        bubble_s=idle_s / layout.interleave,
        sync_s=_sync_s(shape, layout, largest, on=on),
        optimizer_s=_optimizer_s(layout, largest, on),
        fixed_s=count * slowest.fixed_s + (on.fitted.step_s if on.hardware.is_gpu else on.hardware.step_s),
    )


def _slot(shape: Shape, layout: Layout, share: StageShare, block: BlockTime, head_s: float, *, on: Conditions) -> _Slot:
    parameters = share.parameters(shape)
    adds_up = on.stack.sums_in_fp32 and layout.num_micro_batches > 1
    summed = parameters / (layout.replicas if layout.zero_stage >= 2 else 1)
    sums_s = summed * _SUM_BYTES / on.hardware.memory_bytes_per_s if adds_up else 0.0
    if layout.zero_stage == 3:
        sums_s += parameters * _COPY_BYTES / on.hardware.memory_bytes_per_s
    busy_s = share.blocks * block.total_s + head_s + sums_s
    moved_s = _gathers_s(layout, parameters, on=on)
    power = on.fitted.overlap if on.hardware.is_gpu else 1.0  # a CPU that sends does not compute meanwhile
    hidden_s = float((busy_s**power + moved_s**power) ** (1 / power)) - busy_s if moved_s else 0.0
    return _Slot(
        block=block,
        blocks=share.blocks,
        head_s=head_s,
        sums_s=sums_s,
        gather_s=hidden_s,
        peer_s=_peer_s(shape, layout, share, on=on),
        fixed_s=on.fitted.micro_batch_s if on.hardware.is_gpu else 0.0,
    )


def bubble_s(slots_s: Sequence[float], num_micro_batches: int, *, forward_part: float) -> float:
    """Time in which the slowest stage has nothing to do under 1F1B.

    Any stage makes the step at least as long as: what the stages before it take once, its own slots, and its two
    waits. After its first forward, and after its last, it waits for the stages behind it to do both passes, but for
    the other micro-batches that it has in flight: their forwards at first, their backwards at the end. Equal stages
    give (p - 1) slots. Where micro-batches are as many as stages or more, this is what playing the schedule gives
    (tests/unit/plan); where they are fewer, no more than every other stage's slot once.

    Args:
        slots_s: forward and backward pass of one micro-batch on each stage.
        num_micro_batches: of a step.
        forward_part: part of a slot that is the forward pass.

    Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2, made general for stages that differ; where groups of
    layers are interleaved, its section 2.2.2 divides by the number of groups.
    """
    slowest_s = num_micro_batches * max(slots_s)
    before_s, behind_s, step_s = 0.0, sum(slots_s), slowest_s
    for stage, slot_s in enumerate(slots_s):
        behind_s -= slot_s
        others = min(num_micro_batches, len(slots_s) - stage) - 1
        waits_s = [max(0.0, behind_s - others * slot_s * part) for part in (forward_part, 1 - forward_part)]
        step_s = max(step_s, before_s + num_micro_batches * slot_s + sum(waits_s))
        before_s += slot_s
    return min(step_s - slowest_s, before_s - max(slots_s))


def _forward_part(layout: Layout) -> float:
    """Give the part of a slot that is the forward pass: backward is twice as long, and does it again to recompute."""
    return 1 / 4 if layout.recompute == "full" else 1 / 3


def _nodes_of_replicas(layout: Layout) -> float:
    """Say over how many nodes the replicas of a stage reach: they are neighbours."""
    return layout.nodes * layout.replicas / layout.world_size


def _gathers_s(layout: Layout, parameters: int, *, on: Conditions) -> float:
    """Time what crosses the wires in each micro-batch: gradients under ZeRO 2, weights twice more under ZeRO 3.

    Source: Rajbhandari et al. 2020 (ZeRO), arXiv:1910.02054, section 7: ZeRO 3 gathers the weights for the forward
    and again for the backward pass; deepspeed 0.19.8 and FSDP reduce gradients in every micro-batch there.
    """
    if layout.zero_stage < 2:
        return 0.0
    width = 4.0 if layout.precision == "fp32" else 2.0
    times = 3.0 if layout.zero_stage == 3 else 1.0
    nodes = _nodes_of_replicas(layout)
    return times * gather_s(width * parameters, ranks=layout.replicas, nodes=nodes, on=on)


def _peer_s(shape: Shape, layout: Layout, share: StageShare, *, on: Conditions) -> float:
    """Time what passes between stages in each micro-batch: activations one way, their gradients the other.

    Source: Narayanan et al. 2021, arXiv:2104.04473, section 4.1; interleaving passes as often as it has groups.
    """
    if layout.stages == 1:
        return 0.0
    width = 4.0 if layout.precision == "fp32" else 2.0
    size = width * layout.micro_batch * shape.seq_len * shape.hidden_size * layout.interleave
    neighbours = 1 if share.has_embedding or share.has_head else 2
    # the next stage is `replicas` ranks away
    is_same_node = layout.replicas < layout.world_size / max(layout.nodes, 1.0)
    one_s = pass_s(size, is_same_node=is_same_node, on=on)
    return on.fitted.peer * 2.0 * neighbours * one_s


def _sync_s(shape: Shape, layout: Layout, parameters: int, *, on: Conditions) -> float:
    """Time what brings replicas together once a step: gradients one way, weights the other.

    Source: Rajbhandari et al. 2020 (ZeRO), arXiv:1910.02054, section 7: 2 elements a parameter.
    """
    width = 4.0 if layout.precision == "fp32" else 2.0
    gradient = 4.0 if on.stack.sums_in_fp32 else width
    ranks, nodes = layout.replicas, _nodes_of_replicas(layout)
    tied_s = 0.0
    if shape.is_tied and layout.stages > 1:
        tied_s = 2.0 * pass_s(gradient * shape.table_parameters, is_same_node=layout.nodes <= 1, on=on)
    if layout.zero_stage == 0:
        return on.fitted.sync * reduce_s(gradient * parameters, ranks=ranks, nodes=nodes, on=on) + tied_s
    if layout.zero_stage == 1:
        return on.fitted.sync * gather_s((gradient + width) * parameters, ranks=ranks, nodes=nodes, on=on) + tied_s
    if layout.zero_stage == 2:
        return gather_s(width * parameters, ranks=ranks, nodes=nodes, on=on)
    return 0.0


def _optimizer_s(layout: Layout, parameters: int, on: Conditions) -> float:
    own = parameters / (layout.replicas if layout.zero_stage else 1)
    return own * on.stack.optimizer_bytes / on.hardware.memory_bytes_per_s


def reading_s(shape: Shape, layout: Layout) -> float:
    """Time to read a step's tokens; it is done during the step before, so only what is longer than a step shows."""
    size = layout.samples_per_step * shape.seq_len * _TOKEN_BYTES
    return size / (_READ_BYTES_PER_S * max(1.0, layout.nodes))


def saving_s(states_bytes: int) -> float:
    """Time for which a save stops training: a rank's state is copied to host memory, the rest is done beside."""
    return 1.0 + states_bytes / _COPY_OUT_BYTES_PER_S
