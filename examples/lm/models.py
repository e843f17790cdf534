"""A decoder: RMSNorm, rotary positions, causal attention, SwiGLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn


class GPT(nn.Module):
    """Predict each token from the tokens before it.

    Args:
        width: The number of features of a token. A multiple of `2 * heads`.
        depth: The number of blocks.
    """

    def __init__(
        self,
        vocabulary: int = 256,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width is {width}; expected a multiple of 2 * heads, {2 * heads}")
        self.features = width // heads  # features of a head
        self.embed = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight  # input and output share their weights
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # All blocks add to one sum, each twice. With more blocks, each has to add less.
                adds = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if adds else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:  # (batch, length)
        turns = rotary_turns(tokens.shape[1], self.features, tokens.device)
        x = self.dropout(self.embed(tokens))  # (batch, length, width)
        for block in self.blocks:
            x = block(x, turns)
        logits: Tensor = self.head(self.norm(x))
        return logits  # (batch, length, vocabulary)


class Block(nn.Module):
    """Attention between tokens, then a layer on each token. Both are added to their input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.feed_forward_norm = nn.RMSNorm(width)
        self.feed_forward = FeedForward(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:  # (batch, length, width)
        x = x + self.dropout(self.attention(self.attention_norm(x), turns))
        added: Tensor = self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return x + added


class Attention(nn.Module):
    """Attention with several heads. A token sees itself and the tokens before it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.query_key_value(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, features)
        seen = F.scaled_dot_product_attention(
            rotate(query, turns),
            rotate(key, turns),
            value,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
        )
        mixed: Tensor = self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return mixed


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020): one half of the hidden features is a gate for the other half."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-8 * width // 3) // 16 * 16  # as many weights as 4 * width without a gate
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, hidden = self.up(x).chunk(2, dim=-1)
        lowered: Tensor = self.down(F.silu(gate) * hidden)
        return lowered


def rotary_turns(length: int, features: int, device: torch.device) -> Tensor:
    """Compute the angle of each pair of features at each position (RoPE; Su et al., 2021)."""
    pairs = torch.arange(features // 2, device=device, dtype=torch.float32)
    speeds = 10_000.0 ** (-2 * pairs / features)
    angles = torch.arange(length, device=device)[:, None] * speeds  # (length, features / 2)
    return torch.stack([angles.cos(), angles.sin()])  # (2, length, features / 2)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn pairs of features. Then products depend only on the distance between two positions."""
    cosine, sine = turns
    first, second = x.float().chunk(2, dim=-1)  # (batch, heads, length, features / 2)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return torch.cat(turned, dim=-1).type_as(x)
