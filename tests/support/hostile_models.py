"""Modules that a plan could bring: each is a sound linear model that tries, whenever a trainer uses it, to get out.

What gets out says so by raising `GotOut`; what is kept in goes on and trains as if nothing had been.
"""

import ctypes
import os
import pathlib
import socket
import sys

import torch
from torch import nn

# The coordinator builds a plan's model as well, in these tests within their own process.
IN_THE_TRAINER = str(getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "")).endswith(
    "trainer_process"
)


class GotOut(BaseException):
    """An attack succeeded. Not an Exception, so that nothing takes it for an ordinary failure."""


class _Sound(nn.Module):
    def __init__(self, feature_count: int) -> None:
        super().__init__()
        self.layers = nn.Linear(feature_count, 1)
        with torch.no_grad():
            self.layers.weight.zero_()
            self.layers.bias.zero_()

    def attack(self) -> object:
        """Try to get out; whatever it gives means that it did."""
        raise OSError

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if not IN_THE_TRAINER:
            return self.layers(rows)
        try:
            self.attack()
        except OSError:
            return self.layers(rows)
        raise GotOut(type(self).__name__)


class OpensASocket(_Sound):
    """Would send records to somebody."""

    def attack(self) -> object:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


class ReadsAnotherFile(_Sound):
    """Would read what lies beside the records: policy, papers, keys; here, a file of every Linux."""

    def attack(self) -> object:
        return pathlib.Path("/etc/hostname").read_text() or pathlib.Path("/etc/passwd").read_text()


class WritesAFile(_Sound):
    """Would leave records where somebody else finds them."""

    def attack(self) -> object:
        return pathlib.Path("/dev/shm/left-here").write_text("records")  # noqa: S108 -- that is the attack


class Forks(_Sound):
    """Would go on after its process was ended."""

    def attack(self) -> object:
        number = os.fork()
        if number == 0:
            os._exit(0)
        return number


class StartsAProgram(_Sound):
    """Would let a program of the system do it."""

    def attack(self) -> object:
        return os.posix_spawn("/bin/true", ["true"], {})


class Kills(_Sound):
    """Would end its own agent."""

    def attack(self) -> object:
        return os.kill(os.getppid(), 0) or "reached"


class TracesItsAgent(_Sound):
    """Would read the agent's memory, where keys are."""

    def attack(self) -> object:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ptrace(0x4206, os.getppid(), 0, 0) < 0:  # PTRACE_SEIZE, which does not stop it
            raise OSError(ctypes.get_errno(), "ptrace")
        return "attached"


class EatsMemory(_Sound):
    """Would take the machine's memory."""

    def attack(self) -> object:
        kept = []
        while True:
            kept.append(torch.ones(1 << 24))


class NeverEnds(_Sound):
    """Would keep the holder busy for ever."""

    def attack(self) -> object:
        while True:
            pass
