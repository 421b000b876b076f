"""Ranks that compute more slowly than others with the same work: named with their node."""

import logging
import statistics

from toolkit.config.schema import FaultsSection
from toolkit.distributed import World
from toolkit.monitor.metrics import SLOWEST
from toolkit.monitor.watch import find_stragglers
from toolkit.topology import Topology

log = logging.getLogger(__name__)

_WINDOW = 50
"""Steps between comparisons; a rank is slow by the median of its steps, so a single slow one says nothing."""


class Pace:
    """Compares this rank's time of computing with its peers' every few steps."""

    def __init__(self, section: FaultsSection, world: World, *, topology: Topology, window: int = _WINDOW) -> None:
        """Begin.

        Args:
            section: the limits.
            world: the ranks.
            topology: ranks of a stage have the same work.
            window: steps between comparisons.
        """
        self._ratio = section.straggler_ratio
        self._world = world
        self._peers = [topology.stage_ranks(stage) for stage in range(topology.stages)]
        self._window = window
        self._seconds: list[float] = []
        self._suspects: set[int] = set()
        self._named: set[int] = set()

    def take(self, forward_s: float) -> dict[str, float]:
        """Take in a step; every rank calls it after every step.

        Returns:
            At the end of a window how many times as long as its peers the slowest rank took.
        """
        self._seconds.append(forward_s)
        if len(self._seconds) < self._window:
            return {}
        seconds = self._world.gather(statistics.median(self._seconds))
        self._seconds = []
        ratios = find_stragglers(seconds, peers=self._peers, ratio=1.0)
        slow = {rank: ratio for rank, ratio in ratios.items() if ratio > self._ratio}
        lasting = slow.keys() & self._suspects  # slow twice in a row
        if self._world.rank == 0:
            for rank in sorted(lasting - self._named):
                name = self._world.name_of(rank)
                log.warning("%s is slow: it computes %.2f times as long as its peers", name, slow[rank])
            for rank in sorted(self._named - slow.keys()):
                log.info("%s is as fast as its peers again", self._world.name_of(rank))
        self._named = (self._named | lasting) & slow.keys()
        self._suspects = set(slow)
        return {SLOWEST: max(ratios.values(), default=1.0)}
