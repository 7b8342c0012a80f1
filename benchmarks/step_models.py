"""The models of step.py beyond the built-in ones, as a data holder would install them: one logit for each row."""

import math

import torch
from torch import nn
from torch.nn import functional


class ImageNetwork(nn.Module):
    """The convolutional network of Opacus' MNIST example with one output: 28 x 28 pixels, 25,713 parameters."""

    def __init__(self, feature_count: int) -> None:
        super().__init__()
        assert feature_count == 28 * 28
        self.first, self.second = nn.Conv2d(1, 16, 8, 2, padding=3), nn.Conv2d(16, 32, 4, 2)
        self.hidden, self.head = nn.Linear(512, 32), nn.Linear(32, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Shape (rows, 784) to (rows,)."""
        images = features.view(-1, 1, 28, 28)
        maps = functional.max_pool2d(functional.relu(self.first(images)), 2, 1)
        maps = functional.max_pool2d(functional.relu(self.second(maps)), 2, 1)
        logits: torch.Tensor = self.head(functional.relu(self.hidden(maps.flatten(1))))
        return logits.squeeze(-1)


class LowRank(nn.Module):
    """A frozen linear layer and a trained correction of low rank: Hu et al. 2021, LoRA, arXiv:2106.09685."""

    def __init__(self, width: int, rank: int = 4) -> None:
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(requires_grad=False)
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Shape (..., width) to the same."""
        corrected: torch.Tensor = self.base(values) + self.up(self.down(values))
        return corrected


class Block(nn.Module):
    """One layer of a transformer; queries and values are trained by low-rank corrections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.value = LowRank(width), LowRank(width)
        self.key, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for part in (self.before_attention, self.before_mlp, self.key, self.out, self.wide, self.narrow):
            part.requires_grad_(requires_grad=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Shape (rows, positions, width) to the same."""
        rows, positions, width = values.shape
        normalised = self.before_attention(values)
        query, key, value = (
            part(normalised).view(rows, positions, self.heads, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(width // self.heads), dim=-1)
        values = values + self.out((weights @ value).transpose(1, 2).reshape(rows, positions, width))
        narrowed: torch.Tensor = self.narrow(functional.gelu(self.wide(self.before_mlp(values))))
        return values + narrowed


class TokenTransformer(nn.Module):
    """A frozen transformer of two blocks with LoRA: 500 tokens, 2,113 trained parameters."""

    def __init__(self, feature_count: int, tokens: int = 500, width: int = 64) -> None:
        super().__init__()
        self.tokens = tokens
        self.embedding = nn.Embedding(tokens, width).requires_grad_(requires_grad=False)
        self.places = nn.Parameter(0.02 * torch.randn(feature_count, width), requires_grad=False)
        self.blocks = nn.Sequential(*[Block(width, heads=4) for _ in range(2)])
        self.head = nn.Linear(width, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features in [-1, 1] name tokens: shape (rows, positions) to (rows,)."""
        tokens = ((features + 1) / 2 * (self.tokens - 1)).round().long()
        logits: torch.Tensor = self.head(self.blocks(self.embedding(tokens) + self.places).mean(dim=1))
        return logits.squeeze(-1)
