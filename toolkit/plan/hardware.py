"""What the planner reckons with of each kind of GPU."""

import re
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """One device; rates are dense peaks, the link is NVLink-class, one way."""

    name: str
    peak_bf16_flops: float
    peak_fp32_flops: float
    memory_bytes: int | None
    """None: not checked (the memory of a CPU is shared by its ranks)."""
    link_bytes_per_s: float
    network_bytes_per_s: float
    achievable: float
    """Part of the peak that a training reaches as a rule."""
    layer_overhead_s: float
    """Time a layer takes beside its arithmetic, forward and backward of one micro-batch. assumption."""


def _gpu(name: str, bf16_tflops: float, fp32_tflops: float, memory_gb: float, link_gb_per_s: float) -> Hardware:
    return Hardware(
        name=name,
        peak_bf16_flops=bf16_tflops * 1e12,
        peak_fp32_flops=fp32_tflops * 1e12,
        memory_bytes=int(memory_gb * 1e9),
        link_bytes_per_s=link_gb_per_s * 1e9,
        network_bytes_per_s=50e9,  # one 400 Gbit/s port a GPU
        achievable=0.40,
        layer_overhead_s=0.5e-3,
    )


# Source: the vendors' data sheets (dense 16-bit matrix rate, fp32 vector or TF32-free rate, memory, link).
_TABLE = {
    "v100": _gpu("V100", 125, 15.7, 32, 150),
    "a100-40": _gpu("A100-40GB", 312, 19.5, 40, 300),
    "a100": _gpu("A100-80GB", 312, 19.5, 80, 300),
    "h100": _gpu("H100", 989, 67, 80, 450),
    "h200": _gpu("H200", 989, 67, 141, 450),
    "b200": _gpu("B200", 2250, 80, 180, 900),
    # A card is two devices to Slurm and to torch: what a rank gets is one die, half of the data sheet.
    "mi250": _gpu("MI250X die", 191.5, 23.9, 64, 175),
    "mi300x": _gpu("MI300X", 1307, 163, 192, 448),
}

# assumption: 60 GFLOP/s of fp32 matrix products a core, measured on one core of an AVX-512 server.
CPU = Hardware(
    name="CPU core",
    peak_bf16_flops=60e9,
    peak_fp32_flops=60e9,
    memory_bytes=None,
    link_bytes_per_s=2e9,
    network_bytes_per_s=2e9,
    achievable=0.5,
    layer_overhead_s=4e-3,
)


def find_hardware(gpu_type: str | None) -> Hardware:
    """Find a device by a name as Slurm's gres types write it (h100, nvidia_a100_80gb_pcie); None: CPU.

    A memory written in the name (16gb, or a MIG slice 1g.10gb) holds where it is smaller than the table's.
    An unknown name is taken for the smallest modern GPU, and the device's name says so.
    """
    if gpu_type is None:
        return CPU
    name = re.sub(r"[^a-z0-9]", "", gpu_type.lower())
    if "a100" in name and "40" in name.replace("a100", ""):
        return _TABLE["a100-40"]
    gpu = next((gpu for key, gpu in _TABLE.items() if key in name), None)
    if gpu is None:
        guess = _TABLE["a100-40"]
        return replace(guess, name=f"{gpu_type}, unknown: taken for {guess.name}")
    written = re.search(r"(\d+)gb", gpu_type.lower())
    assert gpu.memory_bytes is not None, f"{gpu.name} of the table has no memory"
    return replace(gpu, memory_bytes=min(gpu.memory_bytes, int(written[1]) * 10**9)) if written else gpu
