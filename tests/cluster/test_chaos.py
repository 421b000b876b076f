"""Whatever goes wrong with a run, it ends as if nothing had; the experiment that shows it leaves nothing behind."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runs import CHECKOUT

BENCHMARKS = CHECKOUT / "benchmarks"


def chaos_command(*words: str) -> tuple[list[str], dict[str, str]]:
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return [sys.executable, str(BENCHMARKS / "chaos.py"), *words], environ


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give the benchmark's own modules."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import chaos
    import emulated

    return chaos, emulated


@pytest.mark.timeout(2400)  # three minutes, the undisturbed run before, and other tests beside
def test_three_minutes_of_random_faults_change_nothing(tmp_path: Path, benchmarks: Any) -> None:
    chaos, _ = benchmarks
    kept = tmp_path / "kept"
    command, environ = chaos_command("--minutes", "3", "--seed", "5", "--keep", str(kept), "--json")
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=2300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["faults"] >= 4
    assert figures["attempts"] > figures["faults"] / 2
    assert {record["problem"] for record in figures["records"]} == {""}
    # the comparison itself: one bit of one tensor
    checkpoints, altered = kept / "reference" / "checkpoints", tmp_path / "altered"
    step = figures["steps"]
    assert chaos.compare_checkpoints(checkpoints, checkpoints, step=step) == []
    shutil.copytree(checkpoints, altered)
    part = next((altered / f"step-{step:08d}").glob("*.safetensors"))
    data = bytearray(part.read_bytes())
    data[-5] ^= 1
    part.write_bytes(data)
    (problem,) = chaos.compare_checkpoints(checkpoints, altered, step=step)
    assert problem.endswith(" differs")


@pytest.mark.timeout(400)
def test_chaos_that_is_killed_leaves_nothing_behind(tmp_path: Path, benchmarks: Any) -> None:
    _, emulated = benchmarks
    root = tmp_path / "root"
    command, environ = chaos_command("--minutes", "1", "--keep", str(root))
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: len(emulated.list_left(root)) >= 3)  # a controller and two ranks
        process.kill()
    wait_until(lambda: not emulated.list_left(root))


def wait_until(is_so: Any, *, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"not so after {timeout_s} s"
        time.sleep(0.1)
