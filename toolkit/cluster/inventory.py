"""What Slurm's commands say of partitions and nodes, read together. Pure.

Partitions are read from `scontrol show partition`, which tells more of them than sinfo does and still answers where the
site hides its nodes; what is set for the whole cluster comes from `scontrol show config`.

Source: Slurm 22.05, scontrol(1), sinfo(1), slurm.conf(5).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache

from toolkit.cluster.answers import is_usable, parse_time
from toolkit.cluster.hostlist import expand_nodes
from toolkit.cluster.partitions import GpuGroup, MemoryRules, NodeLoad, PartitionLimits, largest_group, restrict

# wide enough that nothing is cut off; reasons come last, for they may hold a `|`
NODE_COLUMNS = (
    "Partition:64|,NodeList:64|,StateLong:24|,Gres:192|,GresUsed:256|,CPUsState:32|,Memory:16|,Features:192|,"
    "NodeAddr:64|,Timestamp:24|,UserLong:40|,Reason:256"
)
_MARKS = "*~#!%$@^-+"  # what sinfo writes behind a state
_FREE = ("idle", "planned", "reserved", "powered_down")
HIDDEN = "unknown"
"""State of a node of which the site shows the name only."""


def read_inventory(
    partitions: str, nodes: str | None, *, config: str, groups: Collection[str]
) -> tuple[tuple[PartitionLimits, ...], tuple[NodeLoad, ...]]:
    """Read partitions, the default one first, and all nodes.

    Args:
        partitions: `scontrol show partition --all -o`.
        nodes: `sinfo -N` with NODE_COLUMNS; None: the site hides its nodes.
        config: `scontrol show config`.
        groups: of the user; empty: of one who is in all.
    """
    lines = [_fields(line) for line in partitions.splitlines() if line.startswith("PartitionName=")]
    loads = _guess_nodes(lines) if nodes is None else _read_nodes(nodes)
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


def _read_nodes(text: str) -> list[NodeLoad]:
    rows = [[cell.strip() for cell in line.split("|", 11)] for line in text.splitlines() if line.strip()]
    labels: dict[str, list[str]] = {}
    for row in rows:
        labels.setdefault(row[1], []).append(row[0].rstrip("*"))
    first = {row[1]: row for row in reversed(rows) if row[1]}
    return [_read_node(first[name], tuple(labels[name])) for name in labels if name]


def _read_node(row: Sequence[str], partitions: tuple[str, ...]) -> NodeLoad:
    _, name, state, gres, gres_used, cpus, memory, features, address, since, by, reason = row
    used, _, _, num_cpus = (int(part) for part in cpus.split("/"))
    in_use = {group.type: group.count for group in read_gpus(gres_used)}
    groups = tuple(replace(group, used=in_use.get(group.type, 0)) for group in read_gpus(gres))
    is_idle = state.rstrip(_MARKS) in _FREE and used == 0 and not any(in_use.values())
    return NodeLoad(
        name=name,
        partitions=partitions,
        state=state,
        is_usable=is_usable(state),
        is_free=is_idle and is_usable(state),
        reason="" if reason in ("none", "None") else reason,
        reason_by="" if by == "Unknown" else re.sub(r"\(\d+\)$", "", by),
        since=_timestamp(since),
        cpus=num_cpus,
        cpus_used=used,
        mem_mib=int(memory.rstrip("+") or 0),
        gpu_groups=groups,
        features=_names(features) or (),
        address=address,
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
