"""The check of all nodes on several ranks, each taken for a node of its own."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.spawn.ranks import run_ranks

pytestmark = pytest.mark.spawn

# this machine's disk and cores are shared with other tests: figures are not held against anything here
LAX = {"disk": 0.001, "shared directory": 600.0, "host memory": 0.001, "host matmul": 0.001, "pairs": 1e-6}


def check(world: Any, directory: str, bad_rank: int, limits: dict[str, float]) -> tuple[dict[str, str], set[str]]:
    from toolkit.health.check import check_nodes
    from toolkit.health.probes import Asked

    # two ranks a node: node1 has ranks 0 and 1
    world.place = dataclasses.replace(
        world.place, node=f"node{world.rank // 2 + 1}", local_rank=world.rank % 2, local_size=2
    )
    asked = Asked(
        temp_dir=Path("/proc" if world.rank == bad_rank else directory),
        shared_dir=Path(directory),
        job_id="1",
        copy_bytes=1 << 20,
        gpus_per_node=0,
        peak_flops=None,
        network_bytes_per_s=None,
        test_pairs=True,
        limits=limits,
    )
    health = check_nodes(world, asked)
    return health.bad_nodes, {verdict.probe for verdict in health.verdicts}


def attempt_twice(world: Any, root: str) -> list[str]:
    """Begin two attempts of a run on nodes of which the second has no usable temporary directory."""
    import os

    from toolkit.config.load import load_config
    from toolkit.errors import TryAgainError
    from toolkit.launch.health import is_wanted, refuse_bad_nodes
    from toolkit.rundir import RunDir

    lax = ", ".join(f"{probe}: {limit}" for probe, limit in LAX.items())
    settings = [f"run.root={root}", "run.name=one", f"health.limits={{{lax}}}", "cluster.nodes=3"]
    cfg = load_config(None, overrides=settings).config
    assert is_wanted(cfg)
    world.place = dataclasses.replace(world.place, node=f"node{world.rank + 1}", local_rank=0, local_size=1)
    environ = {**os.environ, "TMPDIR": "/proc" if world.rank == 1 else root}
    said = []
    for _ in range(2):
        try:
            refuse_bad_nodes(cfg, RunDir(Path(root) / "one"), world, environ=environ)
            said.append("goes on")
        except TryAgainError as error:
            said.append(str(error))
    return said


def test_an_attempt_ends_for_a_bad_node_once_and_goes_on_with_it_where_it_cannot_be_avoided(tmp_path: Path) -> None:
    from toolkit.launch.nodes import NodeLedger

    found = run_ranks(attempt_twice, world_size=3, args=(str(tmp_path),))
    first, second = found[0]
    assert first.startswith("bad nodes: node2: disk: /proc: cannot write")
    assert second == "goes on"
    assert found == [found[0]] * 3
    (event,) = NodeLedger(tmp_path).events()
    assert (event.node, event.kind, event.run, event.attempt) == ("node2", "probe", "one", "1.0")


def test_all_ranks_name_the_same_bad_node(tmp_path: Path) -> None:
    found = run_ranks(check, world_size=6, args=(str(tmp_path), 2, LAX))
    bad, probes = found[0]
    assert list(bad) == ["node2"]
    assert bad["node2"].startswith("disk: /proc: cannot write")
    assert {"clock", "all-reduce", "latency", "pairs", "host memory", "cores", "load"} <= probes
    assert found == [found[0]] * 6


def test_a_network_slower_than_asked_for_is_said_and_no_node_blamed_for_it(tmp_path: Path) -> None:
    found = run_ranks(check, world_size=4, args=(str(tmp_path), -1, {**LAX, "all-reduce": 1e6}))
    assert [bad for bad, _ in found] == [{}] * 4
