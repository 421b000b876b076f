"""What ranks say to each other."""

import threading
import time
from pathlib import Path
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


class Payload:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def send_payload(world: Any, path: Path) -> Any:
    return world.gather(Payload(path) if world.rank == 1 else None)


def test_nothing_of_a_rank_is_unpickled_that_does_not_know_the_secret(tmp_path: Path) -> None:
    path = tmp_path / "unpickled"
    run_ranks(send_payload, world_size=2, args=(path,))
    assert path.exists(), "the payload works where the secret is known"
    path.unlink()
    with pytest.raises(AssertionError, match=r"rank 0: [^$]*rank 1 does not know the secret of attempt 1\.0"):
        run_ranks(send_payload, world_size=2, args=(path,), secrets=("s", "guessed"))
    assert not path.exists()
