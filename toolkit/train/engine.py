"""Configuration -> DeepSpeed's dictionary (pure) -> an engine that runs one optimizer step."""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from toolkit.config.schema import OptimSection, RunConfig
from toolkit.data.loader import MicroBatch
from toolkit.model.llama import Llama, token_loss
from toolkit.model.pipeline import Pipeline
from toolkit.topology import BatchShape
from toolkit.train.compiler import put_off_compiler
from toolkit.train.gauges import ForwardClock, GradientGauge

log = logging.getLogger(__name__)

_NORM_PART = 1 << 16  # elements: a relative error of 2e-7, for a quarter of the time more

Tensors: TypeAlias = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class BadMicroBatch:
    """A micro-batch whose loss or gradient is not finite."""

    replica: int
    micro_index: int
    loss: float
    rank: int
    """Where it was seen first: the last stage where the loss is bad, else the last one whose gradient is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a step gave; equal on every rank but for `forward_s`."""

    loss: float
    """Mean over all labels of the step."""
    grad_norm: float
    """Before clipping."""
    applied: bool
    """False: the loss or the gradient was not finite, and weights, moments and their step are as before."""
    bad: tuple[BadMicroBatch, ...]
    """Of a step that was not applied; empty where only the gradient of a weight, or a sum of them, is not finite."""
    forward_s: float
    """Time this rank computed its forward passes, without waiting for others (with ZeRO 3 it waits for weights)."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A loss, and over how many labels it was averaged: means over other samples are joined by that."""

    loss: float
    num_labels: float
    """In a micro-batch, on the average."""


class Engine(Protocol):
    """One model on its ranks, whatever the layout."""

    deepspeed: Any
    """The DeepSpeed engine."""

    def train_step(self, micro_batches: Sequence[MicroBatch], *, learning_rate: float) -> StepResult:
        """Run forward, backward and the optimizer over one step's micro-batches of this replica."""

    def eval_loss(self, micro_batches: Sequence[MicroBatch]) -> Measured:
        """Average the loss over the labels of all micro-batches and replicas; nothing is learned."""

    def named_weights(self) -> list[tuple[str, nn.Parameter]]:
        """List this rank's parameters under layout-free names, the same order on all replicas."""


def batch_shape(cfg: RunConfig) -> BatchShape:
    """Say how the samples of a step fall on the replicas of a resolved configuration."""
    assert cfg.batch.micro_batch is not None, "batch.micro_batch is not resolved"
    return BatchShape(samples_per_step=cfg.samples_per_step, micro_batch=cfg.batch.micro_batch, replicas=cfg.replicas)


def deepspeed_config(cfg: RunConfig, *, num_parameters: int) -> dict[str, Any]:
    """Derive DeepSpeed's configuration; `parallel.deepspeed_extra` is merged last.

    Source: deepspeed 0.19.8, docs/_pages/config-json.md.
    """
    shape = batch_shape(cfg)
    derived: dict[str, Any] = {
        "train_batch_size": shape.samples_per_step,
        "train_micro_batch_size_per_gpu": shape.micro_batch,
        "gradient_accumulation_steps": shape.num_micro_batches,
        "gradient_clipping": cfg.optim.clip_norm,
        "bf16": {"enabled": cfg.parallel.precision == "bf16"},
        # bf16 sums of many micro-batches lose small gradients
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": cfg.parallel.zero_stage,
            # A bucket larger than the model is memory for nothing.
            "reduce_bucket_size": min(500_000_000, max(1, num_parameters)),
            "allgather_bucket_size": min(500_000_000, max(1, num_parameters)),
        },
        # The client's AdamW is known to work with every ZeRO stage; DeepSpeed's own would compile at first use.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
        "steps_per_print": None,
    }
    return _merge(derived, cfg.parallel.deepspeed_extra)


def _merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


class CautiousAdamW(torch.optim.AdamW):
    """AdamW that can be told to leave out a step.

    DeepSpeed's ZeRO and bf16 optimizers leave out a step whose gradient norm is not finite; without them (ZeRO 0) it
    calls this one in any case. It reads both attributes after a step.

    Source: deepspeed 0.19.8, runtime/engine.py, _take_model_step.
    """

    overflow = False
    _global_grad_norm: float | None = None

    def expect(self, grad_norm: float) -> None:
        """Take the norm of the coming step's gradient: the step does nothing where it is not finite."""
        self._global_grad_norm = grad_norm
        self.overflow = not math.isfinite(grad_norm)

    def step(self, closure: Any = None) -> Any:
        """Run a step, or leave it out."""
        return None if self.overflow else super().step(closure)


def build_optimizer(weights: Sequence[nn.Parameter], optim: OptimSection) -> CautiousAdamW:
    """Make AdamW with weight decay on matrices and none on vectors."""
    groups = [
        {"params": [p for p in weights if p.dim() >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in weights if p.dim() < 2], "weight_decay": 0.0},
    ]
    return CautiousAdamW(
        [group for group in groups if group["params"]],
        lr=optim.peak_lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
    )


def build_engine(cfg: RunConfig, *, boundaries: Sequence[int], device: torch.device) -> Engine:
    """Build the model on this rank and wrap it: every rank calls it.

    Args:
        cfg: a resolved configuration.
        boundaries: stage s runs layers `boundaries[s]` to `boundaries[s + 1]` of the model's list.
        device: where this rank computes.
    """
    _quieten()
    # The process group exists; DeepSpeed takes it over.
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False)
    recompute = bool(cfg.parallel.recompute)
    if cfg.parallel.stages == 1:
        module: Llama | Pipeline = Llama(cfg.model, seed=cfg.run.seed, recompute=recompute).to(device)
    else:
        module = Pipeline(cfg.model, boundaries=boundaries, seed=cfg.run.seed, recompute=recompute)
    weights = [weight for _, weight in module.named_weights()]
    config = deepspeed_config(cfg, num_parameters=sum(weight.numel() for weight in weights))
    if cfg.parallel.deepspeed_extra:
        log.info("DeepSpeed configuration with deepspeed_extra: %s", config)
    engine, *_ = deepspeed.initialize(model=module, optimizer=build_optimizer(weights, cfg.optim), config=config)
    if isinstance(module, Pipeline):
        return PipelineEngine(engine, module, device=device, stages=len(boundaries) - 1)
    return PlainEngine(engine, module, device=device)


def _quieten() -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is deprecated. Please use", category=FutureWarning)
    # On CPU DeepSpeed may build a C++ shared-memory operator at the first collective; gloo needs none. An empty list
    # of what could be built also spares the trial of every operator, with a compiler for some.
    deepspeed.ops.__compatible_ops__ = {}
    put_off_compiler()


def _set_rate(engine: Any, learning_rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def _taint(loss: Tensor) -> Tensor:
    """Give the same loss, whose gradient is not finite where it is not finite itself.

    Then the norm of the gradient, which all ranks agree on before the optimizer runs, tells of either. A finite loss
    is multiplied by exactly 1, and so is its gradient.
    """
    return loss * (1.0 + 0.0 * loss.detach())


def _conclude(
    engine: Any, *, loss: float, losses: Sequence[Tensor], stages: int, clock: ForwardClock, gauge: GradientGauge
) -> StepResult:
    """Say what came of a step; every rank calls it.

    Args:
        engine: the DeepSpeed engine.
        loss: of the step.
        losses: of this rank's micro-batches; none where another stage computes them.
        stages: of the pipeline.
        clock: measured this rank's forward passes.
        gauge: saw the gradients of this rank's micro-batches.
    """
    applied = bool(engine.was_step_applied())  # the same on all ranks: it follows from the global norm
    bad = () if applied else _find_bad(engine, losses, gauge.verdicts(), stages=stages)
    norm = float(engine.get_global_grad_norm())
    return StepResult(loss=loss, grad_norm=norm, applied=applied, bad=bad, forward_s=clock.total_s())


def total_norm(gradients: Sequence[Tensor]) -> float:
    """Give the norm of all gradients together.

    On a CPU torch sums the squares of a tensor one after another in fp32: 1 % is lost at 10^8 elements (torch 2.13,
    measured). A GPU sums as a tree. Here short parts are summed in fp32 and the parts in fp64, without a copy.
    """
    if gradients[0].device.type != "cpu":
        return float(torch.nn.utils.get_total_norm(gradients))
    parts = [part for gradient in gradients for part in torch.split(gradient.reshape(-1), _NORM_PART)]
    return float(torch.stack([torch.linalg.vector_norm(part) for part in parts]).double().norm())


def _find_bad(
    engine: Any, losses: Sequence[Tensor], are_finite: Sequence[bool], *, stages: int
) -> tuple[BadMicroBatch, ...]:
    mine = torch.zeros(2, engine.gradient_accumulation_steps(), dtype=torch.float32, device=engine.device)
    if losses:
        mine[0] = torch.stack(list(losses)).float()
    mine[1, : len(are_finite)] = torch.tensor([float(not is_finite) for is_finite in are_finite])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    by_rank = torch.stack(everyone).tolist()
    replicas = len(by_rank) // stages
    bad = []
    for replica in range(replicas):
        ranks = range(replica, len(by_rank), replicas)  # first stage first
        for micro_index, loss in enumerate(by_rank[ranks[-1]][0]):
            seen = [rank for rank in ranks if by_rank[rank][1][micro_index]]
            if seen or not math.isfinite(loss):
                rank = seen[-1] if math.isfinite(loss) else ranks[-1]
                bad.append(BadMicroBatch(replica, micro_index, loss, rank))
    return tuple(bad)


def _send(micro_batches: Sequence[MicroBatch], device: torch.device) -> Iterator[tuple[Tensors, Tensors]]:
    """Bring micro-batches to the device one by one; every rank calls it, and not every one has to take them."""
    inputs = (_move(tensors, device) for tensors, _ in micro_batches)
    labels = (part.to(device, non_blocking=True) for _, part in micro_batches)
    if not isinstance(micro_batches[0][0], tuple):
        return zip(inputs, labels, strict=True)
    divisor = _average_count(micro_batches).to(device, torch.float32)
    return zip(inputs, ((part, divisor) for part in labels), strict=True)


def _move(tensors: Tensors, device: torch.device) -> Tensors:
    if isinstance(tensors, tuple):
        return tensors[0].to(device, non_blocking=True), tensors[1].to(device, non_blocking=True)
    return tensors.to(device, non_blocking=True)


def _average_count(micro_batches: Sequence[MicroBatch]) -> Tensor:
    """Count the labels that are learned in a micro-batch of this step, on the mean over all replicas.

    A micro-batch's sum of losses divided by it, then averaged over micro-batches and replicas as DeepSpeed does,
    is the mean over the labels of the step, on any layout.
    """
    num_labels = sum(int((part >= 0).sum()) for _, part in micro_batches)
    count = torch.tensor(num_labels / len(micro_batches), dtype=torch.float64)
    dist.all_reduce(count)  # every stage of a replica counts the same labels
    return count / dist.get_world_size()


class PlainEngine:
    """One stage: ZeRO 0 to 3."""

    def __init__(self, engine: Any, module: Llama, *, device: torch.device) -> None:
        self.deepspeed = engine
        self._module = module
        self._device = device
        self._clock = ForwardClock(module, device=device)
        self._gauge = GradientGauge(module.layers[0])

    def train_step(self, micro_batches: Sequence[MicroBatch], *, learning_rate: float) -> StepResult:
        """Run one optimizer step."""
        self.deepspeed.train()
        _set_rate(self.deepspeed, learning_rate)
        self._clock.restart()
        self._gauge.restart()
        losses: list[Tensor] = []
        for inputs, targets in _send(micro_batches, self._device):
            loss = token_loss(self.deepspeed(inputs), targets)
            self.deepspeed.backward(_taint(loss))
            losses.append(loss.detach())
            if len(losses) == len(micro_batches):
                self._look_ahead()
            self.deepspeed.step()
        kept: dict[str, Any] = {"stages": 1, "clock": self._clock, "gauge": self._gauge}
        return _conclude(self.deepspeed, loss=self._mean(losses), losses=losses, **kept)

    def eval_loss(self, micro_batches: Sequence[MicroBatch]) -> Measured:
        """Average the loss without learning."""
        self.deepspeed.eval()
        with torch.no_grad():
            losses = [
                token_loss(self.deepspeed(inputs), targets) for inputs, targets in _send(micro_batches, self._device)
            ]
        return Measured(self._mean(losses), float(_average_count(micro_batches)))

    def named_weights(self) -> list[tuple[str, nn.Parameter]]:
        """List the parameters."""
        return list(self._module.named_weights())

    def _look_ahead(self) -> None:
        """Tell our own optimizer of the gradient; it runs itself only without ZeRO."""
        optimizer = self.deepspeed.optimizer
        if isinstance(optimizer, CautiousAdamW):
            # They are summed over the replicas by now, so the norm is the same on all.
            gradients = [weight.grad for weight in self._module.parameters() if weight.grad is not None]
            optimizer.expect(total_norm(gradients))

    def _mean(self, losses: Sequence[Tensor]) -> float:
        mean = torch.stack(list(losses)).mean()
        if dist.get_world_size() > 1:
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        return float(mean)


class PipelineEngine:
    """Several stages: ZeRO 1. Middle stages read no data."""

    def __init__(self, engine: Any, module: Pipeline, *, device: torch.device, stages: int) -> None:
        self.deepspeed = engine
        self._module = module
        self._device = device
        self._stages = stages
        self._clock = ForwardClock(module, device=device)
        self._gauge = GradientGauge(module.forward_funcs[0])
        self._losses: list[Tensor] = []
        module.loss_fn = self._note_loss

    def train_step(self, micro_batches: Sequence[MicroBatch], *, learning_rate: float) -> StepResult:
        """Run one optimizer step."""
        _set_rate(self.deepspeed, learning_rate)
        self._clock.restart()
        self._gauge.restart()
        self._losses = []
        loss = float(self.deepspeed.train_batch(_send(micro_batches, self._device)))
        kept: dict[str, Any] = {"stages": self._stages, "clock": self._clock, "gauge": self._gauge}
        return _conclude(self.deepspeed, loss=loss, losses=self._losses, **kept)

    def eval_loss(self, micro_batches: Sequence[MicroBatch]) -> Measured:
        """Average the loss without learning."""
        loss = self.deepspeed.eval_batch(_send(micro_batches, self._device), num_micro_batches=len(micro_batches))
        return Measured(float(loss), float(_average_count(micro_batches)))

    def named_weights(self) -> list[tuple[str, nn.Parameter]]:
        """List this stage's parameters."""
        return list(self._module.named_weights())

    def _note_loss(self, logits_BTV: Tensor, targets: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        loss = token_loss(logits_BTV, targets)
        self._losses.append(loss.detach())
        return _taint(loss)
