"""Fixtures for all tests. tests/support holds what several of them use; test modules import it by its plain name."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Before Flower is imported anywhere: tests call nobody, and every test process keeps to one thread.
os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", OMP_NUM_THREADS="1")
sys.path.append(str(Path(__file__).parent / "support"))
# What a shell starts in the background ignores Ctrl-C and hands that on to its children, which some tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# No test fails because the machine was busy.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture
def tiny_scenario(tmp_path: Path) -> Callable[..., Any]:
    """A factory of small scenario directories: see support/tiny_scenario.py."""

    def write(name: str = "trees", **changes: Any) -> Any:
        return import_module("tiny_scenario").write_scenario(tmp_path / name, **changes)

    return write


@pytest.fixture
def tiny_run(tiny_scenario: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """A factory of runs in this process, each over a small scenario of its own: see support/tiny_run.py."""
    opened: list[Any] = []

    def start(name: str = "trees", *, seed: int | None = None, **changes: Any) -> Any:
        opened.append(import_module("tiny_run").TinyRun(tiny_scenario(name, **changes), seed=seed))
        return opened[-1]

    yield start
    for run in opened:
        run.close()
