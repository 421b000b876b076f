"""The planner against references: Hugging Face's Llama, brute force, and its own identities."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.config.load import load_config
from toolkit.config.schema import ModelSection
from toolkit.errors import ConfigError
from toolkit.plan.costs import layer_costs, num_parameters, train_flops_per_token
from toolkit.plan.hardware import find_hardware
from toolkit.plan.search import plan_text, resolve
from toolkit.plan.split import split_layers


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [2, 8])
def test_parameters_are_those_of_hugging_faces_llama(tied: bool, kv_heads: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    words = {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": kv_heads,
        "vocab_size": 100,
        "tie_word_embeddings": tied,
    }
    with torch.device("meta"):
        reference = LlamaForCausalLM(LlamaConfig(**words))
    assert num_parameters(ModelSection(**words)) == sum(p.numel() for p in reference.parameters())


def test_flops_are_six_a_matrix_weight_and_twelve_for_attention() -> None:
    model = ModelSection()
    matrices = num_parameters(model) - model.vocab_size * model.hidden_size - 9 * model.hidden_size
    attention = 12 * model.num_hidden_layers * model.hidden_size * 128
    assert train_flops_per_token(model, seq_len=128) == 6 * matrices + attention


@given(
    blocks=st.integers(1, 9),
    stages=st.integers(1, 5),
    vocab_size=st.integers(16, 40_000),
    split_by=st.sampled_from(["cost", "parameters", "uniform"]),
)
@settings(max_examples=80, deadline=None)
def test_no_split_has_a_smaller_largest_stage(blocks: int, stages: int, vocab_size: int, split_by: str) -> None:
    stages = min(stages, blocks)
    costs = layer_costs(ModelSection(num_hidden_layers=blocks, vocab_size=vocab_size), seq_len=128)

    def weigh(layer: int) -> float:
        if split_by == "uniform":
            return float(costs[layer].kind == "block")
        return float(costs[layer].parameters if split_by == "parameters" else costs[layer].forward_flops_per_token)

    def largest(bounds: tuple[int, ...]) -> float:
        return max(sum(map(weigh, range(a, b))) for a, b in itertools.pairwise(bounds))

    found = split_layers(costs, stages=stages, split_by=split_by)
    cuts = itertools.combinations(range(2, blocks + 1), stages - 1)
    assert largest(found) == pytest.approx(min(largest((0, *cut, blocks + 3)) for cut in cuts))
    assert all(any(costs[i].kind == "block" for i in range(a, b)) for a, b in itertools.pairwise(found))


@given(nodes=st.integers(1, 16), gpus=st.sampled_from([1, 4, 8]), samples=st.sampled_from([16, 48, 512, 1000]))
@settings(max_examples=50, deadline=None)
def test_a_plan_keeps_the_identities(nodes: int, gpus: int, samples: int) -> None:
    overrides = [
        f"cluster.nodes={nodes}",
        f"cluster.gpus_per_node={gpus}",
        f"batch.tokens_per_step={samples * 256}",
    ]
    cfg = load_config(None, overrides=overrides).config
    try:
        plan = resolve(cfg, hardware=find_hardware("h100"))
    except ConfigError as error:
        assert "set batch.tokens_per_step" in str(error)  # noqa: PT017
        return
    done = plan.cfg
    assert done.parallel.stages * done.replicas == nodes * gpus
    assert plan.num_micro_batches * done.batch.micro_batch * done.replicas == samples
    assert done.parallel.stages == 1 or done.parallel.zero_stage == 1
    assert len(plan.boundaries) == done.parallel.stages + 1
    assert all(len(line) <= 130 for line in plan_text(plan).splitlines())


def test_a_model_that_cannot_fit_is_refused_with_the_ways_out() -> None:
    overrides = ["model.hidden_size=16384", "model.intermediate_size=65536", "model.num_hidden_layers=80",
                 "model.num_attention_heads=128", "cluster.gpus_per_node=8", "data.seq_len=4096",
                 "batch.tokens_per_step=4194304"]  # fmt: skip
    with pytest.raises(ConfigError, match="does not fit"):
        resolve(load_config(None, overrides=overrides).config, hardware=find_hardware("h100"))


@pytest.mark.parametrize(
    ("name", "memory_gib"),
    [("h100", 79.1), ("nvidia_h100_80gb_hbm3", 79.1), ("A100-SXM4-40GB", 39.4), ("a100", 79.1), ("h100_1g.10gb", 10)],
)
def test_names_of_gpus_are_understood_as_slurm_writes_them(name: str, memory_gib: float) -> None:
    assert find_hardware(name).memory_bytes == int(memory_gib * 2**30)


def test_a_slice_of_a_gpu_is_planned_as_a_slice() -> None:
    whole, part = find_hardware("a100"), find_hardware("a100_3g.40gb")
    assert part.name == "A100-80GB 3g.40gb"
    assert part.peak_bf16_flops == pytest.approx(whole.peak_bf16_flops * 3 / 7)
    assert part.memory_bytes_per_s == whole.memory_bytes_per_s / 2
    assert part.memory_bytes == 40 * 2**30
    assert find_hardware("a100_3g.20gb").name == "A100-40GB 3g.20gb"
    with pytest.raises(ConfigError, match="does not know the GPU"):
        find_hardware("1g.10gb")
