"""Limits of accounts and QOS on a real Slurm with accounting; skipped where slurmdbd is not installed."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import SCRIPT
from tests.dataset import make_dataset
from tests.runs import submit
from toolkit.cluster.slurm import SlurmCluster

pytestmark = pytest.mark.cluster

ACCOUNTS = [
    "add account physics",
    "add account bio",
    "add user {user} account=physics",
    "add user {user} account=bio",
    "add qos long set MaxTRESPerUser=node=1 GrpTRESMins=node=60",
    "modify user {user} where account=physics set qos=+long MaxWall=12:00:00",
    "modify account bio set GrpTRES=node=1",
]


@pytest.fixture(scope="module")
def accounting() -> Iterator[None]:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in ("slurmctld", "slurmdbd", "mariadbd") if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(
            f"no accounting: {', '.join(missing)} missing (apt: slurmdbd slurm-wlm-mysql-plugin mariadb-server)"
        )
    directory = Path(tempfile.mkdtemp(prefix="ma"))
    directory.chmod(0o755)
    conf = directory / "etc" / "slurm.conf"
    environ = {**os.environ, "NS": "uts" if os.geteuid() == 0 else "none", "GPUS": "0", "CPUS": "8", "DBD": "1"}
    try:
        subprocess.run([SCRIPT, "up", directory, "2"], check=True, env=environ, timeout=90)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(conf))
            user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
            for words in ACCOUNTS:
                subprocess.run(["sacctmgr", "-i", *words.format(user=user).split()], check=True, capture_output=True)
            with conf.open("a", encoding="utf-8") as file:
                file.write("AccountingStorageEnforce=limits,qos\n")
            # it takes another enforcement at its start only
            controller = psutil.Process(int((directory / "run" / "slurmctld.pid").read_text(encoding="utf-8")))
            controller.terminate()
            controller.wait(30)
            subprocess.run([SCRIPT, "up", directory, "2"], check=True, env=environ, timeout=90)
            yield
    finally:
        subprocess.run([SCRIPT, "down", directory], check=False, env={**environ, "FAST": "1"}, timeout=90)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.usefixtures("accounting")
def test_jobs_over_a_limit_are_refused_that_slurm_would_let_wait_for_ever(tmp_path: Path) -> None:
    dataset, _ = make_dataset(tmp_path)
    asked = ("--nodes", "2", "--dry-run")
    group = submit(tmp_path / "runs", dataset, *asked, "--time", "10m", "cluster.account=bio")
    assert group.returncode == 3
    assert "account: account bio allows GrpTRES node=1, the job asks for node=2" in group.stderr
    wall = submit(tmp_path / "runs", dataset, *asked, "--time", "20h", "cluster.account=physics")
    assert "allows MaxWallPJ 12 h, the job asks for 20 h" in wall.stderr
    each = submit(tmp_path / "runs", dataset, *asked, "--time", "20m", "cluster.account=physics", "cluster.qos=long")
    assert "QOS long, each user allows MaxTRESPU node=1, the job asks for node=2" in each.stderr
    none = submit(tmp_path / "runs", dataset, *asked, "--time", "10m", "cluster.account=chemistry")
    assert "is not in account chemistry" in none.stderr
    well = submit(tmp_path / "runs", dataset, *asked, "--time", "10m", "cluster.account=physics")
    assert well.returncode == 0, well.stderr
    assert re.search(r"ok +account +physics: within 1 limits", well.stdout), well.stdout


@pytest.mark.usefixtures("accounting")
def test_accounts_are_those_of_the_user() -> None:
    found = SlurmCluster().accounting()
    assert found is not None
    assert found.is_enforced
    assert {"physics", "bio"} <= set(found.accounts)
