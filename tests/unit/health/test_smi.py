"""nvidia-smi and the kernel's log, read from recordings; a sick GPU is a recording with one word changed."""

from pathlib import Path

import pytest

from toolkit.health.smi import read_gpus, read_xids
from toolkit.health.verdicts import bad_nodes, judge, set_limits

RECORDED = Path(__file__).parent / "recorded"
A10G = (RECORDED / "a10g-v11.xml").read_text(encoding="utf-8")
A5000 = (RECORDED / "dual-a5000-v13.xml").read_text(encoding="utf-8")


def say(xml: str, *, gpus: int, foreign: bool = False) -> dict[str, str]:
    readings = read_gpus(xml, node="n1", gpus_per_node=gpus, is_foreign=lambda pid: foreign)
    rules = set_limits(gpus_per_node=gpus, peak_flops=None, network_bytes_per_s=None, limits={})
    return bad_nodes(judge(readings, rules))


def test_recorded_gpus_in_good_health_pass() -> None:
    assert say(A10G, gpus=1) == {}
    assert say(A5000, gpus=2) == {}


def test_what_the_driver_does_not_tell_is_absent() -> None:
    probes = {reading.probe for reading in read_gpus(A5000, node="n", gpus_per_node=2, is_foreign=bool)}
    assert "gpu ecc" not in probes  # its ECC is off
    assert {"gpus", "gpu rows", "gpu heat", "gpu brakes", "gpu processes", "gpu lanes"} == probes
    assert "gpu ecc" in {reading.probe for reading in read_gpus(A10G, node="n", gpus_per_node=1, is_foreign=bool)}


@pytest.mark.parametrize(
    ("xml", "good", "sick", "words"),
    [
        (A10G, "<dram_uncorrectable>0", "<dram_uncorrectable>3", "uncorrected memory errors (GPU 0): 3"),
        (A10G, "<remapped_row_failure>No", "<remapped_row_failure>Yes", "repairs of memory that wait or failed"),
        (A10G, "<remapped_row_pending>No", "<remapped_row_pending>Yes", "repairs of memory that wait or failed"),
        (A10G, "<pending_retirement>N/A", "<pending_retirement>Yes", "repairs of memory that wait or failed"),
        (A10G, "<retired_count>N/A", "<retired_count>12", "retired pages (GPU 0): 12, must be at most 10"),
        (A10G, "<gpu_temp>17", "<gpu_temp>91", "degrees above its limit (GPU 0): 3 C"),
        (A10G, "brake_slowdown>Not Active", "brake_slowdown>Active", "brakes by heat or power"),
        (A5000, "hw_thermal_slowdown>Not Active", "hw_thermal_slowdown>Active", "brakes by heat or power"),
        (A5000, "<gpu_recovery_action>None", "<gpu_recovery_action>Reboot", "GPU 0: the driver asks for: Reboot"),
        (A5000, "<gpu_temp_tlimit>N/A", "<gpu_temp_tlimit>20 C", ""),
        (A5000, "<unrepairable_memory>N/A", "<unrepairable_memory>Yes", "repairs of memory that wait or failed"),
    ],
)
def test_a_sick_gpu_is_named(xml: str, good: str, sick: str, words: str) -> None:
    assert good in xml
    found = say(xml.replace(good, sick, 1), gpus=2 if xml is A5000 else 1)
    assert words in found.get("n1", "")
    assert bool(found) == bool(words)


def test_a_gpu_that_is_gone_is_missed() -> None:
    assert "GPUs present: 2, must be at least 4" in say(A5000, gpus=4)["n1"]


def test_a_foreign_process_counts_only_where_all_gpus_are_ours() -> None:
    assert "foreign processes (GPU 0): 1" in say(A5000, gpus=2, foreign=True)["n1"]
    assert say(A5000, gpus=1, foreign=True) == {}  # a shared node: the other GPU is somebody else's


def test_an_answer_that_is_no_xml_is_a_verdict() -> None:
    assert "cannot be read" in say("Unable to determine the device handle for GPU 0000:4F:00.0", gpus=1)["n1"]


def test_grave_xids_of_the_last_day_count() -> None:
    log = "\n".join(
        [
            "[ 1000.125] NVRM: Xid (PCI:0000:01:00): 79, pid=1122, GPU has fallen off the bus.",
            "[90000.500] NVRM: Xid (PCI:0000:00:06): 31, pid=79749, name=exe, Ch 0000000a, intr 00000000. MMU Fault",
            "[95000.000] NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper: New row marked for remapping",
            "[99000.000] NVRM: Xid (PCI:0000:23:00): 79, GPU has fallen off the bus.",
        ]
    )
    (reading,) = read_xids(log, node="n1", uptime_s=100_000)
    assert reading.value == 1
    assert reading.trouble == "Xid 79 (GPU has fallen off the bus) of GPU 0000:23:00"
    (later,) = read_xids(log, node="n1", uptime_s=99_000 + 86_401)
    assert (later.value, later.trouble) == (0, "")
