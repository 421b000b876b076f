"""What a probe read on a node, and what follows from it: readings in, verdicts out; no clock, no files."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One number that a probe read, or the trouble that kept it from reading one."""

    probe: str
    """A key of `RULES`."""
    node: str
    value: float | None
    """In the unit of the probe's rule; None: there is only trouble."""
    part: str = ""
    """What of the node: `GPU 3`, a directory, a URL; empty: all of it."""
    trouble: str = ""
    """What went wrong, in words; makes the verdict bad whatever the value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What is thought of one reading."""

    probe: str
    node: str
    ok: bool
    measured: float | None
    limit: float | None
    """What it was held against; None: nothing, it is only shown."""
    unit: str
    words: str
    remedy: str
    """What to do; empty where all is well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """When a reading of one probe is bad. Peers are the readings of the same probe on all nodes."""

    title: str
    unit: str
    remedy: str
    low: float | None = None
    """Less is bad."""
    high: float | None = None
    """More is bad; where `above_peers` is set, only together with it."""
    below_peers: float | None = None
    """Less than the median of the peers by this factor is bad."""
    above_peers: float | None = None
    """More than the median of the peers by this factor is bad."""
    is_speed: bool = False
    """It is measured under load, so that a second look may excuse it."""


_DISK = "look at the disk (dmesg, smartctl), or point TMPDIR elsewhere"
_GPU = "drain the node and have the GPU reset (nvidia-smi --gpu-reset); replace it when it comes back"

RULES: Mapping[str, Rule] = {
    # On machines that are shared (emulated nodes), only a comparison means something. 8 of them on 2 busy cores were
    # within a factor of 1.6 in 40 checks.
    "host memory": Rule(
        title="memory bandwidth", unit="GB/s", below_peers=3.0, is_speed=True, remedy="check its DIMMs and its BIOS"
    ),
    "host matmul": Rule(
        title="matrix products", unit="GFLOP/s", below_peers=3.0, is_speed=True,
        remedy="look for foreign processes (top), a power cap or heat",
    ),
    "cores": Rule(title="usable cores", unit="", low=1, below_peers=2.0, remedy="compare lscpu with the other nodes"),
    # As LBNL's node health check does (check_ps_loadavg), whose limits are the site's. assumption: twice the cores.
    "load": Rule(
        title="load a core", unit="", high=2.0, above_peers=3.0, remedy="look for foreign processes (top, ps aux)"
    ),
    # assumption: any disk does 100 MB/s; under 1 MB/s an fsync of a log line takes seconds. Between emulated nodes on
    # one busy disk a factor of 19 was seen.
    "disk": Rule(
        title="writing and reading back", unit="MB/s", low=1.0, below_peers=50.0, is_speed=True, remedy=_DISK
    ),
    "disk space": Rule(
        title="free space", unit="GiB", low=0.5, remedy="remove what former jobs left there, or point TMPDIR elsewhere"
    ),
    "shared directory": Rule(
        title="writing a small file", unit="s", high=20.0, is_speed=True, remedy="look at the mount (df, dmesg)"
    ),
    "storage": Rule(title="an answer", unit="s", high=20.0, is_speed=True, remedy="try it there by hand"),
    # Credentials live 300 s (munge) and 5 minutes (Kerberos); a clock kept by NTP is right to milliseconds.
    "clock": Rule(
        title="offset from the others", unit="s", high=2.0, is_speed=True, remedy="have its time service looked at"
    ),
    "probes": Rule(title="all probes", unit="s", remedy="log in and look what hangs (ps, dmesg)"),
    "gpus": Rule(title="GPUs present", unit="", low=1, remedy="drain the node: a GPU has fallen off the bus"),
    # Source: facebookresearch/gcm, check-nvidia-smi: no uncorrected volatile error, no pending or failed remapping,
    # at most 10 retired pages. NVIDIA, GPU Memory Error Management: a pending remapping wants a reset, a failed one
    # another GPU.
    "gpu ecc": Rule(title="uncorrected memory errors", unit="", high=0, remedy=_GPU),
    "gpu rows": Rule(title="repairs of memory that wait or failed", unit="", high=0, remedy=_GPU),
    "gpu pages": Rule(title="retired pages", unit="", high=10, remedy=_GPU),
    "gpu recovery": Rule(title="recovery that the driver asks for", unit="", remedy=_GPU),
    "gpu heat": Rule(title="degrees above its limit", unit="C", high=0, remedy="have cooling and air flow looked at"),
    "gpu brakes": Rule(
        title="brakes by heat or power", unit="", high=0, remedy="have power supply and cooling looked at"
    ),
    "gpu processes": Rule(title="foreign processes", unit="", high=0, remedy="have them ended: a former job left them"),
    # A10G instances run 8 lanes of 16 in good health (recorded in telegraf's tests), so only a comparison means much.
    "gpu lanes": Rule(title="PCIe lanes", unit="", below_peers=1.5, remedy="have the GPU reseated"),
    "xid": Rule(title="grave driver errors (Xid) in 24 h", unit="", high=0, remedy=_GPU),
    # As DCGM's targeted stress and memory bandwidth tests do, whose targets are set for each product. assumption: GPUs
    # of one kind are within 1.3 of each other.
    "gpu matmul": Rule(
        title="matrix products", unit="TFLOP/s", below_peers=1.3, is_speed=True, remedy="look at clocks and power caps"
    ),
    "gpu memory": Rule(title="memory bandwidth", unit="GB/s", below_peers=1.3, is_speed=True, remedy=_GPU),
    "all-reduce": Rule(
        title="bus bandwidth of all", unit="GB/s", is_speed=True, remedy="see the pairs: they name the node"
    ),
    "latency": Rule(title="small all-reduce", unit="ms", remedy=""),
    # Between emulated nodes on a very busy machine a factor of 5 was seen; a link that fell back from 10 to 1 Gbit/s is
    # 10 times slower. Where there are GPUs, `set_limits` is stricter.
    "pairs": Rule(
        title="bandwidth to its best partner", unit="GB/s", below_peers=8.0, is_speed=True,
        remedy="check its network cards and cables (ibstat, ethtool)",
    ),
}  # fmt: skip

ALL = "all"
"""Stands for the node of a reading that belongs to none."""
GPU_MATMUL_PART = 0.35
"""Part of the data sheet's peak below which a GPU is bad. assumption: a healthy one reaches 0.5 and more."""
NETWORK_PART = 0.2
"""Part of the network's rate below which an all-reduce is slow. assumption, as is the next one."""
_GPU_PAIRS = 1.5


def set_limits(
    *, gpus_per_node: int, peak_flops: float | None, network_bytes_per_s: float | None, limits: Mapping[str, float]
) -> dict[str, Rule]:
    """Fill the rules with what is known of the hardware; a limit of the user's replaces what is there.

    Args:
        gpus_per_node: GPUs that must be there; 0: none are looked for.
        peak_flops: data sheet's rate of a GPU; None: only compared with each other.
        network_bytes_per_s: rate of a rank's network; None: not known.
        limits: by probe: the least of a rate, the most of anything else; nodes are not compared then.
    """
    rules = dict(RULES)
    rules["gpus"] = replace(rules["gpus"], low=float(gpus_per_node))
    if gpus_per_node:
        rules["pairs"] = replace(rules["pairs"], below_peers=_GPU_PAIRS)
    if peak_flops is not None:
        rules["gpu matmul"] = replace(rules["gpu matmul"], low=GPU_MATMUL_PART * peak_flops / 1e12)
    if network_bytes_per_s is not None:
        rules["all-reduce"] = replace(rules["all-reduce"], low=NETWORK_PART * network_bytes_per_s / 1e9)
    for probe, limit in limits.items():
        rule = rules[probe]
        is_least = rule.low is not None or rule.below_peers is not None or probe == "all-reduce"
        low, high = (limit, None) if is_least else (None, limit)
        rules[probe] = replace(rule, low=low, high=high, below_peers=None, above_peers=None)
    return rules


def judge(readings: Iterable[Reading], rules: Mapping[str, Rule]) -> tuple[Verdict, ...]:
    """Hold every reading against its rule; bad ones first, then by node and probe."""
    known = list(readings)
    peers: dict[str, list[float]] = {}
    for reading in known:
        if reading.value is not None:
            peers.setdefault(reading.probe, []).append(reading.value)
    # The upper median: of two nodes the better one is the measure.
    medians = {probe: statistics.median_high(values) for probe, values in peers.items()}
    verdicts = [_judge_one(reading, rules[reading.probe], medians.get(reading.probe)) for reading in known]
    return tuple(sorted(verdicts, key=lambda verdict: (verdict.ok, verdict.node, verdict.probe, verdict.words)))


def bad_nodes(verdicts: Iterable[Verdict]) -> dict[str, str]:
    """Collect the nodes with a bad verdict, each with its reasons; what most nodes share blames none of them."""
    known = list(verdicts)
    shared = common_troubles(known)
    reasons: dict[str, list[str]] = {}
    for verdict in known:
        if not verdict.ok and verdict.node != ALL and verdict.probe not in shared:
            reasons.setdefault(verdict.node, []).append(f"{verdict.probe}: {verdict.words}")
    return {node: "; ".join(dict.fromkeys(said)) for node, said in reasons.items()}


def common_troubles(verdicts: Iterable[Verdict]) -> dict[str, str]:
    """Give the probes that more than half of the nodes failed (of two or more), each with an example.

    Storage that is down, or a limit that is out of reach, is no node's fault: it would leave out the whole cluster.
    """
    known = [verdict for verdict in verdicts if verdict.node != ALL]
    num_nodes = len({verdict.node for verdict in known})
    failed: dict[str, dict[str, str]] = {}
    for verdict in known:
        if not verdict.ok:
            failed.setdefault(verdict.probe, {}).setdefault(verdict.node, verdict.words)
    return {
        probe: f"{len(said)} of {num_nodes} nodes: {next(iter(said.values()))}"
        for probe, said in failed.items()
        if num_nodes > 1 and 2 * len(said) > num_nodes
    }


def _judge_one(reading: Reading, rule: Rule, median: float | None) -> Verdict:
    limit, why = None, ""
    if reading.value is not None and median is not None:
        limit, why = _find_limit(reading.value, rule, median)
    bad = bool(reading.trouble or why)
    name = f"{rule.title} ({reading.part})" if reading.part else rule.title
    value = "" if reading.value is None else f" {_number(reading.value)} {rule.unit}".rstrip()
    words = reading.trouble or f"{name}:{value}{why}"
    return Verdict(
        probe=reading.probe,
        node=reading.node,
        ok=not bad,
        measured=reading.value,
        limit=limit,
        unit=rule.unit,
        words=f"{reading.part}: {words}" if reading.part and reading.trouble else words,
        remedy=rule.remedy if bad else "",
    )


def _find_limit(value: float, rule: Rule, median: float) -> tuple[float | None, str]:
    """Give the limit that counts, and why the value is bad; nothing where it is not."""
    floor = None if rule.below_peers is None else median / rule.below_peers
    lows = [low for low in (rule.low, floor) if low is not None]
    if lows:
        low = max(lows)
        if value >= low:
            return low, ""
        if low == floor:
            return low, f", the median of all nodes is {_number(median)}"
        return low, f", must be at least {_number(low)}"
    if rule.high is None:
        return None, ""
    high = rule.high if rule.above_peers is None else max(rule.high, rule.above_peers * median)
    return high, "" if value <= high else f", must be at most {_number(high)}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"
