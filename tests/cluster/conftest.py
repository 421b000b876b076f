"""A private, real Slurm of four nodes for the tests of this folder."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "devcluster" / "minislurm.sh"


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """Start the cluster, point Slurm's commands to it, and take it down again."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"no real Slurm: {', '.join(missing)} missing; `make test` as root on Debian installs it")
    directory = Path(tempfile.mkdtemp(prefix="ms"))
    names = "uts" if os.geteuid() == 0 else "none"
    environ = {**os.environ, "NS": names, "GPUS": "0", "CPUS": "8"}
    subprocess.run([SCRIPT, "up", directory, "4"], check=True, env=environ, timeout=90)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(directory / "etc" / "slurm.conf")
    try:
        yield directory
    finally:
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before
        subprocess.run([SCRIPT, "down", directory], check=False, env={**environ, "FAST": "1"}, timeout=90)
        shutil.rmtree(directory, ignore_errors=True)
