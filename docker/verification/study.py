"""A short study over the running containers, with faults put in between its rounds, and what it left afterwards."""

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from verification.engine import EngineFault, Stack, call
from verification.findings import Findings, wait_until
from verification.hospitals import HOSPITALS

SUPERLINK: Final = "127.0.0.1:9093"
SERVICES: Final = (
    "coordinator",
    *(f"agent-{number}" for number in HOSPITALS),
    *(f"supernode-{number}" for number in HOSPITALS),
)
_PATIENCE: Final = 600.0
_CUT_SECONDS: Final = 15.0
_EVENTS: Final = """
import json, pathlib
runs = sorted(pathlib.Path("/deployment/runs").glob("*/run.json"), key=lambda one: one.stat().st_mtime)
path = runs[-1].parent / "events.jsonl" if runs else None
lines = path.read_text().splitlines() if path is not None and path.exists() else []
found = []
for line in lines:
    try:
        found.append(json.loads(line))
    except ValueError:
        pass
print(json.dumps([[one["event"], one.get("round", (one.get("outcome") or {}).get("round"))] for one in found]))
"""
# The engine would take its own `kill` for a wish to stop. A process that dies is what `restart` is for.
_CRASH: Final = """
import os, pathlib
for entry in pathlib.Path("/proc").glob("[0-9]*"):
    words = (entry / "cmdline").read_bytes().split(b"\\0")
    if b"start" in words and any(one.endswith(b"ringfence-node") for one in words) and int(entry.name) != 1:
        os.kill(int(entry.name), 9)
        print("killed")
"""


@dataclass
class Study:
    """One run in the containers.

    Attributes:
        stack: The project.
        findings: Where to note what is seen.
        log: Where `ringfence run` writes.
    """

    stack: Stack
    findings: Findings
    log: Path
    crashes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HOSPITALS.values(), 0))
    _run: "subprocess.Popen[bytes] | None" = None

    def start_services(self) -> None:
        """Start everything, and wait until every health check is content and every hospital connected."""
        self.stack.compose("up", "--detach", "--no-build", *SERVICES)
        for service in SERVICES:
            self._wait(f"{service} is healthy", lambda service=service: self.stack.is_healthy(service))
        self._wait("all hospitals are connected", lambda: self._connected() == set(HOSPITALS.values()))

    def carry_out(self) -> None:
        """Start the run and put a fault into each round from the second to the fifth; then wait for its end."""
        began = time.monotonic()
        self._start()
        for number, (name, fault) in enumerate(self._faults(), start=2):
            self._wait(f"round {number} is open", lambda number=number: self._latest("round-opened") >= number)
            with self.findings.timed(name):
                fault()
        self._end(seconds=600)
        self.findings.seconds["study with all faults"] = round(time.monotonic() - began, 1)

    def _faults(self) -> list[tuple[str, Callable[[], None]]]:
        return [
            ("agent killed", self._kill_agent),
            ("hospital cut off and joined again", self._cut_network),
            ("SuperNode killed", self._kill_supernode),
            ("coordinator killed", self._kill_coordinator),
        ]

    # --- faults ------------------------------------------------------------------------------------------------------

    def _kill_agent(self) -> None:
        before = self.stack.state("agent-1")["Restarts"]
        when = self._when()
        # Its container ends with it, and this command with that.
        self.stack.inside("agent-1", "python", "-c", _CRASH, accept=(0, 137))
        self.crashes[HOSPITALS[1]] += 1
        taken = self._wait("the agent was started again", lambda: self.stack.state("agent-1")["Restarts"] > before)
        taken += self._wait("the agent is healthy", lambda: self.stack.is_healthy("agent-1"))
        self.findings.note("agent killed, started again by the engine", f"{when}; healthy after {taken:.0f} s")

    def _cut_network(self) -> None:
        network, container = self.stack.network("hospital-2"), self.stack.container("supernode-2")
        when = self._when()
        call(["docker", "network", "disconnect", network, container])
        self.crashes[HOSPITALS[2]] += 1
        time.sleep(_CUT_SECONDS)
        away = HOSPITALS[2] not in self._connected()
        call(["docker", "network", "connect", network, container])
        taken = self._wait("the hospital is connected", lambda: HOSPITALS[2] in self._connected())
        seen = "the coordinator saw it" if away else "not yet seen by the coordinator"
        self.findings.note(
            "network of a hospital cut and joined again",
            f"{when}; {_CUT_SECONDS:.0f} s ({seen}); connected after {taken:.0f} s",
        )

    def _kill_supernode(self) -> None:
        when = self._when()
        self.stack.compose("kill", "--signal", "SIGKILL", "supernode-3")
        self.crashes[HOSPITALS[3]] += 1
        self.stack.compose("start", "supernode-3")
        taken = self._wait("the SuperNode is healthy", lambda: self.stack.is_healthy("supernode-3"))
        taken += self._wait("it is connected", lambda: HOSPITALS[3] in self._connected())
        self.findings.note("SuperNode killed and started again", f"{when}; connected after {taken:.0f} s")

    def _kill_coordinator(self) -> None:
        closed, when = self._latest("round-closed"), self._when()
        self.stack.compose("kill", "--signal", "SIGKILL", "coordinator")
        code = self._wait_for_run(60)
        for holder in self.crashes:
            self.crashes[holder] += 1
        self.stack.compose("start", "coordinator")
        taken = self._wait("the coordinator is healthy", lambda: self.stack.is_healthy("coordinator"))
        taken += self._wait("all hospitals are connected", lambda: self._connected() == set(HOSPITALS.values()))
        self.findings.note(
            "coordinator killed and started again, run resumed",
            f"{when}; {closed} rounds kept; all connected after {taken:.0f} s",
            held=code != 0 and self._latest("round-closed") >= closed,
        )
        self._start("--resume")

    def _when(self) -> str:
        """Where in the run it is, for the record of a fault."""
        rounds = [(event, number) for event, number in self._events() if event.startswith("round-")]
        event, number = rounds[-1] if rounds else ("", None)
        return f"in round {number}" if event == "round-opened" else f"after round {number}"

    # --- the run -----------------------------------------------------------------------------------------------------

    def _start(self, *options: str) -> None:
        command = ("ringfence", "run", "/deployment", "--superlink", SUPERLINK, "--json", *options)
        self._run = self.stack.start("exec", "-T", "coordinator", *command, log=self.log)

    def _wait_for_run(self, seconds: float) -> int:
        if self._run is None:
            raise EngineFault("no run was started")
        try:
            return self._run.wait(seconds)
        except subprocess.TimeoutExpired:
            raise EngineFault(f"the run did not end within {seconds:.0f} s:\n{self.tail()}") from None

    def _end(self, *, seconds: float) -> None:
        code = self._wait_for_run(seconds)
        self.findings.note("run finished after all faults", f"exit code {code}", held=code == 0)
        if code != 0:
            raise EngineFault(f"`ringfence run` ended with {code}:\n{self.tail()}")

    def stop(self) -> None:
        """End what still runs here."""
        if self._run is not None and self._run.poll() is None:
            self._run.send_signal(signal.SIGTERM)
            try:
                self._run.wait(20)
            except subprocess.TimeoutExpired:
                self._run.kill()
                self._run.wait()

    def tail(self) -> str:
        """The end of what `ringfence run` wrote."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def _wait(self, what: str, reached: Callable[[], bool]) -> float:
        def look() -> bool:
            if self._run is not None and self._run.poll() not in (None, 0) and "round" in what:
                raise EngineFault(f"`ringfence run` ended with {self._run.returncode}:\n{self.tail()}")
            try:
                return reached()
            except EngineFault:
                return False  # a container that is just starting answers nothing

        return wait_until(what, look, seconds=_PATIENCE)

    def _events(self) -> list[tuple[str, int | None]]:
        return json.loads(self.stack.inside("coordinator", "python", "-c", _EVENTS))

    def _latest(self, wanted: str) -> int:
        return max((number or 0 for event, number in self._events() if event == wanted), default=0)

    def _connected(self) -> set[str]:
        answer = self.stack.inside("coordinator", "ringfence", "coordinator", "holders", "/deployment", "--json")
        return {one["holder"] for one in json.loads(answer) if one["state"] == "connected"}


# --- afterwards ------------------------------------------------------------------------------------------------------


def check_results(study: Study) -> None:
    """Verify the evidence in a container without a network, and hold each ledger against the rounds of the model."""
    stack, findings = study.stack, study.findings
    run_id = json.loads(stack.inside("coordinator", "python", "-c", _NEWEST))
    summary = json.loads(stack.inside("coordinator", "cat", f"/deployment/runs/{run_id}/summary.json"))
    rounds, planned = [one for one in summary["rounds"] if one["committed"]], summary["plan"]["rounds"]
    findings.note(
        "model released",
        f"{len(rounds)} of {planned} rounds committed, status {summary['status']}",
        held=summary["status"] == "completed" and not summary["rehearsal"] and 2 * len(rounds) >= planned,
    )
    _verify_evidence(study, run_id)
    for number, holder_id in HOSPITALS.items():
        _check_ledger(study, number, holder_id, [one["round"] for one in rounds if holder_id in one["cohort"]], run_id)
    taken = sorted(one["seconds"] for one in rounds)
    findings.figures["seconds per round, median, faults included"] = round(taken[len(taken) // 2], 1) if taken else None


_NEWEST: Final = """
import json, pathlib
runs = sorted(pathlib.Path("/deployment/runs").glob("*/run.json"), key=lambda one: one.stat().st_mtime)
print(json.dumps(runs[-1].parent.name))
"""


def _verify_evidence(study: Study, run_id: str) -> None:
    """An auditor's view: the bundle and the roots that the hospitals gave, in a container that reaches nobody."""
    stack = study.stack
    with tempfile.TemporaryDirectory() as folder:
        container = stack.container("coordinator")
        for name in ("evidence.zip", "roots.json"):
            call(["docker", "cp", f"{container}:/deployment/runs/{run_id}/{name}", f"{folder}/{name}"])
            Path(folder, name).chmod(0o644)
        Path(folder).chmod(0o755)
        answer = call(
            [
                *("docker", "run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL"),
                *("--security-opt", "no-new-privileges", "--user", "10001:10001"),
                *("--volume", f"{folder}:/bundle:ro", stack.settings["RINGFENCE_SERVER_IMAGE"]),
                *("evidence", "verify", "/bundle/evidence.zip", "--root", "/bundle/roots.json", "--json"),
            ],
            accept=(0, 3),
        )
    verification = json.loads(answer)
    failed = [one["name"] for one in verification["checks"] if not one["passed"]]
    study.findings.note(
        "evidence verifies offline",
        f"{len(verification['checks'])} checks, failed: {failed or 'none'}",
        held=bool(verification["verified"]),
    )


def _check_ledger(study: Study, number: int, holder_id: str, rounds: list[int], run_id: str) -> None:
    """What left was charged; what was charged and did not count is no more than the faults explain."""
    document: dict[str, Any] = json.loads(study.stack.once(f"desk-{number}", "ledger", "/holder", "--json"))
    (run,) = [one for one in document["runs"] if one["run"] == run_id]
    lost = run["rounds"] - len(rounds)
    unequal = [one for one in document["budgets"] if one["cap"] != one["committed"] + one["reserved"] + one["left"]]
    study.findings.note(
        f"ledger of {holder_id}",
        f"{len(rounds)} rounds in the model, {run['rounds']} charged, {run['given_back']} given back, "
        f"{run['reserved']} still reserved, epsilon {run['epsilon_micro'] / 1e6:.3f}",
        held=0 <= lost <= study.crashes[holder_id] and run["reserved"] == 0 and not unequal,
    )
