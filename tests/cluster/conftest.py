"""A private, real Slurm and a real HDFS for the tests of this folder."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.devcluster import sites
from tests.devcluster.minihdfs import Cluster, is_fetched
from tests.devcluster.shapes import Shape, mini
from tests.devcluster.sites import Site
from toolkit import storage


@contextlib.contextmanager
def run_site(shape: Shape) -> Iterator[Site]:
    """Give a Slurm of a shape while it is needed; skip where this machine cannot start it."""
    reason = sites.why_not(shape)
    if reason is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="site") as directory, sites.started(shape, Path(directory)) as site:
        yield site


@pytest.fixture(scope="session")
def start_site(small_disk: Path) -> Iterator[Callable[[Shape], Site]]:
    """Start a Slurm of a shape once for all tests of this session."""
    running: dict[str, Site] = {}
    with contextlib.ExitStack() as stack:

        def start(shape: Shape) -> Site:
            if repr(shape) not in running:
                running[repr(shape)] = stack.enter_context(run_site(shape))
            return running[repr(shape)]

        yield start


@pytest.fixture(scope="session")
def small_disk() -> Iterator[Path]:
    """Give a directory that is a small file system, where root runs the tests; nodes that start later see it."""
    with tempfile.TemporaryDirectory(prefix="disk") as directory:
        if os.geteuid() == 0:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", directory], check=True)
        yield Path(directory)
        if os.geteuid() == 0:
            subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture(scope="session")
def slurm(start_site: Callable[[Shape], Site]) -> Iterator[Site]:
    """Give a Slurm of four nodes without GPUs, to which the commands of this session talk."""
    site = start_site(mini(nodes=4, gpus=0, cpus=8, kill_wait_s=9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(site.conf))
        yield site


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
