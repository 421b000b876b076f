"""Tensors of a checkpoint by name, whole or in ranges, without DeepSpeed."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from toolkit.checkpoint.layout import DamagedError, Index, Slice
from toolkit.errors import CheckpointError


class TensorReader:
    """Reads ranges of a checkpoint's tensors from mapped files that stay open; a context manager."""

    def __init__(self, checkpoint_dir: Path, index: Index) -> None:
        self._dir = checkpoint_dir
        self._slices: dict[str, list[tuple[Slice, str]]] = defaultdict(list)
        for part in index.parts:
            for one in part.slices:
                self._slices[one.name].append((one, part.path))
        for pairs in self._slices.values():
            pairs.sort(key=lambda pair: pair[0].start)
        self._open: dict[str, Any] = {}

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._open.values():
            handle.__exit__(None, None, None)
        self._open.clear()

    def names(self) -> list[str]:
        """List the parameters."""
        return sorted(self._slices)

    def read(self, kind: str, name: str) -> Tensor:
        """Read one full fp32 tensor."""
        shape = self._find(name)[0][0].shape
        return self.read_range(kind, name, 0, torch.Size(shape).numel()).view(shape)

    def read_range(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Read the elements [start, stop) of a flattened tensor; only these are read.

        Raises:
            CheckpointError: the checkpoint does not hold all of them.
        """
        pieces, reached = [], start
        for one, path in self._find(name):
            if one.start <= reached < min(one.stop, stop):
                end = min(one.stop, stop)
                stored = self._slice(path, f"{kind}/{name}")
                pieces.append(stored[reached - one.start : end - one.start])
                reached = end
        if reached < stop:
            raise CheckpointError(f"{self._dir} lacks elements {reached} to {stop} of {name}\n  use another checkpoint")
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces) if pieces else torch.empty(0)

    def _find(self, name: str) -> list[tuple[Slice, str]]:
        if name not in self._slices:
            raise CheckpointError(f"{self._dir} has no parameter {name}; it has {', '.join(self.names()[:5])} ...")
        return self._slices[name]

    def _slice(self, path: str, key: str) -> Any:
        try:
            return self._file(path).get_slice(key)
        except SafetensorError as error:
            raise DamagedError(
                f"{self._dir / path} lacks {key}: {error}\n  the index of the checkpoint names it\n"
                "  use another checkpoint"
            ) from error

    def _file(self, path: str) -> Any:
        if path not in self._open:
            try:
                handle = safe_open(self._dir / path, framework="pt").__enter__()  # type: ignore[no-untyped-call]
            except (OSError, SafetensorError) as error:
                raise DamagedError(
                    f"{self._dir / path} cannot be read: {error}\n  the index of the checkpoint names it\n"
                    "  use another checkpoint"
                ) from error
            self._open[path] = handle
        return self._open[path]
