"""A rank that dies while checkpoints are written in the background: nothing half-written is taken for whole."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.spawn.ranks import run_ranks
from tests.spawn.tiny import build, load_into, make_config, open_saver, run_steps, tiny_index
from toolkit.checkpoint import layout
from toolkit.config.schema import RunConfig

pytestmark = [pytest.mark.spawn, pytest.mark.timeout(600)]

CFG = make_config(stages=1, replicas=2, zero_stage=1, tied=False)


class DeadlyChannel:
    """A channel that ends its process in place of a note."""

    def __init__(self, channel: Any, *, at_note: int) -> None:
        self._channel = channel
        self._notes_left = at_note

    def post(self, key: str, note: str) -> None:
        self._notes_left -= 1
        if self._notes_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._channel.post(key, note)

    def read(self, key: str) -> str | None:
        return self._channel.read(key)


def die_while_saving(world: Any, cfg: RunConfig, directory: Path, victim: int, at_note: int) -> None:
    engine, replica = build(world, cfg)
    saver = open_saver(world, cfg, directory, replica, timeout_s=3)
    for step in (1, 2):
        run_steps(cfg, engine, replica, range(step - 1, step))
        if step == 2 and world.rank == victim:
            saver._channel = DeadlyChannel(saver._channel, at_note=at_note)
        saver.start(engine.deepspeed, engine.named_weights(), index=tiny_index(step))
        if step == 1:
            assert saver.finish(60) is None
            saver.poll()
    saver._thread.join(60)
    if world.rank == 0:
        failed = saver.poll()
        (directory / "told").write_text(failed.problem)


def go_on_and_save(world: Any, cfg: RunConfig, directory: Path) -> tuple[int, int]:
    engine, replica = build(world, cfg)
    loaded = load_into(world, engine, directory)
    saver = open_saver(world, cfg, directory, replica)
    run_steps(cfg, engine, replica, range(1, 3))
    saver.start(engine.deepspeed, engine.named_weights(), index=tiny_index(3))
    assert saver.finish(60) is None
    return loaded.index.step, loaded.index.updates


@pytest.mark.parametrize(("victim", "at_note"), [(1, 1), (1, 2), (0, 2)], ids=["before", "after", "rank 0"])
def test_a_rank_killed_while_it_writes_leaves_nothing_that_is_taken(victim: int, at_note: int, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=f"rank {victim}: died"):
        run_ranks(die_while_saving, world_size=2, args=(CFG, tmp_path, victim, at_note))
    assert layout.list_steps(tmp_path) == [1]
    assert victim == 0 or (tmp_path / "told").read_text() == "not written after 3 s by rank 1 on node1"
    assert run_ranks(go_on_and_save, world_size=2, args=(CFG, tmp_path)) == [(1, 1)] * 2
    assert layout.list_steps(tmp_path) == [1, 3]
    assert layout.list_partial(tmp_path) == []


class SlowMirror:
    """Copies for a while, and leaves a file when it is done."""

    def __init__(self, done: Path) -> None:
        self._done = done

    def close(self, newest_step: int | None) -> None:
        time.sleep(1.5)
        self._done.touch()


def close_with_a_mirror(world: Any, cfg: RunConfig, directory: Path) -> bool:
    done = directory / "copied"
    saver = open_saver(world, cfg, directory, world.rank, mirror=SlowMirror(done) if world.rank == 0 else None)
    saver.close()
    return done.exists()


def test_no_rank_ends_before_the_mirror_of_rank_0_is_done(tmp_path: Path) -> None:
    assert run_ranks(close_with_a_mirror, world_size=2, args=(CFG, tmp_path)) == [True, True]
