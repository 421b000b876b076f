"""The gate's look at accounts and QOS, on limits that were recorded on a cluster with accounting."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.gate import GPUS, FakeSlurm, make_context, verdicts, with_spec
from toolkit.cluster.accounting import Accounting, AccountLimit, read_accounting
from toolkit.launch.gate.account import check_account
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.finding import Finding

RECORDED = (Path(__file__).parents[1] / "cluster" / "recorded" / "assoc_mgr.txt").read_text(encoding="utf-8")
CONFIG = "AccountingStorageEnforce = associations,limits,qos\nAccountingStorageType   = accounting_storage/slurmdbd\n"
QOS = "normal||||||\nlong|node=2|3|5||||\n"
HOUR_S = 3600


def accounts(text: str = RECORDED, *, config: str = CONFIG) -> Accounting:
    """Limits of `root` in `physics` (two nodes at once, 16 CPUs and 12 h a job) and of QOS `long`; one job runs."""
    found = read_accounting(config, text, qos_rows=QOS, association_rows="physics||long\n", user="root", uid=0)
    assert found is not None
    return found


@pytest.fixture
def context(tmp_path: Path) -> Context:
    context = make_context(tmp_path, cluster=FakeSlurm(accounts=accounts()), partition=replace(GPUS, name="main"))
    return with_spec(context, account="bio", qos="normal", nodes=1, gpus_per_node=2, time_limit_s=HOUR_S)


def ask(context: Context, **fields: object) -> list[Finding]:
    return check_account(with_spec(context, **fields))


def test_a_job_within_all_limits_is_well(context: Context) -> None:
    found = ask(context)
    assert verdicts(found) == {"account": "ok"}
    assert found[0].what == "bio, QOS normal: within 2 limits"


def test_limits_of_each_job_are_refused_since_slurm_would_let_it_wait_for_ever(context: Context) -> None:
    found = ask(context, account="physics", nodes=2, tasks_per_node=8, cpus_per_task=2, time_limit_s=24 * HOUR_S)
    refused = {one.what for one in found if one.verdict.value == "refused"}
    assert refused == {
        "root in account physics allows MaxTRESPJ cpu=16, the job asks for cpu=32",
        "root in account physics allows MaxWallPJ 12 h, the job asks for 24 h",
    }
    assert any("--time 720m" in one.remedy for one in found)


def test_what_others_use_now_is_waited_for(context: Context) -> None:
    found = ask(context, account="physics", nodes=2)
    assert verdicts(found) == {"account": "warning"}
    assert found[0].what == "root in account physics allows GrpTRES node=2, 1 in use, the job asks for node=2"


def test_limits_of_the_accounts_above_hold_too(context: Context) -> None:
    found = ask(context, nodes=2)
    assert [(one.verdict.value, one.what) for one in found] == [
        ("refused", "account bio allows GrpTRES node=1, the job asks for node=2")
    ]


def test_a_qos_limits_each_user_and_the_number_of_jobs(context: Context) -> None:
    found = ask(context, account="physics", qos="long", nodes=2)
    told = {one.what: one.verdict.value for one in found}
    assert told["QOS long, each user allows MaxTRESPU node=2, 1 in use, the job asks for node=2"] == "warning"
    three = ask(context, account="physics", qos="long", nodes=3)
    assert any(one.what.startswith("QOS long, each user allows MaxTRESPU node=2, the job") for one in three)
    assert ask(context, account="physics", qos=None, nodes=2) == found  # the default one of that account
    full = RECORDED.replace("Account=bio UserName=root(0)", "Account=bio UserName=root(0) ").replace(
        "MaxSubmitJobs=1(0)", "MaxSubmitJobs=1(1)"
    )
    busy = replace(context, cluster=FakeSlurm(accounts=accounts(full)))  # type: ignore[arg-type]
    assert "MaxSubmitJobs 1 job, 1 in use" in check_account(busy)[0].what


def test_what_the_qos_limits_is_not_limited_by_the_account_too(context: Context) -> None:
    long = ask(context, account="physics", qos="long", time_limit_s=20 * HOUR_S)
    assert not any("MaxWallPJ" in one.what for one in long)
    longer = ask(context, account="physics", qos="long", time_limit_s=25 * HOUR_S)
    over = [one.what for one in longer if "MaxWallPJ" in one.what]
    assert over == ["QOS long allows MaxWallPJ 24 h, the job asks for 25 h"]
    unknown = replace(accounts(), default_qos={})  # sacctmgr was silent
    found = check_account(with_spec(replace(context, cluster=FakeSlurm(accounts=unknown)), account="physics", qos=None))  # type: ignore[arg-type]
    assert not any("QOS" in one.what for one in found)


def test_hours_that_are_granted_are_held_against_the_predicted_ones(context: Context) -> None:
    slow = replace(context, plan=replace(context.plan, speed=replace(context.plan.speed, run_s=100 * HOUR_S)))
    found = ask(slow, account="physics", qos="long")
    (words,) = (one for one in found if "gres/gpu-hours" in one.what)
    assert words.what == "QOS long has 100 of 100 gres/gpu-hours left (GrpTRESMins), the run needs about 200"
    assert words.reason.startswith("it lasts for 50% of the run")
    found = ask(slow, account="physics", qos="long", time_limit_s=60 * HOUR_S)
    assert any("one job may use 120 until its time limit" in one.what for one in found)
    spent = RECORDED.replace("gres/gpu=6000(0)", "gres/gpu=6000(6000)")
    empty = replace(context, cluster=FakeSlurm(accounts=accounts(spent)))  # type: ignore[arg-type]
    found = ask(empty, account="physics", qos="long")
    assert any("has 0 of 100 gres/gpu-hours left" in one.what and one.verdict.value == "refused" for one in found)


def test_an_account_that_the_user_has_not_is_refused_with_those_there_are(context: Context) -> None:
    found = ask(context, account="chemistry")
    assert (found[0].verdict.value, found[0].what) == ("refused", "root is not in account chemistry")
    assert found[0].reason == "accounts of root: root, bio, physics"


def test_limits_that_are_not_enforced_and_clusters_without_accounting_are_only_noted(context: Context) -> None:
    lax = accounts(config=CONFIG.replace("associations,limits,qos", "none"))
    found = check_account(with_spec(replace(context, cluster=FakeSlurm(accounts=lax)), nodes=2))  # type: ignore[arg-type]
    assert verdicts(found) == {"account": "note"}
    assert "not enforced here; over: account bio allows GrpTRES node=1" in found[0].what
    nothing = read_accounting(
        "AccountingStorageType   = accounting_storage/none\n", "", qos_rows="", association_rows="", user="x", uid=1
    )
    assert nothing is None
    assert verdicts(check_account(replace(context, cluster=FakeSlurm()))) == {"account": "note"}  # type: ignore[arg-type]


def with_qos(**limits: tuple[AccountLimit, ...]) -> Accounting:
    return replace(accounts(), qos={**accounts().qos, **limits})


def wall(owner: str, minutes: float) -> AccountLimit:
    return AccountLimit(owner=owner, word="MaxWallPJ", resource="", most=minutes, used=0)


def in_partition(tmp_path: Path, accounting: Accounting, **fields: object) -> Context:
    partition = replace(GPUS, name="main", **fields)  # type: ignore[arg-type]
    context = make_context(tmp_path, cluster=FakeSlurm(accounts=accounting), partition=partition)
    return with_spec(context, account="bio", qos="normal", nodes=1, gpus_per_node=2, time_limit_s=HOUR_S)


def test_limits_of_the_partitions_own_qos_hold_for_every_job_in_it(tmp_path: Path) -> None:
    accounting = with_qos(pq=(wall("QOS pq", 30),), normal=(wall("QOS normal", 600),))
    found = check_account(in_partition(tmp_path, accounting, qos=("pq",)))
    assert [(one.what, one.remedy) for one in found] == [
        ("QOS pq allows MaxWallPJ 30 min, the job asks for 1 h",
         "ask for --time 30m: the run requeues itself until it is done"),
    ]  # fmt: skip
    assert verdicts(check_account(in_partition(tmp_path, accounting))) == {"account": "ok"}


def test_a_qos_may_come_before_that_of_the_partition(tmp_path: Path) -> None:
    accounting = with_qos(pq=(wall("QOS pq", 30),), normal=(wall("QOS normal", 600),))
    over = replace(accounting, over_partition_qos=frozenset({"normal"}))
    assert verdicts(check_account(in_partition(tmp_path, over, qos=("pq",)))) == {"account": "ok"}
    rows = "normal|||||DenyOnLimit,OverPartQOS\n"
    told = read_accounting(CONFIG, RECORDED, qos_rows=rows, association_rows="", user="root", uid=0)
    assert told is not None
    assert told.over_partition_qos == {"normal"}


def test_a_job_that_asks_for_no_limit_is_over_every_limit_of_time(tmp_path: Path) -> None:
    endless = with_spec(in_partition(tmp_path, with_qos(normal=(wall("QOS normal", 600),))), time_limit_s=None)
    (found,) = check_account(endless)
    assert found.what == "QOS normal allows MaxWallPJ 10 h, the job asks for no time limit"


def test_a_partition_that_takes_no_jobs_of_the_account_or_the_qos_is_refused_with_one_that_it_takes(
    tmp_path: Path,
) -> None:
    (found,) = check_account(in_partition(tmp_path, accounts(), allowed_accounts=("physics", "vip")))
    assert (found.verdict.value, found.what) == ("refused", "partition main takes no jobs of account bio")
    assert (found.reason, found.remedy) == ("it has AllowAccounts=physics,vip", "set cluster.account=physics")
    (found,) = check_account(in_partition(tmp_path, accounts(), denied_accounts=("bio", "physics", "root")))
    assert found.remedy == "use another --partition: none of your accounts may use it"
    (found,) = check_account(in_partition(tmp_path, accounts(), denied_qos=("normal",)))
    assert (found.what, found.reason) == ("partition main takes no jobs of QOS normal", "it has DenyQos=normal")


def test_all_jobs_that_are_handed_in_count_towards_what_may_be_submitted(tmp_path: Path) -> None:
    few = AccountLimit(owner="QOS normal", word="GrpSubmitJobs", resource="", most=5, used=0)
    context = in_partition(tmp_path, with_qos(normal=(few,)), max_array_tasks=4)
    assert verdicts(check_account(context)) == {"account": "ok"}
    data = replace(context.cfg.data, source=["text.jsonl"], tokenizer="t.json", path=str(tmp_path / "made"))
    cfg = replace(context.cfg, data=data)
    context = replace(context, plan=replace(context.plan, cfg=cfg), num_rehearsals=1)
    found = next(
        one for one in ask(context, nodes=8) if "GrpSubmit" in one.what
    )  # the run, its rehearsal, four tasks and the last job
    assert found.what == "QOS normal allows GrpSubmitJobs 5 jobs, 0 in use, the job asks for 7 jobs"
    assert "data_prep/tokenize_corpus.py" in found.remedy
