"""In CI a test that is skipped fails the suite, or nobody would notice that it never runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
TESTS = """
import pytest

@pytest.mark.gpu
def test_of_a_gpu():
    pytest.skip("no GPU here")

def test_of_another_system():
    pytest.skip("no /proc")

def test_of_nothing():
    pass

@pytest.mark.xfail(strict=True, reason="known")
def test_of_a_known_fault():
    assert False
"""
SKIPPED = """
@pytest.mark.skipif(True, reason="no Slurm here")
def test_of_slurm():
    pass
"""


def run(directory: Path, text: str, *words: str, ci: str) -> tuple[int, list[str]]:
    """Run made tests with the plugin; give the exit code and the last lines."""
    (directory / "test_made.py").write_text(text, encoding="utf-8")
    (directory / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.skips", "-p", "no:cacheprovider", *words]
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT), "CI": ci}
    done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, check=False, timeout=100)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("words", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_a_skip_in_ci_fails_the_suite_and_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    code, lines = run(tmp_path, TESTS + SKIPPED, *words, ci="true")
    assert code == 1
    assert "FAILED test_made.py::test_of_slurm (no Slurm here): in CI only what needs a GPU may be skipped" in lines
    assert [line for line in lines if line.startswith("FAILED")] == [line for line in lines if "test_of_slurm" in line]
    assert {"1 skipped: no GPU here", "1 skipped: no /proc", "1 skipped: no Slurm here"} <= set(lines)


def test_what_needs_a_gpu_or_another_system_may_be_skipped_in_ci(tmp_path: Path) -> None:
    code, lines = run(tmp_path, TESTS, ci="true")
    assert code == 0, lines
    assert "1 skipped: no GPU here" in lines


def test_outside_ci_skips_are_told_and_allowed(tmp_path: Path) -> None:
    code, lines = run(tmp_path, TESTS + SKIPPED, ci="")
    assert code == 0, lines
    assert "1 skipped: no Slurm here" in lines
