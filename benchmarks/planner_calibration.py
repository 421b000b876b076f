"""Predict our own runs on this machine's CPU after one calibration of 20 steps; time in CPU seconds of one rank.

The calibration trains a few small shapes, five steps each, in one process. Then other shapes are trained and their
steps, and the bytes that autograd keeps, are held against the plan. The bubble of 2 to 4 stages comes from measured
times of the stages' own forward and backward passes, put in 1F1B's order, so that cores need not be as many as stages.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from toolkit.config.load import load_config
from toolkit.config.schema import RunConfig
from toolkit.distributed import keep_freed_memory
from toolkit.model.llama import Llama, token_loss
from toolkit.plan.calibration import UNCALIBRATED, Calibration, calibrate
from toolkit.plan.hardware import CPU
from toolkit.plan.proposal import Plan, measurement_of, plan_of
from toolkit.train.engine import build_engine


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A run to make."""

    hidden: int
    layers: int
    seq_len: int
    micro_batch: int
    num_micro_batches: int
    vocab: int


# 4 x 5 steps of shapes that have much and little of head, length, width, depth and micro-batches
CALIBRATION = (
    Size(hidden=256, layers=4, seq_len=256, micro_batch=4, num_micro_batches=1, vocab=4096),
    Size(hidden=256, layers=2, seq_len=128, micro_batch=4, num_micro_batches=2, vocab=16384),
    Size(hidden=512, layers=4, seq_len=128, micro_batch=4, num_micro_batches=1, vocab=2048),
    Size(hidden=192, layers=6, seq_len=256, micro_batch=4, num_micro_batches=1, vocab=2048),
)
OWN = (
    Size(hidden=128, layers=4, seq_len=64, micro_batch=12, num_micro_batches=2, vocab=4096),
    Size(hidden=256, layers=8, seq_len=256, micro_batch=4, num_micro_batches=1, vocab=4096),
    Size(hidden=256, layers=4, seq_len=256, micro_batch=4, num_micro_batches=2, vocab=16384),
    Size(hidden=384, layers=4, seq_len=256, micro_batch=8, num_micro_batches=1, vocab=4096),
    Size(hidden=384, layers=6, seq_len=128, micro_batch=8, num_micro_batches=1, vocab=8192),
    Size(hidden=512, layers=4, seq_len=256, micro_batch=4, num_micro_batches=1, vocab=8192),
    Size(hidden=768, layers=2, seq_len=256, micro_batch=4, num_micro_batches=1, vocab=4096),
)


def main() -> None:
    """Calibrate, train, compare; print tables, or JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7, help="steps of each own run, two not counted (default: 7)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    _open_process_group()
    print(f"{'CALIBRATION, CPU seconds of a step':<58} measured  planned   error")
    measured = []
    for size in CALIBRATION:
        plan = plan_of(_config(size, asked.precision), hardware=CPU)
        took_s = measure_step_s(plan, steps=5)
        print(f"  {_words(size):<56} {took_s:>8.3f} {plan.speed.step_s:>8.3f} {plan.speed.step_s / took_s - 1:>+7.1%}")
        measured.append(measurement_of(plan, step_s=took_s))
    calibration = calibrate(measured, gpu=CPU.name)
    print("calibrated: " + ", ".join(f"{part} x {factor:.2f}" for part, factor in calibration.factors.items()))
    figures = {
        "step": compare_steps(asked.precision, calibration, steps=asked.steps),
        "memory": compare_memory(asked.precision),
        "bubble": compare_bubbles(asked.precision, calibration),
    }
    if asked.json:
        print(json.dumps(figures))


def _open_process_group() -> None:
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", DS_ACCELERATOR="cpu")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


def _config(size: Size, precision: str, *, stages: int = 1) -> RunConfig:
    base = load_config(None, flags={"cluster.gpus_per_node": 1}).config
    model = replace(
        base.model,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 8 // 3 // 16 * 16,
        num_hidden_layers=size.layers,
        num_attention_heads=max(1, size.hidden // 64),
        vocab_size=size.vocab,
    )
    tokens = size.seq_len * size.micro_batch * size.num_micro_batches
    parallel = replace(base.parallel, stages=stages, zero_stage=1, recompute=False, precision=precision)  # type: ignore[arg-type]
    return replace(
        base,
        model=model,
        data=replace(base.data, seq_len=size.seq_len),
        batch=replace(base.batch, tokens_per_step=tokens, micro_batch=size.micro_batch),
        parallel=parallel,
        cluster=replace(base.cluster, nodes=stages),
    )


def measure_step_s(plan: Plan, *, steps: int) -> float:
    """Train a plan of one rank; give the median CPU seconds of a step, the first two left out."""
    cfg = plan.cfg
    with contextlib.redirect_stdout(io.StringIO()):
        engine = build_engine(cfg, boundaries=plan.boundaries, device=torch.device("cpu"))
    batches = _batches(cfg)
    times = []
    for _ in range(steps):
        started = time.process_time()
        engine.train_step(batches, learning_rate=1e-4)
        times.append(time.process_time() - started)
    return statistics.median(times[2:])


def _batches(cfg: RunConfig) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    size = (cfg.batch.micro_batch or 1, cfg.data.seq_len)
    count = cfg.samples_per_step // size[0] // cfg.replicas
    pairs = [torch.randint(0, cfg.model.vocab_size, size, generator=generator) for _ in range(2 * count)]
    return list(zip(pairs[::2], pairs[1::2], strict=True))


def compare_steps(precision: str, calibration: Calibration, *, steps: int) -> dict[str, float]:
    """Hold steps of shapes that were not calibrated on against their plans."""
    print(f"\n{'STEP, CPU seconds':<58} measured  planned   error  uncalibrated")
    errors, plain_errors = [], []
    for size in OWN:
        cfg = _config(size, precision)
        plan, plain = plan_of(cfg, hardware=CPU, calibration=calibration), plan_of(cfg, hardware=CPU)
        took_s = measure_step_s(plan, steps=steps)
        errors.append(plan.speed.step_s / took_s - 1)
        plain_errors.append(plain.speed.step_s / took_s - 1)
        words = f"{took_s:>8.3f} {plan.speed.step_s:>8.3f} {errors[-1]:>+7.1%} {plain_errors[-1]:>+10.0%}"
        print(f"  {_words(size):<56} {words}")
    return _summary(errors) | {"uncalibrated_mean": statistics.fmean(map(abs, plain_errors))}


def _words(size: Size) -> str:
    batch = f"{size.num_micro_batches} x {size.micro_batch} x {size.seq_len}"
    return f"hidden {size.hidden}, {size.layers} layers, {batch} tokens, vocabulary {size.vocab}"


def _summary(errors: Sequence[float]) -> dict[str, float]:
    sizes = [abs(error) for error in errors]
    print(f"  mean {statistics.fmean(sizes):.1%}, largest {max(sizes):.1%} of {len(sizes)}")
    return {"mean": statistics.fmean(sizes), "largest": max(sizes), "rows": float(len(sizes))}


def compare_memory(precision: str) -> dict[str, float]:
    """Hold the bytes that the blocks of one micro-batch keep for backward against the plan's activations."""
    print(f"\n{'KEPT BY THE BLOCKS, MiB':<58} measured  planned   error")
    errors = []
    for size in OWN:
        cfg = _config(size, precision)
        kept = _kept_bytes(cfg)
        deeper = _config(replace(size, layers=size.layers + 1), precision)
        # what is beside the blocks does not grow with their number
        planned = (_planned_activations(deeper) - _planned_activations(cfg)) * size.layers
        errors.append(planned / kept - 1)
        print(f"  {_words(size):<56} {kept / 2**20:>8.1f} {planned / 2**20:>8.1f} {errors[-1]:>+7.1%}")
    return _summary(errors)


def _planned_activations(cfg: RunConfig) -> int:
    return plan_of(cfg, hardware=CPU, calibration=UNCALIBRATED).memory[0].activations_bytes


def _kept_bytes(cfg: RunConfig) -> int:
    dtype = torch.float32 if cfg.parallel.precision == "fp32" else torch.bfloat16
    model = Llama(cfg.model, seed=0, recompute=False).to(dtype)
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens, _ = _batches(cfg)[0]
    x = model.layers[0](tokens)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for block in model.layers[1:-2]:
            x = block(x)
    return sum(seen.values())


def compare_bubbles(precision: str, calibration: Calibration) -> dict[str, float]:
    """Hold the bubble of stages that were timed one by one against the plan's."""
    print(f"\n{'BUBBLE, part of the step':<58} measured  planned  points")
    errors = []
    size = Size(hidden=256, layers=8, seq_len=256, micro_batch=2, num_micro_batches=8, vocab=4096)
    for stages in (2, 3, 4):
        cfg = _config(size, precision, stages=stages)
        plan = plan_of(cfg, hardware=CPU, calibration=calibration)
        measured = _measured_bubble(plan)
        times = plan.speed.times
        # the stages are timed without the optimizer and the wires
        planned = times.bubble_s / (times.total_s - times.optimizer_s - times.sync_s - times.peer_s)
        errors.append(planned - measured)
        print(f"  {f'{stages} stages, 8 micro-batches':<56} {measured:>8.1%} {planned:>8.1%} {100 * errors[-1]:>+7.1f}")
    largest = max(map(abs, errors))
    print(f"  largest {100 * largest:.1f} points")
    return {"largest_points": 100 * largest, "rows": float(len(errors))}


def _measured_bubble(plan: Plan) -> float:
    """Time each stage's passes, play 1F1B with them, and give the idle part of the slowest stage."""
    cfg = plan.cfg
    dtype = torch.float32 if cfg.parallel.precision == "fp32" else torch.bfloat16
    model = Llama(cfg.model, seed=0, recompute=False).to(dtype)
    layers = list(model.layers)
    parts = [nn.Sequential(*layers[a:b]) for a, b in zip(plan.boundaries, plan.boundaries[1:], strict=False)]
    tokens, labels = _batches(cfg)[0]
    forward_s: list[list[float]] = [[] for _ in parts]
    backward_s: list[list[float]] = [[] for _ in parts]
    for _ in range(17):
        inputs, outputs = [], []
        x = tokens
        for stage, part in enumerate(parts):
            x = x.detach().requires_grad_() if x.is_floating_point() else x
            started = time.process_time()
            y = part(x)
            y = token_loss(y, labels) if stage == len(parts) - 1 else y
            forward_s[stage].append(time.process_time() - started)
            inputs.append(x)
            outputs.append(y)
            x = y
        gradient = None
        for stage in reversed(range(len(parts))):
            started = time.process_time()
            outputs[stage].backward(gradient)
            backward_s[stage].append(time.process_time() - started)
            gradient = inputs[stage].grad
    middle = [[statistics.median(times[2:]) for times in passes] for passes in (forward_s, backward_s)]
    return play_1f1b(middle[0], middle[1], num_micro_batches=plan.num_micro_batches)


def play_1f1b(forward_s: Sequence[float], backward_s: Sequence[float], *, num_micro_batches: int) -> float:
    """Play one step of 1F1B; give the part of it in which the stage that works longest is idle.

    Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1.
    """
    stages = len(forward_s)
    orders = [_order(stage, stages, num_micro_batches) for stage in range(stages)]
    done: dict[tuple[str, int, int], float] = {}
    free, at = [0.0] * stages, [0] * stages
    while any(at[stage] < len(orders[stage]) for stage in range(stages)):
        for stage in range(stages):
            if at[stage] == len(orders[stage]):
                continue
            kind, micro = orders[stage][at[stage]]
            needs = ("f", stage - 1, micro) if kind == "f" else ("b", stage + 1, micro)
            if 0 <= needs[1] < stages and needs not in done:
                continue
            begin = max(free[stage], done.get(needs, 0.0))
            free[stage] = done[kind, stage, micro] = begin + (forward_s if kind == "f" else backward_s)[stage]
            at[stage] += 1
    busy = max(num_micro_batches * (f + b) for f, b in zip(forward_s, backward_s, strict=True))
    return 1 - busy / max(free)


def _order(stage: int, stages: int, count: int) -> list[tuple[str, int]]:
    ahead = min(stages - stage, count)
    order = [("f", micro) for micro in range(ahead)]
    for micro in range(count):
        order.append(("b", micro))
        if micro + ahead < count:
            order.append(("f", micro + ahead))
    return order


if __name__ == "__main__":
    main()
