"""Which nodes of recorded partitions a run gets."""

from dataclasses import replace
from typing import cast

import pytest

from tests.slurm_sites import read_site
from toolkit.cluster.base import Cluster
from toolkit.cluster.partitions import PartitionLimits, find_partition
from toolkit.config.schema import ClusterSection
from toolkit.errors import ClusterError
from toolkit.launch.placement import fill_section, match_type, place, usable_nodes


def put(site: str, name: str, **fields: object) -> tuple[PartitionLimits, ClusterSection]:
    section = replace(ClusterSection(partition=name), **fields)  # type: ignore[arg-type]
    narrowed = place(find_partition(read_site(site)[0], name), section)
    return narrowed, fill_section(section, narrowed)


def test_a_kind_that_is_named_gets_its_nodes_and_their_cpus() -> None:
    narrowed, filled = put("acct", "gpu", gpu_type="a100")
    assert {node.name for node in narrowed.nodes} == {"gpu-b01", "gpu-b02"}
    assert (narrowed.gpu_type, filled.gpus_per_node, filled.cpus_per_task) == ("a100", 4, 8)


def test_of_several_kinds_the_run_gets_the_one_it_can_have_most_of() -> None:
    narrowed, filled = put("acct", "all")
    assert (narrowed.gpu_type, narrowed.num_nodes) == ("h100", 4)
    assert (filled.gpu_type, filled.gpus_per_node, filled.cpus_per_task) == ("h100", 8, 8)
    few, _ = put("acct", "all", exclude=["gpu-a[001-004]"])
    assert few.gpu_type == "a100"


def test_two_kinds_on_a_node_share_its_cpus() -> None:
    narrowed, filled = put("mig", "duo", gpu_type="v100")
    assert (narrowed.gpu_type, filled.gpus_per_node, filled.cpus_per_task) == ("v100", 4, 5)


def test_whole_gpus_are_taken_before_slices_and_slices_only_by_name() -> None:
    narrowed, _ = put("mig", "mig")
    assert (narrowed.gpu_type, [node.name for node in narrowed.nodes]) == ("a100", ["half1"])
    narrowed, filled = put("mig", "mig", gpu_type="a100_1g.10gb")
    assert (narrowed.gpu_type, narrowed.num_nodes) == ("1g.10gb", 2)
    assert (filled.gpu_type, filled.gpus_per_node, filled.cpus_per_task) == ("a100_1g.10gb", 1, 4)
    assert put("mig", "mig", gpu_type="a100_3g.20gb")[0].gpu_type == "a100_3g.20gb"


@pytest.mark.parametrize(
    ("partition", "fields", "said"),
    [
        ("plain", {}, "set cluster.gpu_type=h100_80gb in the site profile, as the node feature h100_80gb says"),
        ("vec", {}, "set cluster.gpu_type, e.g. cluster.gpu_type=h100"),
        ("mig", {"gpu_type": "1g.10gb"}, "set cluster.gpu_type=a100_1g.10gb"),
    ],
)
def test_a_kind_that_slurm_does_not_name_is_asked_for_once(partition: str, fields: dict[str, str], said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        put("mig", partition, **fields)


def test_gpus_without_a_kind_are_asked_for_by_number_and_never_planned_as_cpus() -> None:
    narrowed, filled = put("mig", "plain", gpu_type="h100")
    assert (narrowed.gpu_type, narrowed.gpus_per_node, filled.gpu_type, filled.constraint) == (None, 4, "h100", None)


def test_kinds_that_only_features_tell_are_asked_for_by_feature() -> None:
    narrowed, filled = put("mig", "everything", gpu_type="h100", constraint="ib")
    assert [node.name for node in narrowed.nodes] == ["plain1", "plain2", "plain3"]
    assert filled.constraint == "ib"  # all that have it are alike
    narrowed, filled = put("mig", "everything", gpu_type="h100")
    assert (narrowed.num_nodes, filled.constraint) == (3, "h100_80gb")


def test_features_that_no_node_has_are_left_to_slurm() -> None:
    assert put("acct", "gpu", constraint="nope")[0].num_nodes == 4


def test_ranks_on_cpu_can_be_asked_for() -> None:
    narrowed, filled = put("mig", "vec", gpu_type="cpu", gpus_per_node=4)
    assert (narrowed.gpus_per_node, filled.gpu_type, filled.gpus_per_node, filled.cpus_per_task) == (0, None, 4, 11)


def test_what_a_hidden_partition_has_is_believed_when_it_is_said() -> None:
    with pytest.raises(ClusterError, match=r"set cluster\.gpus_per_node and cluster\.gpu_type"):
        put("private", "work", gpu_type="h100")
    narrowed, filled = put("private", "work", gpu_type="h100", gpus_per_node=4)
    assert (narrowed.gpus_per_node, filled.cpus_per_task) == (4, 8)
    assert put("private", "work", gpu_type="cpu")[1].cpus_per_task == 32


def test_what_is_open_is_filled_so_that_the_script_says_it() -> None:
    section = ClusterSection(exclude=["w[2-3]"], gpu_type="cpu")
    narrowed = place(find_partition(read_site("private")[0], None), section)
    filled = fill_section(section, narrowed)
    assert (filled.partition, filled.exclude, narrowed.num_nodes, filled.time_limit) == (
        "work", ["w2", "w3"], 1, 8 * 3600,
    )  # fmt: skip
    assert put("acct", "unl")[1].time_limit is None


def test_names_of_gpus_are_matched_the_surest_first() -> None:
    assert match_type("h100", "h100") > match_type("h100", "nvidia_h100_80gb_hbm3") > 0
    assert match_type("a100", "nvidia_a100-sxm4-40gb") == 1
    assert match_type("a100", "h100") == 0
    assert match_type("a100", "a100_3g.20gb") == 0
    assert match_type("a100_3g.20gb", "3g.20gb") > 0


class SiteCluster:
    """A recorded site."""

    def __init__(self, site: str) -> None:
        self.site = site

    def limits(self) -> list[PartitionLimits]:
        return read_site(self.site)[0]


def test_only_nodes_of_the_runs_kind_are_spare_when_bad_ones_are_left_out() -> None:
    """Six nodes of `gpu` are up: a run on its four h100 has none to spare, whatever a100 there are."""
    cluster = cast("Cluster", SiteCluster("acct"))
    filled = put("acct", "gpu", gpu_type="h100", exclude=["gpu-a004"])[1]
    assert usable_nodes(cluster, filled) == ["gpu-a001", "gpu-a002", "gpu-a003"]
    on_cpu = put("mig", "vec", gpu_type="cpu")[1]
    assert usable_nodes(cast("Cluster", SiteCluster("mig")), on_cpu) == ["vec1", "vec2"]
