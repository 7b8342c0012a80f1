"""Modules as a data holder would install them, for each kind of layer that is trained: 64 features, one logit.

`tests/conformance/test_own_models.py` trains them; the plan's path is `own_models:Name`.
"""

import math

import torch
from torch import nn
from torch.nn import functional

FEATURES = 64
TOKENS = 11


def tokens_of(features):
    """Name a token by each feature in [-1, 1]."""
    return ((features + 1) / 2 * (TOKENS - 1)).round().long()


class Straight(nn.Module):
    """One layer, for any number of features."""

    def __init__(self, feature_count):
        super().__init__()
        self.head = nn.Linear(feature_count, 1)

    def forward(self, features):
        return self.head(features)


class Image(nn.Module):
    """Two convolutions: strides, odd "same" padding, groups, dilation."""

    def __init__(self, feature_count):
        super().__init__()
        self.side = math.isqrt(feature_count)
        self.first = nn.Conv2d(1, 4, (3, 2), stride=(1, 2), padding=(2, 1))
        self.norm = nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(1, 2), groups=2, bias=False)
        self.third = nn.Conv2d(6, 3, 2, padding="valid")
        self.head = nn.Linear(3, 1)

    def forward(self, features):
        maps = torch.tanh(self.norm(self.first(features.view(-1, 1, self.side, self.side))))
        return self.head(torch.tanh(self.third(torch.tanh(self.second(maps)))).mean(dim=(2, 3)))


class LowRank(nn.Module):
    """LoRA: a frozen layer and a trained correction, which starts at nothing."""

    def __init__(self, width, rank=2):
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(requires_grad=False)
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, values):
        return self.base(values) + self.up(self.down(values))


class Transformer(nn.Module):
    """One block of attention over a frozen embedding; LoRA on queries and values, and a trained head."""

    def __init__(self, feature_count, width=8):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, width).requires_grad_(requires_grad=False)
        self.places = nn.Parameter(torch.randn(feature_count, width), requires_grad=False)
        self.query, self.value = LowRank(width), LowRank(width)
        self.key = nn.Linear(width, width).requires_grad_(requires_grad=False)
        self.norm = nn.LayerNorm(width).requires_grad_(requires_grad=False)
        self.head = nn.Linear(width, 1)

    def forward(self, features):
        values = self.norm(self.embedding(tokens_of(features)) + self.places)
        weights = self.query(values) @ self.key(values).transpose(1, 2) / math.sqrt(values.shape[2])
        return self.head((values + torch.softmax(weights, dim=2) @ self.value(values)).mean(dim=1)).squeeze(-1)


class Words(nn.Module):
    """A trained embedding, layer normalisation, and a wide layer on few positions."""

    padding = None

    def __init__(self, feature_count, width=6):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, width, padding_idx=self.padding)
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Linear(feature_count // 4 * width, 48)
        self.head = nn.Linear(48, 1)

    def forward(self, features):
        words = self.norm(self.embedding(tokens_of(features)))
        return self.head(torch.tanh(self.wide(words.reshape(len(features), 4, -1)).mean(dim=1)))


class PaddedWords(Words):
    """The same with a padding token, whose weights get no gradient; Opacus gives them one."""

    padding = 0


class Activations(nn.Module):
    """Activations in place, dropout, and a layer of which the bias alone is trained."""

    def __init__(self, feature_count):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(feature_count, 5), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(5, 4), nn.ELU(inplace=True)
        )
        self.layers[3].weight.requires_grad_(requires_grad=False)
        self.head = nn.Linear(4, 1)

    def forward(self, features):
        return self.head(self.layers(features))


class Normalised(nn.Module):
    """Refused: batch normalisation, here without any parameter of its own."""

    def __init__(self, feature_count):
        super().__init__()
        self.layer, self.norm = nn.Linear(feature_count, 1), nn.BatchNorm1d(feature_count, affine=False)

    def forward(self, features):
        return self.layer(self.norm(features))


class OwnParameter(nn.Module):
    """Refused: a parameter that no layer owns."""

    def __init__(self, feature_count):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(feature_count))

    def forward(self, features):
        return (features * self.scale).sum(dim=1)


class Recurrent(nn.Module):
    """Refused: another kind of layer."""

    def __init__(self, feature_count):
        super().__init__()
        self.layer, self.head = nn.GRU(feature_count // 8, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, features):
        return self.head(self.layer(features.view(len(features), 8, -1))[0][:, -1])


class Twice(nn.Module):
    """Refused: a layer that is called twice."""

    def __init__(self, feature_count):
        super().__init__()
        self.layer, self.head = nn.Linear(feature_count, feature_count), nn.Linear(feature_count, 1)

    def forward(self, features):
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(features)))))


class Shared(nn.Module):
    """Refused: two layers with one weight."""

    def __init__(self, feature_count):
        super().__init__()
        self.first, self.second = nn.Linear(feature_count, feature_count), nn.Linear(feature_count, feature_count)
        self.second.weight = self.first.weight
        self.head = nn.Linear(feature_count, 1)

    def forward(self, features):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(features)))))


class Outside(nn.Module):
    """Refused: a layer's weight that is also used outside of it."""

    def __init__(self, feature_count):
        super().__init__()
        self.layer = nn.Linear(feature_count, 1)

    def forward(self, features):
        return self.layer(features) + functional.linear(features.square(), self.layer.weight)


class Unused(nn.Module):
    """Refused: a trained layer that nothing calls."""

    def __init__(self, feature_count):
        super().__init__()
        self.used, self.unused = nn.Linear(feature_count, 1), nn.Linear(feature_count, 1)

    def forward(self, features):
        return self.used(features)


class Folded(nn.Module):
    """Refused: a layer that sees positions where rows should be."""

    def __init__(self, feature_count):
        super().__init__()
        self.layer, self.head = nn.Linear(feature_count // 8, 3), nn.Linear(24, 1)

    def forward(self, features):
        return self.head(torch.tanh(self.layer(features.reshape(8 * len(features), -1))).reshape(len(features), -1))


class Remembers(nn.Module):
    """Refused: it keeps what it has seen in a buffer while it trains."""

    def __init__(self, feature_count):
        super().__init__()
        self.layer = nn.Linear(feature_count, 1)
        self.register_buffer("seen", torch.zeros(feature_count))

    def forward(self, features):
        if self.training:
            self.seen += features.mean(dim=0)
        return self.layer(features - self.seen)
