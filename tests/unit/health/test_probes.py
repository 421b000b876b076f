"""Probes of the host, on this machine; what they measure means nothing here, what they notice does."""

import os
import threading
from pathlib import Path

from toolkit.health.probes import Asked, find_temp_dir, probe_host, run_bounded
from toolkit.health.verdicts import RULES, Reading, bad_nodes, judge


def ask(temp_dir: Path, shared_dir: Path, *urls: str) -> Asked:
    return Asked(
        temp_dir=temp_dir,
        shared_dir=shared_dir,
        job_id="1",
        copy_bytes=1 << 20,
        urls=urls,
        gpus_per_node=0,
        peak_flops=None,
        network_bytes_per_s=None,
    )


def test_a_healthy_host_gives_a_figure_for_each_probe_and_leaves_nothing(tmp_path: Path) -> None:
    readings = probe_host(ask(tmp_path, tmp_path / "runs", str(tmp_path)), node="n1")
    assert {reading.probe for reading in readings} == {
        *("host memory", "host matmul", "cores", "load", "disk", "disk space", "shared directory", "storage")
    }
    assert all(reading.value is not None and reading.trouble == "" for reading in readings)
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = bad_nodes(judge(probe_host(ask(Path("/proc"), tmp_path / "file" / "runs"), node="n1"), RULES))
    assert "disk: /proc: cannot write" in found["n1"]
    assert f"shared directory: {tmp_path}/file/runs: cannot write: Not a directory" in found["n1"]


def test_a_probe_that_hangs_is_a_verdict_and_holds_nobody_up() -> None:
    never = threading.Event()

    def hang() -> list[Reading]:
        never.wait()
        return []

    well = Reading(probe="cores", node="n1", value=2)
    readings = run_bounded({"storage": hang, "cores": lambda: [well]}, node="n1", timeout_s=0.05)
    never.set()
    assert readings[0] == well
    assert (readings[1].probe, readings[1].trouble) == ("storage", "no end after 0.05 s")


def test_a_failing_probe_says_why() -> None:
    def fail() -> list[Reading]:
        raise TimeoutError("nvidia-smi does not answer in 30 s")

    (reading,) = run_bounded({"gpus": fail}, node="n1", timeout_s=5)
    assert reading.trouble == "nvidia-smi does not answer in 30 s"


def test_the_temporary_directory_is_the_one_that_was_set_good_or_bad() -> None:
    assert find_temp_dir({"TMPDIR": "/proc", "SLURM_TMPDIR": ""}) == Path("/proc")
    assert find_temp_dir({"TMPDIR": "/a", "SLURM_TMPDIR": "/b"}) == Path("/b")
    assert find_temp_dir({}) == Path(os.sep) / "tmp"
