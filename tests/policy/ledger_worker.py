"""One process of the crash and race tests: it reserves, "sends" to an outbox and commits, until refused or killed.

The outbox stands for the network: a name written there has left the holder. Run as
`ledger_worker.py DATABASE OUTBOX NAME KILL_AT`; it says "ready", waits for a line on stdin (the barrier), and works.
KILL_AT is "never" or "STEP:NUMBER": the process kills itself with SIGKILL at that step of that use.
"""

import os
import signal
import sys
from pathlib import Path

from ringfence_policy.database import Database
from ringfence_policy.errors import BudgetExhausted
from ringfence_policy.ledger import PrivacyLedger
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Action, Relation, Unit

TRAINING = DpMechanism(
    kind="dp-sgd",
    clipping_norm=0.5,
    noise_multiplier=40.0,
    sampling_rate=1.0,
    steps=1,
    unit=Unit.RECORD,
    relation=Relation.ADD_OR_REMOVE,
)


def main(database_path: Path, outbox: Path, name: str, kill_at: str) -> None:
    database = Database.open(database_path)
    ledger = PrivacyLedger(database)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    number = 0

    def step(which: str) -> None:
        if kill_at == f"{which}:{number}":
            os.kill(os.getpid(), signal.SIGKILL)

    while True:
        hold_id = f"{name}/{number}"
        policy_id = ("research", "industry")[number % 2]
        step("before-reserve")
        try:
            with database.transaction():
                ledger.reserve(
                    hold_id,
                    run_id=name,
                    round_number=number + 1,
                    attempt=1,
                    dataset_id="patients",
                    policy_id=policy_id,
                    mechanism=TRAINING,
                    action=Action.TRAIN,
                )
                step("inside-reserve")
        except BudgetExhausted:
            return
        step("reserved")
        ledger.mark_sending(hold_id, update_digest=f"sha256:{hold_id}")
        step("sending")
        with outbox.open("a", encoding="utf-8") as sent:
            sent.write(hold_id + "\n")
        step("sent")
        ledger.commit(hold_id)
        step("committed")
        number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4])
