"""How far long work is: a bar on a terminal, a line now and then in a log."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

_LOG_EVERY_S = 30.0


@contextmanager
def show_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function that takes the bytes that are done, and of all."""
    if not sys.stderr.isatty():
        yield _log_lines(what)
        return
    from rich import console, progress  # deferred: costs 0.1 s and only a terminal needs it  # noqa: PLC0415

    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.DownloadColumn(),
        progress.TransferSpeedColumn(), progress.TimeRemainingColumn(),
    )  # fmt: skip
    with progress.Progress(*columns, console=console.Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _log_lines(what: str) -> Callable[[int, int], None]:
    begun = last = time.monotonic()
    first: int | None = None

    def report(done: int, total: int) -> None:
        nonlocal last, first
        first = done if first is None else first  # what was there already says nothing about the rate
        now = time.monotonic()
        if now - last < _LOG_EVERY_S:
            return
        last = now
        rate = max(1.0, (done - first) / (now - begun))
        left_s = (total - done) / rate
        log.info("%s %d/%d MB | %.1f MB/s | eta %.0f s", what, done / 1e6, total / 1e6, rate / 1e6, left_s)

    return report
