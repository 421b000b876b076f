"""The lines of the attempts."""

import multiprocessing
from pathlib import Path

from toolkit.launch.ledger import Attempt, begin_attempt, change_attempt, read_attempts
from toolkit.rundir import RunDir

NUM_CHANGES = 30


def add(run_dir: RunDir, number: int) -> None:
    begin_attempt(run_dir, Attempt(attempt=f"1.{number}", job_id="1", nodes=("n",), layout="", start_time=0.0))


def _change(root: Path) -> None:
    for number in range(NUM_CHANGES):
        change_attempt(RunDir(root), "1.0", last_step=number)


def test_an_attempt_that_tells_its_end_takes_away_no_line_of_the_next_one(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    add(run_dir, 0)
    ghost = multiprocessing.get_context("fork").Process(target=_change, args=(tmp_path,))
    ghost.start()
    for number in range(1, NUM_CHANGES):
        add(run_dir, number)
    ghost.join(30)
    assert [one.attempt for one in read_attempts(run_dir)] == [f"1.{number}" for number in range(NUM_CHANGES)]
    assert read_attempts(run_dir)[0].last_step == NUM_CHANGES - 1


def test_a_damaged_line_is_kept_aside_when_the_others_are_written_anew(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    add(run_dir, 0)
    whole = run_dir.attempts_path.read_bytes()
    run_dir.attempts_path.write_bytes(whole + b'{"attempt": "1.1", \xff\n')
    add(run_dir, 2)  # as many lines as there were
    assert [one.attempt for one in read_attempts(run_dir)] == ["1.0", "1.2"]
    change_attempt(run_dir, "1.2", last_step=3)
    kept = Path(f"{run_dir.attempts_path}.damaged")
    assert kept.read_bytes() == b'{"attempt": "1.1", \xff\n'
    run_dir.attempts_path.write_bytes(run_dir.attempts_path.read_bytes() + b"zeros\n")
    change_attempt(run_dir, "1.2", last_step=4)
    assert kept.read_bytes().endswith(b"\xff\nzeros\n")
