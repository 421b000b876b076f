"""What each layer of a transformer costs, from its shape alone.

The model is the list [embedding, block x num_hidden_layers, norm, head]; a tied head has no parameters.
"""

from dataclasses import dataclass
from typing import Literal

from toolkit.config.schema import ModelSection


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A decoder-only transformer and the length of its samples, in Hugging Face's words."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    is_tied: bool
    is_gated: bool
    """The feed-forward part has three matrices (SwiGLU), else two."""
    seq_len: int

    @property
    def block_matrices(self) -> tuple[tuple[int, int], ...]:
        """Give (inputs, outputs) of the four matrix products of a block: qkv, output, up (with gate), down."""
        hidden, inner = self.hidden_size, self.intermediate_size
        qkv = hidden + 2 * hidden * self.num_key_value_heads // self.num_attention_heads
        return (hidden, qkv), (hidden, hidden), (hidden, inner * (2 if self.is_gated else 1)), (inner, hidden)

    @property
    def block_parameters(self) -> int:
        """Count the weights of a block's matrices."""
        return sum(inputs * outputs for inputs, outputs in self.block_matrices)

    @property
    def table_parameters(self) -> int:
        """Count the weights of the embedding, and again of the head."""
        return self.vocab_size * self.hidden_size


def shape_of(model: ModelSection, *, seq_len: int) -> Shape:
    """Give the shape of a configured Llama."""
    return Shape(
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.kv_heads,
        vocab_size=model.vocab_size,
        is_tied=model.tie_word_embeddings,
        is_gated=True,
        seq_len=seq_len,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCost:
    """One entry of the list of layers."""

    kind: Literal["embedding", "block", "norm", "head"]
    parameters: int
    forward_flops_per_token: float


def layer_costs(model: ModelSection, *, seq_len: int) -> tuple[LayerCost, ...]:
    """Cost every layer of the model's list."""
    shape = shape_of(model, seq_len=seq_len)
    table = shape.table_parameters
    block = LayerCost(
        kind="block",
        parameters=shape.block_parameters + 2 * model.hidden_size,
        # two FLOPs a weight, and the scores and weighted values of attention (not halved for causality)
        forward_flops_per_token=2.0 * shape.block_parameters + 4.0 * seq_len * model.hidden_size,
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
    return shape_flops_per_token(shape_of(model, seq_len=seq_len))


def shape_flops_per_token(shape: Shape) -> float:
    """Count the same of any shape.

    Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B.
    """
    matrices = shape.num_hidden_layers * shape.block_parameters + shape.table_parameters
    return 6.0 * matrices + 12.0 * shape.num_hidden_layers * shape.hidden_size * shape.seq_len


def causal_flops_per_token(shape: Shape) -> float:
    """Count only what a causal model needs: attention looks back, so half of its products are left out.

    Source: Dao 2023 (FlashAttention-2), arXiv:2307.08691, section 4.1.
    """
    return shape_flops_per_token(shape) - 6.0 * shape.num_hidden_layers * shape.hidden_size * shape.seq_len
