"""What sites demand and forbid, and what their partitions hold: the script that would be submitted fits it."""

from collections.abc import Callable

import pytest

from tests.dataset import make_dataset
from tests.devcluster.shapes import SHAPES, Shape
from tests.devcluster.sites import Site
from tests.runs import submit

pytestmark = pytest.mark.cluster

ASKED = ("--nodes", "2", "--gpus-per-node", "1", "cluster.cpus_per_task=1", "--dry-run")


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("banner", ()),
        ("norequeue", ("cluster.requeue=false",)),
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
        ("unl", (), "#SBATCH --time=UNLIMITED"),
        ("gpu", ("cluster.gpu_type=a100",), "#SBATCH --gpus-per-node=a100:1"),
        ("all", ("cluster.gpu_type=h100",), "#SBATCH --gpus-per-node=h100:1"),
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
