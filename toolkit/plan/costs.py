"""What each layer of a Llama costs, from its configuration alone.

The model is the list [embedding, block x num_hidden_layers, norm, head]; a tied head has no parameters.
"""

from dataclasses import dataclass
from typing import Literal

from toolkit.config.schema import ModelSection


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCost:
    """One entry of the list of layers."""

    kind: Literal["embedding", "block", "norm", "head"]
    parameters: int
    forward_flops_per_token: float


def layer_costs(model: ModelSection, *, seq_len: int) -> tuple[LayerCost, ...]:
    """Cost every layer of the model's list."""
    table = model.vocab_size * model.hidden_size
    block = LayerCost(
        kind="block",
        parameters=_block_matrices(model) + 2 * model.hidden_size,
        # two FLOPs a weight, and the scores and weighted values of attention (not halved for causality)
        forward_flops_per_token=2.0 * _block_matrices(model) + 4.0 * seq_len * model.hidden_size,
    )
    return (
        LayerCost(kind="embedding", parameters=table, forward_flops_per_token=0.0),
        *(block for _ in range(model.num_hidden_layers)),
        LayerCost(kind="norm", parameters=model.hidden_size, forward_flops_per_token=0.0),
        LayerCost(
            kind="head",
            parameters=0 if model.tie_word_embeddings else table,
            forward_flops_per_token=2.0 * table,
        ),
    )


def num_parameters(model: ModelSection) -> int:
    """Count the parameters; tied ones once."""
    return sum(cost.parameters for cost in layer_costs(model, seq_len=1))


def train_flops_per_token(model: ModelSection, *, seq_len: int) -> float:
    """Count the FLOPs of forward and backward: three times the forward pass, nothing recomputed.

    6 x (matrix parameters with the head, without the embedding) + 12 x layers x hidden_size x seq_len.

    Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B.
    """
    return 3.0 * sum(cost.forward_flops_per_token for cost in layer_costs(model, seq_len=seq_len))


def _block_matrices(model: ModelSection) -> int:
    hidden, heads = model.hidden_size, model.num_attention_heads
    attention = hidden * (heads + 2 * model.kv_heads) * model.head_dim + hidden * hidden
    return attention + 3 * hidden * model.intermediate_size
