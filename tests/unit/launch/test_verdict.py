"""Whether a run goes on by itself."""

from dataclasses import replace
from typing import Any

import pytest

from toolkit.launch.ledger import Attempt, Failure
from toolkit.launch.verdict import BY_SCHEDULER, Ending, Verdict, blame, decide


def attempt(number: int, **fields: Any) -> Attempt:
    known: dict[str, Any] = {"first_step": 10 * number, "last_step": 10 * number + 9, "saved_step": 10 * number}
    told = {"nodes": ("node1", "node2"), "layout": "2 x 1", "start_time": 0.0, "outcome": "KILLED", **known, **fields}
    return Attempt(attempt=f"1.{number}", job_id="1", **told)


def failure(**fields: Any) -> Failure:
    return Failure(**{"rank": 1, "node": "node2", "time": 0.0, "is_echo": False, "error": "boom\nmore", **fields})


def judge(*attempts: Attempt, failures: tuple[Failure, ...] = (), halted: bool = False) -> Verdict:
    ending = Ending(attempts=attempts, failures=failures, is_halted=halted)
    return decide(ending, max_requeues=5, max_fruitless=3)


@pytest.mark.parametrize("outcome", ["REQUEUE", "KILLED", "CRASHED", "STOPPED"])
def test_a_run_that_broke_off_goes_on(outcome: str) -> None:
    assert judge(attempt(0, outcome=outcome, reason="why")) == Verdict(True, "why")


def test_a_run_that_is_done_or_was_stopped_does_not() -> None:
    assert judge(attempt(0, outcome="FINISHED")) == Verdict(False, "all tokens are done")
    assert judge(attempt(0, outcome="KILLED"), halted=True) == Verdict(False, "it was stopped")


def test_a_mistake_that_stays_is_not_tried_again() -> None:
    verdict = judge(attempt(0, outcome="CRASHED"), failures=(failure(is_lasting=True, error="no data\n  x"),))
    assert verdict == Verdict(False, "the same would happen again: no data", is_failure=True)
    gave_up = judge(attempt(0, outcome="FAILED", reason="the loss is nan"))
    assert gave_up == Verdict(False, "the loss is nan", is_failure=True)


def test_the_budget_of_restarts_ends() -> None:
    used = [attempt(number, outcome="REQUEUE", saved_step=10 * number + 9) for number in range(6)]
    assert judge(*used[:5]).goes_on
    assert judge(*used) == Verdict(False, "cluster.max_requeues=5 is used up", is_failure=True)


def test_attempts_that_get_no_further_end_the_run_and_one_that_does_starts_the_count_anew() -> None:
    stuck = [attempt(0, outcome="KILLED", reason=str(number)) for number in range(3)]
    assert judge(*stuck[:2]).goes_on
    verdict = judge(*stuck)
    assert (verdict.goes_on, verdict.is_failure) == (False, True)
    assert "3 attempts in a row got no further" in verdict.reason
    moved = attempt(0, outcome="KILLED", saved_step=5)
    assert judge(*stuck[:2], moved).goes_on
    assert judge(*stuck[:2], moved, stuck[2]).goes_on


def test_a_time_limit_that_leaves_no_time_to_train_is_not_tried_for_ever() -> None:
    assert not judge(*(attempt(0, outcome="REQUEUE", saved_step=None, first_step=0) for _ in range(3))).goes_on


def test_the_same_error_at_the_same_step_is_the_programs_not_the_machines() -> None:
    again = [attempt(1, outcome="CRASHED", reason="boom", saved_step=15) for _ in range(2)]
    assert judge(*again, failures=(failure(),)).reason == "the same error at step 19 twice"
    early = [replace(one, last_step=None) for one in again]
    assert judge(*early, failures=(failure(),)).reason == "the same error at the start twice"
    assert judge(again[0], attempt(1, outcome="CRASHED", reason="other", saved_step=15), failures=(failure(),)).goes_on
    assert judge(*again, failures=(failure(is_echo=True),)).goes_on  # nobody said an error: killed from outside


def test_what_the_scheduler_broke_off_has_not_failed() -> None:
    preempted = [attempt(0, next=BY_SCHEDULER) for _ in range(4)]
    assert judge(*preempted, attempt(0)).goes_on
    assert not judge(*preempted[:2], attempt(0), preempted[2], *(attempt(0) for _ in range(2))).goes_on


@pytest.mark.parametrize("outcome", ["PREEMPTED", "NODE_FAIL"])
def test_a_run_that_is_broken_off_again_and_again_goes_on(outcome: str) -> None:
    again = [attempt(0, outcome=outcome, reason="as before", next="job 2") for _ in range(4)]
    assert judge(*again, failures=(failure(),)).goes_on


def test_an_attempt_that_nobody_could_close_got_as_far_as_the_next_one_began() -> None:
    unclosed = [attempt(number, saved_step=None) for number in range(3)]
    assert judge(*unclosed, attempt(3)).goes_on
    assert not judge(*(attempt(0, saved_step=None) for _ in range(3))).goes_on


def test_the_node_that_fails_alone_is_blamed() -> None:
    killed = "rank 1 on node2: Killed"
    assert blame([failure()], "", num_nodes=2) == ("node2",)
    assert blame([failure(), failure(rank=0, node="node1")], killed, num_nodes=2) == ()  # all alike
    assert blame([], killed, num_nodes=2) == ("node2",)
    assert blame([failure(culprits=("node7", "node8"))], killed, num_nodes=8) == ("node7", "node8")
    assert blame([], "", num_nodes=2) == ()


def test_the_only_node_of_a_run_is_not_blamed_for_an_error_of_the_program() -> None:
    assert blame([failure()], "rank 1 on node2: Exited with exit code 1", num_nodes=1) == ()
    assert blame([failure(error="CUDA error: uncorrectable ECC error")], "", num_nodes=1) == ("node2",)


@pytest.mark.parametrize(
    "how",
    [
        "Exited with exit code 75",
        "exit code 75",
        "Terminated",
        "killed by SIGTERM",
        "Aborted (core dumped)",
        "killed by SIGUSR2",
    ],
)
def test_the_echo_of_another_rank_blames_nobody(how: str) -> None:
    assert blame([], f"rank 1 on node2: {how}", num_nodes=2) == ()


def test_what_slurm_itself_says_blames_nobody_but_a_failed_node() -> None:
    assert blame([failure(node="node1")], "node node2 failed", num_nodes=2) == ("node2",)
    assert blame([], "node node[2-3] failed", num_nodes=4) == ("node2", "node3")
    assert blame([], "rank 1 on node2: Out Of Memory", num_nodes=2) == ()
    assert blame([], "srun: error: Unable to create step for job 7: Invalid generic resource", num_nodes=2) == ()
    assert blame([], "preempted", num_nodes=2) == ()


def test_where_most_nodes_are_named_it_is_the_network() -> None:
    silent = failure(cause="hang", culprits=("node2", "node3", "node4"))
    assert blame([silent], "", num_nodes=4) == ()
    assert blame([silent], "", num_nodes=6) == ("node2", "node3", "node4")
