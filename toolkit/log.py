"""One line format: INFO from rank 0, WARNING and above from every rank, with node, rank and step in front."""

import logging
import sys
import threading
import traceback
from types import TracebackType

from toolkit.redact import redact


class _Record(logging.LogRecord):
    """A message without its secrets, whoever logs it and whatever handler writes it: DeepSpeed and W&B have theirs."""

    def getMessage(self) -> str:
        return redact(super().getMessage())


class RankFormatter(logging.Formatter):
    """Formats `2026-01-31 12:00:00 INFO node1 r0 s120 | text`; `step` is kept up to date by the train loop."""

    def __init__(self, *, rank: int, node: str) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(place)s | %(message)s", "%Y-%m-%d %H:%M:%S")
        self._place = f"{node} r{rank}"
        self.step: int | None = None

    def format(self, record: logging.LogRecord) -> str:
        """Put the place in front of the message."""
        step = "" if self.step is None else f" s{self.step}"
        record.place = self._place + step
        return redact(super().format(record))  # a traceback is no part of the message


def setup_logging(*, rank: int, node: str) -> RankFormatter:
    """Send the log to standard output; calling it again replaces the former set-up."""
    hide_secrets()
    formatter = RankFormatter(rank=rank, node=node)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("toolkit").setLevel(logging.INFO if rank == 0 else logging.WARNING)
    return formatter


def hide_secrets() -> None:
    """Take secrets out of all that is logged from now on, and of the traceback of an error that nobody has caught."""
    logging.setLogRecordFactory(_Record)
    sys.excepthook = _tell_uncaught
    threading.excepthook = lambda told: _tell_uncaught(told.exc_type, told.exc_value, told.exc_traceback)


def _tell_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
