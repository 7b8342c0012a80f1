"""What a holder's own ledger, log and papers say, as the data officer is shown it: sealed figures included."""

import json
from collections.abc import Sequence
from typing import Any

from ringfence_client.home import HolderHome
from ringfence_client.joining import joined
from ringfence_client.officer import signed_policy
from ringfence_client.peers import known_peers
from ringfence_client.recovery import is_open
from ringfence_policy.accounting import epsilon_micro
from ringfence_policy.clauses import CLAUSES
from ringfence_policy.database import Database
from ringfence_policy.documents import Status
from ringfence_policy.errors import RingfenceError, ScenarioInvalid
from ringfence_policy.evidence_log import EvidenceLog
from ringfence_policy.ledger import HoldState, PrivacyLedger
from ringfence_policy.ledger_records import Hold, Meter
from ringfence_policy.mechanism import history_of
from ringfence_policy.policy import UsagePolicy
from ringfence_policy.shell_words import typed
from ringfence_policy.vocabulary import Action

# The clauses that say in a few sentences who may use the data, for what and how long.
_IN_SHORT = ("who", "never", "purposes", "not_purposes", "not_after")


def refuse_without_state(home: HolderHome) -> None:
    """Refuse a directory that no keys were made for.

    Raises:
        ScenarioInvalid: There is no state, or it is not whole.
    """
    if not home.is_set_up:
        raise ScenarioInvalid(
            "this holder is not set up yet",
            expected="keys, papers and a ledger",
            where=str(home.state),
            next_step=f"ringfence-node init {typed(home.directory)}",
        )


def standing_document(home: HolderHome, status: Status, policy: UsagePolicy | None) -> dict[str, Any]:
    """Where the holder stands: its policy, its budgets, whom it joined, whether its node is open.

    Args:
        home: The holder's directory.
        status: The status that was just signed.
        policy: The policy that was signed last.
    """
    coordinator = joined(home)
    decisions = decision_documents(home)
    profile = home.profile
    return {
        **status.to_document(),
        "name": profile.name,
        "dataset": profile.dataset.dataset_id,
        "policy": None if policy is None else policy.reference,
        "standing": _standing(home, status, policy),
        "terms": [] if policy is None else [CLAUSES[name].sentence(policy) for name in _IN_SHORT],
        "budgets": meter_documents(home),
        "decisions": {
            "permitted": sum(one["effect"] == "permit" for one in decisions),
            "denied": sum(one["effect"] == "deny" for one in decisions),
            "last_at_ms": decisions[-1]["at_ms"] if decisions else None,
        },
        "coordinator": None if coordinator is None else coordinator.coordinator,
        "coordinator_address": None if coordinator is None else coordinator.address,
        "known_holders": sorted(known_peers(home).keys() - {profile.holder_id}),
        "node_is_open": is_open(home),
    }


def _standing(home: HolderHome, status: Status, policy: UsagePolicy | None) -> str:
    """One word for what the next gate will say: stands, revoked, suspended, edited or unsigned."""
    if policy is None:
        return "unsigned"
    if status.revocation_of(policy.policy_id) is not None:
        return "revoked"
    if status.suspended is not None:
        return "suspended"
    try:
        is_as_signed = home.read_policy().digest == policy.digest
    except RingfenceError:
        is_as_signed = False
    return "stands" if is_as_signed else "edited"


def meter_documents(home: HolderHome) -> list[dict[str, Any]]:
    """Every budget. Before the first use, which writes them into the ledger, those of holder.toml and the policy."""
    with Database.open(home.database, must_exist=True) as database:
        meters = PrivacyLedger(database).meters() or _declared(home)
    return [vars(meter) | {"left": meter.left} for meter in meters]


def _declared(home: HolderHome) -> list[Meter]:
    dataset, policy = home.profile.dataset, signed_policy(home)
    caps: list[tuple[Any, str, Any, int]] = [
        ("dataset", dataset.dataset_id, "epsilon", dataset.epsilon_micro),
        ("dataset", dataset.dataset_id, "delta", dataset.delta_pico),
    ]
    if policy is not None:
        caps += [
            ("policy", policy.policy_id, "epsilon", policy.epsilon_micro),
            ("policy", policy.policy_id, "delta", policy.delta_pico),
            ("policy", policy.policy_id, "rounds", policy.max_rounds),
        ]
    return [
        Meter(owner_kind=kind, owner_id=owner, quantity=quantity, cap=cap, committed=0, reserved=0)
        for kind, owner, quantity, cap in caps
    ]


def run_documents(home: HolderHome) -> list[dict[str, Any]]:
    """What each run took from this holder's data, in the order of their first use."""
    delta = home.profile.dataset.delta_pico
    with Database.open(home.database, must_exist=True) as database:
        holds = PrivacyLedger(database).holds()
    by_run: dict[str, list[Hold]] = {}
    for hold in holds:
        by_run.setdefault(hold.run_id, []).append(hold)
    return [_run_document(run_id, found, delta_pico=delta) for run_id, found in by_run.items()]


def _run_document(run_id: str, holds: Sequence[Hold], *, delta_pico: int) -> dict[str, Any]:
    spent = [hold for hold in holds if hold.state in (HoldState.SENDING, HoldState.COMMITTED)]
    return {
        "run": run_id,
        "rounds": sum(hold.action is Action.TRAIN for hold in spent),
        "evaluations": sum(hold.action is Action.EVALUATE for hold in spent),
        "reserved": sum(hold.state is HoldState.RESERVED for hold in holds),
        "given_back": sum(hold.state is HoldState.RELEASED for hold in holds),
        # Of this run alone. What several cost together is no sum of these: the meters say it.
        "epsilon_micro": epsilon_micro(history_of((hold.mechanism, 1) for hold in spent), delta_pico=delta_pico),
        "delta_pico": delta_pico,
    }


def decision_documents(home: HolderHome, *, run_id: str | None = None, denied: bool = False) -> list[dict[str, Any]]:
    """Decisions out of the holder's own log, oldest first, with the figures that are sealed for everybody else.

    Args:
        home: The holder's directory.
        run_id: Only those of this run.
        denied: Only denials.
    """
    found = []
    with Database.open(home.database, must_exist=True) as database:
        log = EvidenceLog(database, origin=f"ringfence/holder/{home.profile.holder_id}")
        for position, line in enumerate(log.lines()):
            record = json.loads(line)
            if record["kind"] != "decision" or run_id not in (None, record["run"]):
                continue
            if denied and record["decision"]["effect"] != "deny":
                continue
            private = log.private_details(position) or {}
            decision = private.get("decision") or record["decision"]
            found.append(
                {
                    "at_ms": record["at_ms"],
                    "run": record["run"],
                    "round": record["round"],
                    "action": record["action"],
                    "records": private.get("records"),
                    **{name: decision[name] for name in ("point", "effect", "failed", "errors", "policy")},
                }
            )
    return found
