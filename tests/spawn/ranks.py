"""Run a function on several gloo ranks, each a process forked from a server that has torch loaded already."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from toolkit.distributed import Place, World

_TIMEOUT_S = 800  # of a whole list of cases


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def run_ranks(
    function: Callable[..., Any], *, world_size: int, args: tuple[Any, ...] = (), secrets: tuple[str, ...] = ()
) -> list[Any]:
    """Call `function(world, *args)` on each rank; give the results in rank order, or raise the first failure.

    The ranks share a secret unless `secrets` has one for each.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toolkit.train.engine", "toolkit.checkpoint.saver", "toolkit.checkpoint.restore"])
    secrets = secrets or ("known to all ranks",) * world_size
    pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
    processes = [
        context.Process(target=run_rank, args=(place, pipes[place.rank][1], function, args), daemon=True)
        for place in places(world_size, secrets)
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


def places(world_size: int, secrets: Sequence[str]) -> list[Place]:
    """Give the places of ranks that meet at a free port."""
    port = free_port()
    return [
        Place(
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
            secret=secrets[rank],
        )
        for rank in range(world_size)
    ]


def run_rank(place: Place, sender: Any, function: Callable[..., Any], args: Any) -> None:
    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    import torch

    torch.set_num_threads(1)
    try:
        world = World(place, timeout_s=120)
        sender.send((True, function(world, *args)))
        world.close()
    except BaseException:
        sender.send((False, traceback.format_exc()))
