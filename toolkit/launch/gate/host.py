"""Host memory of a job: what its ranks keep there, what it asks for, and what it gets without asking. Pure."""

import math
from dataclasses import dataclass, replace

from toolkit.cluster.partitions import PartitionLimits, read_memory
from toolkit.cluster.spec import JobSpec
from toolkit.plan.costs import shape_of
from toolkit.plan.proposal import WARN_ABOVE, Plan, shares_of

_COPY_BYTES = 12  # a parameter that a rank holds: weight and two moments in fp32, kept for the next save
# a rank with torch and deepspeed on CPU, of shared libraries its share; measured: 0.21 to 0.25
_PROCESS_BYTES = 0.25 * 2**30
_AMPLE = 2.0
"""Times what is reckoned is asked for: files in the page cache and libraries are not reckoned with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostNeed:
    """Bytes of host memory that ranks need."""

    certain: float
    likely: float
    """What comes on top of it by estimate."""

    @property
    def total(self) -> float:
        """Give both together."""
        return self.certain + self.likely


def reckon_host(plan: Plan, *, ranks: int) -> HostNeed:
    """Reckon what so many ranks on one machine keep in its memory."""
    certain, likely = ranks * _copy_bytes(plan), ranks * _PROCESS_BYTES
    if not plan.hardware.is_gpu:
        fullest = max(plan.memory, key=lambda stage: stage.total_bytes)
        certain += ranks * fullest.states_bytes
        likely += ranks * (fullest.activations_bytes + fullest.logits_bytes)
    return HostNeed(certain=certain, likely=likely)


def _copy_bytes(plan: Plan) -> float:
    """Give the bytes that a rank of the largest stage keeps for saves: of the slice that it holds."""
    shape = shape_of(plan.cfg.model, seq_len=plan.cfg.data.seq_len)
    shares = shares_of(plan.boundaries, num_blocks=plan.cfg.model.num_hidden_layers)
    return _COPY_BYTES * max(share.parameters(shape) for share in shares) / plan.layout.replicas


def count_cpus(spec: JobSpec) -> int:
    """Count the CPUs a node that a job asks for."""
    return spec.tasks_per_node * (spec.cpus_per_task or 1)


def asked_bytes(spec: JobSpec) -> int | None:
    """Give the memory a node that a job asks for, in whatever way; None: it does not say, or all of the node."""
    extra = {name.replace("_", "-"): str(value) for name, value in spec.sbatch_extra.items()}
    each = {"mem-per-cpu": count_cpus(spec), "mem-per-gpu": spec.gpus_per_node, "mem": 1}
    found = ((read_memory(extra.get(name)), count) for name, count in each.items())
    return next((size * count for size, count in found if size), read_memory(spec.mem_per_node))


def says_memory(spec: JobSpec) -> bool:
    """Whether a job says anything of its memory."""
    extra = {name.replace("_", "-") for name in spec.sbatch_extra}
    return spec.mem_per_node is not None or bool(extra & {"mem", "mem-per-cpu", "mem-per-gpu"})


def default_bytes(spec: JobSpec, partition: PartitionLimits) -> tuple[int, str] | None:
    """Give what a job gets a node where it does not say, and by which rule of the site; None: all of the node."""
    given = partition.memory.default_of(cpus=count_cpus(spec), gpus=spec.gpus_per_node)
    return given and (given[0] << 20, given[1])


def most_bytes(spec: JobSpec, partition: PartitionLimits) -> tuple[int, str] | None:
    """Give the most that a job may ask for a node, and by which rule of the site; None: all of the node."""
    most = partition.memory.most_of(cpus=count_cpus(spec))
    return most and (most[0] << 20, most[1])


def ask_for_memory(spec: JobSpec, plan: Plan, partition: PartitionLimits) -> JobSpec:
    """Ask for memory where the site would give less than the run needs, as much as may be had up to ample."""
    given = default_bytes(spec, partition)
    need = reckon_host(plan, ranks=spec.tasks_per_node).total / WARN_ABOVE
    if given is None or says_memory(spec) or given[0] >= need:
        return spec
    most = most_bytes(spec, partition)
    limits = [_AMPLE * need, partition.mem_per_node_mib * 2.0**20 or math.inf, most[0] if most else math.inf]
    return replace(spec, mem_per_node=f"{max(given[0], math.floor(min(limits))) >> 20}M")
