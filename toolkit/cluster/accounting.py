"""What an account and a QOS allow, and how much of it is in use. Pure.

`scontrol show assoc_mgr` has limits and use from the controller; what a user may have of a QOS stands there only while
that user has jobs in it, so sacctmgr is asked for it.

Source: Slurm 22.05, scontrol(1), sacctmgr(1), resource_limits.html; recorded on a cluster with slurmdbd.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

QOS_COLUMNS = ("Name", "MaxTRESPU", "MaxJobsPU", "MaxSubmitPU", "Flags")
"""Asked of `sacctmgr show qos`."""
ASSOCIATION_COLUMNS = ("Account", "Partition", "DefaultQOS")
"""Asked of `sacctmgr show assoc`."""

_MAX_WORDS = ("MaxTRESPJ", "MaxTRESPN", "MaxWallPJ", "MaxJobs", "MaxSubmitJobs")
_GROUP_WORDS = ("GrpTRES", "GrpTRESMins", "GrpTRESRunMins", "GrpWall", "GrpJobs", "GrpSubmitJobs")
_SACCTMGR_WORDS = {"MaxSubmitPU": "MaxSubmitJobsPU"}  # as scontrol calls them


@dataclass(frozen=True, kw_only=True, slots=True)
class AccountLimit:
    """One limit, in Slurm's words and units: minutes of time, MiB of memory."""

    owner: str
    """Whose it is, for people: `account physics`, `jo in account physics`, `QOS long`."""
    word: str
    """GrpTRES, MaxTRESPJ, MaxWallPJ, ..."""
    resource: str
    """node, cpu, gres/gpu; empty: time or jobs are counted."""
    most: float
    used: float
    """By all that counts towards it; 0 of a limit on each job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Association:
    """A user's place in the tree of accounts, or an account itself."""

    account: str
    user: str
    """Empty: the account."""
    partition: str
    """Empty: all."""
    parent: str
    is_default: bool
    limits: tuple[AccountLimit, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Accounting:
    """What is accounted, and to whom."""

    is_enforced: bool
    """Whether jobs over a limit wait or are refused."""
    user: str
    associations: tuple[Association, ...]
    qos: Mapping[str, tuple[AccountLimit, ...]]
    default_qos: Mapping[str, str]
    """By account; empty: it is not known."""
    over_partition_qos: frozenset[str]
    """QOS whose limits hold instead of those of a partition's QOS."""

    @property
    def accounts(self) -> list[str]:
        """List the accounts that the user may charge, the default one first."""
        own = sorted((one for one in self.associations if one.user == self.user), key=lambda one: not one.is_default)
        return list(dict.fromkeys(one.account for one in own))

    def limits_of(
        self, *, account: str, partitions: Collection[str], qos: str | None, partition_qos: Sequence[str]
    ) -> list[AccountLimit]:
        """List all limits that a job of the user meets: of QOS, its own, those of the accounts above.

        Of what is limited twice the first holds: by the partition's QOS, the job's, then the accounts; with its flag
        OverPartQOS the job's comes first (resource_limits.html, "Hierarchy").

        Args:
            account: that is charged.
            partitions: of the job.
            qos: of the job; None: it is not known.
            partition_qos: of the partitions themselves.
        """
        found = [
            limit
            for one in self.associations
            if (one.user, one.account) == (self.user, account) and (not one.partition or one.partition in partitions)
            for limit in one.limits
        ]
        above = {one.account: one for one in self.associations if not one.user}
        seen = set[str]()
        while account in above and account not in seen:
            seen.add(account)
            # what an account allows each job or user stands at its users too
            found += [limit for limit in above[account].limits if limit.word in _GROUP_WORDS]
            account = above[account].parent
        own = [] if qos is None else [qos]
        names = [*own, *partition_qos] if qos in self.over_partition_qos else [*partition_qos, *own]
        ruling, ruled = list[AccountLimit](), set[tuple[str, str]]()
        for level in [*(self.qos.get(name, ()) for name in dict.fromkeys(names)), found]:
            new = [limit for limit in level if (limit.word.removesuffix("PU"), limit.resource) not in ruled]
            ruling += new
            ruled |= {(limit.word.removesuffix("PU"), limit.resource) for limit in new}
        return ruling


def read_accounting(
    config: str, assoc_mgr: str, *, qos_rows: str, association_rows: str, user: str, uid: int
) -> Accounting | None:
    """Read what Slurm's commands said; None: nothing is accounted here.

    Args:
        config: `scontrol show config`.
        assoc_mgr: `scontrol show assoc_mgr flags=assoc,qos -o`.
        qos_rows: `sacctmgr -n -P show qos`, QOS_COLUMNS; empty: it did not answer.
        association_rows: `sacctmgr -n -P show assoc` of the user, ASSOCIATION_COLUMNS; empty: it did not answer.
        user: who asks.
        uid: of the user.
    """
    told = dict(re.findall(r"^(AccountingStorage\w+)\s*=\s*(\S+)", config, flags=re.MULTILINE))
    associations = tuple(_read_association(line) for line in assoc_mgr.splitlines() if line.startswith("ClusterName="))
    if told.get("AccountingStorageType", "").endswith("none") or not associations:
        return None
    rows = {row[0]: row for row in _split_rows(qos_rows)}
    lines = [line for line in assoc_mgr.splitlines() if line.startswith("QOS=")]
    names = {re.match(r"QOS=([^(\s]+)", line)[1]: line for line in lines}  # type: ignore[index]
    return Accounting(
        is_enforced=bool({"limits", "safe", "all"} & set(told.get("AccountingStorageEnforce", "").split(","))),
        user=user,
        associations=associations,
        qos={
            name: tuple(_read_qos(name, line, rows.get(name), users={user, str(uid)})) for name, line in names.items()
        },
        over_partition_qos=frozenset(
            name for name, row in rows.items() if "OverPartQOS" in ",".join(row[4:]).split(",")
        ),
        default_qos={row[0]: row[2] or "normal" for row in _split_rows(association_rows)},
    )


def _split_rows(text: str) -> Iterator[list[str]]:
    return (line.split("|") for line in text.splitlines() if "|" in line)


def _read_association(line: str) -> Association:
    fields = dict(re.findall(r"(\w+)=(\S*)", line))
    account, user = fields["Account"], fields.get("UserName", "").partition("(")[0]
    owner = f"{user} in account {account}" if user else f"account {account}"
    return Association(
        account=account,
        user=user,
        partition=fields.get("Partition", ""),
        parent=fields.get("ParentAccount", "").partition("(")[0],
        is_default=fields.get("DefAssoc") == "Yes",
        limits=tuple(_read_limits(fields, (*_MAX_WORDS, *_GROUP_WORDS), owner=owner)),
    )


def _read_qos(name: str, line: str, row: list[str] | None, *, users: set[str]) -> Iterator[AccountLimit]:
    plain, _, each = line.partition(" Account Limits=")
    owner = f"QOS {name}"
    yield from _read_limits(dict(re.findall(r"(\w+)=(\S*)", plain)), (*_MAX_WORDS, *_GROUP_WORDS), owner=owner)
    if row is None:
        return
    used: dict[tuple[str, str], float] = {}
    for who, inside in re.findall(r"([^\s={}]+)(?:\(\d+\))?=\{([^}]*)\}", each.partition("User Limits=")[2]):
        if who in users:
            fields = dict(re.findall(r"(\w+)=(\S*)", inside))
            used |= {(one[0], one[1]): one[3] for word in fields for one in _read_values(word, fields[word])}
    for column, value in zip(QOS_COLUMNS[1:4], row[1:4], strict=True):
        word = _SACCTMGR_WORDS.get(column, column)
        for _, resource, most, _ in _read_values(word, value):
            if most is not None:
                count = used.get((word, resource), 0.0)
                yield AccountLimit(owner=f"{owner}, each user", word=word, resource=resource, most=most, used=count)


def _read_limits(fields: Mapping[str, str], words: Iterable[str], *, owner: str) -> Iterator[AccountLimit]:
    for word in words:
        for _, resource, most, used in _read_values(word, fields.get(word, "")):
            if most is not None:
                yield AccountLimit(owner=owner, word=word, resource=resource, most=most, used=used)


def _read_values(word: str, text: str) -> list[tuple[str, str, float | None, float]]:
    """Read `cpu=20(2),mem=N(128000)`, `cpu=16`, `3(1)`, `720`: word, resource, limit or None, use."""
    found = re.findall(r"(?:^|,)(?:([\w/:.-]+)=)?(N|\d+)(?:\(([\d.]+)\))?(?=,|$)", text)
    return [(word, name, None if most == "N" else float(most), float(used or 0)) for name, most, used in found]
