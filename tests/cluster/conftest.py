"""A private, real Slurm and a real HDFS for the tests of this folder."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devcluster.minihdfs import Cluster, is_fetched
from toolkit import storage

SCRIPT = Path(__file__).parents[1] / "devcluster" / "minislurm.sh"


def run_slurm(directory: Path, *, nodes: int, gpus: int) -> Iterator[Path]:
    """Start a cluster, give its slurm.conf, and take it down again; skip where there is no Slurm."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"no real Slurm: {', '.join(missing)} missing; `make test` as root on Debian installs it")
    names = "uts" if os.geteuid() == 0 else "none"
    environ = {**os.environ, "NS": names, "GPUS": str(gpus), "CPUS": str(max(8, gpus)), "KILLWAIT": "9"}
    subprocess.run([SCRIPT, "up", directory, str(nodes)], check=True, env=environ, timeout=90)
    try:
        yield directory / "etc" / "slurm.conf"
    finally:
        subprocess.run([SCRIPT, "down", directory], check=False, env={**environ, "FAST": "1"}, timeout=90)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """Give a cluster of four nodes to which Slurm's commands talk; root gets a small file system in it, `disk`."""
    directory = Path(tempfile.mkdtemp(prefix="ms"))
    disk = directory / "disk"
    disk.mkdir()
    if os.geteuid() == 0:  # before the nodes, which have mounts of their own
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], check=True)
    with pytest.MonkeyPatch.context() as patch:
        for slurm_conf in run_slurm(directory, nodes=4, gpus=0):
            patch.setenv("SLURM_CONF", str(slurm_conf))
            yield directory
    if os.geteuid() == 0:
        subprocess.run(["umount", "--lazy", disk], check=True)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def hdfs() -> Iterator[Cluster]:
    """Start a real HDFS of one name node and three data nodes, and take it down again."""
    missing = [name for name in ("java", "setpriv") if not shutil.which(name)]
    if missing or not is_fetched():
        reason = f"{', '.join(missing)} missing" if missing else "Hadoop's jars are not here"
        pytest.skip(f"no real HDFS: {reason}; `make test` as root on Debian installs it")
    directory = Path(tempfile.mkdtemp(prefix="mh"))
    cluster = Cluster(directory, dies_with_parent=True)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def remote_dir(hdfs: Cluster) -> Iterator[str]:
    """Give a directory of the test's own on the real HDFS."""
    url = f"{hdfs.url}/{uuid.uuid4().hex}"
    yield url
    storage.remove_tree(url)
