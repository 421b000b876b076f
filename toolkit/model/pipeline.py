"""The list of layers as a DeepSpeed PipelineModule, split where the planner said."""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence

import torch
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from torch import nn

from toolkit.config.schema import ModelSection
from toolkit.model.layers import Head
from toolkit.model.llama import layer_recipes, num_layers, token_loss

_TIED = "embedding"


class Pipeline(PipelineModule):  # type: ignore[misc]
    """A PipelineModule whose stage s runs the layers `boundaries[s]` to `boundaries[s + 1]`.

    Source: deepspeed 0.19.8, runtime/pipe/module.py; `_partition_layers` is its one place that decides.
    """

    def __init__(self, model: ModelSection, *, boundaries: Sequence[int], seed: int, recompute: bool) -> None:
        assert boundaries[-1] == num_layers(model), f"boundaries {boundaries} for {num_layers(model)} layers"
        self._boundaries = tuple(boundaries)
        specs = _layer_specs(model, seed=seed, recompute=recompute)
        # It prints its seeds, and broadcasts tied weights where autograd would take note.
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            super().__init__(layers=specs, num_stages=len(boundaries) - 1, loss_fn=token_loss)

    def _partition_layers(self, method: str = "") -> None:
        stage = self._topo.get_coord(self.global_rank).pipe
        self.parts = list(self._boundaries)
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Give each parameter of this stage once, under its layout-free name."""
        for name, parameter in self.named_parameters():
            yield re.sub(rf"^tied_modules\.{_TIED}\.", "0.", name), parameter


def _layer_specs(model: ModelSection, *, seed: int, recompute: bool) -> list[LayerSpec]:
    recipes = layer_recipes(model, seed=seed, recompute=recompute)
    specs = [LayerSpec(layer, model, **options) for layer, options in recipes]
    if model.tie_word_embeddings:
        embedding, options = recipes[0]
        specs[0] = TiedLayerSpec(_TIED, embedding, model, **options)
        specs[-1] = TiedLayerSpec(_TIED, embedding, model, forward_fn=Head.forward, **options)
    return specs
