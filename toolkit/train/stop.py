"""Why to stop: signals set a flag on any rank, all ranks agree on it at a step boundary."""

import enum
import signal
from types import FrameType


class Stop(enum.IntEnum):
    """Reasons to stop, the stronger one larger: ranks agree on the largest."""

    NONE = 0
    TIME_LIMIT = 1  # SIGUSR2: the job ends soon; save and requeue
    TERMINATED = 2  # SIGTERM: cancelled or preempted; save and end, the scheduler knows what comes next


class StopFlag:
    """Listens to the signals of the scheduler; a handler sets a flag and nothing else.

    SIGUSR2, since NCCL uses SIGUSR1.
    """

    def __init__(self) -> None:
        self.reason = Stop.NONE
        signal.signal(signal.SIGUSR2, self._handle)
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        reason = Stop.TERMINATED if number == signal.SIGTERM else Stop.TIME_LIMIT
        self.reason = max(self.reason, reason)
