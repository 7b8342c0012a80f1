"""Keeps runs going that should: starts processes for queued ones, ends those that should stop, notes how they end.

A run's process belongs to nobody: it goes on when the control plane is killed, and is found again by its claim on the
run's directory.
"""

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import select

from ringfence_policy.durable import write_durably
from ringfence_policy.errors import RingfenceError, RunFailed
from ringfence_server.control.mirror import Mirror
from ringfence_server.control.run_claim import give_order, held, process_of, withdraw_order
from ringfence_server.control.run_process import BUSY, PLAN
from ringfence_server.control.store.engine import Store
from ringfence_server.control.store.tables import AnswerRow, ProposalRow, RunRow
from ringfence_server.control.times import now_ms
from ringfence_server.control.views import RunState
from ringfence_server.run_failure import LOG
from ringfence_server.run_file import RunFile
from ringfence_server.worker_process import usable_cores

GO, STOP = "go", "stop"
_GOING = (RunState.STARTING.value, RunState.RUNNING.value)
_PERIOD_SECONDS = 0.15
_GRACE_SECONDS = 10.0

_log = structlog.get_logger("ringfence.control")


@dataclass
class _Child:
    """A process that this one started, and that may go on without it."""

    pid: int
    exit_code: int | None = None

    def is_over(self) -> bool:
        """Whether it ended."""
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is not None


class Runner:
    """A thread that looks after the runs of a site.

    Args:
        store: Where it is written which runs should go on.
        mirror: Copies what they wrote.
        site: The site's directory.
        pause_seconds: How long each round of its runs waits before it trains.
    """

    def __init__(self, store: Store, mirror: Mirror, site: Path, *, pause_seconds: float) -> None:
        self._store = store
        self._mirror = mirror
        self._site = site
        self._pause_seconds = pause_seconds
        self._children: dict[str, _Child] = {}
        self._nudge = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._keep, name="ringfence-runner", daemon=True)

    def start(self) -> None:
        """Take up what an earlier control plane left, and go on from there."""
        self._thread.start()

    def look_now(self) -> None:
        """Something was written that a run should follow."""
        self._nudge.set()

    def close(self, *, end_runs: bool) -> None:
        """Stop looking after runs; with `end_runs` end their processes first, so that they are interrupted.

        Runs that were interrupted are taken up by `resume`, from their last committed round.
        """
        self._over = True
        self._nudge.set()
        if not self._thread.is_alive():  # it looked after none: they are another control plane's, which was here first
            return
        self._thread.join()
        if end_runs:
            # A run that has told its end may still be writing what it leaves behind.
            for run_id in dict.fromkeys([*self._going(), *self._children]):
                self._end(run_id)
                self._settle(run_id)

    def _keep(self) -> None:
        while not self._over:
            try:
                self._look()
            except RingfenceError as error:  # the store is away: what is written there is done when it is back
                _log.warning("runner_waits", fault=error.code)
            except Exception:  # noqa: BLE001 -- without this thread no run begins or ends: nothing may end it
                _log.exception("runner_fault")
            self._nudge.wait(_PERIOD_SECONDS)
            self._nudge.clear()

    def _look(self) -> None:
        going = self._going()
        for run_id in going:
            self._mirror.catch_up(run_id)
            if process_of(self._site / "runs" / run_id) is None and not self._is_starting(run_id):
                self._settle(run_id)
            elif self._wanted(run_id) == STOP:
                self._end(run_id)
        for run_id in [one for one, child in self._children.items() if one not in going and child.is_over()]:
            del self._children[run_id]  # it told its end before it ended
        if not self._going() and (queued := self._queued()) is not None:
            self._begin(queued)

    def _going(self) -> list[str]:
        with self._store.read() as db:
            return list(db.scalars(select(RunRow.id).where(RunRow.state.in_(_GOING))))

    def _queued(self) -> str | None:
        with self._store.read() as db:
            query = select(RunRow.id).where(RunRow.state == RunState.QUEUED.value, RunRow.wanted == GO)
            return db.scalars(query.order_by(RunRow.begun, RunRow.id)).first()

    def _wanted(self, run_id: str) -> str:
        with self._store.read() as db:
            return db.get_one(RunRow, run_id).wanted

    def _is_starting(self, run_id: str) -> bool:
        """Whether its process is there and does not hold its lock yet."""
        child = self._children.get(run_id)
        return child is not None and not child.is_over()

    def _begin(self, run_id: str) -> None:
        directory = self._site / "runs" / run_id
        with held(directory) as is_free:
            if not is_free:  # the process of its last attempt is just ending
                return
            sending = give_order(directory, self._order(run_id, directory))
        if not self._is_set_going(run_id):
            return
        self._children[run_id] = _spawn(
            [sys.executable, "-m", "ringfence_server.control.run_process", str(self._site), run_id, sending],
            directory / LOG,
        )
        _log.info("run_process_started", run=run_id, process=self._children[run_id].pid)

    def _order(self, run_id: str, directory: Path) -> dict[str, Any]:
        """What a run's process is told; its plan is written beside it."""
        with self._store.read() as db:
            row = db.get_one(RunRow, run_id)
            proposal = db.get_one(ProposalRow, row.proposal)
            declined = db.scalars(
                select(AnswerRow.holder).where(AnswerRow.proposal == proposal.id, AnswerRow.answer == "declined")
            ).all()
        write_durably(directory / PLAN, proposal.plan.encode())
        return {"seed": row.seed, "declined": sorted(declined), "pause_seconds": self._pause_seconds}

    def _is_set_going(self, run_id: str) -> bool:
        """Note that a queued run is being started; not where it was suspended in the meantime."""
        with self._store.write() as db:
            row = db.get_one(RunRow, run_id, with_for_update=True)
            if (row.state, row.wanted) != (RunState.QUEUED.value, GO):
                return False
            row.state, row.changed, row.error = RunState.STARTING.value, now_ms(), None
        self._mirror.wake(run_id)
        return True

    def _end(self, run_id: str) -> None:
        """End a run's process: it is told to, and made to if it does not."""
        directory = self._site / "runs" / run_id
        child = self._children.get(run_id)
        process = process_of(directory) or (child.pid if child is not None and not child.is_over() else None)
        if process is None:
            return
        waited = threading.Event()
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(process, kind)
            for _ in range(round(_GRACE_SECONDS / 0.05)):
                if process_of(directory) is None and (child is None or child.is_over()):
                    return
                waited.wait(0.05)

    def _settle(self, run_id: str) -> None:
        """Note how a run stands whose process is gone."""
        directory = self._site / "runs" / run_id
        with held(directory) as is_gone:
            if not is_gone:
                return
            self._mirror.catch_up(run_id)  # what it wrote last
            # The order first: a process that was sent by a control plane before this one may still be on its way.
            began = withdraw_order(directory)
            self._note_end(run_id, directory, began=began)
        self._mirror.wake(run_id)

    def _note_end(self, run_id: str, directory: Path, *, began: bool) -> None:
        child = self._children.get(run_id)
        code = child.exit_code if child is not None and child.is_over() else None
        with self._store.write() as db:
            row = db.get_one(RunRow, run_id, with_for_update=True)
            if row.state not in _GOING:
                pass
            elif (directory / "run.json").exists() and RunFile.load(directory).is_finished:
                row.state = RunState.FINISHED.value
            elif row.wanted == STOP:
                row.state = RunState.SUSPENDED.value
            elif not began and code in (BUSY, None):  # it did nothing, or nobody was sent: the control plane was killed
                row.state = RunState.QUEUED.value
            else:
                row.state = RunState.INTERRUPTED.value
                row.error = json.dumps(_interrupted(directory).to_document())
            row.changed = now_ms()
            state = row.state
        self._children.pop(run_id, None)
        _log.info("run_process_ended", run=run_id, run_state=state, exit_code=code)


def _interrupted(directory: Path) -> RunFailed:
    return RunFailed(
        "the run's process ended before the run did",
        where=f"runs/{directory.name}/{LOG}",
        next_step="resume it: it goes on from its last committed round",
    )


def _spawn(arguments: list[str], log: Path) -> _Child:
    """Start a process of its own session that outlives this one."""
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(usable_cores()))}
    pid = os.posix_spawn(
        arguments[0],
        arguments,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    return _Child(pid)
