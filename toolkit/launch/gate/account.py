"""What the account and the QOS allow: a job over a limit is taken by Slurm and waits for ever, without a word."""

import math
from collections.abc import Sequence

from toolkit.cluster.accounting import Accounting, AccountLimit
from toolkit.cluster.partitions import PartitionLimits
from toolkit.cluster.view import say_duration
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.finding import Finding, Verdict, note, ok, refuse
from toolkit.launch.gate.handed_in import count_jobs
from toolkit.launch.gate.host import asked_bytes, count_cpus

_EACH_JOB = ("MaxTRESPJ", "MaxTRESPN", "MaxWallPJ")
_JOBS_REFUSED = ("MaxSubmitJobs", "GrpSubmitJobs", "MaxSubmitJobsPU")
_SPENT = ("GrpTRESMins", "GrpWall")
_SEE = "`sacctmgr show assoc user=$USER` and `sacctmgr show qos` show them"


def check_account(context: Context) -> list[Finding]:
    """Look at `account`."""
    if context.is_emulated:
        return []
    accounting = context.cluster.accounting()
    if accounting is None:
        return [note("account", "Slurm shows no accounts here, so no limits are known")]
    return judge_accounting(context, accounting)


def judge_accounting(context: Context, accounting: Accounting) -> list[Finding]:
    """Hold the job against all limits that it meets."""
    account = context.spec.account or next(iter(accounting.accounts), None)
    if account is None or account not in accounting.accounts:
        who = f"account {account}" if account else "any account"
        what = f"{accounting.user} is not in {who}"
        if not accounting.is_enforced:
            return [note("account", f"{what}; limits are not enforced here")]
        known = ", ".join(accounting.accounts) or "none"
        remedy = "set cluster.account to one of them" if accounting.accounts else "ask the site for an account"
        return [refuse("account", what, f"accounts of {accounting.user}: {known}", remedy)]
    qos, partition = context.spec.qos or accounting.default_qos.get(account), context.partition
    barriers = _judge_partition(partition, account=account, accounts=accounting.accounts, qos=qos)
    limits = accounting.limits_of(account=account, partitions=partition.names, qos=qos, partition_qos=partition.qos)
    found = [*barriers, *(finding for limit in limits for finding in _judge(context, limit))]
    if not accounting.is_enforced:
        # one line: what is not enforced stops nothing
        over = "; ".join(finding.what for finding in found)
        return [note("account", f"{account}: limits are not enforced here{f'; over: {over}' if over else ''}")]
    named = ", ".join(
        [account, *([f"QOS {qos}"] if qos else []), *(f"the partition's QOS {one}" for one in partition.qos)]
    )
    return found or [ok("account", f"{named}: within {len(limits)} limits" if limits else f"{named}: no limits")]


def _judge_partition(
    partition: PartitionLimits, *, account: str, accounts: Sequence[str], qos: str | None
) -> list[Finding]:
    """Say whether the partition takes jobs of the account and the QOS."""
    found, where = [], f"partition {partition.name}"
    allowed, denied = partition.allowed_accounts, partition.denied_accounts
    if account in denied or (allowed is not None and account not in allowed):
        rule = f"AllowAccounts={','.join(allowed)}" if allowed is not None else f"DenyAccounts={','.join(denied)}"
        able = [one for one in accounts if one not in denied and (allowed is None or one in allowed)]
        remedy = (
            f"set cluster.account={able[0]}" if able else "use another --partition: none of your accounts may use it"
        )
        found.append(_finding(Verdict.REFUSAL, f"{where} takes no jobs of account {account}", f"it has {rule}", remedy))
    if qos and (
        qos in partition.denied_qos or (partition.allowed_qos is not None and qos not in partition.allowed_qos)
    ):
        known = partition.allowed_qos
        rule = f"AllowQos={','.join(known)}" if known is not None else f"DenyQos={','.join(partition.denied_qos)}"
        remedy = "set cluster.qos to another one, or use another --partition"
        found.append(_finding(Verdict.REFUSAL, f"{where} takes no jobs of QOS {qos}", f"it has {rule}", remedy))
    return found


def _judge(context: Context, limit: AccountLimit) -> list[Finding]:
    need = _need(context, limit)
    if need is None:
        return []
    if limit.word in _SPENT:
        return _judge_spent(context, limit, need)
    said = f"{limit.owner} allows {limit.word} {_amount(limit, limit.most)}"
    asks = f"the job asks for {_amount(limit, need)}"
    if need > limit.most and "Jobs" not in limit.word:
        reason = "Slurm would let the job wait for ever, or refuse it"
        return [_finding(Verdict.REFUSAL, f"{said}, {asks}", reason, _remedy(limit))]
    if limit.word in _EACH_JOB or need <= limit.most - limit.used:
        return []
    used = f"{said}, {limit.used:g} in use, {asks}"
    if limit.word in _JOBS_REFUSED:
        remedy = "wait until others end, or cancel them"
        if need > limit.most:
            remedy = (
                "make the dataset first: data_prep/tokenize_corpus.py, as fewer --tasks; rehearse without --on-cluster"
            )
        return [_finding(Verdict.REFUSAL, used, "Slurm would refuse one of them", remedy)]
    return [_finding(Verdict.WARNING, used, "the job waits until others have ended", f"wait, or ask for less; {_SEE}")]


def _amount(limit: AccountLimit, value: float) -> str:
    """Write an amount with its unit: `node=2`, `12 h`, `3 jobs`."""
    if math.isinf(value):
        return "no time limit"
    if limit.resource:
        return f"{limit.resource}={value:g}"
    if "Jobs" in limit.word:
        return f"{value:g} job{'' if value == 1 else 's'}"
    return say_duration(60 * value)


def _judge_spent(context: Context, limit: AccountLimit, run_need: float) -> list[Finding]:
    """Hold what is left of granted hours against the run, and against one job as its time limit counts it."""
    left, unit = max(0.0, limit.most - limit.used) / 60, f"{limit.resource or 'job'}-hours"
    said = f"{limit.owner} has {left:,.0f} of {limit.most / 60:,.0f} {unit} left ({limit.word})"
    again = "jobs wait until the site resets it"
    if left <= 0:
        return [_finding(Verdict.REFUSAL, said, again, "use another account, or ask the site for more")]
    job_h = (context.spec.time_limit_s or 0) / 3600 * run_need / (context.plan.speed.run_s / 60)
    if job_h > left:
        what = f"{said}, one job may use {job_h:,.0f} until its time limit"
        return [_finding(Verdict.WARNING, what, "sites may start no job that could use more", "ask for less --time")]
    if run_need / 60 > left:
        what = f"{said}, the run needs about {run_need / 60:,.0f}"
        reason = f"it lasts for {60 * left / run_need:.0%} of the run; then {again}"
        return [_finding(Verdict.WARNING, what, reason, "ask the site for more, or fewer run.tokens")]
    return []


def _finding(verdict: Verdict, what: str, reason: str, remedy: str) -> Finding:
    return Finding(check="account", verdict=verdict, what=what, reason=reason, remedy=remedy)


def _remedy(limit: AccountLimit) -> str:
    if limit.word == "MaxWallPJ":
        return f"ask for --time {limit.most:g}m: the run requeues itself until it is done"
    return f"ask for less, or set cluster.account or cluster.qos to others; {_SEE}"


def _need(context: Context, limit: AccountLimit) -> float | None:
    """Say what the job counts towards a limit, in the limit's unit; None: it cannot be told."""
    spec = context.spec
    if "Jobs" in limit.word:  # of those that run there is one at a time
        return float(count_jobs(context)) if limit.word in _JOBS_REFUSED else 1.0
    job_min = math.inf if spec.time_limit_s is None else spec.time_limit_s / 60
    run_min = context.plan.speed.run_s / 60
    if limit.word == "MaxWallPJ":
        return job_min
    if limit.word == "GrpWall":
        return run_min
    each = _per_node(context).get(limit.resource)
    if each is None or limit.word == "MaxTRESPN":
        return each
    whole = each * spec.nodes
    if limit.word == "GrpTRESMins":
        return whole * run_min
    if limit.word == "GrpTRESRunMins":
        return whole * job_min
    return whole


def _per_node(context: Context) -> dict[str, float]:
    spec = context.spec
    known = {"node": 1.0, "cpu": float(count_cpus(spec))}
    memory = asked_bytes(spec)
    if memory is not None:
        known["mem"] = memory / 2**20
    known["gres/gpu"] = float(spec.gpus_per_node)
    kind = spec.gpu_type or context.partition.gpu_type
    if kind:
        known[f"gres/gpu:{kind}"] = known["gres/gpu"]
    return known
