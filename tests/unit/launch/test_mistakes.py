"""Mistakes of the configuration that need a look around."""

from pathlib import Path

import pytest

from tests.gate import make_context
from toolkit.errors import ConfigError


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.root={}/file", "file is no directory"),
        ("run.root={}/file/runs", "file is no directory"),
        ("run.root=/dev/null/x", "/dev/null is no directory"),
        ("health.limits={{gpu flops: 1}}", "probes: host memory"),
    ],
)
def test_a_place_or_a_limit_that_cannot_be_is_a_mistake(tmp_path: Path, setting: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=message):
        make_context(tmp_path, setting.format(tmp_path))
