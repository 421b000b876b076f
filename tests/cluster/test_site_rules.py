"""What sites demand and forbid, and what their partitions hold: the script that would be submitted fits it."""

from collections.abc import Callable

import pytest

from tests.dataset import make_dataset
from tests.devcluster.shapes import SHAPES, Shape
from tests.devcluster.sites import Site
from tests.runs import submit

pytestmark = pytest.mark.cluster

ASKED = ("--nodes", "2", "--gpus-per-node", "1", "cluster.cpus_per_task=1", "--dry-run")


def known(fault: str) -> tuple[pytest.MarkDecorator, ...]:
    """Mark what fails today; whoever mends the fault takes the mark away."""
    return (pytest.mark.xfail(strict=True, reason=fault),)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("banner", ()),
        pytest.param("norequeue", ("cluster.requeue=false",), marks=known("F17: a requeue cannot be left out")),
        ("gres", ()),
        ("mem", ("cluster.mem_per_node=4G",)),
        ("nodep", ()),
    ],
)
def test_what_a_plugin_of_the_site_demands_can_be_given(
    start_site: Callable[[Shape], Site], mode: str, words: tuple[str, ...]
) -> None:
    site = start_site(SHAPES["lua"])
    home = site.make_home()
    site.set_mode(mode)
    done = submit(home, make_dataset(home)[0], *ASKED, "--time", "10m", *words, site=site)
    site.set_mode("")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --gpus-per-node=h100:1" in done.stdout


@pytest.mark.parametrize(
    ("partition", "words", "line"),
    [
        ("h100", (), "#SBATCH --time=2880"),
        ("a100", (), "#SBATCH --gpus-per-node=a100:1"),
        pytest.param("unl", (), "#SBATCH --time=", marks=known("F8: no --time, so the default time limit holds")),
        pytest.param(
            "gpu",
            ("cluster.gpu_type=a100",),
            "#SBATCH --gpus-per-node=a100:1",
            marks=known("F11: the type is dropped where the first node has another"),
        ),
        pytest.param(
            "all",
            ("cluster.gpu_type=h100",),
            "#SBATCH --gpus-per-node=h100:1",
            marks=known("F7: a partition with CPU nodes has no GPUs"),
        ),
    ],
)
def test_the_script_asks_for_what_the_partition_has(
    start_site: Callable[[Shape], Site], partition: str, words: tuple[str, ...], line: str
) -> None:
    site = start_site(SHAPES["acct"])
    home = site.make_home()
    done = submit(home, make_dataset(home)[0], *ASKED, "--partition", partition, *words, site=site)
    assert done.returncode == 0, done.stderr
    assert any(one.startswith(line) for one in done.stdout.splitlines()), done.stdout
