"""The check of all nodes before a training: probes on each, measurements between them, one verdict on every rank."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from toolkit.distributed import Place, World
from toolkit.health import fabric
from toolkit.health.probes import Asked, probe_gpu, probe_host, run_bounded
from toolkit.health.verdicts import Reading, Rule, Verdict, bad_nodes, judge, set_limits

log = logging.getLogger(__name__)

_FABRIC_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What the check found; the same on every rank."""

    verdicts: tuple[Verdict, ...]
    seconds: float

    @property
    def bad_nodes(self) -> dict[str, str]:
        """Give the nodes that must not be used, each with the reasons in words."""
        return bad_nodes(self.verdicts)


def check_nodes(world: World, asked: Asked) -> Health:
    """Probe every node, then what lies between them; collective, and the same on all ranks.

    Raises:
        TryAgainError: a rank did not take part, or the network hung.
    """
    start = time.monotonic()
    readings = conclude(world, asked, probe_rank(asked, place=world.place))
    return Health(verdicts=judge(readings, limits_of(asked)), seconds=time.monotonic() - start)


def conclude(world: World, asked: Asked, own: Sequence[Reading]) -> list[Reading]:
    """Gather what all ranks found by themselves, and measure between them; collective.

    A rate that looks bad is measured once more, and the better figure counts: a neighbour's burst excuses a node, a
    broken part does not.

    Returns:
        All readings, the same on every rank.
    """
    rules = limits_of(asked)
    readings = [*_gather(world, own), *run_fabric(world, asked, rules)]
    verdicts = judge((reading for reading in readings if not reading.trouble), rules)
    doubtful = {verdict.probe for verdict in verdicts if not verdict.ok and rules[verdict.probe].is_speed}
    if not doubtful:
        return readings
    if world.rank == 0:
        log.info("measuring once more: %s", ", ".join(sorted(doubtful)))
    again = [*_gather(world, probe_rank(asked, place=world.place)), *run_fabric(world, asked, rules)]
    return take_better(readings, again, doubtful, rules)


def limits_of(asked: Asked) -> dict[str, Rule]:
    """Give the rules that hold for what is asked."""
    return set_limits(
        gpus_per_node=asked.gpus_per_node,
        peak_flops=asked.peak_flops,
        network_bytes_per_s=asked.network_bytes_per_s,
        limits=asked.limits,
    )


def take_better(
    first: Sequence[Reading], again: Sequence[Reading], probes: Iterable[str], rules: Mapping[str, Rule]
) -> list[Reading]:
    """Replace readings of some probes by those of a second look where these are better; trouble stays."""
    wanted = set(probes)
    second = {(reading.probe, reading.node, reading.part): reading for reading in again}

    def choose(reading: Reading) -> Reading:
        other = second.get((reading.probe, reading.node, reading.part))
        if reading.probe not in wanted or reading.trouble or other is None or other.value is None:
            return reading
        assert reading.value is not None, f"{reading} has neither value nor trouble"
        wants_more = rules[reading.probe].high is None
        is_better = other.value > reading.value if wants_more else other.value < reading.value
        return other if is_better and not other.trouble else reading

    return [choose(reading) for reading in first]


def probe_rank(asked: Asked, *, place: Place) -> list[Reading]:
    """Run the probes that fall to one rank: the first of a node looks at the node, each at its own GPU."""
    readings = probe_host(asked, node=place.node) if place.local_rank == 0 else []
    if torch.cuda.is_available():
        device = place.local_rank if torch.cuda.device_count() > 1 else 0

        def probe() -> list[Reading]:
            torch.cuda.set_device(device)  # it is a thread's own
            found = probe_gpu(place.node, index=place.local_rank)
            torch.cuda.empty_cache()  # training wants all of it
            return found

        readings += run_bounded({"gpu matmul": probe}, node=place.node, timeout_s=asked.timeout_s)
    return readings


def _gather(world: World, own: Sequence[Reading]) -> list[Reading]:
    readings: list[Reading] = [reading for found in world.gather(list(own)) for reading in found]
    if any(reading.value or reading.trouble for reading in readings if reading.probe == "gpus"):
        return readings
    # No node sees any: that is how the job was asked for, or another vendor's GPUs, and no node's fault.
    return [reading for reading in readings if reading.probe != "gpus"]


def run_fabric(world: World, asked: Asked, rules: Mapping[str, Rule]) -> list[Reading]:
    """Measure between the nodes; pairs only where the whole is slow, or when they are asked for."""

    def measure() -> list[Reading]:
        if world.device.type == "cuda":
            torch.cuda.set_device(world.device)  # it is a thread's own
        readings = fabric.measure_clocks(world)
        if len(set(world.gather(world.device.type))) > 1:
            return readings  # a node without its GPUs: it is named by its own probes
        readings += fabric.measure_all_reduce(world)
        is_slow = any(not verdict.ok for verdict in judge(readings, rules) if verdict.probe == "all-reduce")
        return [*readings, *fabric.measure_pairs(world)] if is_slow or asked.test_pairs else readings

    return _bounded(world, measure)


def _bounded(world: World, measure: Callable[[], list[Reading]]) -> list[Reading]:
    """Run a measurement of all ranks in a thread, so that a network that hangs ends the attempt with a sentence."""
    found: list[list[Reading]] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(measure())
        except BaseException as error:  # a thread reports to the main one
            errors.append(error)

    thread = threading.Thread(target=run, name="fabric", daemon=True)
    thread.start()
    thread.join(_FABRIC_TIMEOUT_S)
    if errors and isinstance(errors[0], RuntimeError):  # of torch.distributed: a rank died, a timeout
        raise world.lost_peers("the network's test", errors[0]) from errors[0]
    if errors:
        raise errors[0]
    if not found:
        late = TimeoutError(f"no end of the network's test after {_FABRIC_TIMEOUT_S:g} s")
        raise world.lost_peers("the network's test", late)
    return found[0]
