"""Eight processes at once never pass a cap, and a process killed at any step never hides what left the holder."""

import subprocess
import sys
from pathlib import Path

import pytest

from ringfence_policy import accounting
from ringfence_policy.database import Database
from ringfence_policy.ledger import HoldState, PrivacyLedger
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Relation, Unit

WORKER = Path(__file__).with_name("ledger_worker.py")
EPSILON, DELTA = 1_500_000, 10**7
TRAINING = DpMechanism(
    kind="dp-sgd",
    clipping_norm=0.5,
    noise_multiplier=40.0,
    sampling_rate=1.0,
    steps=1,
    unit=Unit.RECORD,
    relation=Relation.ADD_OR_REMOVE,
)
FITS = accounting.rounds_that_fit((), TRAINING, epsilon_micro=EPSILON, delta_pico=DELTA, at_most=1000)


def open_ledger(path, *, max_rounds=1000):
    ledger = PrivacyLedger(Database.open(path))
    ledger.register_dataset("patients", fingerprint="sha256:one", epsilon_micro=EPSILON, delta_pico=DELTA)
    for policy_id in ("research", "industry"):
        ledger.register_policy(
            policy_id,
            dataset_id="patients",
            version=1,
            epsilon_micro=EPSILON,
            delta_pico=DELTA,
            max_rounds=max_rounds,
        )
    return ledger


def work(folder, plans):
    """Run one worker per plan ("never" or "step:number"), all let go at the same moment."""
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder / "ledger.db"), str(folder / "outbox"), f"worker-{number}", plan],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, plan in enumerate(plans)
    ]
    try:
        for worker in workers:  # the barrier: without it the first would be done before the last has started
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        return [worker.wait(120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            worker.stdin.close()
            worker.stdout.close()


def left_the_holder(folder):
    outbox = folder / "outbox"
    return outbox.read_text().split() if outbox.exists() else []


def uses(ledger, *states):
    return [hold.hold_id for hold in ledger.holds() if hold.state in states]


def assert_honest(ledger, sent):
    ledger.check()
    assert not [meter for meter in ledger.meters() if meter.exceeded]
    spent = uses(ledger, HoldState.SENDING, HoldState.COMMITTED)
    assert set(sent) <= set(spent)
    (epsilon,) = [meter for meter in ledger.meters() if (meter.owner_kind, meter.quantity) == ("dataset", "epsilon")]
    assert epsilon.committed == accounting.epsilon_micro(((TRAINING, len(spent)),), delta_pico=DELTA)


def test_eight_processes_at_once_never_pass_a_cap_and_never_lose_a_use(tmp_path):
    ledger = open_ledger(tmp_path / "ledger.db")
    assert work(tmp_path, ["never"] * 8) == [0] * 8
    sent = left_the_holder(tmp_path)
    assert_honest(ledger, sent)
    assert len(sent) == len(set(sent)) == FITS  # all of the budget and not one use more
    assert len({name.split("/")[0] for name in sent}) > 1, "the race was no race"


def test_eight_processes_at_once_stop_at_a_policys_rounds(tmp_path):
    ledger = open_ledger(tmp_path / "ledger.db", max_rounds=5)
    assert work(tmp_path, ["never"] * 8) == [0] * 8
    assert_honest(ledger, left_the_holder(tmp_path))
    rounds = {meter.owner_id: meter.committed for meter in ledger.meters() if meter.quantity == "rounds"}
    assert rounds["research"] == 5
    assert rounds["industry"] <= 5


def test_processes_killed_in_a_race_leave_every_use_counted(tmp_path):
    ledger = open_ledger(tmp_path / "ledger.db")
    plans = ["reserved:1", "sending:1", "sent:1", "inside-reserve:1", "committed:0", "never", "never", "never"]
    codes = work(tmp_path, plans)
    assert set(codes[:5]) <= {-9, 0}  # 0: the budget was used up by others before its step came
    assert codes[5:] == [0] * 3
    sent = left_the_holder(tmp_path)
    assert_honest(ledger, sent)
    assert len(uses(ledger, HoldState.RESERVED, HoldState.SENDING, HoldState.COMMITTED)) == FITS
    ledger.recover()
    assert_honest(ledger, sent)
    assert uses(ledger, HoldState.RESERVED, HoldState.SENDING) == []
    assert uses(ledger, HoldState.RELEASED) == (["worker-0/1"] if codes[0] == -9 else [])


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("before-reserve", None, None),
        ("inside-reserve", None, None),
        ("reserved", HoldState.RESERVED, HoldState.RELEASED),
        ("sending", HoldState.SENDING, HoldState.COMMITTED),
        ("sent", HoldState.SENDING, HoldState.COMMITTED),
        ("committed", HoldState.COMMITTED, HoldState.COMMITTED),
    ],
)
def test_a_process_killed_at_any_step_hides_nothing_that_left(tmp_path, step, before, after):
    open_ledger(tmp_path / "ledger.db")._database.close()
    assert work(tmp_path, [f"{step}:2"]) == [-9]
    ledger = open_ledger(tmp_path / "ledger.db")
    found = ledger.hold("worker-0/2")
    assert (found.state if found else None) == before
    sent = left_the_holder(tmp_path)
    assert ("worker-0/2" in sent) == (step in {"sent", "committed"})
    assert_honest(ledger, sent)
    ledger.recover()
    found = ledger.hold("worker-0/2")
    assert (found.state if found else None) == after
    assert_honest(ledger, sent)
