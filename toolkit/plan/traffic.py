"""How long bytes take between ranks: inside a node, between nodes, falling with the number of nodes."""

import math
from collections.abc import Sequence

from toolkit.plan.layout import Conditions

_LATENCY_S = 20e-6  # of one step of a ring between nodes. assumption


def gather_s(size: float, *, ranks: int, nodes: float, on: Conditions) -> float:
    """Time an all-gather (or reduce-scatter) that gives every rank `size` bytes.

    Source: Thakur et al. 2005, doi:10.1177/1094342005051521, section 4 (ring): (N - 1) / N of the bytes pass each
    rank, in N - 1 steps of which one a node crosses the network.
    """
    if ranks <= 1:
        return 0.0
    rate = _bandwidth(on.hardware.network.gather_points, nodes=nodes, on=on)
    return size * (ranks - 1) / ranks / rate + _LATENCY_S * max(0.0, nodes - 1)


def reduce_s(size: float, *, ranks: int, nodes: float, on: Conditions) -> float:
    """Time an all-reduce of `size` bytes: twice the steps and bytes of a gather.

    Source: Thakur et al. 2005, doi:10.1177/1094342005051521, section 4 (Rabenseifner's algorithm).
    """
    if ranks <= 1:
        return 0.0
    rate = _bandwidth(on.hardware.network.reduce_points, nodes=nodes, on=on)
    return 2.0 * size * (ranks - 1) / ranks / rate + 2.0 * _LATENCY_S * max(0.0, nodes - 1)


def pass_s(size: float, *, is_same_node: bool, on: Conditions) -> float:
    """Time `size` bytes from one rank to another, on its share of the node's ports."""
    if is_same_node:
        return size / (on.hardware.link_bytes_per_s * on.fitted.link)
    return size / (on.hardware.network.bytes_per_s / on.hardware.gpus_per_node * on.fitted.wire) + _LATENCY_S


def _bandwidth(points: Sequence[tuple[int, float]], *, nodes: float, on: Conditions) -> float:
    """Give the bytes/s that pass each rank: measured points, between them a power law; else the coefficients.

    Inside a node it is the link; between nodes all ports of a node together, since a ring of each port goes round.
    """
    if points:
        return _interpolate(points, max(1.0, nodes))
    link = on.hardware.link_bytes_per_s * on.fitted.link
    if nodes <= 1:
        return link
    falling = float((nodes / 2) ** -on.fitted.wire_decay)
    return min(link, on.hardware.network.bytes_per_s * on.fitted.wire * falling)


def _interpolate(points: Sequence[tuple[int, float]], nodes: float) -> float:
    if nodes <= points[0][0] or len(points) == 1:
        return points[0][1]
    right = next((n for n in range(1, len(points)) if points[n][0] >= nodes), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    slope = math.log(y1 / y0) / math.log(x1 / x0)
    return float(y0 * (nodes / x0) ** slope)
