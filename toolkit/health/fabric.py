"""What the ranks measure together: how far clocks are apart, an all-reduce, and pairs that name a slow node."""

import statistics
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from toolkit.distributed import World
from toolkit.health.verdicts import ALL, Reading

_CLOCK_ROUNDS = 5
_PAIR_ROUNDS = 3  # partners of a node: a healthy one finds at least one healthy among them
_REPEATS = 3
_CPU_BYTES = 1 << 20
_GPU_BYTES = 256 << 20  # nccl-tests reach their plateau there
_MEGABYTE = 1 << 20


def measure_clocks(world: World) -> list[Reading]:
    """Compare what the clocks of the nodes say as a barrier ends; every rank gets the same readings.

    Ranks leave a barrier within milliseconds of each other; the best of several rounds counts.
    """
    stamps = []
    for _ in range(_CLOCK_ROUNDS):
        world.barrier()
        stamps.append(time.time())
    rows: list[tuple[str, list[float]]] = world.gather((world.place.node, stamps))
    middles = [statistics.median(row[1][turn] for row in rows) for turn in range(_CLOCK_ROUNDS)]
    offsets: dict[str, float] = {}
    for node, row in rows:
        offset = min(abs(stamp - middle) for stamp, middle in zip(row, middles, strict=True))
        offsets[node] = min(offset, offsets.get(node, offset))
    return [Reading(probe="clock", node=node, value=offset) for node, offset in offsets.items()]


def measure_all_reduce(world: World) -> list[Reading]:
    """Measure bus bandwidth of a large all-reduce and the time of a small one; every rank gets the same readings.

    Source: NVIDIA/nccl-tests, doc/PERFORMANCE.md: bus bandwidth = 2 (n - 1) / n * bytes / time.
    """
    if world.size == 1:
        return []
    num_bytes = _GPU_BYTES if world.device.type == "cuda" else 4 * _CPU_BYTES
    large = torch.ones(num_bytes // 4, dtype=torch.float32, device=world.device)
    small = torch.ones(1, dtype=torch.float32, device=world.device)
    seconds, latency_s = _time_all_reduce(world, large), _time_all_reduce(world, small)
    slowest = [max(column) for column in zip(*world.gather((seconds, latency_s)), strict=True)]
    rate = 2 * (world.size - 1) / world.size * num_bytes / slowest[0]
    return [
        Reading(probe="all-reduce", node=ALL, value=rate / 1e9, part=f"{num_bytes // _MEGABYTE} MiB"),
        Reading(probe="latency", node=ALL, value=slowest[1] * 1e3),
    ]


def _time_all_reduce(world: World, tensor: torch.Tensor) -> float:
    best = float("inf")
    for _ in range(_REPEATS + 1):  # the first one connects
        world.barrier()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        _finish(world)
        best = min(best, time.perf_counter() - start)
    return best


def measure_pairs(world: World) -> list[Reading]:
    """Let each node exchange with up to three others in turn; a node is as good as with its best partner.

    All ranks of a node take part, each with the rank of the same number on the other node, so that every network card
    is used. Every rank gets the same readings.
    """
    places: list[tuple[str, int]] = world.gather((world.place.node, world.place.local_rank))
    nodes = list(dict.fromkeys(node for node, _ in places))
    best = 0.0
    for pairs in pair_up(nodes)[:_PAIR_ROUNDS]:
        partner = pairs.get(world.place.node)
        if partner is not None and (partner, world.place.local_rank) in places:
            best = max(best, _exchange(world, places.index((partner, world.place.local_rank))))
        world.barrier()
    rates: dict[str, float] = {}
    for (node, _), rate in zip(places, world.gather(best), strict=True):
        rates[node] = min(rate, rates.get(node, rate))
    if len(nodes) == 1:
        return []
    return [Reading(probe="pairs", node=node, value=rate / 1e9) for node, rate in rates.items()]


def pair_up(nodes: Sequence[str]) -> list[dict[str, str]]:
    """Arrange all meetings in rounds in which each node meets one other (one sits out when they are odd).

    Returns:
        A round each: the partner of a node.
    """
    names: list[str | None] = [*nodes, None] if len(nodes) % 2 else [*nodes]
    rounds = []
    for _ in range(len(names) - 1):
        half = len(names) // 2
        met = [(a, b) for a, b in zip(names[:half], reversed(names[half:]), strict=True) if a is not None]
        pairs = {a: b for a, b in met if b is not None}
        rounds.append({**pairs, **{b: a for a, b in pairs.items()}})
        names = [names[0], names[-1], *names[1:-1]]  # all but the first move on by one seat
    return rounds


def _exchange(world: World, partner: int) -> float:
    """Send and receive at once; give the bytes per second of one direction."""
    num_bytes = _GPU_BYTES if world.device.type == "cuda" else _CPU_BYTES
    sent, received = (torch.ones(num_bytes, dtype=torch.uint8, device=world.device) for _ in range(2))
    best = float("inf")
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        both = [dist.P2POp(dist.isend, sent, partner), dist.P2POp(dist.irecv, received, partner)]
        for work in dist.batch_isend_irecv(both):
            work.wait()
        _finish(world)
        best = min(best, time.perf_counter() - start)
    return num_bytes / best


def _finish(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
