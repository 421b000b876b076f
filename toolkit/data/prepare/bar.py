"""How far long work is: a bar on a terminal, a line every so often in a log; on standard error."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

_EVERY_S = 30.0


@contextmanager
def show_progress(title: str, *, total_bytes: int, done_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show progress with its rate and the time left.

    Args:
        title: what is going on.
        total_bytes: of the whole work.
        done_bytes: what was done before; it does not count for the rate.

    Yields:
        A function that takes the bytes done since it was last called.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if not console.is_terminal:
        yield _Lines(console, title, total_bytes=total_bytes, done_bytes=done_bytes, now=time.monotonic()).report
        return
    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total_bytes, completed=done_bytes)
        yield lambda num_bytes: bar.advance(task, num_bytes)


class _Lines:
    """Plain lines for a log."""

    def __init__(self, console: Console, title: str, *, total_bytes: int, done_bytes: int, now: float) -> None:
        self._console, self._title, self._total = console, title, total_bytes
        self._done, self._before = done_bytes, done_bytes
        self._started, self._said = now, now

    def report(self, num_bytes: int) -> None:
        """Count, and say how far it is when it was long ago."""
        self._done += num_bytes
        now = time.monotonic()
        if now - self._said >= _EVERY_S:
            self._said = now
            self._console.print(self.describe(elapsed_s=now - self._started))

    def describe(self, *, elapsed_s: float) -> str:
        """Give the line."""
        rate = max(0, self._done - self._before) / elapsed_s
        left_s = int((self._total - self._done) / rate) if rate else None
        left = "unknown" if left_s is None else f"{left_s // 3600}h{left_s % 3600 // 60:02d}m{left_s % 60:02d}s"
        return (
            f"{self._title}: {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB, {rate / 1e6:.0f} MB/s, left {left}"
        )
