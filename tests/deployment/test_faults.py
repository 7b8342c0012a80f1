"""Kill -9 of each process of a deployment, at each step of a round: what run, budgets and evidence make of it.

`settle` holds what is left, in ledgers, logs, evidence and model, against the same run in one process that nobody
disturbed. `test_fault_conditions.py` has the faults of link, disk and clock. docs/faults.md has the matrix that these
tests print.
"""

import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults import HOLDERS, ROUNDS, SEED, note, resumed, saw_the_coordinators_log, settle, states_of

from deployment import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.xdist_group("deployment"), pytest.mark.timeout(1800)]

CONNECTED = b"SuperNode ID:"
EVERY_ROUND = list(range(1, ROUNDS + 1))


# --- the steps of a round, each reached and held ----------------------------------------------------------------------


def request_has_come(live, held):
    """Round 1's request is with alder's agent, and nothing is decided: its trainer is asked first, and is silent."""
    held.hold(trainer_of(live))
    live.start_run(*SEED)
    wait_until("the request has come", lambda: saw_the_coordinators_log(live.scenario.holder("alder")))


def training(live, held, number=2):
    """Alder's trainer has its records to use in this round, and alder's ledger has the reservation."""
    closed(live, number - 1)
    held.hold(trainer_of(live))
    wait_until("the round is reserved", lambda: "reserved" in states_of(live.scenario.holder("alder"), number))


def sent(live, held, number=2):
    """Alder's update of this round is spent and with its SuperNode, which has not passed it on."""
    training(live, held, number)
    alder = live.holders["alder"]
    held.hold(alder.process_of("supernode"))
    held.let_go(trainer_of(live))
    wait_until("the round is sent", lambda: "sending" in states_of(live.scenario.holder("alder"), number))


def closed(live, number):
    """A round is closed."""
    if live.run is None:
        live.start_run(*SEED)
    wait_until(
        f"round {number} is closed",
        lambda: any(one.get("outcome", {}).get("round") == number for one in live.events()),
    )


def trainer_of(live, holder="alder"):
    """The process that a holder's agent trains with right now."""
    agent = live.holders[holder].node.process_id
    found = [one for one in children_of(agent) if b"trainer_process\0trainer" in command_of(one)]
    assert len(found) == 1, found
    return found[0]


def children_of(process_id):
    return [
        int(one)
        for task in Path(f"/proc/{process_id}/task").iterdir()
        for one in (task / "children").read_text().split()
    ]


def command_of(process_id):
    return Path(f"/proc/{process_id}/cmdline").read_bytes()


BETWEEN = "between two rounds"
STEPS = {
    "a request has come": request_has_come,
    "during training": training,
    "sent, not yet at the coordinator": sent,
    BETWEEN: lambda live, _held: closed(live, 2),
}


@contextmanager
def back_in_time(live, held):
    """Let birch be slow until alder's SuperNode is connected again: a run of so few rounds would be over by then."""
    log = live.scenario.holder("alder") / "state" / "relay" / "supernode.log"
    before = log.read_bytes().count(CONNECTED)
    held.hold(trainer_of(live, "birch"))
    yield
    wait_until("alder's SuperNode is connected again", lambda: log.read_bytes().count(CONNECTED) > before)
    held.let_go()


# --- at a data holder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_an_agent_that_is_killed_loses_no_budget_and_takes_part_again(step, deploy, held, undisturbed):
    live = deploy()
    STEPS[step](live, held)
    alder = live.holders["alder"]
    alder.kill("agent")
    held.let_go()
    with back_in_time(live, held):
        alder.start()  # as a service manager would
    after = settle(live, undisturbed)
    assert after.completed
    assert after.counted[ROUNDS] == list(HOLDERS)
    unused = set(after.spent("alder")) - {number for number in EVERY_ROUND if "alder" in after.counted[number]}
    assert unused == ({2} if step.startswith("sent") else set())
    note("kill -9 of the agent", step, after, undisturbed)


@pytest.mark.parametrize("step", STEPS)
def test_a_supernode_that_is_killed_costs_its_holder_a_round_at_most_and_no_budget_that_was_not_sent(
    step, deploy, held, undisturbed
):
    live = deploy()
    STEPS[step](live, held)
    live.holders["alder"].kill("supernode")
    held.let_go()
    with back_in_time(live, held):
        pass  # its agent starts it again
    after = settle(live, undisturbed)
    assert after.completed
    assert after.counted[ROUNDS] == list(HOLDERS)
    unused = set(after.spent("alder")) - {number for number in EVERY_ROUND if "alder" in after.counted[number]}
    assert len(unused) <= 1
    note("kill -9 of the SuperNode", step, after, undisturbed)


def test_a_trainer_that_is_killed_before_it_has_records_costs_nothing(deploy, held, undisturbed):
    live = deploy()
    request_has_come(live, held)
    os.kill(trainer_of(live), signal.SIGKILL)
    held.let_go()
    after = settle(live, undisturbed)
    assert after.completed
    assert after.refusals(1) == {"alder": ["sandbox-fault"]}
    assert after.spent("alder") == EVERY_ROUND[1:]
    note("kill -9 of the trainer", "a request has come", after, undisturbed)


def test_a_trainer_that_is_killed_while_it_trains_costs_that_use_and_between_rounds_nothing(deploy, held, undisturbed):
    live = deploy()
    training(live, held)
    os.kill(trainer_of(live), signal.SIGKILL)
    held.let_go()
    closed(live, 3)
    os.kill(trainer_of(live), signal.SIGKILL)
    after = settle(live, undisturbed)
    assert after.completed
    assert after.refusals(2) == {"alder": ["fault"]}
    assert [after.counted[number] for number in (1, 3, 4)] == [list(HOLDERS)] * 3
    assert after.spent("alder") == EVERY_ROUND  # that a use of records failed may say something about them
    note("kill -9 of the trainer", "during training, and once more between two rounds", after, undisturbed)


# --- at the coordinator -----------------------------------------------------------------------------------------------


def kill_serverapp(live):
    os.kill(live.serverapp_process, signal.SIGKILL)


def kill_superlink(live):
    before = live.times_ready
    os.kill(live.superlink_process, signal.SIGKILL)
    wait_until("the SuperLink is back", lambda: live.times_ready > before)


@pytest.mark.parametrize(("part", "kill"), [("ServerApp", kill_serverapp), ("SuperLink", kill_superlink)])
def test_a_run_that_is_killed_at_every_step_is_taken_up_again_and_ends_as_if_nothing_had_been(
    part, kill, deploy, held, undisturbed
):
    live = deploy()
    said = []
    for step in (
        lambda: request_has_come(live, held),
        lambda: training(live, held, 2),
        lambda: sent(live, held, 3),
        lambda: closed(live, 3),
    ):
        step()
        assert live.run.is_alive, live.run.log.read_text()
        kill(live)
        held.let_go()
        said.append(resumed(live))
    after = settle(live, undisturbed, earlier=said)
    assert after.is_complete
    assert after.spent("alder") == after.spent("birch") == EVERY_ROUND
    note(f"kill -9 of the {part}", "each of the four steps, in one run", after, undisturbed)
