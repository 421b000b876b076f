"""What the driver says of a node's GPUs: `nvidia-smi -q -x` and the kernel's log, read into readings."""

import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator

from toolkit.health.verdicts import Reading

_TIMEOUT_S = 30.0
XID_AGE_S = 86400.0

# Xid codes after which the node does not serve until somebody has acted; the rest (13, 31, 43, 45, 94) are the
# program's own, or contained.
# Source: descriptions and actions of NVIDIA's Xid catalog (docs.nvidia.com/deploy/xid-errors); for 46 and 48 NVIDIA
# Health Validation says to drain the node. assumption: the choice of the others.
_GRAVE_XIDS = {
    46: "GPU stopped processing",
    48: "double-bit memory error",
    62: "internal micro-controller halt",
    64: "row remapping failed",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    95: "uncontained memory error",
    109: "context switch timeout",
    119: "GSP does not answer",
    120: "GSP error",
    140: "unrecovered memory error",
    143: "GPU did not initialise",
}
_XID = re.compile(r"^\[\s*(\d+\.\d+)\].*NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)", re.MULTILINE)
_REPAIRS = (
    "remapped_row_pending",
    "remapped_row_failure",
    "pending_retirement",
    "channel_repair_pending",
    "tpc_repair_pending",
    "unrepairable_memory",
)
_BRAKES = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")


def query_gpus() -> str:
    """Ask nvidia-smi for everything, as XML.

    Raises:
        FileNotFoundError: there is no nvidia-smi.
        OSError: it failed, or does not end (TimeoutError).
    """
    try:
        done = subprocess.run(
            ["nvidia-smi", "-q", "-x"], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"nvidia-smi does not answer in {_TIMEOUT_S:g} s: a GPU or the driver hangs") from error
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise OSError(f"nvidia-smi failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout


def read_kernel_log() -> str | None:
    """Give the kernel's log with seconds since boot; None where a user may not read it."""
    try:
        done = subprocess.run(["dmesg"], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def read_gpus(xml: str, *, node: str, gpus_per_node: int, is_foreign: Callable[[int], bool]) -> list[Reading]:
    """Turn the XML of `nvidia-smi -q -x` into readings; what the driver does not tell (N/A) is left out.

    Args:
        xml: output of drivers 450 to 590 (nvsmi_device v11, v12, v13).
        node: node that said it.
        gpus_per_node: GPUs that the job has there; where more are seen, others may use them, so that processes are
            not counted.
        is_foreign: tells a process that is not of this job by its id.
    """
    try:
        gpus = ET.fromstring(xml).findall("gpu")
    except ET.ParseError as error:
        return [Reading(probe="gpus", node=node, value=None, trouble=f"nvidia-smi's answer cannot be read: {error}")]
    readings = [Reading(probe="gpus", node=node, value=float(len(gpus)))]
    for index, gpu in enumerate(gpus):
        part = f"GPU {index}"
        numbers = {**_memory_numbers(gpu), **_heat_numbers(gpu), "gpu lanes": _number(gpu, "current_link_width")}
        if len(gpus) <= gpus_per_node:
            pids = [int(found.text or 0) for found in gpu.iterfind("processes/process_info/pid")]
            numbers["gpu processes"] = float(sum(map(is_foreign, pids)))
        readings += [
            Reading(probe=probe, node=node, value=value, part=part)
            for probe, value in numbers.items()
            if value is not None
        ]
        readings += _recovery(gpu, node=node, part=part)
    return readings


def read_xids(log: str, *, node: str, uptime_s: float) -> list[Reading]:
    """Count the grave Xids of the last day in the kernel's log: `[seconds since boot] NVRM: Xid (PCI:...): 79, ...`."""
    newest = [match for match in _XID.finditer(log) if uptime_s - float(match[1]) <= XID_AGE_S]
    grave = [(match[2], int(match[3])) for match in newest if int(match[3]) in _GRAVE_XIDS]
    named = sorted({f"Xid {code} ({_GRAVE_XIDS[code]}) of GPU {bus}" for bus, code in grave})
    return [Reading(probe="xid", node=node, value=float(len(grave)), trouble="; ".join(named))]


def _memory_numbers(gpu: ET.Element) -> dict[str, float | None]:
    errors = [_plain(count) for count in gpu.iterfind("ecc_errors/volatile/*") if "uncorrectable" in count.tag]
    # older GPUs (before Ampere) nest them: ecc_errors/volatile/double_bit/total
    errors += [_plain(count) for count in gpu.iterfind("ecc_errors/volatile/double_bit/total")]
    counted = [error for error in errors if error is not None]
    told = [word for word in (_text(gpu, name) for name in _REPAIRS) if word in {"Yes", "No"}]
    pages = [_plain(count) for count in gpu.iterfind("retired_pages/*/retired_count")]
    retired = [count for count in pages if count is not None]
    return {
        "gpu ecc": sum(counted) if counted else None,
        "gpu rows": float(told.count("Yes")) if told else None,
        "gpu pages": sum(retired) if retired else None,
    }


def _heat_numbers(gpu: ET.Element) -> dict[str, float | None]:
    degrees, most = _number(gpu, "gpu_temp"), _number(gpu, "gpu_temp_max_gpu_threshold")
    margin = _number(gpu, "gpu_temp_tlimit")  # Hopper and later: degrees that are left
    above = degrees - most if degrees is not None and most is not None else None
    if above is None and margin is not None:
        above = -margin
    flags = [flag for name in _BRAKES for flag in gpu.iter() if flag.tag.endswith(f"_reason_{name}")]
    active = [flag for flag in flags if (flag.text or "").strip() == "Active"]
    return {"gpu heat": above, "gpu brakes": float(len(active)) if flags else None}


def _recovery(gpu: ET.Element, *, node: str, part: str) -> Iterator[Reading]:
    action = _text(gpu, "gpu_recovery_action")
    if action not in {None, "None", "N/A"}:
        trouble = f"the driver asks for: {action}"
        yield Reading(probe="gpu recovery", node=node, value=None, part=part, trouble=trouble)
    for name in ("reset_required", "drain_and_reset_recommended"):
        if _text(gpu, name) == "Yes":
            trouble = f"the driver says {name.replace('_', ' ')}"
            yield Reading(probe="gpu recovery", node=node, value=None, part=part, trouble=trouble)


def _text(gpu: ET.Element, name: str) -> str | None:
    found = next(gpu.iter(name), None)
    return None if found is None else (found.text or "").strip()


def _number(gpu: ET.Element, name: str) -> float | None:
    found = next(gpu.iter(name), None)
    return None if found is None else _plain(found)


def _plain(element: ET.Element) -> float | None:
    """Read `27 C`, `16x`, `0`; None for `N/A` and the like."""
    match = re.match(r"\s*(-?\d+(?:\.\d+)?)", element.text or "")
    return float(match[1]) if match else None
