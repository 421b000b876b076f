"""What follows from the numbers of a step."""

import dataclasses
import math

from toolkit.config.schema import FaultsSection
from toolkit.data.skips import Skip
from toolkit.train.engine import BadMicroBatch, StepResult
from toolkit.train.guard import Act, Judge, Verdict

LIMITS = FaultsSection(max_bad_steps=3, spike_patience=4, max_rollbacks=2)
USUAL = [2.0 + 0.01 * (number % 7) for number in range(128)]
GOOD = StepResult(loss=2.0, grad_norm=1.0, applied=True, bad=(), forward_s=0.1)
HIGH = dataclasses.replace(GOOD, loss=9.0)
CULPRIT = BadMicroBatch(1, 5, math.nan, 3)
BAD = StepResult(loss=math.nan, grad_norm=math.inf, applied=False, bad=(CULPRIT,), forward_s=0.1)


def line(step: int, back_to: int | None) -> Skip:
    place = {"first_position": 0, "stop_position": 1, "samples": {}}
    return Skip(step=step, back_to=back_to, reason="", attempt="1.0", time=0.0, **place)


def judge(past: list[Skip]) -> Judge:
    return Judge(LIMITS, past=past, losses=USUAL)


def ask(one: Judge, step: int, result: StepResult, saved: tuple[int, ...] = (20, 40, 60)) -> Verdict:
    return one.judge(step, result, saved_steps=lambda: saved)


def test_a_step_that_was_not_applied_is_done_again_with_other_samples_and_the_culprit_is_named() -> None:
    verdict = ask(judge([]), 50, BAD)
    assert verdict == Verdict(act=Act.SKIP, reason=verdict.reason, first_step=50, stop_step=51)
    named = "micro-batch 5 of replica 1: loss nan, seen on rank 3"
    assert verdict.reason == f"the loss of step 51 is nan, try 1 ({named})"


def test_the_third_try_in_a_row_goes_back_and_a_requeue_in_between_does_not_matter() -> None:
    for one in (judge([line(50, None), line(50, None)]), judge([line(50, None)])):
        if len(one._past) == 1:
            one.note(line(50, None))
        verdict = ask(one, 50, BAD)
        assert (verdict.act, verdict.back_to) == (Act.ROLL_BACK, 40)
        assert (verdict.first_step, verdict.stop_step) == (50, 51)
    assert ask(judge([line(49, None), line(49, None)]), 50, BAD).act is Act.SKIP
    assert ask(judge([line(50, None), line(50, None), line(50, 40)]), 50, BAD).act is Act.SKIP


def test_a_rollback_that_did_not_help_is_followed_by_one_to_an_older_checkpoint() -> None:
    past = [line(50, None), line(50, None), line(50, 40), line(44, None), line(44, None)]
    verdict = ask(judge(past), 44, BAD)
    assert (verdict.act, verdict.back_to) == (Act.ROLL_BACK, 20)
    later = [*past[:3], line(90, None), line(90, None)]
    assert ask(judge(later), 90, BAD).back_to == 60, "steps far beyond were good: that rollback did help"


def test_without_a_checkpoint_that_is_old_enough_the_run_begins_again() -> None:
    verdict = ask(judge([line(5, None), line(5, None)]), 5, BAD)
    assert (verdict.act, verdict.back_to, verdict.first_step) == (Act.ROLL_BACK, 0, 5)


def test_the_run_gives_up_when_it_has_gone_back_often_enough() -> None:
    past = [line(50, 40), line(70, 60), line(90, None), line(90, None)]
    verdict = ask(judge(past), 90, BAD)
    assert verdict.act is Act.GIVE_UP
    assert "faults.max_rollbacks=2 is used up" in verdict.reason


def test_high_losses_in_a_row_go_back_to_before_the_samples_that_led_to_them() -> None:
    one = judge([])
    verdicts = [ask(one, step, HIGH, saved=(40, 50, 58, 61)) for step in (60, 61, 62, 63)]
    assert [verdict.act for verdict in verdicts] == [Act.GO_ON] * 3 + [Act.ROLL_BACK]
    assert (verdicts[-1].back_to, verdicts[-1].first_step, verdicts[-1].stop_step) == (50, 56, 64)
    assert "the losses of steps 61 to 64 are above" in verdicts[-1].reason


def test_a_spike_that_passes_by_itself_changes_nothing_but_saves_wait_for_its_end() -> None:
    one = judge([])
    calm = []
    for step, result in enumerate([GOOD, HIGH, HIGH, HIGH, GOOD, HIGH, HIGH, HIGH]):
        assert ask(one, 60 + step, result).act is Act.GO_ON
        calm.append(one.is_calm)
    assert calm == [True, False, False, False, True, False, False, False]
