"""What the planner reckons with of each kind of GPU, and of the wires between them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.config.load import load_mapping
from toolkit.errors import ConfigError, Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """The wires between nodes, as all ports of a node together."""

    name: str
    bytes_per_s: float
    """One way, all ports of a node; nominal."""
    gather_points: tuple[tuple[int, float], ...] = ()
    """(nodes, bytes/s) that an all-gather was measured to reach; empty: by the planner's own coefficients."""
    reduce_points: tuple[tuple[int, float], ...] = ()
    """The same of an all-reduce."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """One device; rates are dense, the link is NVLink-class, one way."""

    name: str
    peak_bf16_flops: float
    peak_fp32_flops: float
    matmul_part: float
    """Part of the peak that large 16-bit matrix products were measured to reach."""
    attention_part: float
    """Part of the 16-bit peak that FlashAttention-2 reaches over forward and backward of long samples."""
    memory_bytes: int | None
    """None: not checked (the memory of a CPU is shared by its ranks)."""
    memory_bytes_per_s: float
    link_bytes_per_s: float
    network: Network
    gpus_per_node: int
    launch_s: float
    """Time that starting a kernel takes."""
    is_gpu: bool = True
    """Kernels are started ahead of the work; on a CPU they take their turn with it, caches hide the traffic of matrix
    products, and the ramp of short samples and what a step costs whatever its size, seen on GPUs, do not hold."""
    has_bf16: bool = True
    """Whether its units multiply bf16; else its 16-bit peak is fp16's."""
    logit_s: float = 0.0
    """Time a logit takes beside its traffic: exponentials, where there are no units for them."""
    step_s: float = 0.0
    """Time that a step takes whatever its size, where it is not a GPU's."""


# Source: data sheets of Mellanox/NVIDIA InfiniBand EDR, HDR, NDR (100, 200, 400 Gbit/s a port), HPE Slingshot
# (200 Gbit/s a port), AWS EFA; ports a node as in DGX-1V, DGX A100, DGX H100, and the nodes of Frontier.
EDR_4 = Network(name="4 x EDR InfiniBand", bytes_per_s=50e9)
HDR_8 = Network(name="8 x HDR InfiniBand", bytes_per_s=200e9)
NDR_8 = Network(name="8 x NDR InfiniBand", bytes_per_s=400e9)
SLINGSHOT_4 = Network(name="4 x Slingshot 11", bytes_per_s=100e9)
# Source: the same measurements as the 460 layouts of four models on these nodes (nanotron's ultra-scale benchmarks).
EFA_32 = Network(
    name="3200 Gbit/s EFA",
    bytes_per_s=400e9,
    gather_points=((1, 250e9), (2, 185e9), (4, 119e9), (8, 69e9), (16, 55e9), (32, 28e9), (64, 11e9)),
    reduce_points=((1, 436e9), (2, 362e9), (4, 160e9), (8, 100e9), (16, 85e9), (32, 65e9), (64, 33e9)),
)
SOCKETS = Network(name="TCP on one machine", bytes_per_s=2e9)  # assumption: two ranks over loopback
NETWORKS = {"edr": EDR_4, "hdr": HDR_8, "ndr": NDR_8, "slingshot": SLINGSHOT_4, "efa": EFA_32}


def _gib(size: float) -> int:
    return int(size * 2**30)


_H100 = Hardware(
    name="H100",
    peak_bf16_flops=989e12,
    peak_fp32_flops=67e12,
    matmul_part=0.803,  # 794.5 TFLOP/s
    attention_part=0.36,
    memory_bytes=_gib(79.1),
    memory_bytes_per_s=3.35e12,
    link_bytes_per_s=450e9,
    network=NDR_8,
    gpus_per_node=8,
    launch_s=5e-6,
)
_A100 = replace(
    _H100,
    name="A100-80GB",
    peak_bf16_flops=312e12,
    peak_fp32_flops=19.5e12,
    matmul_part=0.869,  # 271 TFLOP/s
    attention_part=0.63,
    memory_bytes_per_s=2.04e12,
    link_bytes_per_s=300e9,
    network=HDR_8,
)
# Source of peaks, memory and links: the vendors' data sheets (dense 16-bit matrix rate, fp32 without TF32).
# Memory is what the driver leaves to programs of the 16, 32, 40, 80 ... GB that the sheet names.
# Source of matmul_part: Bekman, ml-engineering, "Maximum Achievable Matmul FLOPS"; V100: 100 of 125, assumption.
# attention_part: assumption, about what figures 4 to 6 of Dao 2023, arXiv:2307.08691, show for heads of 128, causal,
# long samples, forward and backward (A100: near 0.6 of the peak, H100: near 0.35); others in proportion to H100.
# launch_s: assumption.
_TABLE = {
    "v100": replace(
        _A100,
        name="V100",
        peak_bf16_flops=125e12,
        peak_fp32_flops=15.7e12,
        matmul_part=0.80,
        attention_part=0.5,
        memory_bytes=_gib(31.7),
        memory_bytes_per_s=0.9e12,
        link_bytes_per_s=150e9,
        network=EDR_4,
        has_bf16=False,
    ),
    "a100-40": replace(_A100, name="A100-40GB", memory_bytes=_gib(39.4), memory_bytes_per_s=1.555e12),
    "a100": _A100,
    # Cut-down links: A800, H800. PCIe cards: 114 of 132 multiprocessors, 350 W, HBM2e.
    "a800": replace(_A100, name="A800-80GB", link_bytes_per_s=200e9),
    "h800": replace(_H100, name="H800", link_bytes_per_s=200e9),
    "h100-pcie": replace(
        _H100,
        name="H100 PCIe",
        peak_bf16_flops=756e12,
        peak_fp32_flops=51e12,
        matmul_part=0.70,
        memory_bytes_per_s=2.0e12,
        link_bytes_per_s=64e9,
    ),
    "h100": _H100,
    "gh200": replace(_H100, name="GH200", memory_bytes=_gib(94.5), memory_bytes_per_s=4.0e12),
    "h200": replace(_H100, name="H200", memory_bytes=_gib(139.8), memory_bytes_per_s=4.8e12),
    "b200": replace(
        _H100,
        name="B200",
        peak_bf16_flops=2250e12,
        peak_fp32_flops=80e12,
        matmul_part=0.776,  # 1745 TFLOP/s
        memory_bytes=_gib(178.4),
        memory_bytes_per_s=8.0e12,
        link_bytes_per_s=900e9,
    ),
    # A card is two devices to Slurm and to torch: what a rank gets is one die, half of the data sheet.
    "mi250": replace(
        _H100,
        name="MI250X die",
        peak_bf16_flops=191.5e12,
        peak_fp32_flops=23.9e12,
        matmul_part=0.75,  # assumption: as reported of large products on Frontier's dies
        memory_bytes=_gib(63.9),
        memory_bytes_per_s=1.64e12,
        link_bytes_per_s=175e9,
        network=SLINGSHOT_4,
    ),
    "mi300x": replace(
        _H100,
        name="MI300X",
        peak_bf16_flops=1307e12,
        peak_fp32_flops=163e12,
        matmul_part=0.511,  # 668 TFLOP/s
        attention_part=0.25,
        memory_bytes=_gib(191.5),
        memory_bytes_per_s=5.3e12,
        link_bytes_per_s=448e9,
    ),
}

# Measured on one core of an AVX-512 server that nobody else used: products reach 150 to 165 GFLOP/s in fp32 (in bf16
# 83, or 280 to 355 with instructions for it), attention 44 to 54; the other numbers are what steps of eight small
# shapes took, by least squares: seven numbers, within 1 % of the four shapes that had more than overhead to do.
CPU = Hardware(
    name="CPU core",
    peak_bf16_flops=320e9,
    peak_fp32_flops=171e9,
    matmul_part=1.0,
    attention_part=0.32,
    memory_bytes=None,
    memory_bytes_per_s=10.6e9,
    link_bytes_per_s=2e9,
    network=SOCKETS,
    gpus_per_node=1,
    launch_s=11e-6,
    is_gpu=False,
    logit_s=2.0e-9,
    step_s=2.8e-3,
)


def share_cores(cpu: Hardware, *, ranks: int, cores: int) -> Hardware:
    """Give what a rank has of a CPU's core where ranks are more than cores: all that it does takes longer, alike."""
    part = min(1.0, cores / ranks)
    return replace(
        cpu,
        peak_bf16_flops=cpu.peak_bf16_flops * part,
        peak_fp32_flops=cpu.peak_fp32_flops * part,
        memory_bytes_per_s=cpu.memory_bytes_per_s * part,
        launch_s=cpu.launch_s / part,
        logit_s=cpu.logit_s / part,
        step_s=cpu.step_s / part,
    )


def find_hardware(gpu_type: str | None, *, site: Mapping[str, Hardware] | None = None) -> Hardware:
    """Find a device by a name as Slurm's gres types write it (h100, nvidia_a100_80gb_pcie); None: CPU.

    A memory written in the name (16gb) holds where it is smaller than the table's; a MIG slice (3g.20gb) has its part
    of the units and of the traffic too.

    Args:
        gpu_type: the name.
        site: devices that a site describes itself (`read_hardware`); they win over the table.

    Raises:
        ConfigError: nothing is known of that device.
    """
    if gpu_type is None:
        return CPU
    part = re.fullmatch(r"(.+?)[^a-z0-9](\d)g\.(\d+)gb", gpu_type.lower())
    if part is not None and gpu_type not in (site or {}):
        return _slice(part[1], compute=int(part[2]), memory_gib=int(part[3]), site=site)
    name = re.sub(r"[^a-z0-9]", "", gpu_type.lower())
    for key, gpu in (site or {}).items():
        if re.sub(r"[^a-z0-9]", "", key.lower()) in name:
            return gpu
    if "a100" in name and "40" in name.replace("a100", ""):
        return _TABLE["a100-40"]
    if "h100" in name and "pcie" in name:
        return _TABLE["h100-pcie"]
    found = next((gpu for key, gpu in _TABLE.items() if key in name), None)
    if found is None:
        raise ConfigError([_unknown(gpu_type, [*(site or {}), *_TABLE])])
    assert found.memory_bytes is not None, f"{found.name} of the table has no memory"
    written = re.search(r"(\d+)gb", gpu_type.lower())
    return replace(found, memory_bytes=min(found.memory_bytes, _gib(int(written[1])))) if written else found


def _slice(gpu_type: str, *, compute: int, memory_gib: int, site: Mapping[str, Hardware] | None) -> Hardware:
    """Give a MIG slice with so many of the seven parts of the units; its memory's traffic is in eighths.

    Source: NVIDIA MIG user guide, profiles of A100 and H100 (3g has four eighths of the memory).
    """
    eighths = {1: 1, 2: 2, 3: 4, 4: 4}.get(compute, 8)
    gpu = find_hardware(f"{gpu_type}-{memory_gib * 8 // eighths}gb", site=site)  # the memory tells which card it is
    assert gpu.memory_bytes is not None, f"{gpu.name} has no memory of its own"
    return replace(
        gpu,
        name=f"{gpu.name} {compute}g.{memory_gib}gb",
        peak_bf16_flops=gpu.peak_bf16_flops * compute / 7,
        peak_fp32_flops=gpu.peak_fp32_flops * compute / 7,
        memory_bytes=min(gpu.memory_bytes, _gib(memory_gib)),
        memory_bytes_per_s=gpu.memory_bytes_per_s * eighths / 8,
    )


def _unknown(gpu_type: str, known: Sequence[str]) -> Problem:
    words = ", ".join(f"{field}: NUMBER" for field in _GIVEN if field not in _OPTIONAL)
    return Problem(
        f"the planner does not know the GPU {gpu_type!r}",
        f"it knows {', '.join(known)}",
        f"set cluster.gpu_type to the one nearest to it, or describe it in hardware.yaml beside the site profile: "
        f"{gpu_type}: {{{words}}}",
    )


_GIVEN = {  # word of the file: (field of Hardware, factor)
    "bf16_tflops": ("peak_bf16_flops", 1e12),
    "fp32_tflops": ("peak_fp32_flops", 1e12),
    "memory_gib": ("memory_bytes", 2.0**30),
    "memory_tb_per_s": ("memory_bytes_per_s", 1e12),
    "link_gb_per_s": ("link_bytes_per_s", 1e9),
    "gpus_per_node": ("gpus_per_node", 1.0),
    "matmul_part": ("matmul_part", 1.0),
    "attention_part": ("attention_part", 1.0),
    "network": ("network", 0.0),
    "network_gb_per_s": ("network", 1e9),
    "gather_gb_per_s": ("network", 1e9),
    "reduce_gb_per_s": ("network", 1e9),
    "based_on": ("name", 0.0),
}
_BY_NODES = {"gather_gb_per_s", "reduce_gb_per_s"}
_WHOLE = {"memory_bytes", "gpus_per_node"}
_OPTIONAL = {name for name, (field, _) in _GIVEN.items() if field in {"network", "name"} or field.endswith("_part")}


def read_hardware(path: Path) -> dict[str, Hardware]:
    """Read what a site says of its devices: YAML, {name: {word: number}}; no file: nothing.

    `based_on: h100` takes what is not given from the table; `network` is one of edr, hdr, ndr, slingshot, efa, or
    `network_gb_per_s` (all ports of a node) with measured `gather_gb_per_s` and `reduce_gb_per_s`: {nodes: GB/s}.

    Raises:
        ConfigError: a word that is not known, one that is missing, or one that is no rate or size.
    """
    if not path.is_file():
        return {}
    problems: list[Problem] = []
    devices = {name: _describe(name, words, path, problems) for name, words in load_mapping(path).items()}
    if problems:
        raise ConfigError(problems)
    return devices


def _describe(name: str, words: Any, path: Path, problems: list[Problem]) -> Hardware:
    words = dict(words) if isinstance(words, dict) else {}
    base = _TABLE.get(str(words.get("based_on", "")))
    wrong = [word for word in words if word not in _GIVEN]
    missing = [] if base else [word for word in _GIVEN if word not in _OPTIONAL and word not in words]
    if wrong or missing:
        what = f"{path}: {name}: " + "; ".join(
            f"{kind} {', '.join(found)}" for kind, found in (("unknown", wrong), ("missing", missing)) if found
        )
        rule = f"a device is told in {', '.join(_GIVEN)}"
        problems.append(Problem(what, rule, f"mend it, or add based_on: one of {', '.join(_TABLE)}"))
        return CPU
    mistakes = [Problem(f"{path}: {name}: {said}", must, "mend it") for said, must in _find_mistakes(words)]
    if mistakes:
        problems += mistakes
        return CPU
    told: dict[str, Any] = {"name": name, "network": _describe_network(words, (base or _H100).network)}
    for word, value in words.items():
        field, factor = _GIVEN[word]
        if factor and field != "network":
            told[field] = int(float(value) * factor) if field in _WHOLE else float(value) * factor
    return replace(base or _H100, **told)


def _find_mistakes(words: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the words whose values cannot be, each with what must hold."""
    for word, value in words.items():
        if word == "based_on":
            continue
        if word == "network":
            if value not in NETWORKS:
                yield f"network: {value}", f"known networks: {', '.join(NETWORKS)}"
        elif word in _BY_NODES:
            points = value if isinstance(value, dict) else {"": value}
            if not all(re.fullmatch(r"[0-9]{1,6}", nodes) and _is_rate(rate) for nodes, rate in points.items()):
                yield f"{word}: {value}", "it is {nodes: GB/s}, numbers above 0"
        elif not _is_rate(value):
            yield f"{word}: {value}", "it is a number above 0"


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-6 <= value <= 1e9


def _describe_network(words: Mapping[str, Any], default: Network) -> Network:
    network = NETWORKS.get(str(words.get("network", "")), default)
    if "network_gb_per_s" in words:
        network = Network(name="the site's", bytes_per_s=float(words["network_gb_per_s"]) * 1e9)
    measured: dict[str, Any] = {}
    for word, field in (("gather_gb_per_s", "gather_points"), ("reduce_gb_per_s", "reduce_points")):
        if word in words:
            pairs = sorted((int(nodes), float(rate) * 1e9) for nodes, rate in dict(words[word]).items())
            measured[field] = tuple(pairs)
    return replace(network, **measured)
