"""Which ranks compute more slowly than those that hold the same layers."""

import logging

from toolkit.distributed import World
from toolkit.monitor import metrics
from toolkit.monitor.watch import find_stragglers
from toolkit.topology import Topology

log = logging.getLogger(__name__)


class StragglerWatch:
    """Compares the ranks' own computing now and then; every rank has one."""

    def __init__(self, world: World, topology: Topology, *, every: int, ratio: float) -> None:
        """Begin.

        Args:
            world: the ranks.
            topology: who holds the same layers.
            every: steps between comparisons.
            ratio: slow is who takes so many times as long as its peers.
        """
        self._world = world
        self._peers = [topology.stage_ranks(stage) for stage in range(topology.stages)]
        self._every = every
        self._ratio = ratio
        self._forward_s: list[float] = []
        self._named: set[int] = set()

    def take(self, step: int, forward_s: float) -> dict[str, float]:
        """Take in a step's computing of this rank; compare where it is due, all ranks together.

        Returns:
            On a step that compares, how many times as long as its peers the slowest rank takes.
        """
        self._forward_s.append(forward_s)
        if step % self._every or len(self._forward_s) < 2:
            return {}
        total_s = sum(sorted(self._forward_s)[:-1])  # without the longest, which may have been an accident
        self._forward_s.clear()
        everyone = self._world.gather(total_s)
        slow = find_stragglers(everyone, peers=self._peers, ratio=1.0)
        if self._world.rank == 0:
            self._tell({rank for rank, ratio in slow.items() if ratio > self._ratio}, slow)
        return {metrics.SLOWEST: max(slow.values(), default=1.0)}

    def _tell(self, now: set[int], ratios: dict[int, float]) -> None:
        for rank in sorted(now - self._named):
            log.warning("%s computes %.1f times as long as its peers", self._world.name_of(rank), ratios[rank])
        for rank in sorted(self._named - now):
            log.info("%s computes as fast as its peers again", self._world.name_of(rank))
        self._named = now
