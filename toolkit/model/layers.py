"""The layers of a Llama.

Letters of a tensor's shape: B samples, T positions, D hidden_size, H query heads, K key-value heads,
E head_dim, F intermediate_size, V vocab_size; S positions that are attended to, as many as T.
"""

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toolkit.config.schema import ModelSection

Stream: TypeAlias = Tensor | tuple[Tensor, Tensor]
"""What goes from layer to layer (and from stage to stage): the tokens or vectors alone, or where attention keeps to
documents, with the document of each position: int32 [B, T]. At width 2048 in bf16 that is 0.1 % more traffic."""


class Embedding(nn.Module):
    """Tokens to vectors; tied, its weight also turns vectors into logits."""

    def __init__(self, model: ModelSection, *, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(model.vocab_size, model.hidden_size))
        draw_weights(self, std=model.initializer_range, seed=seed)

    def forward(self, stream: Stream) -> Stream:
        """Look up: int64 [B, T] -> [B, T, D]."""
        tokens_BT, documents_BT = _part(stream)
        return _join(F.embedding(tokens_BT, self.weight), documents_BT)


class Norm(nn.Module):
    """Root-mean-square norm, computed in fp32 whatever the format of its input.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(model.hidden_size))
        self.eps = model.rms_norm_eps

    def forward(self, stream: Stream) -> Tensor:
        """Scale each vector to unit root mean square, then by the weight; documents are of no use any more."""
        x_BTD, _ = _part(stream)
        return F.rms_norm(x_BTD, self.weight.shape, self.weight, self.eps)


class Head(nn.Module):
    """Vectors to logits."""

    def __init__(self, model: ModelSection, *, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(model.vocab_size, model.hidden_size))
        draw_weights(self, std=model.initializer_range, seed=seed)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Project: [B, T, D] -> [B, T, V]."""
        return F.linear(x_BTD, self.weight)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key-value heads."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = (
            model.num_attention_heads,
            model.kv_heads,
            model.head_dim,
        )
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.qkv_proj = nn.Linear(model.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(model.hidden_size, model.hidden_size, bias=False)
        self.rotary = Rotary(head_dim=self.head_dim, theta=model.rope_theta)

    def forward(self, x_BTD: Tensor, documents_BT: Tensor | None) -> Tensor:
        """Attend to what came before, in the same document where documents are given: [B, T, D] -> [B, T, D]."""
        num_samples, num_positions, hidden_size = x_BTD.shape
        qkv = self.qkv_proj(x_BTD).view(num_samples, num_positions, -1, self.head_dim)
        qk_BTHE, v_BTKE = torch.split(qkv, [self.num_heads + self.num_kv_heads, self.num_kv_heads], dim=2)
        qk_BHTE = self.rotary(qk_BTHE.transpose(1, 2))
        q_BHTE, k_BKTE = torch.split(qk_BHTE, [self.num_heads, self.num_kv_heads], dim=1)
        out_BHTE = F.scaled_dot_product_attention(
            q_BHTE,
            k_BKTE,
            v_BTKE.transpose(1, 2),
            attn_mask=None if documents_BT is None else _mask_documents(documents_BT),
            is_causal=documents_BT is None,
            enable_gqa=self.num_kv_heads != self.num_heads,
        )
        out_BTD = out_BHTE.transpose(1, 2).reshape(num_samples, num_positions, hidden_size)
        return self.o_proj(out_BTD)  # type: ignore[no-any-return]


class Rotary:
    """Rotary positions, in halves as Hugging Face's Llama pairs them.

    No module: DeepSpeed casts a module's buffers to bf16, which cannot tell position 257 from 256.

    Source: Su et al. 2021, arXiv:2104.09864.
    """

    def __init__(self, *, head_dim: int, theta: float) -> None:
        self.head_dim = head_dim
        self.theta = theta
        self._table: tuple[Tensor, Tensor] | None = None

    def __call__(self, x_BHTE: Tensor) -> Tensor:
        """Rotate each pair of a head by its position."""
        cos_TE, sin_TE = self._lookup(x_BHTE.shape[-2], device=x_BHTE.device, dtype=x_BHTE.dtype)
        first, second = x_BHTE.chunk(2, dim=-1)
        return x_BHTE * cos_TE + torch.cat((-second, first), dim=-1) * sin_TE

    def _lookup(self, length: int, *, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        table = self._table
        if table is None or len(table[0]) < length or table[0].device != device or table[0].dtype != dtype:
            table = self._table = self._build(length, device=device, dtype=dtype)
        return table[0][:length], table[1][:length]

    def _build(self, length: int, *, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device) / self.head_dim
            positions = torch.arange(length, dtype=torch.float32, device=device)
            angles = torch.outer(positions, self.theta**-exponents).repeat(1, 2)
            return angles.cos().to(dtype), angles.sin().to(dtype)


class FeedForward(nn.Module):
    """Gated feed-forward part.

    Source: Shazeer 2020, arXiv:2002.05202 (SwiGLU).
    """

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(model.hidden_size, 2 * model.intermediate_size, bias=False)
        self.down_proj = nn.Linear(model.intermediate_size, model.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Transform each position: [B, T, D] -> [B, T, D]."""
        gate_BTF, up_BTF = self.gate_up_proj(x_BTD).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate_BTF) * up_BTF)  # type: ignore[no-any-return]


class Block(nn.Module):
    """One pre-norm block; with `recompute` it keeps only its input for the backward pass."""

    def __init__(self, model: ModelSection, *, seed: int, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.input_norm = Norm(model)
        self.attention = Attention(model)
        self.post_norm = Norm(model)
        self.feed_forward = FeedForward(model)
        draw_weights(self, std=model.initializer_range, seed=seed)
        # Residual branches start smaller, so that the stream's variance does not grow with depth.
        # Source: Radford et al. 2019 (GPT-2), section 2.3.
        with torch.no_grad():
            for projection in (self.attention.o_proj, self.feed_forward.down_proj):
                projection.weight.mul_((2 * model.num_hidden_layers) ** -0.5)

    def forward(self, stream: Stream) -> Stream:
        """Add attention, then the feed-forward part, to the residual stream."""
        x_BTD, documents_BT = _part(stream)
        if self.recompute and torch.is_grad_enabled():
            return _join(checkpoint(self._run, x_BTD, documents_BT, use_reentrant=False), documents_BT)
        return _join(self._run(x_BTD, documents_BT), documents_BT)

    def _run(self, x_BTD: Tensor, documents_BT: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.input_norm(x_BTD), documents_BT)
        return x_BTD + self.feed_forward(self.post_norm(x_BTD))  # type: ignore[no-any-return]


def _part(stream: Stream) -> tuple[Tensor, Tensor | None]:
    return stream if isinstance(stream, tuple) else (stream, None)


def _join(x: Tensor, documents_BT: Tensor | None) -> Stream:
    return x if documents_BT is None else (x, documents_BT)


def _mask_documents(documents_BT: Tensor) -> Tensor:
    """Say what each position may attend to: bool [B, 1, T, S]."""
    is_same_BTS = documents_BT[:, :, None] == documents_BT[:, None, :]
    return is_same_BTS.tril()[:, None]


def draw_weights(module: nn.Module, *, std: float, seed: int) -> None:
    """Draw every matrix from N(0, std), the same on any layout: only the seed and the order of names count."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.dim() >= 2:
            drawn = torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
            parameter.data.copy_(drawn)
