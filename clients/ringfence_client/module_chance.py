"""A module's own chance, such as dropout: from the holder's source, and apart from the process's generators."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ringfence_client.trainer import TrainingJob


@contextmanager
def module_chance(job: TrainingJob) -> Iterator[None]:
    """Let a job's own module draw what the holder's source decides: unpredictable, or repeatable in a rehearsal.

    Draws one uniform for a model of kind `module`, and none for the built-in ones, which have no chance in them. The
    process's own generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        if job.model.get("kind") == "module":
            torch.manual_seed(int(job.noise.uniform(1)[0] * 2**62))
        yield
