"""What partitions give and what their nodes have: values, and how a partition is chosen by name."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from toolkit.errors import ClusterError

_SLICE = re.compile(r"(?:^|[_.:-])(\d+g\.\d+gb)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A node of a partition, as the scheduler sees it."""

    name: str
    state: str
    """The scheduler's word: idle, allocated, drained, ..."""
    reason: str
    """Why it is out of use; empty where nobody said."""
    is_usable: bool
    """Whether jobs may be placed on it, now or after others."""


_SHOWN = 12  # partitions in a message


def slice_of(gpu_type: str) -> str | None:
    """Find the part of a GPU (MIG) that a kind names, alone or behind the GPU: `a100_3g.20gb` -> 3g.20gb; None: all."""
    found = _SLICE.search(gpu_type.lower())
    return found[1] if found else None


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuGroup:
    """GPUs of one kind on a node."""

    type: str | None
    """Slurm's name of the kind; None: it names none."""
    count: int
    used: int = 0

    @property
    def is_slice(self) -> bool:
        """Whether they are parts of GPUs (MIG)."""
        return slice_of(self.type or "") is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeLoad:
    """What a node has, and what it is doing. Times are Unix seconds."""

    name: str
    partitions: tuple[str, ...]
    state: str
    """The scheduler's word."""
    is_usable: bool
    is_free: bool
    """Whether nothing runs on it and a job may have all of it now."""
    reason: str
    """Why it is out of use; empty where nobody said."""
    reason_by: str
    since: float | None
    """When the reason was given; None: there is none."""
    cpus: int
    cpus_used: int
    mem_mib: int
    gpu_groups: tuple[GpuGroup, ...]
    features: tuple[str, ...] = ()
    address: str = ""

    @property
    def gpus(self) -> int:
        """Count its GPUs of all kinds."""
        return sum(group.count for group in self.gpu_groups)

    @property
    def gpus_used(self) -> int:
        """Count those in use."""
        return sum(group.used for group in self.gpu_groups)

    @property
    def gpu_type(self) -> str | None:
        """Name its kinds of GPU; None: Slurm names none."""
        return "+".join(dict.fromkeys(group.type for group in self.gpu_groups if group.type)) or None

    def find_group(self, gpu_type: str | None, *, least: int) -> GpuGroup | None:
        """Find at least so many GPUs of a kind; None as the kind: of any."""
        return next((one for one in self.gpu_groups if one.count >= least and gpu_type in {None, one.type}), None)

    def has_features(self, constraint: str | None) -> bool:
        """Whether it has the features that are asked for; what is written with counts or brackets is left to Slurm."""
        if not constraint or re.search(r"[^\w.&|,:+-]", constraint):
            return True
        return all(set(word.split("|")) & set(self.features) for word in re.split("[&,]", constraint))


def read_memory(text: str | None) -> int | None:
    """Read Slurm's `500G`, MiB without a unit, in bytes; None: the site's default, or all of the node."""
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text or "", flags=re.IGNORECASE)
    if found is None or int(found[1]) == 0:
        return None
    return int(found[1]) << {"K": 10, "": 20, "M": 20, "G": 30, "T": 40}[found[2].upper()]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRules:
    """What a job gets of a node's memory where it does not say, and the most it may ask for, in MiB; None: all."""

    default_per_node: int | None = None
    default_per_cpu: int | None = None
    default_per_gpu: int | None = None
    most_per_node: int | None = None
    most_per_cpu: int | None = None

    def default_of(self, *, cpus: int, gpus: int) -> tuple[int, str] | None:
        """Say what a job with so many CPUs and GPUs a node gets of it, and by which rule; None: all."""
        if gpus and self.default_per_gpu:
            return gpus * self.default_per_gpu, f"DefMemPerGPU={self.default_per_gpu}"
        if self.default_per_cpu:
            return cpus * self.default_per_cpu, f"DefMemPerCPU={self.default_per_cpu}"
        return (self.default_per_node, f"DefMemPerNode={self.default_per_node}") if self.default_per_node else None

    def most_of(self, *, cpus: int) -> tuple[int, str] | None:
        """Say what a job with so many CPUs a node may ask for, and by which rule; None: all."""
        if self.most_per_cpu:
            return cpus * self.most_per_cpu, f"MaxMemPerCPU={self.most_per_cpu}"
        return (self.most_per_node, f"MaxMemPerNode={self.most_per_node}") if self.most_per_node else None


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionLimits:
    """What a partition gives; of several that a job names at once, what holds in all of them."""

    name: str
    is_default: bool
    max_time_s: int | None
    """None: no limit."""
    default_time_s: int | None
    num_nodes: int
    """Nodes that one job could have, whatever their state."""
    nodes_usable: int
    """Of those, nodes that are not down or drained."""
    cpus_per_node: int
    mem_per_node_mib: int
    gpus_per_node: int
    """Of the kind that a job would get; 0: it would get none."""
    gpu_type: str | None
    """Slurm's name of that kind; None: it names none."""
    is_up: bool = True
    """Whether jobs of this partition start; a closed one may still take them."""
    takes_jobs: bool = True
    """Whether jobs may be handed in."""
    is_hidden: bool = False
    barrier: str = ""
    """Why this user may not use it, in Slurm's words; empty: nothing is known against it."""
    min_nodes: int = 0
    """Least nodes of one job."""
    max_nodes: int | None = None
    """Most nodes of one job; None: no limit."""
    max_cpus_per_node: int | None = None
    """Most CPUs of all jobs of the partition on a node; None: all."""
    qos: tuple[str, ...] = ()
    """QOS of the partition itself: its limits hold for every job in it."""
    allowed_accounts: tuple[str, ...] | None = None
    """None: all that are not denied."""
    denied_accounts: tuple[str, ...] = ()
    allowed_qos: tuple[str, ...] | None = None
    """None: all that are not denied."""
    denied_qos: tuple[str, ...] = ()
    memory: MemoryRules = MemoryRules()
    max_array_tasks: int | None = None
    """Most tasks of an array, on this cluster; None: unknown."""
    needs_feature: str | None = None
    """Feature that a job must ask for to get these nodes; None: none."""
    shows_nodes: bool = True
    """Whether the site shows what its nodes have; where not, it is the mean of the partition."""
    nodes: tuple[NodeLoad, ...] = field(default=(), repr=False)
    """Those that a job could have; empty: they are not listed."""

    @property
    def names(self) -> tuple[str, ...]:
        """List the partitions that it stands for."""
        return tuple(self.name.split(","))


def restrict(
    partition: PartitionLimits, nodes: Sequence[NodeLoad], *, group: tuple[str | None, int] | None
) -> PartitionLimits:
    """Give what a partition gives of some of its nodes.

    Args:
        partition: the partition.
        nodes: some of its nodes.
        group: kind and number of the GPUs a node; None: none of them.
    """
    usable = [node for node in nodes if node.is_usable]
    cpus = min((node.cpus for node in nodes), default=0)
    gpu_type, gpus = group or (None, 0)
    return replace(
        partition,
        num_nodes=count_in_one(nodes, partition.names),
        nodes_usable=count_in_one(usable, partition.names),
        cpus_per_node=min(cpus, partition.max_cpus_per_node or cpus),
        mem_per_node_mib=min((node.mem_mib for node in nodes), default=0),
        gpus_per_node=gpus,
        gpu_type=gpu_type,
        nodes=tuple(nodes),
    )


def count_in_one(nodes: Iterable[NodeLoad], names: Sequence[str]) -> int:
    """Count the nodes that one job could have: all of its nodes lie in one of the partitions."""
    return max(Counter(name for node in nodes for name in node.partitions if name in names).values(), default=0)


def largest_group(nodes: Sequence[NodeLoad]) -> tuple[str | None, int] | None:
    """Find the kind of GPU of which nodes have most, whole ones before slices; None: they have none."""
    groups = {(group.type, group.count): group.is_slice for node in nodes for group in node.gpu_groups}
    return max(groups, key=lambda one: (not groups[one], count_gpus(nodes, one), one[0] or ""), default=None)


def count_gpus(nodes: Sequence[NodeLoad], group: tuple[str | None, int]) -> int:
    """Count the GPUs of a kind on the nodes that have so many, that many of each."""
    return group[1] * sum(any((one.type, one.count >= group[1]) == (group[0], True) for one in node.gpu_groups)
                          for node in nodes)  # fmt: skip


def describe_gpus(nodes: Collection[NodeLoad]) -> str:
    """Name what nodes have, the same once: `8 h100, 4 a100, none`."""
    kinds = dict.fromkeys(
        " + ".join(f"{group.count} {group.type or 'GPUs'}" for group in node.gpu_groups) or "none" for node in nodes
    )
    return ", ".join(kinds)


def find_partition(limits: Sequence[PartitionLimits], name: str | None) -> PartitionLimits:
    """Choose a partition by name, or several with commas; None: the default one, or the only one that can be used.

    Raises:
        ClusterError: there is none of that name, or it is not clear which one is meant.
    """
    if name is None:
        return _find_default(limits)
    known = {one.name: one for one in limits}
    wanted = [word for word in name.split(",") if word]
    missing = [word for word in wanted if word not in known]
    if missing or not wanted:
        names = ", ".join(one.name for one in limits if not one.is_hidden) or "none"
        raise ClusterError(f"there is no partition {', '.join(missing) or name!r}\n  there are: {names}\n"
                           "  set --partition or cluster.partition")  # fmt: skip
    return _join([known[word] for word in dict.fromkeys(wanted)])


def _find_default(limits: Sequence[PartitionLimits]) -> PartitionLimits:
    default = next((one for one in limits if one.is_default), None)
    if default is not None:
        return default
    usable = [one for one in limits if one.takes_jobs and one.num_nodes and not (one.barrier or one.is_hidden)]
    if len(usable) == 1:
        return usable[0]
    if not limits:
        raise ClusterError("Slurm shows no partition\n  a job needs one\n  ask the site which ones you may use")
    shown = [f"{one.name}: {describe_partition(one)}" for one in usable or limits]
    if len(shown) > _SHOWN:
        shown = [*shown[:_SHOWN], f"and {len(shown) - _SHOWN} more: sinfo -s"]
    raise ClusterError(
        f"this cluster has no default partition, and {'several may be meant' if usable else 'none is open to you'}\n"
        + "".join(f"  {line}\n" for line in shown)
        + "  set --partition or cluster.partition"
    )


def describe_partition(partition: PartitionLimits) -> str:
    """Say in a few words what a partition has: `6 nodes, GPUs a node: 8 h100, 4 a100`."""
    words = f"{partition.num_nodes} node{'' if partition.num_nodes == 1 else 's'}"
    if not partition.nodes:
        return words
    gpus = describe_gpus(partition.nodes)
    return f"{words} without GPUs" if gpus == "none" else f"{words}, GPUs a node: {gpus}"


def _join(several: Sequence[PartitionLimits]) -> PartitionLimits:
    """Give what holds in all of several partitions, with the nodes of all of them."""
    first, *others = several
    if not others:
        return first
    nodes = list({node.name: node for one in several for node in one.nodes}.values())
    allowed = [set(one.allowed_accounts) for one in several if one.allowed_accounts is not None]
    allowed_qos = [set(one.allowed_qos) for one in several if one.allowed_qos is not None]
    joined = replace(
        first,
        name=",".join(one.name for one in several),
        is_default=False,
        max_time_s=_least(one.max_time_s for one in several),
        is_up=any(one.is_up for one in several),
        takes_jobs=all(one.takes_jobs for one in several),
        barrier=next((f"{one.name}: {one.barrier}" for one in several if one.barrier), ""),
        min_nodes=max(one.min_nodes for one in several),
        max_nodes=_least(one.max_nodes for one in several),
        max_cpus_per_node=_least(one.max_cpus_per_node for one in several),
        qos=tuple(dict.fromkeys(name for one in several for name in one.qos)),
        allowed_accounts=tuple(sorted(set.intersection(*allowed))) if allowed else None,
        denied_accounts=tuple(name for one in several for name in one.denied_accounts),
        allowed_qos=tuple(sorted(set.intersection(*allowed_qos))) if allowed_qos else None,
        denied_qos=tuple(name for one in several for name in one.denied_qos),
        memory=_join_rules([one.memory for one in several]),
        shows_nodes=all(one.shows_nodes for one in several),
    )
    return restrict(joined, nodes, group=largest_group(nodes))


def _join_rules(rules: Sequence[MemoryRules]) -> MemoryRules:
    return MemoryRules(
        **{name: _least(getattr(one, name) for one in rules) for name in MemoryRules.__dataclass_fields__}
    )


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)
