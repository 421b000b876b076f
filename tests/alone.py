"""A world of one rank without a process group, and a plain engine in it: checkpoints in unit tests."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toolkit.checkpoint.layout import Index
from toolkit.checkpoint.restore import Loaded, load
from toolkit.checkpoint.saver import Saver


class AloneChannel:
    def __init__(self) -> None:
        self.notes: dict[str, str] = {}
        self.is_open = threading.Event()
        """While it is not set, nothing gets through."""
        self.is_open.set()

    def post(self, key: str, note: str) -> None:
        self.is_open.wait()
        self.notes[key] = note

    def read(self, key: str) -> str | None:
        return self.notes.get(key)


class Alone:
    rank, size, device = 0, 1, torch.device("cpu")

    def __init__(self) -> None:
        self.channel = AloneChannel()

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def name_of(self, rank: int) -> str:
        return f"rank {rank} on node1"

    def open_channel(self, name: str, *, timeout_s: float) -> AloneChannel:
        return self.channel


class PlainRun:
    """Two parameters under AdamW; each step moves them by made gradients."""

    def __init__(self, *, num_elements: int = 40) -> None:
        generator = torch.Generator().manual_seed(0)
        sizes = {"0.weight": (num_elements // 8, 8), "1.norm": (7,)}
        self.weights = [(n, nn.Parameter(torch.randn(s, generator=generator))) for n, s in sizes.items()]
        self.optimizer = torch.optim.AdamW([weight for _, weight in self.weights], lr=0.1)
        self.step = 0

    def zero_optimization_stage(self) -> int:
        return 0

    def train(self, num_steps: int) -> None:
        for _ in range(num_steps):
            for _, weight in self.weights:
                weight.grad = torch.sin(weight.detach() + self.step)
            self.optimizer.step()
            self.step += 1

    def state(self) -> list[torch.Tensor]:
        moments = [
            self.optimizer.state[w].get(k, torch.zeros(())) for _, w in self.weights for k in ("step", "exp_avg")
        ]
        return [weight.detach().clone() for _, weight in self.weights] + [moment.clone() for moment in moments]

    def index(self) -> Index:
        return Index(step=self.step, updates=0, tokens_per_step=1, seed=0, dataset="d", model={}, parts=())

    def save(self, saver: Saver) -> float:
        return saver.start(self, self.weights, index=self.index())

    def load(
        self, checkpoints_dir: Path, *, mirror: Any = None, world: Any = None, up_to: int | None = None
    ) -> Loaded | None:
        options: Any = {"world": world or Alone(), "expected": self.index(), "mirror": mirror, "up_to": up_to}
        loaded = load(self, self.weights, checkpoints_dir, **options)
        self.step = loaded.index.step if loaded else 0
        return loaded


def open_saver(checkpoints_dir: Path, *, world: Any = None, **options: Any) -> Saver:
    options = {"keep": 9, "keep_every": None, "mirror": None, **options}
    return Saver(checkpoints_dir, world=world or Alone(), replica=0, replicas=1, **options)


def save_at(checkpoints_dir: Path, steps: list[int], *, make: Callable[[], PlainRun] = PlainRun) -> PlainRun:
    """Train to the last of the steps; save at each."""
    run, saver = make(), open_saver(checkpoints_dir)
    for step in steps:
        run.train(step - run.step)
        run.save(saver)
        assert saver.finish(10) is None
    return run
