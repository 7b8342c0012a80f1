"""Against a plain model in memory: any interleaving of steps gives the meters that the model's events give."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from ringfence_policy import accounting
from ringfence_policy.database import Database
from ringfence_policy.errors import BudgetExhausted, LedgerFault, TrustRefused
from ringfence_policy.ledger import PrivacyLedger
from ringfence_policy.mechanism import DpMechanism, history_of
from ringfence_policy.vocabulary import Action, Relation, Unit

DELTAS = {"patients": 10**7, "research": 10**7, "industry": 10**6}
OPEN = {"reserved", "sending", "committed"}
SPENT = {"sending", "committed"}


def mechanism(noise, kind="dp-sgd", rate=1.0):
    return DpMechanism(
        kind=kind,
        clipping_norm=1.0,
        noise_multiplier=noise,
        sampling_rate=rate,
        steps=1,
        unit=Unit.RECORD,
        relation=Relation.ADD_OR_REMOVE,
    )


MECHANISMS = st.sampled_from(
    [mechanism(5.0), mechanism(9.0), mechanism(30.0), mechanism(20.0, "score-histogram"), mechanism(2.0, rate=0.5)]
)


class LedgerAgainstModel(RuleBasedStateMachine):
    """The model holds a dict of uses and three caps, and knows nothing of SQL, meters or ceilings."""

    holds = Bundle("holds")

    @initialize()
    def start(self):
        self.folder = tempfile.TemporaryDirectory()
        self.uses = {}
        self.caps = {"patients": 1_200_000, "research": 1_000_000, "industry": 1_500_000}
        self.max_rounds = {"research": 8, "industry": 5}
        self.versions = {"research": 0, "industry": 0}
        self.fingerprint = 0
        self.highest_committed = dict.fromkeys(DELTAS, 0)
        self.open()
        self.register()

    def open(self):
        self.database = Database.open(Path(self.folder.name) / "ledger.db")
        self.ledger = PrivacyLedger(self.database)

    def register(self):
        self.ledger.register_dataset(
            "patients",
            fingerprint=f"sha256:{self.fingerprint}",
            epsilon_micro=self.caps["patients"],
            delta_pico=DELTAS["patients"],
        )
        for policy in self.versions:
            self.versions[policy] += 1
            self.ledger.register_policy(
                policy,
                dataset_id="patients",
                version=self.versions[policy],
                epsilon_micro=self.caps[policy],
                delta_pico=DELTAS[policy],
                max_rounds=self.max_rounds[policy],
            )

    def teardown(self):
        if hasattr(self, "database"):
            self.ledger.check()
            self.database.close()
            self.folder.cleanup()

    def epsilon(self, owner, states, extra=None, run=None):
        counted = [use for use in self.uses.values() if use["state"] in states and owner in {"patients", use["policy"]}]
        used = [(use["mechanism"], 1) for use in counted]
        runs = {use["run"] for use in counted} | ({run} if extra else set())
        return accounting.gated_epsilon_micro(
            history_of([*used, (extra, 1)] if extra else used),
            epsilon_cap_micro=self.caps[owner],
            delta_pico=DELTAS[owner],
            adaptive=len(runs) > 1,
        )

    def rounds(self, policy, states):
        return sum(
            use["state"] in states and use["policy"] == policy and use["action"] is Action.TRAIN
            for use in self.uses.values()
        )

    @rule(
        target=holds,
        what=MECHANISMS,
        policy=st.sampled_from(["research", "industry"]),
        action=st.sampled_from([Action.TRAIN, Action.EVALUATE]),
        run=st.sampled_from("ab"),
    )
    def reserve(self, what, policy, action, run):
        hold_id = f"{run}/{len(self.uses)}"
        allowed = all(self.epsilon(owner, OPEN, what, run) <= self.caps[owner] for owner in ("patients", policy)) and (
            action is Action.EVALUATE or self.rounds(policy, OPEN) < self.max_rounds[policy]
        )
        quote = self.ledger.quote(dataset_id="patients", policy_id=policy, mechanism=what, action=action, run_id=run)
        assert quote.fits == allowed
        use = {
            "run_id": run,
            "round_number": 1,
            "attempt": 1,
            "dataset_id": "patients",
            "policy_id": policy,
            "mechanism": what,
            "action": action,
        }
        if allowed:
            self.ledger.reserve(hold_id, **use)
        else:
            with pytest.raises(BudgetExhausted):
                self.ledger.reserve(hold_id, **use)
        self.uses[hold_id] = {
            "state": "reserved" if allowed else "refused",
            "mechanism": what,
            "policy": policy,
            "action": action,
            "run": run,
        }
        return hold_id

    def move(self, hold_id, allowed_from, step):
        state = self.uses[hold_id]["state"]
        if state in allowed_from:
            step()
            self.uses[hold_id]["state"] = allowed_from[state]
        else:
            with pytest.raises(LedgerFault):
                step()

    @rule(hold_id=holds)
    def mark_sending(self, hold_id):
        moves = {"reserved": "sending", "sending": "sending", "committed": "committed"}
        self.move(hold_id, moves, lambda: self.ledger.mark_sending(hold_id, update_digest=f"sha256:{hold_id}"))

    @rule(hold_id=holds)
    def commit(self, hold_id):
        self.move(
            hold_id,
            {"sending": "committed", "committed": "committed"},
            lambda: self.ledger.commit(hold_id),
        )

    @rule(hold_id=holds)
    def release(self, hold_id):
        moves = {"reserved": "released", "released": "released"}
        self.move(hold_id, moves, lambda: self.ledger.release(hold_id, "asked to"))

    @rule(run=st.sampled_from(["a", "b", None]))
    def crash_and_recover(self, run):
        self.database.close()
        self.open()
        self.ledger.recover(run_id=run)
        for use in self.uses.values():
            if run in {None, use["run"]}:
                use["state"] = {"reserved": "released", "sending": "committed"}.get(use["state"], use["state"])

    @rule(share=st.integers(0, 100))
    def lower_the_datasets_cap(self, share):
        self.caps["patients"] = self.caps["patients"] * (50 + share // 2) // 100
        self.register()

    @rule(policy=st.sampled_from(["research", "industry"]), cap=st.integers(0, 2_000_000), rounds=st.integers(0, 12))
    def sign_a_new_policy_version(self, policy, cap, rounds):
        self.caps[policy], self.max_rounds[policy] = cap, rounds
        self.register()

    @rule()
    def change_the_data(self):
        self.fingerprint += 1
        self.register()

    @rule()
    def try_to_raise_the_datasets_cap(self):
        with pytest.raises(TrustRefused):
            self.ledger.register_dataset(
                "patients",
                fingerprint=f"sha256:{self.fingerprint}",
                epsilon_micro=self.caps["patients"] + 1,
                delta_pico=DELTAS["patients"],
            )

    @invariant()
    def meters_are_what_the_models_events_give(self):
        if not hasattr(self, "ledger"):
            return
        for meter in self.ledger.meters():
            owner = meter.owner_id
            if meter.quantity == "epsilon":
                spent, everything = self.epsilon(owner, SPENT), self.epsilon(owner, OPEN)
                assert (meter.cap, meter.committed) == (self.caps[owner], spent)
                assert meter.committed + meter.reserved == everything
                assert meter.committed >= self.highest_committed[owner], "committed fell"
                self.highest_committed[owner] = meter.committed
            elif meter.quantity == "rounds":
                spent, everything = self.rounds(owner, SPENT), self.rounds(owner, OPEN)
                assert (meter.cap, meter.committed, meter.reserved) == (
                    self.max_rounds[owner],
                    spent,
                    everything - spent,
                )
        stored = self.database.rows("SELECT owner_id, quantity, committed, reserved FROM meter ORDER BY 1, 2")
        shown = [(each.owner_id, each.quantity, each.committed, each.reserved) for each in self.ledger.meters()]
        assert stored == sorted(shown)

    @invariant()
    def every_transition_is_kept_and_every_release_came_from_reserved(self):
        if not hasattr(self, "ledger"):
            return
        assert {hold.hold_id: str(hold.state) for hold in self.ledger.holds()} == {
            hold_id: use["state"] for hold_id, use in self.uses.items() if use["state"] != "refused"
        }
        steps = self.database.rows("SELECT DISTINCT from_state, to_state FROM hold_transition")
        assert set(steps) <= {
            (None, "reserved"),
            ("reserved", "sending"),
            ("sending", "committed"),
            ("reserved", "released"),
        }


TestLedgerAgainstModel = LedgerAgainstModel.TestCase
TestLedgerAgainstModel.settings = settings(max_examples=25, stateful_step_count=30)
