"""Faults in a live deployment: how a step of a round is reached and held, who is killed there, and what is left after.

No product code takes part: a process is held at a step by SIGSTOP, which the kernel does to it from outside, and what
has been reached is read from the holders' own ledgers and logs.
"""

import json
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from tiny_scenario import TinyScenario

from deployment import LiveDeployment, wait_until
from ringfence_policy.database import Database
from ringfence_policy.evidence_log import EvidenceLog
from ringfence_policy.ledger import Hold, HoldState, PrivacyLedger
from ringfence_policy.verify import read_roots, verify_bundle

HOLDERS = ("alder", "birch")
ROUNDS = 4
SEED = ("--seed", "7")
PLAN = {
    "training.rounds": ROUNDS,
    "privacy.noise_multiplier_max": "8",
    "evaluation.mode": "none",
    "cohort.round_seconds": 240,
}
LEFT = {HoldState.SENDING, HoldState.COMMITTED}


# --- holding a process ------------------------------------------------------------------------------------------------


class Held:
    """Processes that were stopped with SIGSTOP, each to go on again, at the latest with the test."""

    def __init__(self) -> None:
        self._stopped: set[int] = set()

    def hold(self, process_id: int) -> None:
        """Stop a process where it stands."""
        os.kill(process_id, signal.SIGSTOP)
        self._stopped.add(process_id)
        wait_until(f"process {process_id} stands still", lambda: state_of(process_id) in "TZX", seconds=30)

    def let_go(self, *process_ids: int) -> None:
        """Let processes go on, all of them by default."""
        for one in process_ids or tuple(self._stopped):
            self._stopped.discard(one)
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGCONT)


def state_of(process_id: int) -> str:
    """The kernel's letter for what a process does; X where there is none."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


# --- what a holder has on disk, seen while its agent is at work -------------------------------------------------------


def _ask(directory: Path, question: str, *values: object) -> list[tuple[Any, ...]]:
    path = directory / "state" / "ledger.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(question, values).fetchall()


def states_of(directory: Path, round_number: int) -> set[str]:
    """The states of the holds that a holder's ledger has for a round."""
    return {state for (state,) in _ask(directory, "SELECT state FROM hold WHERE round_number = ?", round_number)}


def saw_the_coordinators_log(directory: Path) -> bool:
    """Whether a request for a round has come: the first thing that is kept of it is the coordinator's checkpoint."""
    records = _ask(directory, "SELECT record FROM evidence_leaf ORDER BY position")
    return any(json.loads(record)["kind"] == "peer-checkpoint" for (record,) in records)


# --- an undisturbed run -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Undisturbed:
    """The same run in one process, over untouched copies of the holders.

    Attributes:
        model: The released model.
        epsilon: What a holder's ledger says after so many rounds, in millionths; the first is for none.
    """

    model: Mapping[str, Any]
    epsilon: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, results: Path) -> "Undisturbed":
        """Read what a run in one process left."""
        events = results / "events.jsonl"
        closed = [one["outcome"] for one in map(json.loads, events.read_text().splitlines()) if "outcome" in one]
        assert [one["round"] for one in closed] == list(range(1, ROUNDS + 1))
        spent = {name: [0, *(round(one["epsilon"][name] * 1e6) for one in closed)] for name in HOLDERS}
        return cls(load_file(results / "model.safetensors"), spent)


# --- what is left -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HolderState:
    """What one holder's database holds when everything is over."""

    holds: Sequence[Hold]
    epsilon_micro: int
    records: Sequence[Mapping[str, Any]]

    def rounds(self, *states: HoldState) -> list[int]:
        """The training rounds with a hold in one of these states."""
        return sorted(one.round_number for one in self.holds if one.state in states)


def holder_state(scenario: TinyScenario, holder_id: str) -> HolderState:
    """Open a holder's database as an auditor would: it is whole, and log and ledger tell one story."""
    path = scenario.holder(holder_id) / "state" / "ledger.db"
    with Database.open(path, must_exist=True) as database:
        ledger = PrivacyLedger(database)  # counts every hold again and refuses any difference
        records = EvidenceLog(database, origin=f"ringfence/holder/{holder_id}").records()
        state = HolderState(
            holds=ledger.holds(None),
            epsilon_micro=max(
                (one.committed + one.reserved for one in ledger.meters() if one.quantity == "epsilon"), default=0
            ),
            records=records,
        )
    used = [one["hold_id"] for one in records if one["kind"] in ("sent", "charged")]
    assert sorted(used) == sorted(hold.hold_id for hold in state.holds if hold.state in LEFT), holder_id
    return state


def coordinator_records(live: LiveDeployment) -> list[dict[str, Any]]:
    """The coordinator's own log."""
    with Database.open(live.directory / "coordinator" / "log.db", must_exist=True) as database:
        ((origin,),) = database.rows("SELECT origin FROM evidence_origin")
        return EvidenceLog(database, origin=origin).records()


@dataclass(frozen=True)
class Line:
    """One line of the matrix; as it stands where no run came to be."""

    fault: str
    step: str
    run: str
    budget: str = "nothing was used"
    updates: str = "none"
    evidence: str = "no run"


LINES: list[Line] = []


@dataclass
class Aftermath:
    """What a fault left, once its run is over; made by `settle`, which refuses whatever may never be."""

    live: LiveDeployment
    attempts: list[dict[str, Any]]
    counted: dict[int, list[str]] = field(default_factory=dict)
    states: dict[str, HolderState] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Any]:
        """What the last attempt said."""
        return self.attempts[-1]

    @property
    def completed(self) -> bool:
        """Whether the run came to its end."""
        return self.summary.get("status") == "completed"

    @property
    def is_complete(self) -> bool:
        """Whether every round has both holders' updates, so that the model must be the undisturbed one."""
        return self.completed and self.counted == {number: list(HOLDERS) for number in range(1, ROUNDS + 1)}

    @property
    def closed(self) -> list[int]:
        """The rounds that were closed."""
        return sorted({one["outcome"]["round"] for one in self.live.events() if one["event"] == "round-closed"})

    def spent(self, holder_id: str) -> list[int]:
        """The rounds that the holder's ledger has as spent."""
        return self.states[holder_id].rounds(*LEFT)

    def refusals(self, round_number: int) -> dict[str, list[str]]:
        """Who was left out of a round, and by which clauses, as the last attempt tells it."""
        closed = [one["outcome"] for one in self.live.events() if one["event"] == "round-closed"]
        found = next(one for one in reversed(closed) if one["round"] == round_number)
        return {one["holder"]: list(one["clauses"]) for one in found["refused"]} | {
            one["holder"]: [one["code"]] for one in found["rejected_updates"]
        }


def ended(live: LiveDeployment) -> dict[str, Any]:
    """Wait for the run's end, and give what it said."""
    run = live.run
    assert run is not None
    run.wait()
    said: dict[str, Any] = json.loads(run.log.read_text())
    assert "status" in said or said["error"]["next_step"], said
    return said


def all_connected(live: LiveDeployment) -> bool:
    """Whether every registered holder is connected; not while the SuperLink is down."""
    code, said = live.try_command("coordinator", "holders", str(live.directory))
    return code == 0 and all(one["state"] == "connected" for one in said)


def resumed(live: LiveDeployment) -> dict[str, Any]:
    """Wait until a run broke off with a reason and a next step, take it up again, and give what it said."""
    run = live.run
    assert run is not None
    assert run.wait() == 1, run.log.read_text()
    said: dict[str, Any] = json.loads(run.log.read_text())
    assert said["error"]["code"] == "run-failed", said
    assert said["error"]["summary"], said
    assert "--resume" in said["error"]["next_step"], said
    wait_until("the holders are connected", lambda: all_connected(live), pause_seconds=1.0)
    live.start_run("--resume")
    return said


def settle(live: LiveDeployment, undisturbed: Undisturbed, *, earlier: Sequence[dict[str, Any]] = ()) -> Aftermath:
    """Hold what is left against what may never be, whatever the fault was.

    * Nothing is left open in a ledger.
    * What a ledger says is what its spent uses cost in the undisturbed run: nothing is understated, nothing lost.
    * No round is paid twice, and what the coordinator has of a holder's, the holder has spent.
    * No update counts twice, and each counts in the round that it was made for.
    * The evidence of a run that came to its end verifies, and holds what both sides logged.
    """
    after = Aftermath(live, [*earlier, ended(live)])
    scenario = live.scenario
    wait_until("nothing is open in a ledger", lambda: not _is_open(scenario), seconds=90)
    records = coordinator_records(live)
    for holder_id in HOLDERS:
        state = after.states[holder_id] = holder_state(scenario, holder_id)
        spent = state.rounds(*LEFT)
        assert max(Counter(spent).values(), default=0) <= 1, (holder_id, spent)
        assert state.epsilon_micro == undisturbed.epsilon[holder_id][len(spent)], (holder_id, spent)
    for record in records:
        if record["kind"] == "update-received":
            (hold,) = (one for one in after.states[record["holder"]].holds if one.hold_id == record["hold_id"])
            assert (hold.state in LEFT, hold.update_digest) == (True, record["update_digest"])
    commits = [one for one in records if one["kind"] == "round-committed"]
    after.counted = {one["round"]: sorted(one["updates"]) for one in commits}
    assert len(after.counted) == len(commits)
    digests = [digest for one in commits for digest in one["updates"].values()]
    assert len(set(digests)) == len(digests)
    for commit in commits:
        for holder_id, digest in commit["updates"].items():
            made = [one for one in after.states[holder_id].holds if one.round_number == commit["round"]]
            assert digest in {one.update_digest for one in made if one.state in LEFT}
    if "evidence" in after.summary:
        result = live.newest_run
        assert result is not None
        verified = verify_bundle(result / "evidence.zip", read_roots(result / "roots.json"))
        assert verified.passed, [one for one in verified.checks if not one.passed]
        assert after.summary["evidence"]["verified"]
        for holder_id, told in after.summary["holders"].items():
            assert told["epsilon"] in (None, after.states[holder_id].epsilon_micro / 1e6)
        if after.is_complete:
            assert_same(load_file(result / "model.safetensors"), undisturbed.model)
    return after


def _is_open(scenario: TinyScenario) -> bool:
    found = {
        state
        for holder_id in HOLDERS
        for (state,) in _ask(scenario.holder(holder_id), "SELECT DISTINCT state FROM hold")
    }
    return bool(found & {"reserved", "sending"})


def assert_same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Two models are the same."""
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        assert array == pytest.approx(theirs[name], abs=1e-6)


# --- the matrix -------------------------------------------------------------------------------------------------------


def note(fault: str, step: str, after: Aftermath, undisturbed: Undisturbed) -> None:
    """Put what was measured into the matrix."""
    evidence = "verifies" if "evidence" in after.summary else "no bundle"
    words = _run_in_words(after), _budget_in_words(after, undisturbed), _updates_in_words(after)
    tell(Line(fault, step, *words, evidence))


def tell(line: Line) -> None:
    """Put a line into the matrix."""
    LINES.append(line)
    print(f"\n{table([line]).splitlines()[-1]}")  # noqa: T201 -- with -s, as it is measured


def _run_in_words(after: Aftermath) -> str:
    breaks = Counter(one["error"]["code"] for one in after.attempts[:-1])
    broke = "".join(f"{code}, resumed, " + (f"{times} times; " if times > 1 else "") for code, times in breaks.items())
    status = after.summary.get("status") or after.summary["error"]["code"]
    rounds: dict[str, list[str]] = {}
    for number in after.closed:
        for holder, clauses in after.refusals(number).items():
            rounds.setdefault(f"{holder}: {', '.join(clauses)}", []).append(str(number))
    absent = [f"{who} in round {', '.join(numbers)}" for who, numbers in rounds.items()]
    same = ", same model" if after.is_complete else ""
    return "; ".join([f"{broke}{status}{same}", *absent])


def _budget_in_words(after: Aftermath, undisturbed: Undisturbed) -> str:
    words = []
    for holder_id, state in after.states.items():
        spent, whole = len(after.spent(holder_id)), undisturbed.epsilon[holder_id]
        given_back = len(state.rounds(HoldState.RELEASED))
        back = f", {given_back} given back" if given_back else ""
        same = "as undisturbed" if state.epsilon_micro == whole[-1] else f"as undisturbed after {spent}"
        words.append(f"{holder_id} {spent} spent ({same}){back}")
    return "; ".join(words)


def _updates_in_words(after: Aftermath) -> str:
    per_round = ", ".join(str(len(after.counted.get(number, []))) for number in range(1, ROUNDS + 1))
    unused = [
        f"{holder_id}'s of round {number} is spent and not counted"
        for holder_id in HOLDERS
        for number in after.spent(holder_id)
        if holder_id not in after.counted.get(number, [])
    ]
    return "; ".join([per_round, *unused])


def table(lines: Sequence[Line]) -> str:
    """The matrix, as docs/faults.md has it."""
    head = ["fault", "step", "run", "budget in the ledgers", "updates counted, by round", "evidence"]
    rows = [[one.fault, one.step, one.run, one.budget, one.updates, one.evidence] for one in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
