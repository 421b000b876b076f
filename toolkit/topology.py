"""Rank <-> (stage, replica), and the batch identity: arithmetic only, the one room that knows rank order."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Topology:
    """The rank map of a layout: `stages` x `replicas`, stage outermost.

    Replicas of a stage are neighbours, so gradient traffic stays inside a node while activations
    cross nodes. This is DeepSpeed's own order.

    Source: deepspeed 0.19.8, runtime/pipe/topology.py, PipeDataParallelTopology.
    """

    stages: int
    replicas: int

    def __post_init__(self) -> None:
        assert self.stages >= 1, f"stages={self.stages} must be at least 1"
        assert self.replicas >= 1, f"replicas={self.replicas} must be at least 1"

    @property
    def world_size(self) -> int:
        """Count the ranks."""
        return self.stages * self.replicas

    def rank_of(self, *, stage: int, replica: int) -> int:
        """Give the global rank that runs `stage` of `replica`."""
        assert 0 <= stage < self.stages, f"stage {stage} of {self.stages}"
        assert 0 <= replica < self.replicas, f"replica {replica} of {self.replicas}"
        return stage * self.replicas + replica

    def stage_of(self, rank: int) -> int:
        """Give the pipeline index of a rank."""
        assert 0 <= rank < self.world_size, f"rank {rank} of {self.world_size}"
        return rank // self.replicas

    def replica_of(self, rank: int) -> int:
        """Give the data-parallel index of a rank."""
        assert 0 <= rank < self.world_size, f"rank {rank} of {self.world_size}"
        return rank % self.replicas

    def stage_ranks(self, stage: int) -> list[int]:
        """List the ranks that hold the same layers: they reduce gradients together."""
        return [self.rank_of(stage=stage, replica=replica) for replica in range(self.replicas)]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchShape:
    """How the samples of a step fall on replicas and micro-batches.

    `samples_per_step = micro_batch * num_micro_batches * replicas`.
    """

    samples_per_step: int
    micro_batch: int
    replicas: int

    def __post_init__(self) -> None:
        if self.samples_per_step % (self.micro_batch * self.replicas):
            raise AssertionError(
                f"{self.samples_per_step} samples a step are no multiple of micro_batch "
                f"{self.micro_batch} x replicas {self.replicas}"
            )

    @property
    def num_micro_batches(self) -> int:
        """Count the micro-batches a replica runs in a step (gradient accumulation)."""
        return self.samples_per_step // (self.micro_batch * self.replicas)

    def positions(self, *, replica: int, micro_index: int) -> range:
        """Give the positions inside the step whose samples form one micro-batch of a replica.

        Over all replicas and micro-batches the ranges tile `range(samples_per_step)`.
        """
        assert 0 <= replica < self.replicas, f"replica {replica} of {self.replicas}"
        first = (replica * self.num_micro_batches + micro_index) * self.micro_batch
        return range(first, first + self.micro_batch)
