"""A control plane over a deployment with every process real: runs are begun, watched and steered by HTTP alone."""

import os
import signal

import httpx
import pytest
from control_command import ControlCommand
from control_plane import wait_until
from tiny_scenario import TinyScenario, write_scenario

from deployment import LiveDeployment
from ringfence_policy.verify import read_roots, verify_bundle
from ringfence_server.conductor_lock import conductor_of
from ringfence_server.control.actor import Role
from ringfence_server.control.run_claim import process_of
from ringfence_server.scenario import bundled_scenario, copy_scenario

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("deployment"), pytest.mark.timeout(1200)]

HOSPITALS = ("budapest", "cleveland", "long-beach", "zurich-basel")
ROUNDS = 6


@pytest.fixture
def live(tmp_path):
    """A factory of deployments whose holders are registered; nothing runs yet."""
    opened = []

    def make(scenario):
        deployment = LiveDeployment(scenario, tmp_path / "deployment")
        opened.append(deployment)
        for holder in scenario.holders:
            deployment.register(holder)
        return deployment

    yield make
    for deployment in opened:
        deployment.close()


def propose(control, text):
    return control.ask(Role.RESEARCHER, "POST", "/api/v1/proposals", json={"text": text})["id"]


def start(control, proposal, **more):
    return control.ask(Role.COORDINATOR, "POST", "/api/v1/runs", json={"proposal": proposal}, **more)


def refusals(run):
    """Clauses by holder and round."""
    return {
        (cell["holder"], one["round"]): [reason["clause"] for reason in cell["reasons"]]
        for one in run["rounds"]
        for cell in one["cells"]
        if cell["answer"] == "refused"
    }


def assert_proved(control, run_id, place):
    """The evidence verifies where it is served, and where it was taken to."""
    evidence = f"/api/v1/runs/{run_id}/evidence"
    assert control.ask(Role.REGULATOR, "GET", evidence)["state"] == "verified"
    for name in ("bundle", "roots"):
        (place / name).write_bytes(control.download(Role.REGULATOR, f"{evidence}/{name}"))
    assert verify_bundle(place / "bundle", read_roots(place / "roots")).passed


def is_over(run):
    return run["state"] == "finished"


def test_a_page_starts_what_the_command_line_starts_and_shows_who_refused_by_which_clause(live, tmp_path):
    scenario = write_scenario(
        tmp_path / "scenario",
        holders=("alder", "birch"),
        plan={"training.rounds": 2},
        policies={"birch": {"projects.max_rounds": 1}},
    )
    deployment = live(scenario)
    deployment.start_coordinator()
    deployment.start_holders()
    with ControlCommand(deployment.directory, scenario.holders) as control:
        text = control.ask(Role.RESEARCHER, "GET", "/api/v1/plans")[0]["text"]
        run_id = start(control, propose(control, text))["run_id"]
        told = list(control.stream(Role.REGULATOR, run_id))
        assert [name for name, _ in told if name != "round-opened"] == [
            *("run-started", "round-closed", "round-closed", "evaluating", "run-finished", "end")
        ]
        run = control.wait_for(run_id, is_over)
        assert refusals(run) == {("birch", 2): ["epsilon", "max_rounds"]}
        assert control.ask(Role.REGULATOR, "GET", f"/api/v1/runs/{run_id}/evidence")["state"] == "verified"


def test_four_hospitals_are_coordinated_by_pages_alone_through_a_kill_a_revocation_and_a_suspension(live, tmp_path):
    copy_scenario(bundled_scenario("heart"), tmp_path / "heart")
    deployment = live(TinyScenario(tmp_path / "heart", HOSPITALS))
    with ControlCommand(deployment.directory, HOSPITALS) as control:
        (text,) = (
            one["text"] for one in control.ask(Role.RESEARCHER, "GET", "/api/v1/plans") if one["name"] == "plan.toml"
        )
        text = text.replace("rounds = 12", f"rounds = {ROUNDS}")
        proposal = propose(control, text)
        assert start(control, proposal, status=(503,))["code"] == "deployment-fault"

        deployment.start_coordinator()
        deployment.start_holders()
        forecast = control.ask(Role.COORDINATOR, "POST", "/api/v1/previews", json={"text": text})
        assert [(one["holder"], one["permitted"], one["note"]) for one in forecast] == [
            (holder, None, "decides on its own machine") for holder in HOSPITALS
        ]
        holders = control.ask(Role.REGULATOR, "GET", "/api/v1/holders")
        assert {one["holder"]: one["standing"] for one in holders} == dict.fromkeys(HOSPITALS, "connected")
        answer = f"/api/v1/proposals/{proposal}/answers/zurich-basel"
        control.ask("zurich-basel", "PUT", answer, json={"approves": False})

        run_id = start(control, proposal)["run_id"]
        directory = deployment.directory / "runs" / run_id
        told = control.stream(Role.RESEARCHER, run_id)
        assert next(data for name, data in told if name == "round-closed")["body"]["outcome"]["round"] == 1

        # Nobody serves: the run goes on, and is there with all that happened when somebody serves again.
        control.part.kill()
        with pytest.raises(httpx.HTTPError):
            list(told)
        deployment.wait_for("round-closed", times=2)
        control.start()
        run = control.wait_for(run_id, lambda run: len(run["rounds"]) >= 2)
        assert run["state"] == "running"

        # The officer's own command at the officer's own machine, which is not asked for by any page.
        deployment.node_command("revoke", str(tmp_path / "heart/holders/long-beach"), "--reason", "consent withdrawn")
        run = control.wait_for(run_id, refusals)
        (number,) = {number for holder, number in refusals(run) if holder == "long-beach"}
        assert refusals(run)["long-beach", number] == ["revoked"]

        suspended = f"/api/v1/runs/{run_id}/suspend"
        control.ask(Role.REGULATOR, "POST", suspended, json={"reason": "a complaint is looked into"})
        control.wait_for(run_id, lambda run: run["state"] == "suspended")
        assert conductor_of(deployment.directory) is None
        committed = len(control.run(run_id)["rounds"])
        assert committed < ROUNDS

        control.ask(Role.COORDINATOR, "POST", f"/api/v1/runs/{run_id}/resume")
        control.wait_for(run_id, lambda run: len(run["rounds"]) > committed)
        # Whoever follows the run for the control plane is killed: the ServerApp is the run, and goes on.
        follower, conductor = process_of(directory), conductor_of(deployment.directory).process_id
        os.kill(follower, signal.SIGKILL)
        wait_until(lambda: process_of(directory) in (conductor, None))
        assert [name for name, _ in control.stream(Role.RESEARCHER, run_id)][-2:] == ["run-finished", "end"]
        run = control.wait_for(run_id, is_over)
        assert [one["round"] for one in run["rounds"] if one["committed"]] == list(range(1, ROUNDS + 1))
        assert "zurich-basel" not in {one["holder"] for one in run["holders"]}

        assert_proved(control, run_id, tmp_path)
        told = control.ask(Role.COORDINATOR, "GET", f"/api/v1/runs/{run_id}/logs/long-beach")
        assert any("revoked" in one["summary"] for one in told)
        told = control.ask("long-beach", "GET", "/api/v1/holders/long-beach/uses", status=(409,))
        assert "ringfence-node ledger DIR" in told["next_step"]
