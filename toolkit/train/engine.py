"""Configuration -> DeepSpeed's dictionary (pure) -> an engine that runs one optimizer step."""

import logging
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

log = logging.getLogger(__name__)

Tensors: TypeAlias = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave; the loss is the mean over all labels of the step, equal on every rank."""

    loss: float
    grad_norm: float | None
    """Before clipping; None where DeepSpeed does not tell (ZeRO 0)."""


class Engine(Protocol):
    """One model on its ranks, whatever the layout."""

    deepspeed: Any
    """The DeepSpeed engine."""

    def train_step(self, micro_batches: Sequence[MicroBatch], *, learning_rate: float) -> StepResult:
        """Run forward, backward and the optimizer over one step's micro-batches of this replica."""

    def eval_loss(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Average the loss over micro-batches and replicas; nothing is learned."""

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


def build_optimizer(weights: Sequence[nn.Parameter], optim: OptimSection) -> torch.optim.AdamW:
    """Make AdamW with weight decay on matrices and none on vectors."""
    groups = [
        {"params": [p for p in weights if p.dim() >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in weights if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
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
        return PipelineEngine(engine, module, device=device)
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


def _grad_norm(engine: Any) -> float | None:
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def _send(micro_batches: Sequence[MicroBatch], device: torch.device) -> Iterator[tuple[Tensors, Tensors]]:
    """Bring micro-batches to the device one by one; every rank calls it, and not every one has to take them."""
    inputs = (_move(tensors, device) for tensors, _ in micro_batches)
    labels = (part.to(device, non_blocking=True) for _, part in micro_batches)
    if not isinstance(micro_batches[0][0], tuple):
        return zip(inputs, labels, strict=True)
    divisor = _average_count([part for _, part in micro_batches]).to(device, torch.float32)
    return zip(inputs, ((part, divisor) for part in labels), strict=True)


def _move(tensors: Tensors, device: torch.device) -> Tensors:
    if isinstance(tensors, tuple):
        return tensors[0].to(device, non_blocking=True), tensors[1].to(device, non_blocking=True)
    return tensors.to(device, non_blocking=True)


def _average_count(labels: Sequence[Tensor]) -> Tensor:
    """Count the labels that are learned in a micro-batch of this step, on the mean over all replicas.

    A micro-batch's sum of losses divided by it, then averaged over micro-batches and replicas as DeepSpeed does,
    is the mean over the labels of the step, on any layout.
    """
    count = torch.tensor(sum(int((part >= 0).sum()) for part in labels) / len(labels), dtype=torch.float64)
    dist.all_reduce(count)  # every stage of a replica counts the same labels
    return count / dist.get_world_size()


class PlainEngine:
    """One stage: ZeRO 0 to 3."""

    def __init__(self, engine: Any, module: Llama, *, device: torch.device) -> None:
        self.deepspeed = engine
        self._module = module
        self._device = device

    def train_step(self, micro_batches: Sequence[MicroBatch], *, learning_rate: float) -> StepResult:
        """Run one optimizer step."""
        self.deepspeed.train()
        _set_rate(self.deepspeed, learning_rate)
        losses = []
        for inputs, targets in _send(micro_batches, self._device):
            loss = token_loss(self.deepspeed(inputs), targets)
            self.deepspeed.backward(loss)
            self.deepspeed.step()
            losses.append(loss.detach())
        return StepResult(self._mean(losses), _grad_norm(self.deepspeed))

    def eval_loss(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Average the loss without learning."""
        self.deepspeed.eval()
        with torch.no_grad():
            losses = [
                token_loss(self.deepspeed(inputs), targets) for inputs, targets in _send(micro_batches, self._device)
            ]
        return self._mean(losses)

    def named_weights(self) -> list[tuple[str, nn.Parameter]]:
        """List the parameters."""
        return list(self._module.named_weights())

    def _mean(self, losses: Sequence[Tensor]) -> float:
        mean = torch.stack(list(losses)).mean()
        if dist.get_world_size() > 1:
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        return float(mean)


class PipelineEngine:
    """Several stages: ZeRO 1. Middle stages read no data."""

    def __init__(self, engine: Any, module: Pipeline, *, device: torch.device) -> None:
        self.deepspeed = engine
        self._module = module
        self._device = device

    def train_step(self, micro_batches: Sequence[MicroBatch], *, learning_rate: float) -> StepResult:
        """Run one optimizer step."""
        _set_rate(self.deepspeed, learning_rate)
        loss = self.deepspeed.train_batch(_send(micro_batches, self._device))
        return StepResult(float(loss), _grad_norm(self.deepspeed))

    def eval_loss(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Average the loss without learning."""
        loss = self.deepspeed.eval_batch(_send(micro_batches, self._device), num_micro_batches=len(micro_batches))
        return float(loss)

    def named_weights(self) -> list[tuple[str, nn.Parameter]]:
        """List this stage's parameters."""
        return list(self._module.named_weights())
