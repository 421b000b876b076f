"""What ranks say to each other."""

import threading
import time
from typing import Any

import pytest

from tests.spawn.ranks import run_ranks

pytestmark = pytest.mark.spawn


def exchange_notes(world: Any) -> list[str | None]:
    """Read the notes of all ranks in a thread while the main one is in a collective."""
    channel = world.open_channel("test", timeout_s=10)
    read: list[str | None] = [channel.read("nobody")]

    def look() -> None:
        channel.post(f"rank/{world.rank}", f"hello from {world.rank}")
        for rank in range(world.size):
            while (note := channel.read(f"rank/{rank}")) is None:
                time.sleep(0.01)
            read.append(note)

    thread = threading.Thread(target=look)
    if world.rank == 1:
        thread.start()
        thread.join()  # the others wait in the collective meanwhile
    else:
        thread.start()
    world.barrier()
    thread.join()
    return read


def test_notes_pass_between_threads_while_the_main_thread_waits_in_a_collective() -> None:
    said = [None, "hello from 0", "hello from 1", "hello from 2"]
    assert run_ranks(exchange_notes, world_size=3) == [said, said, said]
