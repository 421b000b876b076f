"""Rows of published runs as what the planner works with: shape, layout, device, software, and what was measured."""

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError
from toolkit.plan.costs import Shape, shape_flops_per_token
from toolkit.plan.hardware import EFA_32, Hardware, find_hardware
from toolkit.plan.layout import Layout, Stack
from toolkit.plan.speed import StageShare

UNSTEADY_RULE = (
    "nanotron's ZeRO 0 with stages and replicas over several nodes is grey whatever the memory: of its runs on 2, 4 "
    "and 16 nodes that had room a third did not start and a third stalled"
)
OUTLIER_FACTOR = 2.5
OUTLIER_RULE = (
    f"a run with pp > 1 whose step takes more than {OUTLIER_FACTOR} times that of the fastest run of the same model "
    "on the same nodes is an outlier: no layout alone explains it (set after a look at all rows and a first guess at "
    "their times, before any coefficient was fitted to them, and not changed since; the model is not asked)"
)

# One kernel for each norm, no rotary positions; norms and rotation written out in fp32: 2 x 32 + 36 bytes.
_PLAIN = Stack(
    attention="flash2",
    is_fused=False,
    norm_bytes=0.0,
    is_loss_split=False,
    sums_in_fp32=False,
    kept_bytes=12.0,
    selective_part=0.5,
)
_WRITTEN_OUT = replace(_PLAIN, norm_bytes=100.0, kept_bytes=18.0)
# Source: Narayanan et al. 2021, arXiv:2104.04473, section 4.2: bias with GeLU, bias with dropout and addition, scale
# with mask and softmax are fused.
_MEGATRON_2021 = replace(_PLAIN, attention="unfused", is_fused=True, sums_in_fp32=True, selective_part=0.0)
_TRANSFORMER_ENGINE = replace(_MEGATRON_2021, attention="flash2")
_COMPILED = replace(_WRITTEN_OUT, is_fused=True)
# What is known of programs from their code and papers, by a piece of the row's source; first match wins.
# torchtitan's selective checkpoints recompute every other matrix product; Megatron's recompute scores only.
STACKS: tuple[tuple[str, Stack], ...] = (
    ("nanotron", replace(_WRITTEN_OUT, is_loss_split=True, sums_in_fp32=True, kept_bytes=10.0)),
    ("llm-foundry", replace(_PLAIN, attention="flash1")),  # Triton's first FlashAttention; ALiBi instead of rotation
    ("torchtitan", _WRITTEN_OUT),
    ("nanochat", _COMPILED),
    ("nanogpt", replace(_PLAIN, is_fused=True)),
    ("2307.08691", replace(_PLAIN, is_fused=True)),  # trained with the authors' fused norms, MLP and loss
    ("2104.04473", _MEGATRON_2021),
    ("bigscience", _MEGATRON_2021),
    ("megatron", _TRANSFORMER_ENGINE),
    ("nemo", _TRANSFORMER_ENGINE),
    ("neox", _TRANSFORMER_ENGINE),  # Megatron's fused kernels with FlashAttention
    ("llm.c", replace(_PLAIN, is_fused=True)),
    ("maxtext", _COMPILED),
    ("levanter", _COMPILED),
    ("litgpt", _COMPILED),
    ("lit-gpt", _COMPILED),
    ("tinyllama", _COMPILED),  # fused norm, rotation, SwiGLU and loss
    ("transformers", _WRITTEN_OUT),
    ("axolotl", _WRITTEN_OUT),
)
_OTHER = replace(_PLAIN, norm_bytes=50.0)

_DOCUMENTS = re.compile(r"arXiv:\d{4}\.\d{5}|[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One measured run."""

    source: str
    """The document it comes from."""
    label: str
    gpu: str
    shape: Shape
    layout: Layout
    shares: tuple[StageShare, ...]
    hardware: Hardware
    stack: Stack
    step_s: float | None
    memory_gib: float | None
    ran: bool
    is_outlier: bool = False
    can_split: bool = True
    is_consistent: bool = True
    """The row's batch is what its micro-batches and replicas make."""
    is_unsteady: bool = False
    """A way to run that stalls or does not start half of the time, whatever the memory."""
    assumed: tuple[str, ...] = field(default=())

    @property
    def nodes(self) -> int:
        """Count the nodes."""
        return max(1, round(self.layout.nodes))

    @property
    def device_gib(self) -> float:
        """Give the device's memory."""
        return (self.hardware.memory_bytes or 0) / 2**30


def read_rows(path: Path, make: Callable[[dict[str, str]], Case]) -> tuple[list[Case], dict[str, int]]:
    """Read a file of rows; give the cases, and why other rows were left out: {reason: count}."""
    cases, left_out = [], dict[str, int]()
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                cases.append(make({key: (value or "").strip() for key, value in row.items() if key}))
            except (ValueError, KeyError, ConfigError) as error:
                reason = str(error).splitlines()[0]
                left_out[reason] = left_out.get(reason, 0) + 1
    return cases, left_out


def read_published(path: Path) -> tuple[list[Case], dict[str, int]]:
    """Read published throughputs of many systems."""
    return read_rows(path, _published)


def read_layouts(path: Path) -> tuple[list[Case], dict[str, int]]:
    """Read layouts of nanotron on nodes of 8 H100, outliers marked."""
    cases, left_out = read_rows(path, _layout_run)
    best: dict[tuple[str, int], float] = {}
    for case in cases:
        if case.step_s is not None:
            key = (case.label.split()[0], case.nodes)
            best[key] = min(best.get(key, case.step_s), case.step_s)
    return [_mark(case, best) for case in cases], left_out


def _mark(case: Case, best: Mapping[tuple[str, int], float]) -> Case:
    if case.step_s is None or case.layout.stages == 1:
        return case
    fastest = best[case.label.split()[0], case.nodes]
    return replace(case, is_outlier=case.step_s > OUTLIER_FACTOR * fastest)


def document_of(source: str) -> str:
    """Give the document of a source: rows of one README are one source, however many lines they name."""
    found = _DOCUMENTS.search(source)
    return found[0] if found else source[:40] or "unnamed"


def _number(row: Mapping[str, str], name: str) -> float | None:
    """Read a number that is above zero; anything else is as good as missing."""
    try:
        value = float(row.get(name, ""))
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def _need(row: Mapping[str, str], name: str) -> int:
    value = _number(row, name)
    if not value or value < 1:
        raise ValueError(f"no {name}")
    return int(value)


def _published(row: dict[str, str]) -> Case:
    if (_number(row, "tp") or 1) > 1 or (_number(row, "cp") or 1) > 1:
        raise ValueError("tensor or context parallelism")
    assumed: list[str] = []
    shape = _published_shape(row, assumed)
    hardware = _device(row.get("gpu", ""))
    if hardware.name == "MI250X die" and _counts_cards(row, shape):
        hardware = _two_dies(hardware)
        assumed.append("a GPU is a card of two dies")
    layout = _published_layout(row, shape, hardware, assumed)
    ranks, tokens = layout.world_size, layout.samples_per_step * shape.seq_len
    rate, step_s = _number(row, "tokens_per_s_per_gpu"), _number(row, "step_time_s")
    if rate is not None:
        step_s = tokens / (rate * ranks)  # where the batch is assumed, the rate is what was measured
    memory = _number(row, "mem_per_gpu_GB")
    return Case(
        source=document_of(row.get("source", "")),
        label=row.get("model", "?"),
        gpu=row.get("gpu", "") + (" fp8" if layout.precision == "fp8" else ""),
        shape=shape,
        layout=layout,
        shares=even_shares(shape, layout.stages),
        hardware=hardware,
        stack=_stack(row),
        step_s=step_s,
        memory_gib=memory,
        ran=step_s is not None or memory is not None,
        assumed=tuple(assumed),
    )


def _published_shape(row: Mapping[str, str], assumed: list[str]) -> Shape:
    hidden = _need(row, "hidden")
    heads = int(_number(row, "heads") or 0)
    if not heads:
        heads = max(1, hidden // 128)
        assumed.append("heads of 128")
    vocab = _number(row, "vocab")
    if not vocab:
        assumed.append("vocab 50304")
    return Shape(
        hidden_size=hidden,
        intermediate_size=int(_number(row, "ffn") or 4 * hidden),
        num_hidden_layers=_need(row, "layers"),
        num_attention_heads=heads,
        num_key_value_heads=int(_number(row, "kv_heads") or heads),
        vocab_size=int(vocab or 50304),
        is_tied=bool(_number(row, "tied") or 0),
        is_gated=bool(_number(row, "glu") or 0),
        seq_len=_need(row, "seq_len"),
    )


def _published_layout(row: Mapping[str, str], shape: Shape, hardware: Hardware, assumed: list[str]) -> Layout:
    ranks, stages = _need(row, "n_gpus"), int(_number(row, "pp") or 1)
    replicas = int(_number(row, "dp") or 0) or max(1, ranks // stages)
    samples, micro = _number(row, "global_batch"), _number(row, "micro_batch")
    if not micro:
        micro = max(1, 16384 // shape.seq_len)
        micro = min(micro, max(1, samples // replicas)) if samples else micro
        assumed.append(f"micro_batch {micro:.0f}")
    if not samples:
        samples = 4 * micro * replicas
        assumed.append("4 micro-batches")
    precision = row.get("precision", "").lower()
    recompute = row.get("activation_checkpointing") or "none"
    return Layout(
        nodes=ranks / hardware.gpus_per_node,
        stages=stages,
        replicas=replicas,
        zero_stage=int(_number(row, "zero_stage") or 0),
        micro_batch=int(micro),
        num_micro_batches=max(1, round(samples / (replicas * micro))),
        recompute=recompute if recompute in {"none", "selective", "full"} else "none",  # type: ignore[arg-type]
        precision="fp8" if "fp8" in precision else "fp32" if precision == "fp32" else "bf16",
        interleave=int(_number(row, "vp") or 1),
    )


def _device(name: str) -> Hardware:
    """Find the device; a power limit in its name slows arithmetic, 96 GB of an H100 are HBM2e."""
    hardware = find_hardware(name)
    power = re.search(r"(\d{3,4})W", name)
    if power and hardware.name.startswith("H100"):
        # assumption: the rate under a power limit goes with its square root
        part = min(1.0, (int(power[1]) / 700) ** 0.5)
        hardware = replace(
            hardware, matmul_part=hardware.matmul_part * part, attention_part=hardware.attention_part * part
        )
    if "H100-96" in name:
        hardware = replace(hardware, memory_bytes=int(94.5 * 2**30), memory_bytes_per_s=2.4e12)
    if name.startswith("V100"):
        size = 16 if "16" in name else 32
        hardware = replace(
            hardware, memory_bytes=int((size - 0.3) * 2**30), gpus_per_node=4
        )  # Jean Zay's nodes, as most then
    return hardware


def _counts_cards(row: Mapping[str, str], shape: Shape) -> bool:
    """Ask the row's own arithmetic what it calls a GPU: its FLOP/s over its MFU is the peak it reckons with."""
    rate, part = _number(row, "tokens_per_s_per_gpu"), _number(row, "norm_MFU_pct")
    return bool(rate and part and shape_flops_per_token(shape) * rate / (part / 100) > 1.5 * 191.5e12)


def _two_dies(die: Hardware) -> Hardware:
    return replace(
        die,
        name="MI250X card",
        peak_bf16_flops=2 * die.peak_bf16_flops,
        memory_bytes=2 * (die.memory_bytes or 0),
        memory_bytes_per_s=2 * die.memory_bytes_per_s,
        gpus_per_node=4,
    )


def _stack(row: Mapping[str, str]) -> Stack:
    """Say what is known of the program: by its name, and by words of the notes (eager, compile, no FlashAttention)."""
    source, notes = row.get("source", "").lower(), row.get("notes", "").lower()
    stack = next((stack for piece, stack in STACKS if piece in source), _OTHER)
    if re.search(r"\bno flash ?attention|without flash", notes):
        stack = replace(stack, attention="unfused")
    elif re.search(r"flash ?attention[- ]?[23]", notes):
        stack = replace(stack, attention="flash2")
    elif "flashattention" in notes:
        stack = replace(stack, attention="flash1")
    if re.search(r"\bcompiled?\b|torch\.compile", notes) and not re.search(r"no compile|without compile", notes):
        stack = replace(stack, is_fused=True)
    elif re.search(r"\beager\b", notes):
        stack = replace(stack, is_fused=False)
    return stack


def even_shares(shape: Shape, stages: int) -> tuple[StageShare, ...]:
    """Deal blocks evenly, as Megatron and DeepSpeed do; embedding first, head last."""
    least, extra = divmod(shape.num_hidden_layers, stages)
    return tuple(
        StageShare(blocks=least + (stage < extra), has_embedding=stage == 0, has_head=stage == stages - 1)
        for stage in range(stages)
    )


def _layout_run(row: dict[str, str]) -> Case:
    if (_number(row, "tp") or 1) > 1:
        raise ValueError("tensor parallelism")
    shape = Shape(
        hidden_size=_need(row, "hidden"),
        intermediate_size=_need(row, "ffn"),
        num_hidden_layers=_need(row, "layers"),
        num_attention_heads=_need(row, "heads"),
        num_key_value_heads=int(_number(row, "kv_heads") or _need(row, "heads")),
        vocab_size=_need(row, "vocab"),
        is_tied=bool(_number(row, "tied") or 0),
        is_gated=True,
        seq_len=_need(row, "seq_len"),
    )
    stages = int(_number(row, "pp") or 1)
    shares, can_split = nanotron_shares(shape, stages)
    is_consistent = row.get("gbs_consistent", "1") not in {"0", "0.0"}
    layout = Layout(
        nodes=_number(row, "nodes") or _need(row, "n_gpus") / 8,
        stages=stages,
        replicas=int(_number(row, "dp") or max(1, _need(row, "n_gpus") // stages)),
        zero_stage=int(_number(row, "zero_stage") or 0),
        micro_batch=_need(row, "micro_batch"),
        num_micro_batches=_need(row, "grad_accum"),
    )
    pieces = (f"pp{stages}", f"dp{layout.replicas}", f"ZeRO {layout.zero_stage}", f"micro-batch {layout.micro_batch}")
    return Case(
        source="nanotron layouts",
        label=" ".join((row.get("model", "?"), f"{layout.nodes:g} nodes", *pieces)),
        gpu="H100",
        shape=shape,
        layout=layout,
        shares=shares,
        hardware=replace(find_hardware("h100"), network=EFA_32),
        stack=STACKS[0][1],
        step_s=_number(row, "step_time_s") if is_consistent else None,
        memory_gib=_number(row, "mem_per_gpu_GB") if is_consistent else None,
        ran=row.get("status", "") == "ok",
        can_split=can_split,
        is_consistent=is_consistent,
        is_unsteady=layout.zero_stage == 0 and stages > 1 and layout.replicas > 1 and layout.nodes > 1,
    )


def nanotron_shares(shape: Shape, stages: int) -> tuple[tuple[StageShare, ...], bool]:
    """Deal layers as nanotron does: the next stage begins where the running cost passes its share.

    A piece moves on by one stage at most; behind the head come a cast and the loss, without weights. More than one
    stage without weights is taken not to start: it agrees with all runs that had room.

    Source: the runs themselves. huggingface/nanotron, src/nanotron/models/base.py, build_model, deals by the same
    limits, but its public versions move on behind the piece that passes one, not before it; with that order the step
    times of 1 to 4 nodes are met within 4 to 5 % (median), with this one within 1 to 3 %.
    """
    head = float(shape.table_parameters)
    hidden = shape.hidden_size
    block = 4.0 * hidden * hidden + 3.0 * shape.intermediate_size * hidden
    pieces = [0.0, *(block for _ in range(shape.num_hidden_layers)), 0.0, head, 0.0, 0.0]
    limits = [sum(pieces) * (stage + 1) / stages for stage in range(stages)]
    limits[-1] += 1.0
    stage, cost, at = 0, 0.0, []
    for piece in pieces:
        cost += piece
        if cost > limits[stage]:
            stage += 1
        at.append(stage)
    blocks = [at[1 : 1 + shape.num_hidden_layers].count(stage) for stage in range(stages)]
    head_at = at[-3]
    shares = tuple(
        StageShare(blocks=blocks[stage], has_embedding=stage == at[0], has_head=stage == head_at)
        for stage in range(stages)
    )
    weightless = sum(not (share.blocks or share.has_embedding or share.has_head) for share in shares)
    return shares, weightless <= 1


def grouped(cases: Sequence[Case], key: Callable[[Case], Any]) -> Iterator[tuple[Any, list[Case]]]:
    """Group cases in order of first sight."""
    groups: dict[Any, list[Case]] = {}
    for case in cases:
        groups.setdefault(key(case), []).append(case)
    yield from groups.items()
