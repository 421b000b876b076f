"""Readings in, verdicts out."""

import pytest

from toolkit.health.check import take_better
from toolkit.health.fabric import pair_up
from toolkit.health.verdicts import RULES, Reading, bad_nodes, common_troubles, judge, set_limits


def read(probe: str, *values: float, part: str = "") -> list[Reading]:
    return [Reading(probe=probe, node=f"n{index}", value=value, part=part) for index, value in enumerate(values, 1)]


def test_a_node_three_times_slower_than_its_peers_is_bad_and_one_twice_as_slow_is_not() -> None:
    readings = read("host memory", 30, 29, 31, 9.5, 15, 28)
    (bad,) = [verdict for verdict in judge(readings, RULES) if not verdict.ok]
    assert (bad.node, bad.measured, bad.limit, bad.unit) == ("n4", 9.5, pytest.approx(29 / 3), "GB/s")
    assert bad.words == "memory bandwidth: 9.5 GB/s, the median of all nodes is 29"
    assert bad.remedy


def test_of_two_nodes_the_better_one_is_the_measure() -> None:
    assert list(bad_nodes(judge(read("pairs", 10, 1), RULES))) == ["n2"]
    assert bad_nodes(judge(read("pairs", 10), RULES)) == {}


def test_a_load_that_all_nodes_share_blames_none() -> None:
    assert bad_nodes(judge(read("load", 5, 5, 4.8, 5.2), RULES)) == {}
    assert list(bad_nodes(judge(read("load", 0.1, 0.2, 3, 0.1), RULES))) == ["n3"]
    assert bad_nodes(judge(read("load", 0.1, 0.2, 1.5, 0.1), RULES)) == {}


def test_trouble_is_bad_whatever_the_number() -> None:
    (verdict,) = judge([Reading(probe="disk", node="n1", value=None, part="/tmp", trouble="cannot write")], RULES)
    assert not verdict.ok
    assert verdict.words == "/tmp: cannot write"


def test_hardware_and_the_user_set_limits() -> None:
    rules = set_limits(gpus_per_node=8, peak_flops=989e12, network_bytes_per_s=50e9, limits={"clock": 0.1, "disk": 50})
    assert rules["gpus"].low == 8
    assert rules["gpu matmul"].low == pytest.approx(0.35 * 989)
    assert rules["all-reduce"].low == pytest.approx(10)
    assert list(bad_nodes(judge(read("pairs", 48, 50, 30), rules))) == ["n3"]  # a link of several is down
    assert (rules["clock"].high, rules["disk"].low) == (0.1, 50)
    assert "must be at least 346" in bad_nodes(judge(read("gpu matmul", 300, part="GPU 0"), rules))["n1"]


def test_a_slow_whole_names_no_node() -> None:
    rules = set_limits(gpus_per_node=8, peak_flops=None, network_bytes_per_s=50e9, limits={})
    verdicts = judge([Reading(probe="all-reduce", node="all", value=1.0)], rules)
    assert [verdict.ok for verdict in verdicts] == [False]
    assert bad_nodes(verdicts) == {}


def test_what_most_nodes_share_blames_none_of_them() -> None:
    down = [Reading(probe="storage", node=f"n{index}", value=20, trouble="it does not answer") for index in range(3)]
    verdicts = judge([*down, *read("storage", 0.1, 0.1, 0.1)[2:], *read("disk", 0.1, 50, 60, 55)], RULES)
    assert common_troubles(verdicts) == {"storage": "3 of 5 nodes: it does not answer"}
    assert list(bad_nodes(verdicts)) == ["n1"]
    assert list(bad_nodes(judge(down[:1], RULES))) == ["n0"]  # one node has nobody to share with


def test_a_second_look_excuses_a_slow_figure_but_no_trouble() -> None:
    torn = Reading(probe="disk", node="n3", value=80, trouble="what was written is not what is read")
    first = [*read("disk", 100, 1), torn, *read("clock", 3)]
    again = [*read("disk", 90, 95, 99), *read("clock", 0.001)]
    kept = take_better(first, again, ["disk", "clock"], RULES)
    assert [reading.value for reading in kept] == [100, 95, 80, 0.001]
    assert kept[2].trouble


@pytest.mark.parametrize("count", [2, 3, 8, 9])
def test_all_nodes_meet_all_others_once(count: int) -> None:
    nodes = [f"n{index}" for index in range(count)]
    met = [frozenset(pair) for pairs in pair_up(nodes) for pair in pairs.items()]
    assert len(set(met)) == count * (count - 1) // 2
    assert len(met) == 2 * len(set(met))
    assert all(pairs[partner] == node for pairs in pair_up(nodes) for node, partner in pairs.items())
