"""A run made small for its rehearsal."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.config.check import check_config
from toolkit.config.schema import (
    BatchSection,
    CheckpointSection,
    ClusterSection,
    DataSection,
    FaultsSection,
    ModelSection,
    MonitorSection,
    OptimSection,
    ParallelSection,
    RunConfig,
    RunSection,
)
from toolkit.launch.shrink import DRILL_STEP, NUM_STEPS, ON_CPU, ON_GPU, SAVE_EVERY, Bounds, count_nodes, shrink
from toolkit.plan.costs import layer_costs
from toolkit.plan.split import split_layers
from toolkit.topology import BatchShape


@st.composite
def runs(draw: st.DrawFn) -> RunConfig:
    """Draw a resolved run without mistakes."""
    stages, replicas = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    world = stages * replicas
    nodes = draw(st.sampled_from([n for n in range(1, world + 1) if world % n == 0]))
    kv_heads, group = draw(st.sampled_from([1, 2, 8, 32])), draw(st.sampled_from([1, 4, 8]))
    head_dim = draw(st.sampled_from([2, 16, 64, 128]))
    seq_len, micro_batch = draw(st.sampled_from([16, 100, 4096])), draw(st.integers(1, 8))
    tokens_per_step = seq_len * micro_batch * replicas * draw(st.integers(1, 20))
    cfg = RunConfig(
        run=RunSection(tokens=50 * tokens_per_step),
        model=ModelSection(
            hidden_size=kv_heads * group * head_dim,
            intermediate_size=draw(st.integers(1, 20_000)),
            num_hidden_layers=stages + draw(st.integers(0, 30)),
            num_attention_heads=kv_heads * group,
            num_key_value_heads=kv_heads if group > 1 else draw(st.sampled_from([None, kv_heads])),
            vocab_size=draw(st.sampled_from([300, 32_000, 128_256])),
            tie_word_embeddings=draw(st.booleans()),
        ),
        data=DataSection(seq_len=seq_len, document_mask=draw(st.booleans())),
        optim=OptimSection(warmup_tokens=draw(st.integers(0, 49 * tokens_per_step))),
        parallel=ParallelSection(
            stages=stages,
            zero_stage=1 if stages > 1 else draw(st.integers(1, 3)),
            recompute=draw(st.booleans()),
            precision=draw(st.sampled_from(["fp32", "bf16"])),
            split_by=draw(st.sampled_from(["cost", "parameters", "uniform"])),
        ),
        batch=BatchSection(tokens_per_step=tokens_per_step, micro_batch=micro_batch),
        checkpoint=CheckpointSection(
            save_every=draw(st.sampled_from([5, 1000])), keep_every=draw(st.sampled_from([None, 5000]))
        ),
        faults=FaultsSection(hang_start_s=draw(st.integers(1, 9999))),
        monitor=MonitorSection(
            eval_every=draw(st.sampled_from([None, 1, 500])),
            wandb=draw(st.sampled_from(["auto", "online", "offline", "off"])),
        ),
        cluster=ClusterSection(nodes=nodes, gpus_per_node=world // nodes, time_limit=300),
    )
    assert check_config(replace(cfg, cluster=replace(cfg.cluster, time_limit=None)), {}) == []
    return cfg


@given(cfg=runs(), bounds=st.sampled_from([ON_CPU, ON_GPU]))
@settings(max_examples=200, deadline=None)
def test_a_shrunken_run_is_a_run_of_the_same_kind(cfg: RunConfig, bounds: Bounds) -> None:
    small = shrink(cfg, bounds)
    assert check_config(small, {}) == []
    assert small.parallel == cfg.parallel
    assert small.replicas == min(2, cfg.replicas)
    assert small.world_size == (small.parallel.stages or 0) * small.replicas
    assert (small.cluster.gpus_per_node or 0) <= (cfg.cluster.gpus_per_node or 0)
    assert small.cluster.nodes <= cfg.cluster.nodes
    assert small.num_steps == NUM_STEPS
    assert SAVE_EVERY < DRILL_STEP < NUM_STEPS
    shape = BatchShape(
        samples_per_step=small.samples_per_step, micro_batch=small.batch.micro_batch or 0, replicas=small.replicas
    )
    assert 1 <= shape.num_micro_batches <= (small.parallel.stages or 0) + 1

    assert small.model.num_attention_heads * cfg.model.kv_heads == cfg.model.num_attention_heads * small.model.kv_heads
    assert small.model.hidden_size <= cfg.model.hidden_size
    kept = {"vocab_size", "tie_word_embeddings", "rope_theta", "rms_norm_eps"}
    assert all(getattr(small.model, key) == getattr(cfg.model, key) for key in kept)
    costs = layer_costs(small.model, seq_len=small.data.seq_len)
    split_layers(costs, stages=small.parallel.stages or 0, split_by=small.parallel.split_by)  # a block for each

    assert small.data.document_mask == cfg.data.document_mask
    assert (small.monitor.eval_every is None) == (cfg.monitor.eval_every is None)
    assert small.monitor.wandb == ("off" if cfg.monitor.wandb == "off" else "offline")


@given(cfg=runs())
@settings(max_examples=50, deadline=None)
def test_on_a_gpu_heads_and_samples_keep_their_size(cfg: RunConfig) -> None:
    small = shrink(cfg, ON_GPU)
    assert (small.model.head_dim, small.data.seq_len) == (cfg.model.head_dim, cfg.data.seq_len)


def test_a_run_of_several_nodes_is_rehearsed_on_two_at_least() -> None:
    assert count_nodes(8, gpus_per_node=8, nodes=1) == 1
    assert count_nodes(8, gpus_per_node=8, nodes=16) == 2
    assert count_nodes(6, gpus_per_node=4, nodes=3) == 2
    assert count_nodes(10, gpus_per_node=4, nodes=5) == 5
    assert count_nodes(1, gpus_per_node=4, nodes=2) == 1


@pytest.mark.parametrize(("path", "stays"), [("data/corpus", True), ("hdfs://host:8020/corpus", False)])
def test_remote_shards_are_read_in_order_so_that_few_are_fetched(path: str, stays: bool) -> None:
    cfg = RunConfig(
        data=DataSection(path=path),
        parallel=ParallelSection(stages=1, zero_stage=1),
        batch=BatchSection(micro_batch=1),
        cluster=ClusterSection(gpus_per_node=1),
    )
    assert shrink(cfg, ON_CPU).data.shuffle is stays
