"""Rank order, and how the samples of a step fall on replicas."""

from hypothesis import given
from hypothesis import strategies as st

from toolkit.topology import BatchShape, Topology


@given(st.integers(1, 8), st.integers(1, 8))
def test_every_rank_has_one_place_and_replicas_of_a_stage_are_neighbours(stages: int, replicas: int) -> None:
    topology = Topology(stages=stages, replicas=replicas)
    for rank in range(topology.world_size):
        stage, replica = topology.stage_of(rank), topology.replica_of(rank)
        assert topology.rank_of(stage=stage, replica=replica) == rank
    for stage in range(stages):
        ranks = topology.stage_ranks(stage)
        assert ranks == list(range(ranks[0], ranks[0] + replicas))


def test_the_order_is_deepspeeds() -> None:
    from deepspeed.runtime.pipe.topology import PipeDataParallelTopology

    theirs, ours = PipeDataParallelTopology(num_pp=4, num_dp=3), Topology(stages=4, replicas=3)
    for rank in range(12):
        coordinate = theirs.get_coord(rank)
        assert (coordinate.pipe, coordinate.data) == (ours.stage_of(rank), ours.replica_of(rank))


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
def test_replicas_and_micro_batches_tile_the_step(micro_batch: int, replicas: int, count: int) -> None:
    shape = BatchShape(samples_per_step=micro_batch * replicas * count, micro_batch=micro_batch, replicas=replicas)
    positions = [
        position
        for replica in range(replicas)
        for index in range(shape.num_micro_batches)
        for position in shape.positions(replica=replica, micro_index=index)
    ]
    assert positions == list(range(shape.samples_per_step))
