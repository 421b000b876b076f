"""How an attempt ended, in the words that Slurm itself wrote into the batch log."""

import pytest

from toolkit.cluster.batchlog import find_complaints, find_exit_note, find_lost_nodes, newest_attempt

# recorded on Slurm 22.05: node n2 was killed; the rank on n1 lost its connection and ended first
NODE_FAILED = """\
srun: error: n1: task 0: Exited with exit code 1
srun: error: Node failure on n2
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
slurmstepd-n1: error: *** JOB 13 ON n1 CANCELLED AT 2026-12-01T05:19:17 DUE TO NODE FAILURE, SEE SLURMCTLD LOG ***
srun: got SIGCONT
srun: forcing job termination
"""
PREEMPTED = """\
slurmstepd-n1: error: *** STEP 1.0 ON n1 CANCELLED AT 2026-12-01T05:12:09 DUE TO PREEMPTION ***
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
slurmstepd-n1: error: *** JOB 1 ON n1 CANCELLED AT 2026-12-01T05:12:09 DUE TO PREEMPTION ***
srun: forcing job termination
srun: error: n1: task 0: Terminated
"""
KILLED = """\
srun: error: n2: task 1: Killed
srun: error: n1: task 0: Terminated
"""
GRES = "srun: error: Unable to create step for job 7: Invalid generic resource (gres) specification\n"
OUT_OF_MEMORY = """\
slurmstepd-n2: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.
srun: error: n2: task 1: Out Of Memory
"""


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (NODE_FAILED, "node n2 failed"),
        (PREEMPTED, "preempted"),
        (KILLED, "rank 1 on n2: Killed"),
        (OUT_OF_MEMORY, "rank 1 on n2: Out Of Memory"),
        (GRES, GRES.strip()),
        ("srun: error: n[1-2]: tasks 0-7: Exited with exit code 1\n", "rank 0 on n[1-2]: Exited with exit code 1"),
        ("hello\nsrun: got SIGCONT\n", ""),
    ],
)
def test_how_an_attempt_ended_is_told_by_what_is_nearest_to_the_cause(text: str, note: str) -> None:
    assert find_exit_note(text) == note


def test_only_the_newest_attempt_of_a_log_counts() -> None:
    text = f"attempt 7.0\n{NODE_FAILED}attempt 7.1\n{KILLED}"
    assert newest_attempt(text).strip() == KILLED.strip()


def test_complaints_of_slurm_are_listed_once_and_without_the_ends_of_tasks() -> None:
    assert find_complaints("job starts\n" + KILLED + GRES + GRES) == [GRES.strip()]
    assert find_complaints(NODE_FAILED)[0] == "srun: error: Node failure on n2"
    assert len(find_complaints(OUT_OF_MEMORY)) == 1


def test_the_nodes_that_failed_are_read_from_a_note() -> None:
    assert find_lost_nodes("node n2 failed") == "n2"
    assert find_lost_nodes("rank 1 on n2: Killed") == ""
