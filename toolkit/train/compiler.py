"""torch's compiler, which nothing here uses, stays unloaded until somebody asks: its import is most of a start."""

import functools
import importlib
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

import torch

_NAME = "torch._dynamo"


def put_off_compiler() -> None:
    """Let optimizers and DeepSpeed be built without importing torch's compiler; what really compiles still does.

    A plain optimizer imports it (and sympy, networkx, pandas with it: 2 s of CPU time, measured) only to say that it
    is not to be compiled; DeepSpeed's Muon is compiled when its module is imported, which is always.

    Source: torch 2.13, torch/_compile.py and torch/optim/optimizer.py (`disable`, `graph_break`);
    deepspeed 0.19.8, runtime/zero/muon/original_muon.py.
    """
    if _NAME in sys.modules:
        return
    sys.modules[_NAME] = _StandIn(_NAME)
    sys.meta_path.insert(0, _Finder())
    torch.compile = _compile_when_called(torch.compile)


class _StandIn(ModuleType):
    """Answers what is asked of the compiler where nothing is compiled; any other name brings the real one."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []  # a package: its submodules are looked for, and _Finder hears of it

    @staticmethod
    def disable(fn: Any = None, *rest: Any, **options: Any) -> Any:
        """Leave a function as it is: outside of compiled code the real one calls it, and does no more."""
        return fn if inspect.isroutine(fn) else _load().disable(fn, *rest, **options)

    @staticmethod
    def graph_break(msg: str = "") -> None:
        """Do nothing, as outside of compiled code."""

    def __getattr__(self, name: str) -> Any:
        # Those who walk through sys.modules ask every module for its __file__.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_load(), name)


class _Finder(MetaPathFinder):
    """Hears of the first import of a part of the compiler, and brings the whole first."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a part in the real package."""
        if not name.startswith(_NAME + "."):
            return None
        package = _load()
        if name in sys.modules:  # the package has imported it by itself
            return importlib.machinery.ModuleSpec(name, _Loaded(sys.modules[name]))
        return importlib.machinery.PathFinder.find_spec(name, package.__path__)


class _Loaded(Loader):
    """Gives a module that has run, as it is."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Give the module."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing again."""
        module.__spec__ = self._spec


def _load() -> ModuleType:
    if isinstance(sys.modules.get(_NAME), _StandIn):
        del sys.modules[_NAME]
        vars(torch).pop("_dynamo", None)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    return importlib.import_module(_NAME)


def _compile_when_called(compile_now: Callable[..., Any]) -> Callable[..., Any]:
    """Make a `torch.compile` that compiles functions at their first call; modules at once."""

    @functools.wraps(compile_now)
    def compile_later(model: Any = None, **options: Any) -> Any:
        if model is None:
            return functools.partial(compile_later, **options)
        if not inspect.isfunction(model):
            return compile_now(model, **options)
        compiled: list[Callable[..., Any]] = []

        @functools.wraps(model)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not compiled:
                compiled.append(compile_now(model, **options))
            return compiled[0](*args, **kwargs)

        return call

    return compile_later
