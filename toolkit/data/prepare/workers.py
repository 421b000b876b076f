"""Processes of this machine that take tasks one by one; none outlives the process that started them."""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from toolkit.errors import ToolkitError, TryAgainError

T = TypeVar("T")
Report = Callable[[int], None]


def run_tasks(tasks: Sequence[T], work: Callable[[T, Report], None], *, num_workers: int, report: Report) -> None:
    """Work on tasks in processes of their own; with one worker, in this one.

    Args:
        tasks: taken in order, each by the next free worker.
        work: a function that can be pickled; it reports progress.
        num_workers: processes, spawned: a fork would inherit locks of engines and of the HDFS client.
        report: told what `work` reports.

    Raises:
        ToolkitError: from `work`; the other workers are ended.
    """
    if num_workers <= 1:
        for task in tasks:
            work(task, report)
        return
    context = multiprocessing.get_context("spawn")
    workers: list[tuple[Any, Connection]] = []
    try:
        for _ in range(min(num_workers, len(tasks))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, work), daemon=True)
            workers.append((process, ours))
            _start_deaf(process)
            theirs.close()  # so that each side sees the other's end
        _hand_out(tasks, [connection for _, connection in workers], report)
    finally:
        for process, connection in workers:
            connection.close()
            if process.pid is not None:
                process.terminate()
                process.join()


def _start_deaf(process: Any) -> None:
    """Start a process that Ctrl-C does not reach: the one who started it ends it, without a trace of each.

    A Ctrl-C meanwhile waits until the process has got its work: else it would end with a trace for want of it.
    """
    resource_tracker.ensure_running()  # else started with the process, and lets Ctrl-C through again (Python 3.11)
    noted: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: noted.append(number)) if is_main else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()  # inherits what is blocked
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if is_main:
            signal.signal(signal.SIGINT, handler)
    if noted:
        raise KeyboardInterrupt


def _hand_out(tasks: Sequence[T], free: list[Connection], report: Report) -> None:
    todo = list(reversed(tasks))
    busy: list[Connection] = []
    while todo or busy:
        while todo and free:
            free[-1].send(todo.pop())
            busy.append(free.pop())
        for connection in wait(busy):
            assert isinstance(connection, Connection), f"waited for a {type(connection)}"
            try:
                answer = connection.recv()
            except (EOFError, ConnectionResetError) as error:
                raise TryAgainError(
                    "a worker process died\n  where nothing is said above it was killed, perhaps for its memory\n"
                    "  start the same command again, with fewer --jobs: it goes on where it was"
                ) from error
            if isinstance(answer, ToolkitError):
                raise answer
            if answer is None:
                busy.remove(connection)
                free.append(connection)
            else:
                report(answer)


def _serve(connection: Connection, work: Callable[[T, Report], None]) -> None:
    """Work until the other side is gone; reporting to it fails then, which ends a task too."""
    try:
        while True:
            try:
                work(connection.recv(), connection.send)
            except ToolkitError as error:
                connection.send(error)
            else:
                connection.send(None)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
