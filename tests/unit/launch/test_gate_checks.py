"""The table of checks: all at once, given up in time, accepted by name."""

import threading
from collections.abc import Callable
from typing import cast

import pytest

from toolkit.errors import ClusterError, ConfigError, RefusedError, StorageError
from toolkit.launch.gate.checks import CHECKS, Group, raise_refusals, refuse_unknown, run_checks
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.finding import Finding, ok, refuse, warn
from toolkit.launch.gate.versions import find_odd, say_versions

NOTHING = cast("Context", None)


def raising(error: Exception) -> Callable[[Context], list[Finding]]:
    def look(_: Context) -> list[Finding]:
        raise error

    return look


def check(look: Callable[[Context], list[Finding]], *, must_answer: bool = True, limit_s: float = 5.0) -> Group:
    return Group(names=("one", "two"), look=look, must_answer=must_answer, limit_s=limit_s)


def test_all_refusals_come_at_once_with_their_names_and_what_overrides_them() -> None:
    findings = [
        refuse("space", "full", "must be free", "free it"),
        ok("places", "well"),
        refuse("shards", "a", "b", "c"),
    ]
    with pytest.raises(RefusedError) as caught:
        raise_refusals(findings)
    assert caught.value.exit_code == 3
    assert str(caught.value).splitlines() == [
        "space: full", "  must be free", "  free it; or --accept space",
        "shards: a", "  b", "  c; or --accept shards",
    ]  # fmt: skip


def test_an_accepted_refusal_is_a_warning_and_others_stay() -> None:
    group = check(lambda _: [refuse("one", "a", "b", "c"), refuse("two", "a", "b", "c"), warn("two", "d", "e", "f")])
    first, second, third = run_checks(NOTHING, accept=["one"], groups=[group])
    assert (first.verdict.value, first.is_accepted) == ("warning", True)
    assert (second.verdict.value, second.is_accepted) == ("refused", False)
    assert not third.is_accepted


def test_a_name_that_no_check_has_lists_those_there_are() -> None:
    refuse_unknown(CHECKS)
    with pytest.raises(ConfigError, match=r"--accept spaec\n  checks are: memory, .*space") as caught:
        refuse_unknown(["space", "spaec"])
    assert caught.value.exit_code == 2


def test_checks_are_made_at_the_same_time_and_told_in_the_order_of_the_table() -> None:
    met = threading.Barrier(2, timeout=10)

    def meet(name: str) -> Callable[[Context], list[Finding]]:
        def look(_: Context) -> list[Finding]:
            met.wait()
            return [ok(name, "met")]

        return look

    groups = [Group(names=(name,), look=meet(name)) for name in ("a", "b")]
    assert [one.check for one in run_checks(NOTHING, accept=(), groups=groups)] == ["a", "b"]


def test_silence_refuses_where_the_job_would_meet_it_too() -> None:
    forever = threading.Event()

    def hang(_: Context) -> list[Finding]:
        forever.wait(30)
        return []

    strict, lax = (check(hang, limit_s=0.05, must_answer=must) for must in (True, False))
    found = run_checks(NOTHING, accept=(), groups=[strict, lax])
    forever.set()
    assert [one.verdict.value for one in found] == ["refused", "note"]
    assert "no answer within 0.05 s" in found[0].what


def test_errors_of_users_are_refusals_a_silent_scheduler_is_a_note_and_bugs_stay_bugs() -> None:
    stuck = check(raising(StorageError("no way in\n  rule\n  remedy")))
    away = check(raising(ClusterError("Slurm does not answer\n  x")), must_answer=False)
    found = run_checks(NOTHING, accept=(), groups=[stuck, away])
    assert [(one.verdict.value, one.what) for one in found] == [
        ("refused", "no way in"),
        ("note", "could not be looked at: Slurm does not answer"),
    ]
    with pytest.raises(ZeroDivisionError):
        run_checks(NOTHING, accept=(), groups=[check(raising(ZeroDivisionError()))])


def test_nodes_with_other_versions_are_named_with_what_the_others_have() -> None:
    here, there = say_versions({"python": "3.11", "torch": "2.6.0"}), say_versions({"python": "3.11", "torch": None})
    assert find_odd({"node1": here, "node2": here}) == {}
    found = find_odd({"node1": here, "node2": there, "node3": here})
    assert found == {"node2": "it has python 3.11, torch missing, node[1,3] python 3.11, torch 2.6.0"}
