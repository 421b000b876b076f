"""A run's directory at a URL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from toolkit import storage
from toolkit.checkpoint import layout
from toolkit.checkpoint.upload import list_remote
from toolkit.errors import RunError
from toolkit.launch.archive import upload_run
from toolkit.rundir import RunDir

URL = "memory://runs/one"


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    storage.remove_tree("memory://runs")


def test_a_run_is_copied_with_its_complete_checkpoints_and_brought_up_to_date(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.config_path.write_text("run: {name: one}\n")
    run_dir.metrics_path.write_text("one line\n")
    made = make_checkpoint(run_dir.checkpoints_dir, 10)
    layout.partial_dir(run_dir.checkpoints_dir, step=20, token="a").mkdir()
    (layout.partial_dir(run_dir.checkpoints_dir, step=20, token="a") / "part").write_bytes(b"half")
    reported: list[int] = []
    assert upload_run(run_dir, URL, report=reported.append) == ["config.yaml", "metrics.jsonl"]
    assert sum(reported) == len("run: {name: one}\none line\n")
    assert list_remote(f"{URL}/checkpoints") == {10: f"{URL}/checkpoints/{made.name}"}
    assert len(storage.list_files(URL)) == 2 + 5
    run_dir.metrics_path.write_text("one line\nanother\n")
    upload_run(run_dir, URL, report=reported.append)
    assert storage.read_file(f"{URL}/metrics.jsonl") == b"one line\nanother\n"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run"):
        upload_run(RunDir(tmp_path), URL, report=lambda num_bytes: None)
