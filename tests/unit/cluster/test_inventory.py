"""Partitions and nodes as recorded sites have them, and which partition is meant."""

import pytest

from tests.slurm_sites import read_recorded, read_site
from toolkit.cluster.inventory import read_gpus, read_inventory
from toolkit.cluster.partitions import GpuGroup, PartitionLimits, find_partition, slice_of
from toolkit.errors import ClusterError


def of(site: str, name: str, **words: tuple[str, ...]) -> PartitionLimits:
    return find_partition(read_site(site, **words)[0], name)


def test_a_mixed_partition_is_the_kind_it_has_most_of_and_no_mean_of_all() -> None:
    gpu = of("acct", "gpu")
    assert (gpu.gpu_type, gpu.gpus_per_node, gpu.num_nodes) == ("h100", 8, 6)
    assert of("acct", "cpuq").gpus_per_node == 0
    assert of("acct", "all").gpu_type == "h100"


def test_limits_are_read_as_the_site_has_set_them() -> None:
    unl, excl, maxn = of("acct", "unl"), of("acct", "excl"), of("acct", "maxn")
    assert (unl.max_time_s, unl.default_time_s) == (None, 120)
    assert (maxn.max_nodes, maxn.min_nodes) == (1, 1)
    assert excl.memory.default_of(cpus=32, gpus=4) == (4000, "DefMemPerNode=4000")
    assert excl.memory.most_of(cpus=32) == (8000, "MaxMemPerNode=8000")
    assert of("acct", "partqos").qos == ("pq",)
    assert of("acct", "vip").allowed_accounts == ("vip",)
    assert of("strict", "batch").memory.default_of(cpus=4, gpus=1) == (32_000, "DefMemPerCPU=8000")
    assert of("strict", "batch").max_array_tasks == 4


def test_what_a_partition_does_not_say_of_memory_the_cluster_says() -> None:
    assert of("mig", "plain").memory.default_of(cpus=4, gpus=0) == (2000, "DefMemPerNode=2000")
    assert of("mig", "vec").memory.default_of(cpus=4, gpus=0) == (4000, "DefMemPerCPU=1000")
    assert of("mig", "duo").memory.most_of(cpus=4) == (16_000, "MaxMemPerCPU=4000")
    assert of("acct", "gpu").memory.default_of(cpus=4, gpus=4) is None
    text = read_recorded("mig", "partitions.txt").replace(
        "JobDefaults=(null)", "JobDefaults=DefCpuPerGPU=4,DefMemPerGPU=9000"
    )
    limits, _ = read_inventory(text, read_recorded("mig", "nodes.txt"), config="", groups=())
    assert find_partition(limits, "duo").memory.default_of(cpus=4, gpus=2) == (18_000, "DefMemPerGPU=9000")


def test_cores_and_memory_that_are_kept_for_the_system_are_not_for_jobs() -> None:
    """Both nodes have 48 CPUs and 128000 MiB; sbatch takes no more than this of `vec1`."""
    nodes = {node.name: (node.cpus, node.mem_mib) for node in read_site("mig")[1]}
    assert (nodes["plain1"], nodes["vec1"]) == ((48, 128_000), (44, 120_000))


def test_what_is_written_of_a_node_in_free_text_is_no_word_of_slurm() -> None:
    line = read_recorded("mig", "nodes.txt").splitlines()[0].replace("State=IDLE", "State=MIXED+DRAIN")
    line += " Reason=CPUTot=1 State=IDLE | fan [2] [root@2026-12-01T05:15:05]"
    _, (node,) = read_inventory("", line, config="", groups=())
    assert (node.cpus, node.is_usable, node.state, node.reason) == (
        40, False, "mixed+drain", "CPUTot=1 State=IDLE | fan [2]",
    )  # fmt: skip
    states = {"IDLE+PLANNED": True, "IDLE+CLOUD+POWERED_DOWN": True, "DOWN+NOT_RESPONDING": False, "IDLE*": False}
    for state, is_usable in states.items():
        text = line.replace("State=MIXED+DRAIN", f"State={state}")
        assert read_inventory("", text, config="", groups=())[1][0].is_usable is is_usable, state


def test_closed_partitions_are_told_by_how_they_are_closed() -> None:
    states = {name: of("acct", name) for name in ("gpu", "shut", "drainp")}
    assert {name: (one.is_up, one.takes_jobs) for name, one in states.items()} == {
        "gpu": (True, True), "shut": (False, True), "drainp": (False, False),
    }  # fmt: skip
    assert not of("private", "old").takes_jobs
    assert of("mig", "root_only", groups=("staff",)).barrier == "AllowGroups=nogroup"
    assert of("mig", "root_only", groups=("staff", "nogroup")).barrier == ""
    assert of("mig", "root_only", groups=()).barrier == ""  # root may do all
    assert of("mig", "plain").is_hidden


@pytest.mark.parametrize(
    ("gres", "groups"),
    [
        ("gpu:h100:8(S:0-1),nvme:1", [("h100", 8)]),
        ("gpu:8", [(None, 8)]),
        ("gpu:v100:4,gpu:a100:4", [("v100", 4), ("a100", 4)]),
        ("gpu:1g.10gb:7", [("1g.10gb", 7)]),
        ("gpu:a100_3g.20gb:2(S:0),gpu:a100:3", [("a100_3g.20gb", 2), ("a100", 3)]),
        ("gpu:nvidia_a100-sxm4-80gb:2(S:0),gpu:nvidia_a100-sxm4-80gb:2(S:1)", [("nvidia_a100-sxm4-80gb", 4)]),
        ("(null)", []),
        ("craynetwork:4,shard:h100:16,mps:200", []),
    ],
)
def test_gpus_are_read_by_kind(gres: str, groups: list[tuple[str | None, int]]) -> None:
    assert [(group.type, group.count) for group in read_gpus(gres)] == groups


def test_slices_are_told_from_whole_gpus() -> None:
    assert [slice_of(name) for name in ("1g.10gb", "a100_3g.20gb", "nvidia_h100_80gb_hbm3_1g.10gb")] == [
        "1g.10gb", "3g.20gb", "1g.10gb",
    ]  # fmt: skip
    assert [slice_of(name) for name in ("h100", "nvidia_a100-sxm4-80gb", "a100-40gb")] == [None] * 3
    assert GpuGroup(type="1g.10gb", count=7).is_slice


def test_where_nodes_are_hidden_the_partitions_tell_their_names_and_means() -> None:
    work = of("private", "work")
    assert (work.num_nodes, work.shows_nodes, work.cpus_per_node, work.mem_per_node_mib) == (3, False, 32, 256_000)
    assert [node.name for node in work.nodes] == ["w1", "w2", "w3"]
    assert work.gpus_per_node == 0
    counted = read_recorded("private", "partitions.txt").replace(
        "billing=96", "billing=96,gres/gpu=12,gres/gpu:h100=12"
    )
    limits, _ = read_inventory(counted, None, config="", groups=())
    told = find_partition(limits, "work")
    assert (told.gpu_type, told.gpus_per_node) == ("h100", 4)


def test_a_partition_without_nodes_is_there() -> None:
    empty = of("acct", "empty")
    assert (empty.num_nodes, empty.gpus_per_node, empty.is_up) == (0, 0, True)


def test_several_partitions_give_what_holds_in_all_of_them() -> None:
    both = of("acct", "h100,cpuq")
    assert (both.max_time_s, both.num_nodes, len(both.nodes), both.names) == (8 * 3600, 4, 6, ("h100", "cpuq"))
    assert of("acct", "maxn,gpu").max_nodes == 1
    assert of("acct", "partqos,gpu").qos == ("pq",)
    assert of("acct", "vip,gpu").allowed_accounts == ("vip",)


def test_without_a_default_the_only_partition_that_can_be_used_is_meant() -> None:
    assert find_partition(read_site("private")[0], None).name == "work"
    assert find_partition(read_site("strict")[0], None).name == "batch"
    with pytest.raises(ClusterError, match="no default partition") as caught:
        find_partition(read_site("acct")[0], None)
    lines = str(caught.value).splitlines()
    assert "  gpu: 6 nodes, GPUs a node: 8 h100, 4 a100" in lines
    assert not any("drainp" in line or "empty" in line for line in lines)
    assert lines[-1] == "  set --partition or cluster.partition"


def test_a_partition_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(ClusterError, match="there is no partition 'nope'\n  there are: mig, duo, vec, everything"):
        of("mig", "duo,nope")
