"""Shapes of Slurm sites, as data, and the configuration files that a shape comes to."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

LUA = Path(__file__).with_name("job_submit.lua")
LUA_MODES = ("banner", "norequeue", "gres", "mem", "nodep")


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """Nodes that are alike; they may declare more than this machine has."""

    names: str
    """As Slurm writes it: gpu-a[001-004]."""
    cpus: int
    memory_mib: int
    gpus: int = 0
    gpu_type: str = ""

    def expand(self) -> list[str]:
        """Give the name of each node."""
        found = re.fullmatch(r"(.*)\[(\d+)-(\d+)\]", self.names)
        if found is None:
            return [self.names]
        head, first, last = found.groups()
        return [f"{head}{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]

    @property
    def gres(self) -> str:
        return ":".join(filter(None, ("gpu", self.gpu_type, str(self.gpus)))) if self.gpus else ""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What makes a site differ from others."""

    name: str
    nodes: tuple[NodeGroup, ...]
    partitions: tuple[str, ...]
    """Lines of slurm.conf."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Of slurm.conf; those of COMMON hold for the others."""
    accounts: tuple[str, ...] = ()
    """Commands of sacctmgr; a site that has some has accounting."""
    gpu_limits: tuple[str, ...] = ()
    """More of them, in which GPUs are counted: accounting learns of those from the controller."""
    user: str | None = None
    """Who uses it. Log-in node and nodes of a site with a user have a /tmp of their own, and it takes root to start it;
    None: whoever starts it uses it, and the nodes share this machine's file system."""
    release: str | None = None
    """The Debian release whose Slurm it runs, see releases.py; None: the Slurm that is installed here."""

    def node_names(self) -> list[str]:
        return [name for group in self.nodes for name in group.expand()]


COMMON: Mapping[str, object] = {
    "AuthType": "auth/munge",
    "CredType": "cred/munge",
    "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
    # no cgroups, no plugin that would want root
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "MpiDefault": "none",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core_Memory",
    "SlurmdParameters": "config_overrides",
    "GresTypes": "gpu",
    # short times, for tests
    "SchedulerType": "sched/backfill",
    "SchedulerParameters": "bf_interval=2,sched_interval=2,batch_sched_delay=1",
    "SlurmctldTimeout": 10,
    "SlurmdTimeout": 10,
    "InactiveLimit": 0,
    "MinJobAge": 300,
    "ReturnToService": 2,
    "TreeWidth": 64,
    "EnforcePartLimits": "ALL",
}


def mini(
    *,
    nodes: int = 2,
    gpus: int = 8,
    gpu_type: str = "h100",
    cpus: int = 64,
    kill_wait_s: int = 3,
    memory_mib: int = 512_000,
) -> Shape:
    """Nodes that are alike, and two partitions: a job of main preempts one of low, which is requeued."""
    group = NodeGroup(names=f"node[1-{nodes}]", cpus=cpus, memory_mib=memory_mib, gpus=gpus, gpu_type=gpu_type)
    every = f"Nodes={group.names} DefMemPerCPU={memory_mib // cpus}"
    return Shape(
        name="mini",
        nodes=(group,),
        settings={
            "JobRequeue": 1,
            "KillWait": kill_wait_s,
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
        },
        partitions=(
            f"main {every} Default=YES MaxTime=2-00:00:00 DefaultTime=01:00:00 PriorityTier=10",
            f"low {every} MaxTime=04:00:00 DefaultTime=00:30:00 PriorityTier=1 GraceTime=2",
        ),
    )


_H100 = NodeGroup(names="gpu-a[001-004]", cpus=64, memory_mib=512_000, gpus=8, gpu_type="h100")
_A100 = NodeGroup(names="gpu-b[01-02]", cpus=32, memory_mib=256_000, gpus=4, gpu_type="a100")
_CPU = NodeGroup(names="cpu[1-2]", cpus=16, memory_mib=64_000)

_ACCT = Shape(
    name="acct",
    user="games",
    nodes=(_H100, _A100, _CPU),
    settings={
        "AccountingStorageEnforce": "associations,limits,qos",
        "AccountingStorageTRES": "gres/gpu,gres/gpu:h100,gres/gpu:a100",
        "JobRequeue": 1,
        "KillWait": 10,
    },
    partitions=(
        "cpuq Nodes=cpu[1-2] MaxTime=08:00:00 DefaultTime=00:10:00",
        "gpu Nodes=gpu-a[001-004],gpu-b[01-02] MaxTime=1-00:00:00 DefaultTime=00:10:00 OverSubscribe=YES:2",
        "h100 Nodes=gpu-a[001-004] MaxTime=2-00:00:00 DefaultTime=01:00:00",
        "a100 Nodes=gpu-b[01-02] MaxTime=2-00:00:00 DefaultTime=01:00:00",
        "all Nodes=cpu[1-2],gpu-a[001-004],gpu-b[01-02] MaxTime=2-00:00:00 DefaultTime=01:00:00",
        "unl Nodes=gpu-a[001-004] MaxTime=UNLIMITED DefaultTime=00:02:00",
        "shut Nodes=gpu-a[001-004] MaxTime=1-00:00:00 State=DOWN",
        "drainp Nodes=gpu-a[001-004] MaxTime=1-00:00:00 State=DRAIN",
        "empty MaxTime=1-00:00:00",
        "partqos Nodes=gpu-a[001-004] MaxTime=1-00:00:00 QOS=pq",
        "vip Nodes=gpu-a[001-004] MaxTime=1-00:00:00 AllowAccounts=vip",
        "maxn Nodes=gpu-a[001-004] MaxTime=1-00:00:00 MaxNodes=1 MinNodes=1",
        "excl Nodes=gpu-b[01-02] MaxTime=1-00:00:00 OverSubscribe=EXCLUSIVE MaxMemPerNode=8000 DefMemPerNode=4000",
    ),
    accounts=(
        "add qos short set MaxWall=00:10:00 Flags=DenyOnLimit",
        "add qos pq set MaxWall=00:30:00",
        "add qos tight",
        "add qos long set MaxTRESPerUser=node=1 GrpTRESMins=node=60",
        "add account physics",
        "add account bio set GrpTRES=node=1",
        "add account vip",
        "add user games account=physics defaultaccount=physics qos=normal,short,tight,long",
        "add user games account=bio qos=normal maxjobs=1 maxwall=12:00:00",
    ),
    gpu_limits=("modify qos pq set MaxTRESPU=gres/gpu=16", "modify qos tight set MaxTRESPU=gres/gpu=8"),
)

_STRICT = Shape(
    name="strict",
    user="games",
    nodes=(NodeGroup(names="n[1-4]", cpus=32, memory_mib=256_000, gpus=8),),
    settings={
        "JobRequeue": 0,
        "KillWait": 5,
        "MinJobAge": 5,
        "MaxArraySize": 4,
        "MaxJobCount": 10,
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "CANCEL",
    },
    partitions=(
        "batch Nodes=n[1-4] Default=YES MaxTime=04:00:00 DefaultTime=00:05:00 PriorityTier=1 DefMemPerCPU=8000",
        "prio Nodes=n[1-4] MaxTime=04:00:00 PriorityTier=10 DefMemPerCPU=8000",
    ),
)

_LUA = Shape(
    name="lua",
    user="games",
    nodes=(NodeGroup(names="n[1-4]", cpus=32, memory_mib=256_000, gpus=8, gpu_type="h100"),),
    settings={
        "JobSubmitPlugins": "lua",
        "JobRequeue": 0,
        "KillWait": 5,
        "MinJobAge": 5,
        "MaxArraySize": 4,
        "MaxJobCount": 12,
    },
    partitions=("batch Nodes=n[1-4] Default=YES MaxTime=04:00:00 DefaultTime=00:05:00 DefMemPerCPU=8000",),
)

SHAPES: Mapping[str, Shape] = {shape.name: shape for shape in (mini(), _ACCT, _STRICT, _LUA)}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and as whom the daemons of a site run."""

    dir: Path
    host: str
    """The short name of this machine."""
    log_in: str
    """The name of the host that users log in to."""
    user: str
    ports: tuple[int, ...]
    """Of the controller, of slurmdbd, and of each node in turn."""
    nodes_are_hosts: bool
    """Each node has a host name of its own; else all have that of this machine."""
    plugins: Mapping[str, object]
    """Where the daemons find their plugins, as they are to be told; empty: they know."""


def render_files(shape: Shape, place: Placement) -> dict[str, str]:
    """Give the files of the site's `etc` by their names."""
    names = " ".join(shape.node_names())
    # without it a newer slurmd wants a cgroup of its own; the one of 22.05 does not know it
    cgroup = "CgroupPlugin=disabled\n" if shape.release else "CgroupAutomount=no\n"
    return {
        "slurm.conf": "\n".join(_slurm_conf(shape, place)) + "\n",
        "gres.conf": "\n".join(_gres_conf(shape, place)) + "\n",
        "cgroup.conf": cgroup,
        "hosts": f"127.0.0.1 localhost {place.host} {place.log_in} {names}\n",
        "job_submit.lua": LUA.read_text(encoding="utf-8").replace("@MODE_FILE@", str(place.dir / "etc" / "mode")),
    }


def _slurm_conf(shape: Shape, place: Placement) -> Iterator[str]:
    directory = place.dir
    settings = {
        "ClusterName": shape.name,
        "SlurmctldHost": f"{place.host}(127.0.0.1)",
        "SlurmctldPort": place.ports[0],
        "SlurmUser": place.user,
        "SlurmdUser": place.user,
        # as short as can be: a requeued job starts a second later than this at the earliest
        "AuthInfo": f"socket={directory}/run/munge.sock,cred_expire=5",
        "StateSaveLocation": directory / "state",
        "SlurmdSpoolDir": f"{directory}/spool/%n",
        "SlurmctldPidFile": f"{directory}/run/slurmctld.pid",
        "SlurmdPidFile": f"{directory}/run/slurmd-%n.pid",
        "SlurmctldLogFile": f"{directory}/log/slurmctld.log",
        "SlurmdLogFile": f"{directory}/log/slurmd-%n.log",
        **COMMON,
        **place.plugins,
        **(_accounting(place) if shape.accounts else {}),
        **shape.settings,
    }
    yield from (f"{key}={value}" for key, value in settings.items())
    ports = iter(place.ports[2:])
    for group in shape.nodes:
        gres = f" Gres={group.gres}" if group.gres else ""
        for name in group.expand():
            yield (
                f"NodeName={name} NodeHostname={name if place.nodes_are_hosts else place.host} NodeAddr=127.0.0.1 "
                f"Port={next(ports)} Sockets=2 CoresPerSocket={group.cpus // 2} ThreadsPerCore=1 "
                f"RealMemory={group.memory_mib}{gres} State=UNKNOWN"
            )
    yield from (f"PartitionName={line}" for line in shape.partitions)


def _accounting(place: Placement) -> dict[str, object]:
    return {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": "127.0.0.1",
        "AccountingStoragePort": place.ports[1],
        "AccountingStoragePass": f"{place.dir}/run/munge.sock",
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "task=5",
    }


def _gres_conf(shape: Shape, place: Placement) -> Iterator[str]:
    yield "AutoDetect=off"
    for group in shape.nodes:
        if group.gpus:
            kind = f" Type={group.gpu_type}" if group.gpu_type else ""
            files = f"{place.dir}/dev/nvidia[0-{group.gpus - 1}]"
            yield f"NodeName={group.names} Name=gpu{kind} File={files} Flags=nvidia_gpu_env"
