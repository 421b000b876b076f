"""Tensors of a checkpoint by name, without DeepSpeed."""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from toolkit.checkpoint.layout import Index
from toolkit.errors import CheckpointError


class TensorReader:
    """Reads tensors of a checkpoint by name, from mapped files that stay open; a context manager."""

    def __init__(self, checkpoint_dir: Path, index: Index) -> None:
        self._dir = checkpoint_dir
        self._paths = {name: part.path for part in index.parts for name in part.tensors}
        self._open: dict[str, Any] = {}

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._open.values():
            handle.__exit__(None, None, None)
        self._open.clear()

    def names(self) -> list[str]:
        """List the parameters."""
        return sorted(self._paths)

    def read(self, kind: str, name: str) -> Tensor:
        """Read one full fp32 tensor."""
        path = self._paths.get(name)
        if path is None:
            raise CheckpointError(f"{self._dir} has no parameter {name}; it has {', '.join(self.names()[:5])} ...")
        if path not in self._open:
            self._open[path] = safe_open(self._dir / path, framework="pt").__enter__()  # type: ignore[no-untyped-call]
        return self._open[path].get_tensor(f"{kind}/{name}")  # type: ignore[no-any-return]
