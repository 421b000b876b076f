"""Fixtures of unit tests in several rooms."""

import os
from pathlib import Path

import pytest

from tests.slurm_says import SlurmSays


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmSays:
    """Put programs in the place of Slurm's commands."""
    directory = tmp_path / "slurm"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    return SlurmSays(directory)
