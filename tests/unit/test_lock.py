import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from toolkit import lock
from toolkit.errors import EXIT_REFUSED, HeldError
from toolkit.lock import hold, hold_briefly

HOLDER = """
import sys
from pathlib import Path
from toolkit.lock import hold
with hold(Path(sys.argv[1]), what="out is being prepared"):
    print("held", flush=True)
    sys.stdin.read()
"""
ADDER = """
import sys
from pathlib import Path
from toolkit.lock import hold_briefly
count = Path(sys.argv[1])
for _ in range(20):
    with hold_briefly(count.with_suffix(".lock")):
        count.write_text(str(int(count.read_text()) + 1))
"""


def start_holder(path: Path) -> "subprocess.Popen[str]":
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_whoever_comes_second_is_told_who_holds_it_and_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.lock"
    holder = start_holder(path)
    with holder:
        with pytest.raises(HeldError) as caught, hold(path, what="out is being prepared"):
            pass
        text = f"out is being prepared by another process: host {os.uname().nodename}, pid {holder.pid}, user "
        assert str(caught.value).startswith(text)
        assert ", since 2" in str(caught.value)
        assert caught.value.exit_code == EXIT_REFUSED
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert path.is_file()
    with hold(path, what="out is being prepared"):
        assert f"pid {os.getpid()}," in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == []


def test_one_who_waits_gets_it_when_the_holder_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "out.lock"
    with start_holder(path) as holder:
        assert holder.stdin is not None
        holder.stdin.close()
        with hold(path, what="out is being prepared", wait_s=60):
            assert path.is_file()
    assert list(tmp_path.iterdir()) == []


def test_a_second_hold_in_one_process_neither_gets_the_lock_nor_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / "out.lock"
    with hold(path, what="out is being prepared"):
        with pytest.raises(HeldError, match=f"pid {os.getpid()}"), hold(tmp_path / "." / "out.lock", what="it is held"):
            pass
        done = subprocess.run(
            [sys.executable, "-c", HOLDER, path], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert "HeldError: out is being prepared by another process" in done.stderr


def test_no_change_of_several_processes_and_threads_is_lost(tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("0", encoding="utf-8")

    def add() -> None:
        for _ in range(20):
            with hold_briefly(count.with_suffix(".lock")):
                count.write_text(str(int(count.read_text(encoding="utf-8")) + 1), encoding="utf-8")

    other = subprocess.Popen([sys.executable, "-c", ADDER, count])
    threads = [Thread(target=add) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.wait() == 0
    assert count.read_text(encoding="utf-8") == "60"
    assert list(tmp_path.iterdir()) == [count]


@pytest.mark.parametrize("refusal", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_of_once(
    refusal: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with hold(tmp_path / "out.lock", what="out is being prepared"):
                pass
    assert [record.message for record in caplog.records] == [
        f"{tmp_path} has no locks ({os.strerror(refusal)}): two at once are not told apart there"
    ]


def test_a_short_change_is_made_without_the_lock_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "_SHORT_S", 0.0)
    path = tmp_path / "nodes.lock"
    with hold_briefly(path), hold_briefly(path):
        assert path.is_file()
    assert "writing without it" in caplog.text


def test_a_lock_file_with_odd_content_is_shown_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "out.lock"
    with start_holder(path):
        path.write_bytes(b"\x1b[2J\xff\nhost\x00" * 100)
        with pytest.raises(HeldError) as caught, hold(path, what="out is being prepared"):
            pass
        assert str(caught.value).splitlines()[1:] == [
            f"  one at a time: it holds {path}",
            "  wait until it has ended, or end it",
        ]
