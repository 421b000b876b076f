"""Run a function on several gloo ranks, each a process forked from a server that has torch loaded already."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

from toolkit.distributed import Place, World

_TIMEOUT_S = 800  # of a whole list of cases


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def run_ranks(function: Callable[..., Any], *, world_size: int, args: tuple[Any, ...] = ()) -> list[Any]:
    """Call `function(world, *args)` on each rank; give the results in rank order, or raise the first failure."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toolkit.train.engine", "toolkit.checkpoint.saver", "toolkit.checkpoint.restore"])
    port = free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
    processes = [
        context.Process(target=_rank, args=(rank, world_size, port, pipes[rank][1], function, args), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()
    try:
        outcomes = [_receive(receiver) for receiver, _ in pipes]
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    failures = [f"rank {rank}: {text}" for rank, (ok, text) in enumerate(outcomes) if not ok]
    assert not failures, "\n".join(failures)
    return [value for _, value in outcomes]


def _receive(receiver: Any) -> tuple[bool, Any]:
    try:
        return receiver.recv() if receiver.poll(_TIMEOUT_S) else (False, f"no answer in {_TIMEOUT_S} s")
    except EOFError:
        return False, "died"


def _rank(rank: int, world_size: int, port: int, sender: Any, function: Callable[..., Any], args: Any) -> None:
    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    import torch

    torch.set_num_threads(1)
    place = Place(
        rank=rank,
        world_size=world_size,
        local_rank=rank,
        local_size=world_size,
        node="node1",
        master_addr="127.0.0.1",
        master_port=port,
        job_id="1",
        attempt="1.0",
        cluster="local",
    )
    try:
        world = World(place, timeout_s=120)
        sender.send((True, function(world, *args)))
        world.close()
    except BaseException:
        sender.send((False, traceback.format_exc()))
