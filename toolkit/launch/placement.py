"""Which nodes of a partition a run gets, and what of its request follows from them."""

import re
from collections.abc import Sequence
from dataclasses import replace

from toolkit.cluster.base import Cluster
from toolkit.cluster.hostlist import expand_nodes
from toolkit.cluster.partitions import (
    GpuGroup,
    NodeLoad,
    PartitionLimits,
    count_in_one,
    find_partition,
    restrict,
    slice_of,
)
from toolkit.config.schema import ClusterSection
from toolkit.errors import ClusterError, ConfigError
from toolkit.plan.hardware import find_hardware

NO_GPU = "cpu"
"""The value of cluster.gpu_type for ranks on CPU."""


def place(partition: PartitionLimits, section: ClusterSection) -> PartitionLimits:
    """Narrow a partition to the nodes that the run can get: not excluded, with its features, of one kind of GPU.

    Raises:
        ClusterError: it is not known what GPUs they have.
    """
    if not partition.nodes:
        return replace(partition, gpus_per_node=0, gpu_type=None) if section.gpu_type == NO_GPU else partition
    left_out = frozenset(expand_excluded(section))
    nodes = [node for node in partition.nodes if node.name not in left_out]
    # features that no node has are for Slurm to refuse, in its own words
    nodes = [node for node in nodes if node.has_features(section.constraint)] or nodes
    group = None if section.gpu_type == NO_GPU else _choose_group(nodes, partition, section)
    if group is None:
        narrowed = restrict(partition, nodes, group=None)
        return narrowed if partition.shows_nodes or section.gpu_type == NO_GPU else _take_word(narrowed, section)
    right = _nodes_with(group, nodes)
    device = section.gpu_type or group.type
    if device is None or device.lower() == slice_of(device):  # a slice of what?
        raise _ask_for_type(partition, group, right)
    feature = _find_feature(device, right) if group.type is None else None
    right = [node for node in right if feature in {None, *node.features}]
    return replace(restrict(partition, right, group=(group.type, group.count)), needs_feature=feature)


def _nodes_with(group: GpuGroup, nodes: Sequence[NodeLoad]) -> list[NodeLoad]:
    """List the nodes that have at least so many GPUs of a kind."""
    return [
        node for node in nodes if any(one.type == group.type and one.count >= group.count for one in node.gpu_groups)
    ]


def _find_feature(device: str, nodes: Sequence[NodeLoad]) -> str | None:
    """Find the feature that tells nodes with a kind of GPU from others, where Slurm names no kinds.

    Returns:
        None: all nodes have it, or none of them: then there is only the user's word.
    """
    features = dict.fromkeys(one for node in nodes for one in node.features if _is_device(one))
    named = max(features, key=lambda one: match_type(device, one), default=None)
    if named is None or not match_type(device, named) or all(named in node.features for node in nodes):
        return None
    return named


def _choose_group(nodes: Sequence[NodeLoad], partition: PartitionLimits, section: ClusterSection) -> GpuGroup | None:
    """Choose the kind that is asked for, else whole GPUs; of several the one of which the run can have most."""
    groups = {(one.type, one.count): replace(one, used=0) for node in nodes for one in node.gpu_groups}
    asked = [one for one in groups.values() if section.gpu_type and one.type and match_type(section.gpu_type, one.type)]
    best = max((match_type(section.gpu_type or "", one.type or "") for one in asked), default=0)
    pool = [one for one in asked if match_type(section.gpu_type or "", one.type or "") == best]
    pool = pool or [one for one in groups.values() if not one.is_slice] or list(groups.values())
    least = section.gpus_per_node or 1

    def rank(group: GpuGroup) -> tuple[bool, bool, int, str]:
        having = _nodes_with(group, nodes)
        num_nodes = count_in_one(having, partition.names)
        each = min(group.count, section.gpus_per_node or group.count)
        return group.count >= least, num_nodes >= section.nodes, num_nodes * each, group.type or ""

    return max(pool, key=rank, default=None)


def match_type(asked: str, gpu_type: str) -> int:
    """Say how surely a name means a kind of Slurm's: 3 the same word, 2 one device to the planner, 1 a part, 0 not."""
    if asked.lower() == gpu_type.lower():
        return 3
    if slice_of(asked) != slice_of(gpu_type):
        return 0
    if is_same_device(asked, gpu_type):
        return 2
    one, other = (re.sub(r"[^a-z0-9]", "", name.lower()) for name in (asked, gpu_type))
    return int(one in other or other in one)


def is_same_device(one: str, other: str) -> bool:
    """Whether two names of GPUs mean one kind to the planner; a name that it does not know means itself."""
    try:
        return one == other or find_hardware(one) == find_hardware(other)
    except ConfigError:
        return False


def _ask_for_type(partition: PartitionLimits, group: GpuGroup, nodes: Sequence[NodeLoad]) -> ClusterError:
    profile = (group.type and slice_of(group.type)) or ""
    features = dict.fromkeys(feature for node in nodes for feature in node.features if _is_device(feature))
    suggested = [f"{feature}{'_' * bool(profile)}{profile}" for feature in features]
    of_what = f"slices of GPUs ({profile}), not of which" if profile else f"GPUs (gpu:{group.count}), not of which kind"
    name = " or ".join(f"cluster.gpu_type={one}" for one in suggested) or "cluster.gpu_type, e.g. cluster.gpu_type=h100"
    source = f", as the node feature{'s' * (len(features) > 1)} {', '.join(features)} say{'s' * (len(features) == 1)}"
    return ClusterError(
        f"partition {partition.name}: Slurm says that its nodes have {of_what}\n"
        "  memory and speed are planned by the kind of GPU\n"
        f"  set {name} in the site profile{source if features else ''}; {NO_GPU}: ranks run on CPU"
    )


def _is_device(name: str) -> bool:
    try:
        return find_hardware(name).is_gpu
    except ConfigError:
        return False


def _take_word(partition: PartitionLimits, section: ClusterSection) -> PartitionLimits:
    """Believe what the section says of GPUs, where the site hides its nodes."""
    if section.gpu_type is None or section.gpus_per_node is None:
        raise ClusterError(
            f"partition {partition.name}: this site does not show what its nodes have (PrivateData=nodes)\n"
            "  ranks, memory and speed are planned by the GPUs of a node\n"
            f"  set cluster.gpus_per_node and cluster.gpu_type in the site profile; gpu_type {NO_GPU}: ranks run on CPU"
        )
    return replace(partition, gpus_per_node=section.gpus_per_node)


def usable_nodes(cluster: Cluster, section: ClusterSection) -> list[str]:
    """Ask for the nodes that a job of a filled section can get, now or after others: of its kind, not excluded.

    Raises:
        ClusterError: the scheduler does not answer.
    """
    section = replace(section, gpu_type=section.gpu_type or NO_GPU)  # filled, none means none
    known = place(find_partition(cluster.limits(), section.partition), section).nodes
    left_out = frozenset(expand_excluded(section))
    nodes = known or cluster.nodes(section.partition)
    return [node.name for node in nodes if node.is_usable and node.name not in left_out]


def expand_excluded(section: ClusterSection) -> list[str]:
    """List the nodes that are never used, by their names."""
    return list(dict.fromkeys(expand_nodes(",".join(section.exclude))))


def fill_section(section: ClusterSection, partition: PartitionLimits) -> ClusterSection:
    """Take what is open from the partition, narrowed to the nodes that the run can get."""
    has_slices = slice_of(partition.gpu_type or "") is not None
    ranks = section.gpus_per_node or (1 if has_slices else partition.gpus_per_node) or 1
    own_type = None if section.gpu_type == NO_GPU else section.gpu_type
    return replace(
        section,
        partition=section.partition or (None if partition.is_default else partition.name),
        gpus_per_node=ranks,
        gpu_type=own_type or (partition.gpu_type if partition.gpus_per_node else None),
        constraint=_join_features(section.constraint, partition.needs_feature),
        cpus_per_task=section.cpus_per_task or max(1, _share_cpus(partition, ranks)),
        exclude=expand_excluded(section),
        time_limit=section.time_limit or partition.max_time_s,
    )


def _join_features(constraint: str | None, feature: str | None) -> str | None:
    """Require one more feature; what is written with alternatives or brackets already says which nodes are meant."""
    if constraint is None or feature is None:
        return constraint or feature
    is_plain = re.fullmatch(r"[^|()\[\]]+", constraint) and feature not in constraint.split("&")
    return f"{constraint}&{feature}" if is_plain else constraint


def _share_cpus(partition: PartitionLimits, ranks: int) -> int:
    """Give a rank its share of a node's CPUs: the same when only some of the node's GPUs are asked for."""
    shares = [node.cpus // (node.gpus if partition.gpus_per_node and node.gpus else ranks) for node in partition.nodes]
    share = min(shares, default=partition.cpus_per_node // (partition.gpus_per_node or ranks))
    return min(share, (partition.max_cpus_per_node or partition.cpus_per_node) // ranks)
