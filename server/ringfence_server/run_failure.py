"""How a run's process tells of its failure: one event, whatever went wrong, and where the rest can be read."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ringfence_policy.errors import RingfenceError, RunFailed
from ringfence_server.events import EventFile

LOG = "worker.log"
FLOWER_LOG = "flower.log"


def keep_log(directory: Path) -> None:
    """Send this process's log to the run's own file."""
    form = "%(asctime)s %(name)s %(message)s"
    logging.basicConfig(filename=directory / LOG, level=logging.INFO, format=form)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request says nothing


@contextmanager
def told(directory: Path, *, resume: str = "--resume") -> Iterator[None]:
    """Write `run-failed` where the block fails, as the last event of the run.

    Args:
        directory: The run's directory.
        resume: The options that take the run up again.

    Raises:
        RingfenceError: The block's own fault, or RunFailed for one that nobody foresaw.
    """
    try:
        yield
    except RingfenceError as error:
        _tell(directory, error)
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("the run failed")
        failed = RunFailed(
            "the run stopped at an unexpected fault",
            got=type(error).__name__,
            where=str(directory / LOG),
            next_step=f"what was committed is kept: `ringfence run {resume} DIR` goes on from there",
        )
        _tell(directory, failed)
        raise failed from error


def _tell(directory: Path, error: RingfenceError) -> None:
    with closing(EventFile(directory / "events.jsonl")) as report:
        report("run-failed", {"error": error.to_document(), "exit_code": error.exit_code})
