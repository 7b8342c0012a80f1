"""`ringfence workshop` from the printed link to evidence that verifies, and nothing left running afterwards."""

import json
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

WITHIN_SECONDS = 120


@pytest.fixture
def workshop(tmp_path):
    """A workshop as a person starts it, on the bundled scenario: its process and what it printed."""
    options = ["--pause", "0", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ringfence_server.cli", "workshop", str(tmp_path / "workshop"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    assert line, process.stderr.read()
    yield process, json.loads(line)
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.fixture
def enter(workshop):
    """Opens the link of a role in a browser of its own."""
    with ExitStack() as open_ones:
        yield lambda role: open_ones.enter_context(_browser(workshop[1], role))


@contextmanager
def _browser(printed, role):
    link = next(one for one in printed["links"] if one["role"] == role)
    address = printed["address"]
    with httpx.Client(
        base_url=address, trust_env=False, headers={"origin": address}, timeout=WITHIN_SECONDS
    ) as browser:
        assert browser.get(link["plain_url"]).status_code == 303
        yield browser


def _processes_in(directory):
    """Processes whose command names the directory: state, then command."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if str(directory).encode() in (place / "cmdline").read_bytes():
                state = (place / "stat").read_text().rpartition(")")[2].split()[0]
                found.append((state, (place / "cmdline").read_bytes().replace(b"\0", b" ")))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.slow
def test_a_room_proposes_starts_watches_and_verifies_and_ctrl_c_ends_it_all(workshop, enter, tmp_path):
    process, printed = workshop
    assert {one["role"] for one in printed["links"]} == {
        "holder",
        "coordinator",
        "researcher",
        "regulator",
        "administrator",
    }
    researcher, coordinator, regulator = (enter(one) for one in ("researcher", "coordinator", "regulator"))
    plan = researcher.get("/api/v1/plans").json()[0]["text"]
    proposal = researcher.post("/api/v1/proposals", json={"text": plan}).json()["id"]
    assert researcher.post("/api/v1/runs", json={"proposal": proposal}).json()["code"] == "not-allowed"
    begun = coordinator.post("/api/v1/runs", json={"proposal": proposal})
    assert begun.status_code == 202, begun.text
    run = begun.headers["location"]
    names = []
    with regulator.stream("GET", f"{run}/stream") as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            if names and names[-1] == "end":
                break
    assert names[0] == "run-started"
    assert names.count("round-closed") == coordinator.get(run).json()["rounds_planned"]
    assert names[-2:] == ["run-finished", "end"]
    assert regulator.get(f"{run}/evidence").json()["state"] == "verified"
    # Another run goes on when the workshop is ended.
    other = coordinator.post("/api/v1/runs", json={"proposal": proposal}).headers["location"]
    with coordinator.stream("GET", f"{other}/stream") as stream:
        next(line for line in stream.iter_lines() if line.startswith("event: "))
    process.send_signal(signal.SIGINT)
    process.wait(WITHIN_SECONDS)
    assert process.stderr.read() == ""
    assert process.returncode == 0
    assert _processes_in(tmp_path) == []
