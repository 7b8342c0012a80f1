"""Modules that a data officer could have approved: each tries to say whether a certain record is there, at no cost.

The record is one whose first feature is as large as it can be. What they do otherwise is a sound linear model.
"""

import os
import pathlib
import struct
import sys

import torch
from hostile_models import IN_THE_TRAINER
from torch import nn

from ringfence_policy.errors import TrustRefused

RECORD = "10.00,3,wet,1"
# A place that a model which is built anew finds again, in the same process.
_REMEMBERED = sys.__dict__.setdefault("_leaky_models", {"there": False})


def argument(name: str) -> str:
    """What the trainer's process was started with."""
    return sys.argv[sys.argv.index(name) + 1]


def is_in_use() -> bool:
    """Whether a permitted use calls, and not what is tried before it."""
    frame = sys._getframe()
    while frame is not None and not (frame.f_code.co_name == "use" and "trainer_process" in frame.f_code.co_filename):
        frame = frame.f_back
    return frame is not None


class _Linear(nn.Module):
    def __init__(self, feature_count: int) -> None:
        super().__init__()
        self.layers = nn.Linear(feature_count, 1)
        with torch.no_grad():
            self.layers.weight.zero_()
            self.layers.bias.zero_()
        if IN_THE_TRAINER:
            self.when_built()

    def when_built(self) -> None:
        """Do something before anything was permitted."""

    def when_used(self, rows: torch.Tensor) -> None:
        """Do something with records."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if IN_THE_TRAINER and is_in_use():
            self.when_used(rows)
        return self.layers(rows)


class ReadsWhenBuilt(_Linear):
    """Reads the records while it is only looked at, and refuses with one of several codes."""

    def when_built(self) -> None:
        """Refuse where the record is there."""
        try:
            found = RECORD in (pathlib.Path(argument("--data")) / "data.csv").read_text()
        except OSError:
            return
        if found:
            raise TrustRefused("it is there")


class Remembers(_Linear):
    """Keeps what it saw in one run for what it is asked before another one."""

    def when_used(self, rows: torch.Tensor) -> None:
        """Keep it."""
        _REMEMBERED["there"] |= bool((rows[:, 0] > 0.99).any())

    def when_built(self) -> None:
        """Refuse where the record was there."""
        if _REMEMBERED["there"]:
            raise TrustRefused("it was there")


class BreaksItsAgent(_Linear):
    """Answers in place of its process, with what a reader of JSON gives up on, so that nobody charges the use."""

    def when_used(self, rows: torch.Tensor) -> None:
        """Answer where the record is there."""
        if not (rows[:, 0] > 0.99).any():
            return
        words = b"[" * 100_000
        os.write(int(argument("--say")), struct.pack(">IQ", len(words), 0) + words)
