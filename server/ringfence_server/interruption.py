"""Being interrupted: who hears of Ctrl-C and SIGTERM while a block runs, at once or when it is through."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def handled_by(handler: Callable[..., object], *kinds: signal.Signals) -> Iterator[None]:
    """Let signals of these kinds go to a handler for the length of the block."""
    before = {kind: signal.signal(kind, handler) for kind in kinds}
    try:
        yield
    finally:
        for kind, handles in before.items():
            signal.signal(kind, handles)


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C, so that whoever stops this process stops the run with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with handled_by(signal.default_int_handler, signal.SIGTERM):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block is through, and then do what they would have done.

    The block ends by itself: what it waits for has a time limit of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    try:
        with handled_by(lambda kind, _: came.append(kind), signal.SIGINT, signal.SIGTERM):
            yield
    finally:
        for kind in came[:1]:
            signal.raise_signal(kind)
