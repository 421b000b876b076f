"""What hooks on a model measure, without making anyone wait."""

import time
from typing import Any

import torch
from torch import Tensor, nn


class ForwardClock:
    """Times the forward passes of a module: by events of the GPU, which nobody waits for, or by the clock on a CPU."""

    def __init__(self, module: nn.Module, *, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._begun: list[Any] = []
        self._ended: list[Any] = []
        module.register_forward_pre_hook(lambda *_: self._begun.append(self._now()))
        module.register_forward_hook(lambda *_: self._ended.append(self._now()))

    def restart(self) -> None:
        """Forget what was measured."""
        self._begun, self._ended = [], []

    def total_s(self) -> float:
        """Sum the time since `restart`; the device must have done the work."""
        pairs = zip(self._begun, self._ended, strict=False)  # a pass that raised has no end
        if self._is_gpu:
            return float(sum(begun.elapsed_time(ended) for begun, ended in pairs) / 1000)
        return float(sum(ended - begun for begun, ended in pairs))

    def _now(self) -> Any:
        if not self._is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class GradientGauge:
    """Sees whether the gradient that arrives at the output of a layer is finite, micro-batch after micro-batch.

    At the first layer of a stage what went wrong in the backward pass behind it has arrived.
    """

    def __init__(self, layer: Any) -> None:
        """Begin; a layer that is no module (a tied one's function) is not looked at."""
        self._are_finite: list[Tensor] = []
        if isinstance(layer, nn.Module):
            layer.register_forward_hook(self._follow)

    def restart(self) -> None:
        """Forget what was seen."""
        self._are_finite = []

    def verdicts(self) -> list[bool]:
        """Say of each micro-batch since `restart` whether its gradient was finite; waits for the device."""
        return [bool(is_finite) for is_finite in self._are_finite]

    def _follow(self, _: nn.Module, __: Any, output: Tensor | tuple[Tensor, Tensor]) -> None:
        stream = output if isinstance(output, Tensor) else output[0]
        if stream.requires_grad:
            stream.register_hook(self._look)  # type: ignore[no-untyped-call]

    def _look(self, gradient: Tensor) -> None:
        self._are_finite.append(gradient.isfinite().all())
