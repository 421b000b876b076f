"""The list of layers of a Llama, its plain module, and the loss.

The list is [embedding, block x num_hidden_layers, norm, head]; a parameter's name is its layer's index in
that list and its path inside the layer (`3.attention.qkv_proj.weight`), whatever stage holds it. A tied
head has no parameters of its own.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.config.schema import ModelSection
from toolkit.model.layers import Block, Embedding, Head, Norm, Stream

NOT_LEARNED = -100
"""The label of a position whose prediction is not learned."""

LayerRecipe: TypeAlias = tuple[type[nn.Module], dict[str, Any]]


def num_layers(model: ModelSection) -> int:
    """Count the entries of the list of layers."""
    return model.num_hidden_layers + 3


def layer_seed(seed: int, *, layer: int) -> int:
    """Mix the run's seed with a layer's index."""
    return (seed * 1_000_003 + layer * 7919 + 1) % 2**63


def layer_recipes(model: ModelSection, *, seed: int, recompute: bool) -> list[LayerRecipe]:
    """List the class and the options of each layer; building one draws its initial weights."""
    head = num_layers(model) - 1
    blocks = [
        (Block, {"seed": layer_seed(seed, layer=layer), "recompute": recompute})
        for layer in range(1, model.num_hidden_layers + 1)
    ]
    return [
        (Embedding, {"seed": layer_seed(seed, layer=0)}),
        *blocks,
        (Norm, {}),
        (Head, {"seed": layer_seed(seed, layer=head)}),
    ]


class Llama(nn.Module):
    """The whole model in one process."""

    def __init__(self, model: ModelSection, *, seed: int, recompute: bool) -> None:
        super().__init__()
        recipes = layer_recipes(model, seed=seed, recompute=recompute)
        self.layers = nn.ModuleList(layer(model, **options) for layer, options in recipes)
        if model.tie_word_embeddings:
            self.layers[-1].weight = self.layers[0].weight

    def forward(self, stream: Stream) -> Tensor:
        """Predict the next token at each position: int64 [B, T] -> logits [B, T, V]."""
        for layer in self.layers:
            stream = layer(stream)
        assert isinstance(stream, Tensor), "the norm drops the documents"
        return stream

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Give each parameter once, under its layout-free name."""
        yield from self.layers.named_parameters()


def token_loss(logits_BTV: Tensor, targets: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Average the cross-entropy over all positions, in nats, computed in fp32.

    Args:
        logits_BTV: predictions.
        targets: labels, int64 [B, T]; or with them the number to divide the sum by, where labels that are
            negative are not learned: micro-batches of one step then have other counts.
    """
    logits = logits_BTV.float().flatten(0, 1)
    if isinstance(targets, Tensor):
        return F.cross_entropy(logits, targets.flatten())
    labels_BT, divisor = targets
    return F.cross_entropy(logits, labels_BT.flatten(), ignore_index=NOT_LEARNED, reduction="sum") / divisor
