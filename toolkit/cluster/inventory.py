"""What Slurm's commands say of partitions and nodes, read together. Pure.

`scontrol show partition` tells more of partitions than sinfo does, and still answers where the site hides its nodes. Of
nodes scontrol tells what jobs can have (sinfo counts cores and memory that are kept for the system, too), sinfo what
they are doing. What is set for the whole cluster is in `scontrol show config`.

Source: Slurm 22.05, scontrol(1), sinfo(1), slurm.conf(5).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache

from toolkit.cluster.answers import is_usable, parse_time
from toolkit.cluster.hostlist import expand_nodes
from toolkit.cluster.partitions import (
    GpuGroup,
    MemoryRules,
    NodeLoad,
    PartitionLimits,
    count_in_one,
    largest_group,
    restrict,
)

# wide enough that nothing is cut off; reasons come last, for they may hold a `|`
LOAD_COLUMNS = "NodeList:64|,StateLong:24|,GresUsed:256|,CPUsState:32|,Timestamp:24|,UserLong:40|,Reason:256"
_OUT = {"DOWN", "DRAIN", "FAIL", "ERROR", "UNKNOWN", "NOT_RESPONDING", "INVALID_REG", "MAINTENANCE"}
_MARKS = "*~#!%$@^-+"  # what sinfo writes behind a state
_FREE = ("idle", "planned", "reserved", "powered_down")
HIDDEN = "unknown"
"""State of a node of which the site shows the name only."""

Inventory = tuple[tuple[PartitionLimits, ...], tuple[NodeLoad, ...]]
"""Partitions and nodes of a cluster."""


def read_inventory(partitions: str, nodes: str | None, *, config: str, groups: Collection[str]) -> Inventory:
    """Read partitions, the default one first, and all nodes.

    Args:
        partitions: `scontrol show partition --all -o`.
        nodes: `scontrol show node --all -o`; None: the site hides its nodes.
        config: `scontrol show config`.
        groups: of the user; empty: of one who is in all.
    """
    lines = [_fields(line) for line in partitions.splitlines() if line.startswith("PartitionName=")]
    told = [line for line in (nodes or "").splitlines() if line.startswith("NodeName=")]
    loads = _guess_nodes(lines) if nodes is None else [_read_node(line) for line in told]
    settings = read_settings(config)
    found = [_read_partition(line, loads, settings, groups, shows_nodes=nodes is not None) for line in lines]
    return tuple(sorted(found, key=lambda limits: not limits.is_default)), tuple(loads)


def read_settings(config: str) -> dict[str, str]:
    """Read `scontrol show config`."""
    return dict(re.findall(r"^(\w+)\s*=[ \t]*(\S*)", config, flags=re.MULTILINE))


def _fields(line: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S*)", line))


def _read_partition(
    line: Mapping[str, str],
    loads: Sequence[NodeLoad],
    settings: Mapping[str, str],
    groups: Collection[str],
    *,
    shows_nodes: bool,
) -> PartitionLimits:
    name, state = line["PartitionName"], line.get("State", "UP")
    array_size = _number(settings.get("MaxArraySize"))
    limits = PartitionLimits(
        name=name,
        is_default=line.get("Default") == "YES",
        max_time_s=parse_time(line.get("MaxTime", "")),
        default_time_s=parse_time(line.get("DefaultTime", "")),
        num_nodes=0,
        nodes_usable=0,
        cpus_per_node=0,
        mem_per_node_mib=0,
        gpus_per_node=0,
        gpu_type=None,
        is_up=state == "UP",
        takes_jobs=state in {"UP", "DOWN"},
        is_hidden=line.get("Hidden") == "YES",
        barrier=_find_barrier(line, groups),
        min_nodes=_number(line.get("MinNodes")) or 0,
        max_nodes=_number(line.get("MaxNodes")),
        max_cpus_per_node=_number(line.get("MaxCPUsPerNode")),
        qos=() if line.get("QoS", "N/A") == "N/A" else (line["QoS"],),
        allowed_accounts=_names(line.get("AllowAccounts")),
        denied_accounts=_names(line.get("DenyAccounts")) or (),
        allowed_qos=_names(line.get("AllowQos")),
        denied_qos=_names(line.get("DenyQos")) or (),
        memory=_read_memory(line, settings),
        max_array_tasks=array_size,
        shows_nodes=shows_nodes,
    )
    nodes = [node for node in loads if name in node.partitions]
    return restrict(limits, nodes, group=largest_group(nodes))


def _find_barrier(line: Mapping[str, str], groups: Collection[str]) -> str:
    """Say why a partition is closed to a user of these groups; who is in all of them may do everything."""
    if not groups:
        return ""
    allowed = _names(line.get("AllowGroups"))
    if allowed is not None and not set(allowed) & set(groups):
        return f"AllowGroups={','.join(allowed)}"
    return "RootOnly=YES" if line.get("RootOnly") == "YES" else ""


def _read_memory(line: Mapping[str, str], settings: Mapping[str, str]) -> MemoryRules:
    """Read what the partition says of memory, else the cluster; of each kind one word is set."""

    def find(*words: str) -> dict[str, int | None]:
        for told in (line, settings):
            found = {word: _number(told.get(word)) for word in words}
            if any(found.values()):
                return found
        return {}

    default, most = find("DefMemPerNode", "DefMemPerCPU"), find("MaxMemPerNode", "MaxMemPerCPU")
    by_gpu = (re.search(r"DefMemPerGPU=(\d+)", text.get("JobDefaults", "")) for text in (line, settings))
    return MemoryRules(
        default_per_node=default.get("DefMemPerNode"),
        default_per_cpu=default.get("DefMemPerCPU"),
        default_per_gpu=next((int(one[1]) for one in by_gpu if one), None),
        most_per_node=most.get("MaxMemPerNode"),
        most_per_cpu=most.get("MaxMemPerCPU"),
    )


def _number(text: str | None) -> int | None:
    """Read a number; None: UNLIMITED, or nothing; 0 stands for no limit too."""
    return int(text) or None if text and text.isdigit() else None


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text in (None, "", "ALL", "(null)", "NONE") else tuple(str(text).split(","))


def _read_node(line: str) -> NodeLoad:
    """Read a line of `scontrol show node`: what jobs can have of it, without what is kept for the system."""
    told, _, reason = line.partition(" Reason=")
    fields = _fields(re.split(r" (?:Comment|Extra)=", told)[0])  # in free text anything may stand
    state = fields.get("State", "")
    return NodeLoad(
        name=fields["NodeName"],
        partitions=_names(fields.get("Partitions")) or (),
        state=state.lower(),
        is_usable=not _OUT.intersection(state.split("+")) and "*" not in state,
        is_free=False,
        reason=re.sub(r" \[[^\]]*@[^\]]*\]\s*$", "", reason),
        reason_by="",
        since=None,
        cpus=_number(fields.get("CPUEfctv")) or _number(fields.get("CPUTot")) or 0,
        cpus_used=0,
        mem_mib=(_number(fields.get("RealMemory")) or 0) - (_number(fields.get("MemSpecLimit")) or 0),
        gpu_groups=read_gpus(fields.get("Gres", "")),
        features=_names(fields.get("AvailableFeatures")) or (),
        address=fields.get("NodeAddr", ""),
    )


def read_loads(inventory: Inventory, loads: str | None) -> Inventory:
    """Add what nodes are doing to what they have.

    Args:
        inventory: what `read_inventory` gives.
        loads: `sinfo -N` with LOAD_COLUMNS; None: the site hides its nodes.
    """
    rows = {}
    for line in (loads or "").splitlines():
        name, *row = (cell.strip() for cell in line.split("|", 6))
        rows[name] = row
    partitions, nodes = inventory
    now = {node.name: _add_load(node, rows[node.name]) if node.name in rows else node for node in nodes}
    return tuple(_renew(one, [now[node.name] for node in one.nodes]) for one in partitions), tuple(now.values())


def _renew(partition: PartitionLimits, nodes: Sequence[NodeLoad]) -> PartitionLimits:
    usable = count_in_one((node for node in nodes if node.is_usable), partition.names)
    return replace(partition, nodes=tuple(nodes), nodes_usable=usable)


def _add_load(node: NodeLoad, row: Sequence[str]) -> NodeLoad:
    state, gres_used, cpus, since, by, reason = row
    used = int(cpus.split("/")[0])
    in_use = {group.type: group.count for group in read_gpus(gres_used)}
    is_idle = state.rstrip(_MARKS) in _FREE and used == 0 and not any(in_use.values())
    return replace(
        node,
        state=state,
        is_usable=is_usable(state),
        is_free=is_idle and is_usable(state),
        reason="" if reason in ("none", "None") else reason,
        reason_by="" if by == "Unknown" else re.sub(r"\(\d+\)$", "", by),
        since=_timestamp(since),
        cpus_used=used,
        gpu_groups=tuple(replace(group, used=in_use.get(group.type, 0)) for group in node.gpu_groups),
    )


@cache  # thousands of nodes, and a few texts
def read_gpus(gres: str) -> tuple[GpuGroup, ...]:
    """Read `gpu:h100:8(S:0-1),nvme:1` or `gpu:8`; what stands twice is one group."""
    counts: dict[str | None, int] = {}
    for kind, count in re.findall(r"(?<![\w.])gpu(?::([^:(,\s]+))??(?::(\d+))?(?=[(,\s]|$)", gres):
        counts[kind or None] = counts.get(kind or None, 0) + int(count or 1)
    return tuple(GpuGroup(type=kind, count=count) for kind, count in counts.items())


def _guess_nodes(lines: Sequence[Mapping[str, str]]) -> list[NodeLoad]:
    """Take the mean of a partition for each of its nodes, as far as it can be told."""
    found: dict[str, NodeLoad] = {}
    for line in lines:
        names = expand_nodes(line.get("Nodes", ""))
        total = dict(re.findall(r"([^=,]+)=([\d.]+[KMGT]?)", line.get("TRES", "")))
        groups = _guess_gpus(total, num_nodes=max(1, len(names)))
        for name in names:
            known = found.get(name)
            found[name] = NodeLoad(
                name=name,
                partitions=(*(known.partitions if known else ()), line["PartitionName"]),
                state=HIDDEN,
                is_usable=True,
                is_free=False,
                reason="",
                reason_by="",
                since=None,
                cpus=(_number(line.get("TotalCPUs")) or 0) // len(names),
                cpus_used=0,
                mem_mib=_mebibytes(total.get("mem", "0")) // len(names),
                gpu_groups=groups,
            )
    return list(found.values())


def _guess_gpus(total: Mapping[str, str], *, num_nodes: int) -> tuple[GpuGroup, ...]:
    counts: dict[str | None, int] = {
        key.rpartition(":")[2]: int(value) for key, value in total.items() if key.startswith("gres/gpu:")
    }
    if not counts and "gres/gpu" in total:
        counts = {None: int(total["gres/gpu"])}
    return tuple(GpuGroup(type=kind, count=count // num_nodes) for kind, count in counts.items() if count >= num_nodes)


def _mebibytes(text: str) -> int:
    """Read `750G`, `16000M`."""
    scale = {"K": 2**-10, "M": 1.0, "G": 2.0**10, "T": 2.0**20}
    return int(float(text.rstrip("KMGT")) * scale.get(text[-1], 1.0))


def _timestamp(text: str | None) -> float | None:
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:  # Unknown, N/A
        return None
