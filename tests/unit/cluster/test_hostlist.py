"""Slurm's short form of node names; the long ones are what `scontrol show hostnames` says."""

import pytest

from toolkit.cluster.hostlist import expand_nodes, shorten_nodes
from toolkit.errors import ClusterError


@pytest.mark.parametrize(
    ("short", "names"),
    [
        ("gpu[08-10,12],head", ["gpu08", "gpu09", "gpu10", "gpu12", "head"]),
        ("rack[1-2]n[01-02]", ["rack1n01", "rack1n02", "rack2n01", "rack2n02"]),
        ("n[1-2]-ib,m3", ["n1-ib", "n2-ib", "m3"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("(null)", []),
        ("", []),
    ],
)
def test_names_are_expanded(short: str, names: list[str]) -> None:
    assert expand_nodes(short) == names


def test_names_are_written_in_the_short_form() -> None:
    assert shorten_nodes(["node1", "node2", "node5", "head"]) == "head,node[1-2,5]"
    assert shorten_nodes(["gpu08", "gpu09", "gpu10", "rack2-n7"]) == "gpu[08-10],rack2-n7"
    assert shorten_nodes([]) == ""


def test_the_short_form_means_the_same_nodes() -> None:
    names = [f"rack{rack}n{node:02d}" for rack in (1, 2) for node in range(1, 13)] + ["n1", "n10", "n100", "m01", "m1"]
    assert sorted(expand_nodes(shorten_nodes(names))) == sorted(names)
    assert shorten_nodes(f"n{index:03d}" for index in range(600)) == "n[000-599]"


@pytest.mark.parametrize("text", ["n[0-99999999999999999999]", "a[0-9999]b[0-9999]", f"n[1-{'9' * 5000}]"])
def test_more_nodes_than_there_can_be_are_refused_at_once(text: str) -> None:
    with pytest.raises(ClusterError, match="more than 200,000 nodes"):
        expand_nodes(text)
