"""Limits of accounts and QOS on a real Slurm with accounting."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from tests.devcluster.shapes import SHAPES, Shape
from tests.devcluster.sites import Site
from tests.runs import submit

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def site(start_site: Callable[[Shape], Site]) -> Iterator[Site]:
    return start_site(SHAPES["acct"])


def test_jobs_over_a_limit_are_refused_that_slurm_would_let_wait_for_ever(site: Site, tmp_path: Path) -> None:
    dataset, _ = make_dataset(site.make_home())

    def ask(nodes: int, time: str, *words: str) -> tuple[int, str, str]:
        asked = ("--nodes", str(nodes), "--gpus-per-node", "1", "--partition", "h100", "--time", time, "--dry-run")
        done = submit(site.home / "runs", dataset, *asked, *words, site=site)
        return done.returncode, done.stdout, done.stderr

    code, _, said = ask(2, "10m", "cluster.account=bio")
    assert code == 3
    assert "account: account bio allows GrpTRES node=1, the job asks for node=2" in said
    _, _, said = ask(1, "20h", "cluster.account=bio")
    assert "allows MaxWallPJ 12 h, the job asks for 20 h" in said
    _, _, said = ask(2, "20m", "cluster.account=physics", "cluster.qos=long")
    assert "QOS long, each user allows MaxTRESPU node=1, the job asks for node=2" in said
    _, _, said = ask(2, "10m", "cluster.account=chemistry")
    assert "is not in account chemistry" in said
    code, shown, said = ask(2, "10m", "cluster.account=physics", "cluster.qos=tight")
    assert code == 0, said
    assert re.search(r"ok +account +physics, QOS tight: within 1 limits", shown), shown


def test_accounts_are_those_of_the_user(site: Site) -> None:
    show = (
        "from toolkit.cluster.slurm import SlurmCluster as S; a = S().accounting(); print(a.is_enforced, *a.accounts)"
    )
    done = site.run([sys.executable, "-c", show])
    assert done.stdout.split() == ["True", "physics", "bio"], done.stderr
