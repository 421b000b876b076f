"""Processes that hang for real: who is named, and that all end."""

import json
import logging
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.spawn.ranks import places, run_rank
from toolkit.config.schema import FaultsSection
from toolkit.errors import EXIT_TRY_AGAIN

pytestmark = pytest.mark.spawn

SIZE = 3
LIMITS = FaultsSection(hang_min_s=3, hang_start_s=60)
PATIENCE_S = 120


def read_text_that_never_comes() -> None:
    time.sleep(1000)


def match_a_text_for_ever() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")  # no other thread of Python runs meanwhile


def step_on(world: Any, directory: Path, stuck: int | None, stay_away: Callable[[], None]) -> None:
    """Meet the other ranks again and again, watched; a stuck rank stays away at step 20."""
    from toolkit.train.watchdog import Watchdog

    handler = logging.FileHandler(directory / f"{world.rank}.log")
    logging.getLogger().handlers = [handler]
    dog = Watchdog(
        LIMITS,
        rank=world.rank,
        size=world.size,
        name_of=world.name_of,
        open_channel=lambda: world.open_channel("watchdog", timeout_s=4),
        on_hang=lambda hang: (directory / f"{world.rank}.hang").write_text(f"{hang.late} {hang.text}") and None,
    )
    (directory / f"{world.rank}.pid").write_text(str(os.getpid()))
    for step in range(10_000):
        dog.beat("data", step)
        if world.rank == stuck and step == 20:
            stay_away()
        dog.beat("step", step)
        is_end = world.agree([(directory / "end").exists()])[0]
        time.sleep(0.01)
        if step == 20:
            (directory / f"{world.rank}.ready").touch()
        if is_end:
            break
    dog.close()


def start(
    directory: Path, *, stuck: int | None = None, stay_away: Callable[[], None] = read_text_that_never_comes
) -> list[Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toolkit.train.engine"])
    processes = []
    for place in places(SIZE, ["known to all ranks"] * SIZE):
        (directory / "port").write_text(str(place.master_port))
        receiver, sender = context.Pipe(duplex=False)
        target = (place, sender, step_on, (directory, stuck, stay_away))
        processes.append(context.Process(target=run_rank, args=target, daemon=True))
        processes[-1].start()
        processes[-1].kept = receiver  # a rank that fails writes into it
    return processes


def await_files(paths: list[Path]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"none of {paths} came"
        time.sleep(0.05)


def end_all(processes: list[Any]) -> None:
    for process in processes:
        process.kill()
        process.join()


@pytest.mark.parametrize("victim", [0, 2])
def test_a_stopped_process_is_named_by_the_others_and_they_end(victim: int, tmp_path: Path) -> None:
    processes = start(tmp_path)
    try:
        await_files([tmp_path / f"{rank}.ready" for rank in range(SIZE)])
        os.kill(int((tmp_path / f"{victim}.pid").read_text()), signal.SIGSTOP)
        others = [rank for rank in range(SIZE) if rank != victim]
        for rank in others:
            processes[rank].join(PATIENCE_S)
            assert processes[rank].exitcode == EXIT_TRY_AGAIN, rank
        for rank in others:
            text = (tmp_path / f"{rank}.log").read_text()
            assert f"rank {victim} on node1 does not answer" in text
            assert "thread MainThread" in text
            assert "world.agree(" in text, "the stack of the main thread is there"
        os.kill(int((tmp_path / f"{victim}.pid").read_text()), signal.SIGCONT)
        processes[victim].join(PATIENCE_S)
        assert processes[victim].exitcode is not None, "it ends when it runs again"
        told = {path.stem: path.read_text() for path in tmp_path.glob("*.hang")}
        assert set(told) == ({"0"} if victim else {"1", "2"})
        assert all(text.startswith(f"({victim},) no progress for ") for text in told.values())
    finally:
        end_all(processes)


def test_a_rank_that_stays_away_is_named_with_the_line_it_is_at(tmp_path: Path) -> None:
    processes = start(tmp_path, stuck=1)
    try:
        for process in processes:
            process.join(PATIENCE_S)
            assert process.exitcode == EXIT_TRY_AGAIN
        told = (tmp_path / "0.hang").read_text()
        assert told.startswith("(1,) no progress for ")
        assert "the others wait for rank 1 on node1 (in data at spawn/test_watchdog.py:" in told
        assert "read_text_that_never_comes" in told
        assert "time.sleep(1000)" in (tmp_path / "1.log").read_text()
    finally:
        end_all(processes)


def test_a_first_rank_in_which_no_thread_runs_is_named_by_the_others(tmp_path: Path) -> None:
    processes = start(tmp_path, stuck=0, stay_away=match_a_text_for_ever)
    try:
        for process in processes[1:]:
            process.join(PATIENCE_S)
            assert process.exitcode == EXIT_TRY_AGAIN
        assert "rank 0 on node1 does not answer" in (tmp_path / "1.hang").read_text()
    finally:
        end_all(processes)


def test_a_pause_within_the_limit_of_an_answer_is_forgiven(tmp_path: Path) -> None:
    processes = start(tmp_path)
    try:
        await_files([tmp_path / f"{rank}.ready" for rank in range(SIZE)])
        victim = int((tmp_path / "1.pid").read_text())
        os.kill(victim, signal.SIGSTOP)
        deadline = time.monotonic() + PATIENCE_S
        while "no progress" not in (tmp_path / "0.log").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(victim, signal.SIGCONT)
        time.sleep(1)
        (tmp_path / "end").touch()
        for process in processes:
            process.join(PATIENCE_S)
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert not list(tmp_path.glob("*.hang"))
    finally:
        end_all(processes)


def test_what_a_neighbour_on_the_node_writes_ends_nothing(tmp_path: Path) -> None:
    """The store of a run takes notes of whoever connects: an alarm and the verdict on it are not believed."""
    from torch.distributed import TCPStore

    verdict = {"text": "a neighbour wants this run to end", "late": [0], "step": 1, "waited_s": 1000.0}
    processes = start(tmp_path)
    try:
        await_files([tmp_path / f"{rank}.ready" for rank in range(SIZE)])
        port = int((tmp_path / "port").read_text())
        stranger = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))
        stranger.set("watchdog/verdict/0", json.dumps(verdict))
        stranger.set("watchdog/alarm/0", "1")
        deadline = time.monotonic() + PATIENCE_S
        logs = [tmp_path / f"{rank}.log" for rank in range(SIZE)]
        while not all("is ignored: watchdog/alarm/0" in log.read_text() for log in logs):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (tmp_path / "end").touch()
        for process in processes:
            process.join(PATIENCE_S)
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert not list(tmp_path.glob("*.hang"))
    finally:
        end_all(processes)
