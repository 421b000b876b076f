"""Environment -> process group; agree, gather and barrier, each with a timeout that names who is missing.

Control traffic (stop flags, verdicts, small objects) has a gloo group of its own beside the group that
moves gradients, so that it works on hosts without a GPU and never waits behind a queue of kernels.
"""

import ctypes
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from toolkit.errors import LostPeersError, ToolkitError, TryAgainError
from toolkit.meeting import Notes, Seal, find_strangers, open_store

log = logging.getLogger(__name__)

_LISTEN_S = 120.0  # how long the others look for rank 0 by themselves, before torch's own client does
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_NEEDED = (
    *("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID"),
    *("MASTER_ADDR", "MASTER_PORT", "TOOLKIT_SECRET"),
)
_GRACE_S = 3.0  # how long the living wait for each other's names before the missing ones are listed


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a rank stands, as Slurm (or the emulation of it) tells."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    node: str
    master_addr: str
    master_port: int
    job_id: str
    attempt: str
    """`<job id>.<restart count>`."""
    cluster: str
    """`slurm` or `local`."""
    secret: str = field(repr=False)
    """Known to the ranks of this attempt alone."""

    @property
    def num_nodes(self) -> int:
        """How many nodes the ranks are on."""
        return self.world_size // self.local_size


def read_place(environ: Mapping[str, str]) -> Place:
    """Read the place of this process from its environment.

    Raises:
        ToolkitError: a variable is missing: the process was not started by a job script.
    """
    missing = [name for name in _NEEDED if not environ.get(name)]
    if missing:
        raise ToolkitError(
            f"not inside a job: {', '.join(missing)} not set\n"
            "  a rank is started by the job script, which sources sbatch/env.sh\n"
            "  use: python submit.py --nodes N"
        )
    world_size = int(environ["SLURM_NTASKS"])
    num_nodes = int(environ.get("SLURM_JOB_NUM_NODES") or 1)
    restarts = environ.get("SLURM_RESTART_COUNT") or "0"
    return Place(
        rank=int(environ["SLURM_PROCID"]),
        world_size=world_size,
        local_rank=int(environ["SLURM_LOCALID"]),
        local_size=world_size // num_nodes,
        node=environ.get("SLURMD_NODENAME") or socket.gethostname(),
        master_addr=environ["MASTER_ADDR"],
        master_port=int(environ["MASTER_PORT"]),
        job_id=environ["SLURM_JOB_ID"],
        attempt=environ.get("TOOLKIT_ATTEMPT") or f"{environ['SLURM_JOB_ID']}.{restarts}",
        cluster=environ.get("TOOLKIT_CLUSTER") or "slurm",
        secret=environ["TOOLKIT_SECRET"],
    )


class Channel:
    """Notes between ranks outside of collectives, on a connection of its own: for threads beside the main one."""

    def __init__(self, place: Place, *, name: str, timeout_s: float) -> None:
        self._name = name
        store = TCPStore(
            place.master_addr,
            place.master_port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
        )
        self._notes = Notes(store, Seal(place.secret))

    def post(self, key: str, note: str) -> None:
        """Leave a note that every rank can read; a former one under the same key is replaced.

        Raises:
            LostPeersError: rank 0, which keeps the notes, is gone or does not answer.
        """
        with self._naming():
            self._notes.post(f"{self._name}/{key}", note)

    def read(self, key: str) -> str | None:
        """Read a note; None: it has not been left yet.

        Raises:
            LostPeersError: rank 0 is gone or does not answer.
        """
        with self._naming():
            return self._notes.read(f"{self._name}/{key}")

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise LostPeersError(f"rank 0 does not answer\n  {_first_line(error)}\n  see its log") from error


class World:
    """The processes of a job, connected; close it, or the others wait for a timeout."""

    def __init__(self, place: Place, *, timeout_s: float) -> None:
        self.place = place
        self.rank = place.rank
        self.size = place.world_size
        self.device = _choose_device(place)
        self._seal = Seal(place.secret)
        self._store = _find_store(place, timeout_s=timeout_s)
        _export_names(place, device=self.device)
        timeout = timedelta(seconds=timeout_s)
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size, timeout=timeout)
        self._control = dist.new_group(backend="gloo", timeout=timeout)
        self._refuse_strangers()  # before anything that others sent is unpickled
        self._hosts = self.gather(place.node)

    def agree(self, values: Sequence[int]) -> list[int]:
        """Take the largest of each value over all ranks; every rank gets the same list.

        Raises:
            LostPeersError: ranks did not arrive; the text names them.
        """
        tensor = torch.tensor(values, dtype=torch.int64)
        with self._naming("agree"):
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._control)
        return [int(value) for value in tensor.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Collect a small picklable value of every rank, in rank order, on every rank."""
        values: list[Any] = [None] * self.size
        with self._naming("gather"):
            dist.all_gather_object(values, value, group=self._control)
        return values

    def barrier(self) -> None:
        """Wait until every rank has arrived."""
        self.agree([0])

    def open_channel(self, name: str, *, timeout_s: float) -> Channel:
        """Open a way for notes under a name; each rank that takes part opens one for itself."""
        return Channel(self.place, name=name, timeout_s=timeout_s)

    def name_of(self, rank: int) -> str:
        """Say a rank with its node: `rank 3 on node2`."""
        return f"rank {rank} on {self._hosts[rank]}"

    def node_of(self, rank: int) -> str:
        """Say on which node a rank is."""
        return str(self._hosts[rank])

    def missing(self) -> list[int]:
        """List the ranks that do not answer: dead, or stuck. Takes a few seconds; for use after a failure."""
        notes = Notes(self._store, self._seal)
        try:
            notes.post(f"lost/{self.rank}", "")
            waiting = [f"lost/{rank}" for rank in range(self.size)]
            with suppress(RuntimeError):
                self._store.wait(waiting, timedelta(seconds=_GRACE_S))
            return [rank for rank, key in enumerate(waiting) if notes.read(key) is None]
        except RuntimeError:
            return [0]  # the store lives in rank 0

    def close(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()

    def _refuse_strangers(self) -> None:
        strangers = find_strangers(self._seal, rank=self.rank, size=self.size, exchange=self._exchange)
        if strangers:
            raise TryAgainError(
                f"rank {', '.join(map(str, strangers))} does not know the secret of attempt {self.place.attempt}\n"
                "  the ranks of an attempt get it from their job script (sbatch/env.sh), and nobody else has it\n"
                "  somebody else may have answered in its place; see its log"
            )

    def _exchange(self, own: bytes) -> list[bytes]:
        """Give the bytes of all ranks, as many on each, without unpickling anything."""
        parts = [torch.empty(len(own), dtype=torch.uint8) for _ in range(self.size)]
        with self._naming("exchange"):
            dist.all_gather(parts, torch.frombuffer(bytearray(own), dtype=torch.uint8), group=self._control)
        return [bytes(part.tolist()) for part in parts]

    @contextmanager
    def _naming(self, act: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self.lost_peers(act, error) from error

    def lost_peers(self, act: str, error: BaseException) -> LostPeersError:
        """Turn the failure of a collective into an error that names the ranks that did not take part."""
        names = ", ".join(self.name_of(rank) for rank in self.missing()) if hasattr(self, "_hosts") else ""
        return LostPeersError(
            f"{act}: {names or 'a rank'} did not take part\n  {_first_line(error)}\n"
            "  see the log of that rank; the job may be requeued"
        )


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error is the echo of another rank's death rather than a failure of our own."""
    text = str(error).lower()
    marks = ("connection closed by peer", "connection reset", "broken pipe", "timed out", "nccl", "socket")
    return isinstance(error, RuntimeError) and any(mark in text for mark in marks)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _choose_device(place: Place) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # A site may bind one GPU to each task; then the only visible one is number 0.
    index = place.local_rank if torch.cuda.device_count() > 1 else 0
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def keep_freed_memory() -> None:
    """Let the C library keep what this process frees, for its next large tensors; for ranks that compute on a CPU.

    glibc gives each block above 32 MiB back to the kernel, which clears its pages anew at the next use: 10 % of a
    step of a small model, 30 % of its head (measured, glibc 2.36).

    Source: mallopt(3); where the C library is another one nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def _find_store(place: Place, *, timeout_s: float) -> TCPStore:
    """Open the store on rank 0, connect to it elsewhere; wait until all ranks have."""
    host, port, size = place.master_addr, place.master_port, place.world_size
    try:
        if place.rank == 0:
            return open_store(host, port, size=size, num_nodes=place.num_nodes, timeout_s=timeout_s)
        _await_listener(place, patience_s=min(timeout_s, _LISTEN_S))
        return TCPStore(host, port, size, is_master=False, timeout=timedelta(seconds=timeout_s))
    except (OSError, RuntimeError) as error:  # RuntimeError: DistNetworkError, DistStoreError
        raise TryAgainError(
            f"no meeting point at {host}:{port}\n  {_first_line(error)}\n"
            "  the port is in use, or the first node is not reachable from this one; a requeue takes another port"
        ) from error


def _await_listener(place: Place, *, patience_s: float) -> None:
    """Wait until rank 0 listens: after a refusal torch's client sleeps a second, then longer (torch 2.13, measured).

    Whatever else is wrong is left to torch's client to say.
    """
    deadline = time.monotonic() + patience_s
    pause_s = 0.02
    while time.monotonic() < deadline:
        try:
            socket.create_connection((place.master_addr, place.master_port), timeout=patience_s).close()
        except ConnectionRefusedError:
            time.sleep(pause_s * (1 + place.rank % 16 / 16))  # not all in the same moment
            pause_s = min(pause_s * 1.5, 0.5)
        except OSError:
            return
        else:
            return


def _export_names(place: Place, *, device: torch.device) -> None:
    """Set the variables that DeepSpeed reads for itself.

    Source: deepspeed 0.19.8, runtime/pipe/module.py insists on LOCAL_RANK, accelerator/real_accelerator.py
    reads DS_ACCELERATOR.
    """
    os.environ.update(
        RANK=str(place.rank),
        WORLD_SIZE=str(place.world_size),
        LOCAL_RANK=str(device.index or 0),
        LOCAL_SIZE=str(place.local_size),
        DS_ACCELERATOR=device.type,
    )
