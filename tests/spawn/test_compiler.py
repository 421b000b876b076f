"""torch's compiler stays away from a start, and is whole when it is asked for."""

import functools
import inspect
import multiprocessing
import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch

from toolkit.train.compiler import put_off_compiler


def call_alone(function: Callable[[], Any]) -> Any:
    """Call a function in a process that has torch, and has not seen its compiler."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toolkit.train.engine", "toolkit.checkpoint.saver"])  # as in ranks.py
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(sender, function), daemon=True)
    process.start()
    sender.close()
    try:
        assert receiver.poll(200), "no answer"
        is_good, value = receiver.recv()
    finally:
        process.kill()
        process.join(timeout=10)
    assert is_good, value
    return value


def _tell(sender: Any, function: Callable[[], Any]) -> None:
    try:
        sender.send((True, function()))
    except BaseException:
        sender.send((False, traceback.format_exc()))


def is_away() -> bool:
    return "sympy" not in sys.modules and "torch._dynamo.config" not in sys.modules


def optimize() -> list[float]:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return weight.tolist()


def optimize_without() -> tuple[list[float], bool]:
    put_off_compiler()
    return optimize(), is_away()


def test_an_optimizer_steps_without_it_and_to_the_same_bits() -> None:
    assert call_alone(optimize_without) == (call_alone(optimize), True)


def ask_for_a_part() -> bool:
    import torch._dynamo.config as config

    return config is torch._dynamo.config


def ask_for_a_name_of_a_part() -> bool:
    from torch._dynamo.utils import counters

    return counters is torch._dynamo.utils.counters


def ask_for_a_function() -> bool:
    import torch._dynamo

    torch._dynamo.reset()
    return True


def disable_a_module() -> bool:
    return isinstance(torch._dynamo.disable(torch.nn.Linear(1, 1)), torch.nn.Module)


def ask_for_more(ask: Callable[[], bool]) -> tuple[bool, bool, bool]:
    put_off_compiler()
    inspect.getmodule(optimize)  # looks at every module
    before = is_away()
    return before, ask(), torch._dynamo.__file__ is not None and not is_away()


@pytest.mark.parametrize("ask", [ask_for_a_part, ask_for_a_name_of_a_part, ask_for_a_function, disable_a_module])
def test_whoever_needs_more_of_it_gets_the_real_one(ask: Callable[[], bool]) -> None:
    assert call_alone(functools.partial(ask_for_more, ask)) == (True, True, True)


def compile_functions() -> list[Any]:
    put_off_compiler()
    double = torch.compile(lambda x: 2 * x, backend="eager")
    triple = torch.compile(backend="eager")(lambda x: 3 * x)
    before = is_away()
    one = torch.ones(1)
    results = [int(double(one)), int(triple(one)), int(torch.compile(torch.nn.Identity(), backend="eager")(one))]
    return [before, *results, torch._dynamo.utils.counters["frames"]["ok"] >= 2, optimize() == optimize()]


def test_what_is_compiled_compiles_when_it_is_called_and_optimizers_go_on_afterwards() -> None:
    assert call_alone(compile_functions) == [True, 2, 3, 1, True, True]


def find_it_there() -> bool:
    import torch._dynamo

    kept, there = torch.compile, torch._dynamo
    put_off_compiler()
    return torch.compile is kept and sys.modules["torch._dynamo"] is there


def test_a_compiler_that_is_there_already_is_left_alone() -> None:
    assert call_alone(find_it_there)
