"""Worker processes: tasks are done once, trouble reaches the one who asked, none is left behind."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from toolkit.data.prepare.workers import Report, run_tasks
from toolkit.errors import DataError, TryAgainError


def touch(path: Path, report: Report) -> None:
    report(1)
    with path.open("x") as file:  # fails when it is done twice
        file.write(str(os.getpid()))


def fail(path: Path, report: Report) -> None:
    raise DataError(f"{path} is bad")


def die(path: Path, report: Report) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_each_task_is_done_once_and_reported(tmp_path: Path, num_workers: int) -> None:
    reported: list[int] = []
    paths = [tmp_path / str(number) for number in range(7)]
    run_tasks(paths, touch, num_workers=num_workers, report=reported.append)
    pids = {path.read_text() for path in paths}
    assert sum(reported) == 7
    assert (str(os.getpid()) in pids) == (num_workers == 1)
    assert multiprocessing.active_children() == []


def test_trouble_of_a_worker_reaches_the_one_who_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is bad"):
        run_tasks([tmp_path] * 3, fail, num_workers=2, report=print)
    with pytest.raises(TryAgainError, match="a worker process died"):
        run_tasks([tmp_path] * 3, die, num_workers=2, report=print)
    assert multiprocessing.active_children() == []
