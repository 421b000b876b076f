"""Bytes of a stage against counts that can be made another way."""

from dataclasses import replace

import pytest
import torch

from tests.unit.plan.test_speed import SHAPE, layout, shares
from toolkit.config.schema import ModelSection
from toolkit.model.layers import Block
from toolkit.plan.costs import shape_of
from toolkit.plan.fitted import FITTED
from toolkit.plan.layout import OURS
from toolkit.plan.memory import in_flight, stage_memory


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_a_block_keeps_what_autograd_saves(kv_heads: int) -> None:
    model = ModelSection(hidden_size=256, intermediate_size=688, num_attention_heads=4, num_key_value_heads=kv_heads)
    block, seen = Block(model, seed=0, recompute=False), {}
    own = {weight.untyped_storage().data_ptr() for weight in block.parameters()}
    # its input is another block's output, and counted there
    x = torch.randn(2, 128, 256, requires_grad=True) * 1
    own.add(x.untyped_storage().data_ptr())

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = block(x)
    saved = sum(seen.values()) + out.untyped_storage().nbytes()
    shape = shape_of(model, seq_len=128)
    where = layout(micro_batch=2, precision="fp32")
    one, two = (stage_memory(shape, where, shares(n), stack=OURS, fitted=FITTED)[0] for n in (1, 2))
    assert two.activations_bytes - one.activations_bytes == pytest.approx(saved, rel=0.03)


def test_the_first_stage_holds_as_many_micro_batches_as_there_are_stages() -> None:
    assert [in_flight(stage, num_stages=4, num_micro_batches=9) for stage in range(4)] == [4, 3, 2, 1]
    assert [in_flight(stage, num_stages=4, num_micro_batches=2) for stage in range(4)] == [2, 2, 2, 1]


def test_zero_deals_states_out() -> None:
    parameters = shares(32)[0].parameters(SHAPE)
    states = [
        stage_memory(SHAPE, layout(replicas=64, zero_stage=zero), shares(32), stack=OURS, fitted=FITTED)[0].states_bytes
        for zero in range(4)
    ]
    assert states[0] == 20 * parameters
    assert states[1] == pytest.approx((8 + 16 / 64) * parameters)
    assert states[2] == pytest.approx((2 + 18 / 64) * parameters)
    assert states[3] < 20 * parameters / 64 + 5 * SHAPE.block_parameters


def test_recompute_leaves_the_inputs_of_blocks_and_one_block_in_work() -> None:
    where = layout(recompute="full")
    few, many = (stage_memory(SHAPE, where, shares(n), stack=OURS, fitted=FITTED)[0] for n in (10, 30))
    inputs = 20 * 2 * SHAPE.hidden_size * SHAPE.seq_len
    assert many.activations_bytes - few.activations_bytes == inputs
    kept = stage_memory(SHAPE, layout(), shares(30), stack=OURS, fitted=FITTED)[0]
    assert many.activations_bytes < 0.2 * kept.activations_bytes


def test_logits_are_on_the_last_stage_and_a_tied_head_has_its_copy_there() -> None:
    where = layout(stages=2, replicas=4)
    first, last = stage_memory(SHAPE, where, shares(16, 16), stack=OURS, fitted=FITTED)
    assert first.logits_bytes == 0 < last.logits_bytes
    tied = replace(SHAPE, is_tied=True)
    assert shares(32)[0].parameters(SHAPE) - shares(32)[0].parameters(tied) == SHAPE.table_parameters
    assert shares(16, 16)[1].parameters(tied) == shares(16, 16)[1].parameters(SHAPE)
