"""Quick looks at one node: its memory, cores, disks, storage and GPUs; each gives readings, none hangs the caller."""

import functools
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from toolkit import storage
from toolkit.errors import ToolkitError
from toolkit.health import smi
from toolkit.health.verdicts import Reading

Probe = Callable[[], list[Reading]]

_SAMPLING_S = 0.06  # of each rate, in samples of 1 to 10 ms
_SAMPLES = 5
_COPY_THREADS = 4
_DISK_BYTES = 2 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is looked at, and what it is held against."""

    temp_dir: Path
    """Directory on a disk of the node; see `find_temp_dir`."""
    shared_dir: Path | None
    """Directory that all nodes see (of all runs)."""
    job_id: str
    """Processes of this job are expected on its GPUs."""
    copy_bytes: int
    """What a thread copies to measure the memory: more than its share of the caches; little on emulated nodes."""
    urls: tuple[str, ...] = ()
    """Storage that must answer."""
    gpus_per_node: int
    """GPUs that the job has on each node; 0: none are looked for."""
    peak_flops: float | None
    """Data sheet's 16-bit rate of a GPU."""
    network_bytes_per_s: float | None
    """Rate of a rank's network; where an all-reduce is slow against it, pairs of nodes are tested."""
    test_pairs: bool = False
    """Test pairs of nodes in any case."""
    timeout_s: float = 30.0
    """A probe that takes longer is a verdict of its own."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Of the user: see `verdicts.set_limits`."""


def find_temp_dir(environ: Mapping[str, str]) -> Path:
    """Say where a node keeps temporary files, whether or not that place is any good.

    `tempfile.gettempdir` would quietly take another one when TMPDIR cannot be written.
    """
    return Path(environ.get("SLURM_TMPDIR") or environ.get("TMPDIR") or "/tmp")


def probe_host(asked: Asked, *, node: str) -> list[Reading]:
    """Look at all of a node but the rates of its GPUs; one process of the node does it."""
    probes: dict[str, Probe] = {
        "host memory": lambda: [*_probe_speed(node, copy_bytes=asked.copy_bytes), *_probe_cores(node)],
        "disk": lambda: _probe_disk(node, asked.temp_dir),
    }
    if asked.shared_dir is not None:
        shared_dir = asked.shared_dir
        probes["shared directory"] = lambda: [_probe_shared(node, shared_dir)]
    if asked.urls:
        probes["storage"] = lambda: [_probe_url(node, url, patience_s=asked.timeout_s / 2) for url in asked.urls]
    if asked.gpus_per_node:
        probes["gpus"] = lambda: _probe_driver(node, asked)
    return run_bounded(probes, node=node, timeout_s=asked.timeout_s)


def run_bounded(probes: Mapping[str, Probe], *, node: str, timeout_s: float) -> list[Reading]:
    """Run probes beside each other; one that does not end in time, or fails, is a reading with trouble."""
    found: dict[str, list[Reading]] = {}
    bugs: list[BaseException] = []

    def run(name: str, probe: Probe) -> None:
        try:
            found[name] = probe()
        except (OSError, ToolkitError) as error:
            found[name] = [Reading(probe=name, node=node, value=None, trouble=_first_line(error))]
        except BaseException as error:  # a thread reports to the main one
            bugs.append(error)

    threads = [
        threading.Thread(target=run, args=(name, probe), name=f"probe {name}", daemon=True)
        for name, probe in probes.items()
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if bugs:
        raise bugs[0]
    # Whoever hangs in the kernel (a dead mount) cannot be ended: its thread stays behind.
    hung = [name for name in probes if name not in found]
    late = [Reading(probe=name, node=node, value=None, trouble=f"no end after {timeout_s:g} s") for name in hung]
    return [reading for readings in found.values() for reading in readings] + late


def _probe_speed(node: str, *, copy_bytes: int) -> list[Reading]:
    """Measure what the memory copies (read and write count) and one core multiplies."""
    threads = min(_COPY_THREADS, len(os.sched_getaffinity(0)))
    rates: list[float] = []

    def copy() -> None:
        source, target = np.ones(copy_bytes, np.uint8), np.empty(copy_bytes, np.uint8)
        copy_s = _typical_time(lambda: np.copyto(target, source))
        rates.append(2 * copy_bytes / copy_s)

    workers = [threading.Thread(target=copy, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    size, count = 64, 50  # so small that the library takes one thread, whatever it was told
    left = np.arange(size * size, dtype=np.float32).reshape(size, size) % 7
    product = np.empty_like(left)

    def multiply() -> None:
        for _ in range(count):
            np.matmul(left, left, out=product)

    matmul_s = _typical_time(multiply)
    wrong = not np.array_equal(product, (left.astype(np.int64) @ left.astype(np.int64)).astype(np.float32))
    return [
        Reading(probe="host memory", node=node, value=sum(rates) / 1e9),
        Reading(
            probe="host matmul",
            node=node,
            value=2 * count * size**3 / matmul_s / 1e9,
            trouble="a product of small whole numbers came out wrong" if wrong else "",
        ),
    ]


def _typical_time(act: Callable[[], object]) -> float:
    """Give the median CPU time that an act of this thread takes: what others take of a shared core is not counted."""
    times: list[float] = []
    end = time.perf_counter() + _SAMPLING_S
    act()  # the first touch of its memory
    while len(times) < _SAMPLES or time.perf_counter() < end:
        start = time.thread_time()
        act()
        times.append(time.thread_time() - start)
    return statistics.median(times)


def _probe_cores(node: str) -> list[Reading]:
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return [
        Reading(probe="cores", node=node, value=float(len(os.sched_getaffinity(0)))),
        Reading(probe="load", node=node, value=load),
    ]


def _probe_disk(node: str, directory: Path) -> list[Reading]:
    """Write a few MiB, wait until they are on the disk, read them back."""
    part = str(directory)
    try:
        free = storage.free_bytes(directory) / 2**30
        data = np.random.default_rng(0).bytes(_DISK_BYTES)
        with tempfile.TemporaryFile(dir=directory) as file:
            start = time.perf_counter()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            seconds = time.perf_counter() - start
            file.seek(0)
            trouble = "" if file.read() == data else "what was written is not what is read"
    except OSError as error:
        return [Reading(probe="disk", node=node, value=None, part=part, trouble=_cannot("write", error))]
    return [
        Reading(probe="disk", node=node, value=_DISK_BYTES / seconds / 1e6, part=part, trouble=trouble),
        Reading(probe="disk space", node=node, value=free, part=part),
    ]


def _probe_shared(node: str, directory: Path) -> Reading:
    """Write, read and delete a small file where the runs are."""
    start = time.perf_counter()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=f".health.{node}.") as file:
            file.write(node.encode())
            file.flush()
            os.fsync(file.fileno())
            trouble = "" if Path(file.name).read_bytes() == node.encode() else "what was written is not what is read"
    except OSError as error:
        trouble = _cannot("write", error)
    seconds = time.perf_counter() - start
    return Reading(probe="shared directory", node=node, value=seconds, part=str(directory), trouble=trouble)


def _probe_url(node: str, url: str, *, patience_s: float) -> Reading:
    start, trouble = time.perf_counter(), ""
    try:
        with storage.patience(patience_s):
            storage.exists(url)
    except ToolkitError as error:
        trouble = _first_line(error)
    return Reading(probe="storage", node=node, value=time.perf_counter() - start, part=url, trouble=trouble)


def _probe_driver(node: str, asked: Asked) -> list[Reading]:
    try:
        xml = smi.query_gpus()
    except FileNotFoundError:  # another vendor's, or a container without it: count what is there
        found = [path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()]
        return [Reading(probe="gpus", node=node, value=float(len(found)))]

    def is_foreign(pid: int) -> bool:
        return _is_foreign(pid, job_id=asked.job_id)

    readings = smi.read_gpus(xml, node=node, gpus_per_node=asked.gpus_per_node, is_foreign=is_foreign)
    log = smi.read_kernel_log()
    return readings if log is None else [*readings, *smi.read_xids(log, node=node, uptime_s=time.monotonic())]


def _is_foreign(pid: int, *, job_id: str) -> bool:
    """Whether a process lives here and is not of this job; the driver also names some that have ended."""
    try:
        return f"SLURM_JOB_ID={job_id}".encode() not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except PermissionError:  # another user's
        return True
    except OSError:
        return False


def probe_gpu(node: str, *, index: int, sizes: Sequence[int] = (8192, 1 << 30)) -> list[Reading]:
    """Measure the current GPU: 16-bit matrix products, and copying within its memory (read and write count).

    Args:
        node: name of this node.
        index: number of the GPU, for its name in words.
        sizes: rows of the square matrices, bytes of the copy.
    """
    # deferred: the host's probes run where there is no torch
    import torch  # noqa: PLC0415

    part, (rows, num_bytes) = f"GPU {index}", sizes
    try:
        left = torch.randn(rows, rows, dtype=torch.bfloat16, device="cuda")
        first, again = left @ left, left @ left
        matmul_s = _time_kernels(functools.partial(torch.mm, left, left, out=again))
        trouble = "" if torch.equal(first, again) else "the same product came out differently"
        source, target = (torch.empty(num_bytes, dtype=torch.uint8, device="cuda") for _ in range(2))
        copy_s = _time_kernels(functools.partial(target.copy_, source))
    except RuntimeError as error:  # CUDA's own errors: an uncorrectable one in memory, no free memory
        return [Reading(probe="gpu matmul", node=node, value=None, part=part, trouble=_first_line(error))]
    return [
        Reading(probe="gpu matmul", node=node, value=2 * rows**3 / matmul_s / 1e12, part=part, trouble=trouble),
        Reading(probe="gpu memory", node=node, value=2 * num_bytes / copy_s / 1e9, part=part),
    ]


def _time_kernels(act: Callable[[], object], *, repeats: int = 10) -> float:
    import torch  # noqa: PLC0415 - as above

    act()
    times = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(repeats):
            act()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000 / repeats)
    return float(min(times))


def _cannot(act: str, error: OSError) -> str:
    return f"cannot {act}: {error.strerror or error}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
