"""Processes of a site and the ports that they listen on: find them, signal them, end them."""

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path

END_S = 30


def find(belongs: Callable[[int], bool]) -> list[int]:
    """Find the living processes for which something holds, this one left out."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if pid != os.getpid() and is_alive(pid) and belongs(pid)]


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def sees(pid: int, hosts_files: Iterable[Path]) -> bool:
    """Say whether one of these files is the process's /etc/hosts."""
    with contextlib.suppress(OSError):
        found = Path("/proc", str(pid), "root", "etc", "hosts").stat()
        return any(os.path.samestat(found, path.stat()) for path in hosts_files)
    return False


def environ_of(pid: int) -> list[str]:
    """Give the variables that a process was started with."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return []


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def end(find_them: Callable[[], list[int]]) -> None:
    """Kill processes until none is found any more: those that are found may have started others."""
    deadline = time.monotonic() + END_S
    while pids := find_them():
        assert time.monotonic() < deadline, f"processes do not end: {pids}"
        send(pids, signal.SIGKILL)
        time.sleep(0.02)


def reserve_ports(count: int) -> list[socket.socket]:
    """Hold free ports: until these sockets are closed a daemon may listen there, but no other site takes them.

    They lie below those that Linux gives to clients, and those that runs meet at.
    """
    held: list[socket.socket] = []
    for port in random.sample(range(10_000, 20_000), 10_000):
        one = socket.socket()
        try:
            one.bind(("", port))
        except OSError:
            one.close()
            continue
        # only now: a port that is taken must not be bound
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.append(one)
        if len(held) == count:
            return held
    raise OSError(f"no {count} free ports")
