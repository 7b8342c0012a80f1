"""Faults of the place: the link, the disk, the clock, and an agent that is exchanged for a newer one in mid-run.

As in `test_faults.py`, each is one line of the matrix in docs/faults.md, held against the run that nobody disturbed.

The clock is that of some processes and not of the whole machine, which the tests may not touch: a library that is
loaded first tells another time to the coordinator's side, or to one holder's agent. Where it is the agent's, its
SuperNode and its trainer keep the true time: both are started with an environment of their own, and the trainer never
asks for the date.
"""

import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress

import pytest
from faults import HOLDERS, ROUNDS, SEED, Line, all_connected, note, settle, states_of, tell
from private_network import Cable, why_not

from deployment import ROOT, environment, wait_until
from ringfence_policy.ledger import HoldState

pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.xdist_group("deployment"),
    pytest.mark.timeout(900),
]

MEBIBYTE = 1 << 20
DISK_BYTES = 12 * MEBIBYTE
EVERYBODY = {number: list(HOLDERS) for number in range(1, ROUNDS + 1)}

# --- the link ---------------------------------------------------------------------------------------------------------

needs_a_network = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture
def cable():
    """The cable between the coordinator with birch at one end, and alder at the other."""
    with Cable() as one:
        yield one


def over(cable, deploy, **changes):
    """A deployment in which alder reaches the coordinator over the cable."""

    def lay(live):
        for holder, end in (("alder", cable.far), ("birch", cable.near)):
            node = live.holders[holder].node
            node.command = [*end, *node.command]

    return deploy(address=cable.address, before=cable.near, before_start=lay, changes=changes)


def train_round_2(live, held):
    """Let a run come to where alder's trainer has the records of round 2 to use, and stands still."""
    live.start_run(*SEED)
    live.wait_for("round-closed")
    held.hold(live.holders["alder"].process_of("trainer"))
    wait_until("round 2 is reserved", lambda: states_of(live.scenario.holder("alder"), 2) == {"reserved"})


@needs_a_network
def test_a_link_that_is_cut_while_a_holder_trains_and_mended_in_time_costs_nothing(cable, deploy, held, undisturbed):
    live = over(cable, deploy)
    train_round_2(live, held)
    cable.cut()
    held.let_go()
    alder = live.scenario.holder("alder")
    wait_until("the update is spent", lambda: states_of(alder, 2) == {"sending"})
    log = alder / "state" / "relay" / "supernode.log"
    sending = re.compile(rb"Sending: train message.*\Z", re.DOTALL)
    wait_until("the SuperNode tries to send it", lambda: sending.search(_last_message(log)))
    cable.mend()
    after = settle(live, undisturbed)
    assert after.counted == EVERYBODY
    note("link cut and mended in time", "training, and sending while it is cut", after, undisturbed)


def _last_message(log):
    return log.read_bytes().rpartition(b"Receiving:")[2]


@needs_a_network
def test_a_link_that_is_cut_for_longer_than_a_round_leaves_the_holder_out_and_its_budget_spent(
    cable, deploy, held, undisturbed
):
    live = over(cable, deploy, **{"cohort.round_seconds": 60})
    train_round_2(live, held)
    cable.cut()
    held.let_go()
    live.wait_for("round-closed", times=2)
    cable.mend()
    after = settle(live, undisturbed)
    assert after.counted[2] == ["birch"]
    assert after.refusals(2) == {"alder": ["no-reply"]}
    assert 2 in after.spent("alder")
    wait_until("alder is back", lambda: all_connected(live), pause_seconds=1.0)
    note("link cut for longer than the round", "training, and sending while it is cut", after, undisturbed)


@needs_a_network
def test_a_slow_link_makes_a_run_slower_and_changes_nothing_else(cable, deploy, undisturbed):
    live = over(cable, deploy)
    cable.throttle(200)
    live.start_run(*SEED)
    after = settle(live, undisturbed)
    assert after.counted == EVERYBODY
    note("slow link, 200 kbit/s", "the whole run", after, undisturbed)


# --- the disk ---------------------------------------------------------------------------------------------------------


def fill(place):
    """Take every byte that is left there; gives the file that has them."""
    filler = place / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        for size in (MEBIBYTE, 4096, 1):
            with suppress(OSError):
                while file.write(b"\0" * size):
                    pass
    with pytest.raises(OSError, match="No space left"):
        (place / "more").write_bytes(b"\0" * 4096)
    (place / "more").unlink()
    return filler


@pytest.fixture
def small_disk(tmp_path):
    """What moves alder's ledger to a small disk of its own, and where that is; its SuperNode gets another one."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    state = tmp_path / "scenario" / "holders" / "alder" / "state"
    relay = state / "relay"

    def move(place, size):
        aside = place.rename(place.with_name("moving"))
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(place)], check=True)
        shutil.copytree(aside, place, dirs_exist_ok=True)
        shutil.rmtree(aside)

    def move_there(_live):
        move(state, DISK_BYTES)
        move(relay, 8 * DISK_BYTES)

    yield move_there, state
    for place in (relay, state):
        if place.is_mount():
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_is_full_before_a_use_is_reserved_keeps_the_holder_out_until_there_is_room(
    small_disk, deploy, undisturbed
):
    move_there, state = small_disk
    live = deploy(before_start=move_there)
    live.start_run(*SEED)
    live.wait_for("round-closed")
    filler = fill(state)
    live.wait_for("round-closed", times=2)
    filler.unlink()
    after = settle(live, undisturbed)
    assert after.refusals(2) == {"alder": ["ledger-fault"]}
    assert 2 not in after.spent("alder")
    assert after.counted[ROUNDS] == list(HOLDERS)
    note("disk full at the ledger", "before reserve, until the round closed", after, undisturbed)


def test_a_disk_that_is_full_when_an_update_should_leave_lets_nothing_leave(small_disk, deploy, held, undisturbed):
    move_there, state = small_disk
    live = deploy(before_start=move_there)
    train_round_2(live, held)
    filler = fill(state)
    held.let_go()
    live.wait_for("round-closed", times=2)
    filler.unlink()
    assert live.run.wait() == 0
    # That it was given back could not be recorded either: the budget is kept aside until the agent opens anew.
    assert states_of(live.scenario.holder("alder"), 2) == {"reserved"}
    live.holders["alder"].stop()
    live.holders["alder"].start()
    after = settle(live, undisturbed)
    assert after.refusals(2).keys() == {"alder"}
    assert 2 not in after.spent("alder")
    assert after.states["alder"].rounds(HoldState.RELEASED) == [2]
    note("disk full at the ledger", "during training, until the round closed", after, undisturbed)


# --- the clock --------------------------------------------------------------------------------------------------------

COMPILER = shutil.which("cc")


@pytest.fixture
def skewed(tmp_path):
    """The environment of a process with another date, which is its own plus the seconds in the file beside."""
    if COMPILER is None:
        pytest.skip("there is no C compiler, so the clock of a single process cannot be changed")
    library = tmp_path / "skewed_clock.so"
    source = ROOT / "tests" / "support" / "skewed_clock.c"
    subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)

    def environment_of(seconds):
        clock = tmp_path / "clock"
        clock.write_text(f"{seconds}\n")
        return {"LD_PRELOAD": str(library), "SKEWED_CLOCK": str(clock)}, clock

    return environment_of


def test_holders_whose_clocks_are_two_minutes_behind_the_coordinators_take_part(deploy, skewed, undisturbed):
    environment_of_coordinator, _ = skewed(120)
    live = deploy(env=environment_of_coordinator)
    live.start_run(*SEED)
    after = settle(live, undisturbed)
    assert after.counted == EVERYBODY
    note("holders' clocks 2 minutes behind", "the whole run", after, undisturbed)


def test_holders_whose_clocks_are_a_minute_ahead_are_not_let_in_and_the_run_says_that_nobody_is_there(deploy, skewed):
    environment_of_coordinator, _ = skewed(-60)
    live = deploy(env=environment_of_coordinator, connected=False)
    for side in live.holders.values():
        side.begin()
    for side in live.holders.values():
        wait_until("the SuperNode gives up", lambda side=side: side.count("supernode-ended"))
    code, said = live.try_command("run", str(live.directory), "--superlink", live.superlink, *SEED)
    assert (code, said["error"]["code"]) == (1, "deployment-fault")
    assert "no data holder is connected" in said["error"]["summary"]
    assert all(states_of(live.scenario.holder(holder), 1) == set() for holder in HOLDERS)
    tell(Line("holders' clocks a minute ahead", "the whole run", "deployment-fault: no data holder is connected"))


@pytest.mark.parametrize("hours", [2, -2])
def test_an_agent_whose_clock_jumps_by_two_hours_refuses_and_takes_part_again_when_it_is_right(
    hours, deploy, skewed, undisturbed
):
    of_agent, clock = skewed(0)

    def let_it_jump(live):
        live.holders["alder"].node.env = environment(**of_agent)

    live = deploy(before_start=let_it_jump)
    live.start_run(*SEED)
    live.wait_for("round-closed")
    clock.write_text(f"{hours * 3600}\n")
    live.wait_for("round-closed", times=2)
    clock.write_text("0\n")
    after = settle(live, undisturbed)
    assert after.counted[2] == ["birch"]
    assert 2 not in after.spent("alder")
    assert after.counted[ROUNDS] == list(HOLDERS)
    note(f"an agent's clock jumps by {hours:+} h", "from round 1 to the end of round 2", after, undisturbed)


# --- an upgrade -------------------------------------------------------------------------------------------------------


def newer_version(tmp_path):
    """A copy of the code under another version's number, which its agent says when it opens."""
    copy = tmp_path / "newer"
    for name in ("clients", "sandbox_policies"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "scenarios"))
    entry = copy / "clients" / "ringfence_client" / "node_start.py"
    text, found = re.subn(r'events\("holder-opened", \{', r'\g<0>"version": "99.0", ', entry.read_text())
    assert found == 1
    entry.write_text(text)
    return os.pathsep.join(str(copy / name) for name in ("clients", "sandbox_policies"))


def test_an_agent_that_is_upgraded_between_two_rounds_goes_on_with_the_run(deploy, tmp_path, undisturbed):
    live = deploy()
    alder = live.holders["alder"]
    path = newer_version(tmp_path)
    live.start_run(*SEED)
    live.wait_for("round-closed")
    assert alder.node.end(signal.SIGTERM) == 0
    alder.node.env = environment(PYTHONPATH=path)
    alder.start()
    after = settle(live, undisturbed)
    opened = [one for one in alder.events() if one["event"] == "holder-opened"]
    assert [one.get("version") for one in opened] == [None, "99.0"]
    assert after.counted[ROUNDS] == list(HOLDERS)
    note("agent upgraded (SIGTERM, newer code)", "between two rounds", after, undisturbed)
