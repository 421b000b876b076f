"""Who a hanging run waits for."""

from collections.abc import Iterator
from typing import Any

from toolkit.train.watchdog import Hang, Sign, _is_waiting, describe_hang

WAITS: dict[str, Any] = {"where": "distributed/distributed_c10d.py:9 all_reduce", "is_waiting": True}
WORKS: dict[str, Any] = {"where": "data/stream.py:84 samples", "is_waiting": False}


def describe(**signs: dict[str, Any]) -> Hang:
    given = {
        int(name[1:]): Sign(rank=int(name[1:]), step=6, waited_s=80.2, **{"phase": "step", "num_beats": 14, **what})
        for name, what in signs.items()
    }
    return describe_hang(given, size=4, name_of=lambda rank: f"rank {rank} on node{rank}")


def test_ranks_that_do_not_answer_are_named_and_those_in_their_way_are_not() -> None:
    hang = describe(r0=WAITS, r2={**WORKS, "num_beats": 13})
    assert hang.late == (1, 3)
    assert hang.text == "no progress for 80 s at step 7 (step): rank 1 on node1, rank 3 on node3 do not answer"


def test_a_rank_that_is_behind_is_named_with_its_line() -> None:
    hang = describe(r0=WAITS, r1=WAITS, r2={**WORKS, "num_beats": 13, "phase": "data"}, r3=WAITS)
    assert hang.late == (2,)
    assert "the others wait for rank 2 on node2 (in data at data/stream.py:84 samples)" in hang.text


def test_of_ranks_that_are_behind_those_that_wait_are_not_to_blame() -> None:
    behind = {"num_beats": 13}
    assert describe(r0=WAITS, r1={**WAITS, **behind}, r2={**WORKS, **behind}, r3=WAITS).late == (2,)
    assert describe(r0=WAITS, r1={**WAITS, **behind}, r2=WAITS, r3=WAITS).late == (1,)


def test_where_all_are_in_the_same_phase_the_one_that_does_not_wait_is_named() -> None:
    assert describe(r0=WAITS, r1=WAITS, r2=WAITS, r3=WORKS).late == (3,)


def test_where_nothing_tells_them_apart_nobody_is_blamed() -> None:
    for all_alike in (WAITS, WORKS):
        hang = describe(r0=all_alike, r1=all_alike, r2=all_alike, r3=all_alike)
        assert hang.late == ()
        assert "all ranks answer, and none is behind" in hang.text


def test_who_takes_a_number_from_a_gpu_waits_for_others() -> None:
    def read() -> Iterator[float]:
        yield float(1)

    def work() -> Iterator[float]:
        yield 1.0

    for frames, expected in ((read(), True), (work(), False)):
        next(frames)
        assert _is_waiting(frames.gi_frame) is expected  # type: ignore[attr-defined]
