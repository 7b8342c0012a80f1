"""Whether the privacy budget that a bundle claims is the one its records amount to.

Every use in a holder's log, of this run and of all others, names its mechanism. The uses are added up again in the
order of the log and composed by `accounting`; each record, each decision and the claims of the run must say at least
what comes out, and must be within the signed policy's cap. More than what comes out is allowed: a later, tighter
accountant finds less, and claiming too much hides nothing.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ringfence_policy import accounting, canonical
from ringfence_policy import bundle_layout as layout
from ringfence_policy.decision import Point
from ringfence_policy.documents import Count, Name, SignedDocument
from ringfence_policy.errors import EvidenceRefused
from ringfence_policy.evidence_papers import Entry, Evidence, HolderEvidence
from ringfence_policy.evidence_records import HolderDecision, Sent, Spending
from ringfence_policy.evidence_rounds import select
from ringfence_policy.mechanism import MICRO, DpMechanism, History, history_from_document, history_of
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.policy import UsagePolicy
from ringfence_policy.verification import Findings, Report, attempt
from ringfence_policy.vocabulary import Action

_ROUNDING = 1  # in millionths: two machines may round the accountant's last place differently


class HolderClaim(SignedDocument):
    """What a run says it cost one holder: its dataset's whole epsilon afterwards, and this run's part in rounds."""

    epsilon_micro: Count
    delta_pico: Count
    epsilon_cap_micro: Count
    rounds: Count
    mechanism: dict[str, Any] | None


class Claims(SignedDocument):
    """claims.json: covered by the manifest's signature."""

    run: Name
    rehearsal: bool
    holders: dict[str, HolderClaim]


@dataclass(frozen=True)
class _Use:
    """One use with its place in its policy's history."""

    entry: Entry
    record: Spending
    before: History
    after: History
    rounds_before: int


@dataclass
class _Account:
    """Adds up the uses in one holder's log, in its order."""

    evidence: Evidence
    holder: HolderEvidence
    report: Report
    by_dataset: dict[str, Counter[DpMechanism]] = field(default_factory=dict)
    by_policy: dict[str, Counter[DpMechanism]] = field(default_factory=dict)
    rounds: Counter[str] = field(default_factory=Counter)
    last: dict[str, Spending] = field(default_factory=dict)
    states: set[History] = field(default_factory=lambda: {()})

    def add_up(self) -> None:
        """Go through the log once."""
        decided: dict[tuple[str, int, str, str], list[tuple[Entry, HolderDecision]]] = {}
        for entry in self.holder.log.entries:
            record = entry.record
            if isinstance(record, HolderDecision):
                if record.decision.get("effect") == "permit" and record.inputs is not None:
                    key = (record.run, record.round, record.action, record.hold_id)
                    if record.decision.get("point") == Point.BEFORE_TRAINING.value:
                        decided[key] = []  # an attempt begins: what an interrupted one was permitted came to no use
                    decided.setdefault(key, []).append((entry, record))
            elif isinstance(record, Spending):
                permits = decided.get((record.run, record.round, record.used_for.value, record.hold_id), [])
                attempt(self._add, entry, record, permits, report=self.report, where=str(entry))

    def _add(self, entry: Entry, record: Spending, permits: list[tuple[Entry, HolderDecision]]) -> None:
        if not permits:
            self.report(f"{entry}: no permit says which dataset and policy this use is of, so it cannot be charged")
            return
        facts = permits[0][1].inputs or {}
        dataset, policy_id = str(facts["dataset_id"]), str(facts["policy_id"])
        of_dataset = self.by_dataset.setdefault(dataset, Counter())
        of_policy = self.by_policy.setdefault(policy_id, Counter())
        before, rounds_before = history_of(of_policy.items()), self.rounds[policy_id]
        if record.mechanism is not None:
            mechanism = DpMechanism.from_document(record.mechanism)
            of_dataset[mechanism] += 1
            of_policy[mechanism] += 1
            if record.run == self.evidence.run_id:
                _check_unit(self.evidence.plan, mechanism, entry, self.report)
                if record.used_for is Action.TRAIN:
                    _check_planned(self.evidence.plan, mechanism, entry, self.report)
        self.rounds[policy_id] += record.used_for is Action.TRAIN
        history = history_of(of_dataset.items())
        self.states.add(history)
        self.last[dataset] = record
        if history_from_document([list(pair) for pair in record.history]) != history:
            uses = sum(of_dataset.values())
            self.report(f"{entry}: its history is not the {uses} uses of {dataset} that this log records")
        spent = accounting.epsilon_micro(history, delta_pico=record.delta_pico)
        if record.epsilon_micro + _ROUNDING < spent:
            said = _text(record.epsilon_micro)
            self.report(f"{entry}: understates epsilon: says {said}, the uses amount to {_text(spent)}")
        use = _Use(entry, record, before, history_of(of_policy.items()), rounds_before)
        for at, permit in permits:
            self._check_permit(at, permit, use)

    def _check_permit(self, at: Entry, permit: HolderDecision, use: _Use) -> None:
        facts: Mapping[str, Any] = permit.inputs or {}
        delta, claimed = int(facts["delta_pico"]), int(facts["epsilon_after_micro"])
        spent = accounting.epsilon_micro(use.after, delta_pico=delta)
        if claimed + _ROUNDING < spent:
            said = f"decided on epsilon {_text(claimed)} after the use"
            self.report(f"{at}: {said}; the uses amount to {_text(spent)} ({use.entry})")
        elif abs(claimed - spent) <= _ROUNDING and permit.decision.get("point") == Point.BEFORE_TRAINING.value:
            cost = spent - accounting.epsilon_micro(use.before, delta_pico=delta)
            said = _text(int(facts["epsilon_cost_micro"]))
            if int(facts["epsilon_cost_micro"]) + 2 * _ROUNDING < cost:
                self.report(f"{at}: decided on a cost of epsilon {said}; the use costs {_text(cost)}")
        if use.record.used_for is Action.TRAIN and int(facts["rounds_used"]) < use.rounds_before:
            self.report(f"{at}: decided on {facts['rounds_used']} rounds used before; the log has {use.rounds_before}")
        signed = self.holder.policies.get(str(permit.decision.get("policy")))
        if signed is None:
            return
        policy, cap = signed.policy.reference, signed.policy.epsilon_micro
        if spent > cap + _ROUNDING:
            self.report(f"{use.entry}: brings policy {policy} to epsilon {_text(spent)}, its cap is {_text(cap)}")
        if use.record.delta_pico > signed.policy.delta_pico:
            self.report(
                f"{use.entry}: states epsilon at {_delta(use.record.delta_pico)}, policy {policy} asks for less"
            )


def check_budget(evidence: Evidence, findings: Findings) -> None:
    """Add every use up again, and hold records, decisions, terms and claims against the sums."""
    accounts: dict[str, _Account] = {}
    with findings.checking(
        "budget", passed="every epsilon is at least what the recorded mechanisms amount to"
    ) as report:
        for holder_id, holder in evidence.holders.items():
            accounts[holder_id] = _Account(evidence, holder, report)
            accounts[holder_id].add_up()
            _check_terms(evidence, holder, accounts[holder_id], report)
    with findings.checking("claims", passed="the claimed budgets are those of the holders' own records") as report:
        claims = _claims(evidence.files[layout.CLAIMS])
        if (claims.run, claims.rehearsal) != (evidence.run_id, evidence.manifest.rehearsal):
            report(
                f"{layout.CLAIMS}: is for run {claims.run}, rehearsal {claims.rehearsal}; the manifest says otherwise"
            )
        for holder_id in sorted({*claims.holders, *evidence.plan.holders}):
            claim, own = claims.holders.get(holder_id), evidence.holders.get(holder_id)
            if claim is None or own is None or holder_id not in accounts:
                report(f"holder {holder_id}: not in the claims, not in the plan, or its log could not be read")
            else:
                attempt(
                    _check_claim, evidence, own, accounts[holder_id], claim, report,
                    report=report, where=f"{layout.CLAIMS}, holder {holder_id}",
                )  # fmt: skip


def _claims(data: bytes) -> Claims:
    canonical.decode(data)
    try:
        return Claims.model_validate_json(data)
    except ValidationError as error:
        places = ", ".join(sorted({".".join(map(str, item["loc"])) for item in error.errors()})[:5])
        raise EvidenceRefused("the claims do not have their shape", got=f"something else at {places}") from None


def _check_unit(plan: TrainingPlan, mechanism: DpMechanism, entry: Entry, report: Report) -> None:
    """Hold a measure to what the plan protects as well as a training: one word weaker, and its cost is another's."""
    planned = {"unit": (mechanism.unit, plan.unit), "relation": (mechanism.relation, plan.terms.privacy.relation)}
    for name, (used, said) in planned.items():
        if used is not said:
            report(f"{entry}: {name} is {used}, the signed plan says {said}")


def _check_planned(plan: TrainingPlan, mechanism: DpMechanism, entry: Entry, report: Report) -> None:
    terms, privacy = plan.terms.training, plan.terms.privacy
    clip, rate = round(terms.clipping_norm * MICRO), math.ceil(terms.sampling_rate * MICRO)
    document = mechanism.to_document()
    planned = {
        "kind": "dp-sgd",
        "clipping_norm_micro": clip,
        "sampling_rate_micro": rate,
        "steps": terms.steps,
    }
    for name, value in planned.items():
        if document[name] != value:
            report(f"{entry}: {name} is {document[name]}, the signed plan says {value}")
    if mechanism.noise_multiplier_micro > math.ceil(privacy.noise_multiplier_max * MICRO):
        report(f"{entry}: more noise than the signed plan allows")


def _check_terms(evidence: Evidence, holder: HolderEvidence, account: _Account, report: Report) -> None:
    if holder.participation is None:
        return
    where = f"holder {holder.holder_id}, participation"
    stated = history_from_document([list(pair) for pair in holder.participation.history])
    if stated not in account.states:
        report(f"{where}: the history it was given on is none that this log ever had")
    for entry, sent in select(holder.log.entries, Sent):
        if sent.run == evidence.run_id and sent.round > holder.participation.last_round:
            report(f"{entry}: after round {holder.participation.last_round}, the last its signed terms reach")


def _check_claim(
    evidence: Evidence, holder: HolderEvidence, account: _Account, claim: HolderClaim, report: Report
) -> None:
    where = f"{layout.CLAIMS}, holder {holder.holder_id}"
    ours = [sent for _, sent in select(holder.log.entries, Sent) if sent.run == evidence.run_id]
    if claim.rounds != len(ours):
        report(f"{where}: claims {claim.rounds} rounds, its log has {len(ours)} updates sent in this run")
    if claim.mechanism != (ours[-1].mechanism if ours else None):
        report(f"{where}: claims another mechanism than its last update had")
    policy = _policy_in_force(evidence, holder)
    _check_total(account, claim, policy, where, report)
    if policy is None:  # its data was not used, or the check of policies has already failed
        return
    cap = _text(policy.epsilon_micro)
    if claim.epsilon_cap_micro != policy.epsilon_micro:
        report(f"{where}: claims a cap of epsilon {_text(claim.epsilon_cap_micro)}, the signed one is {cap}")
    if claim.delta_pico > policy.delta_pico:
        report(f"{where}: claims epsilon at {_delta(claim.delta_pico)}, policy {policy.reference} asks for less")


def _check_total(account: _Account, claim: HolderClaim, policy: UsagePolicy | None, where: str, report: Report) -> None:
    dataset = policy.dataset_id if policy is not None else next(reversed(account.by_dataset), "")
    last = account.last.get(dataset)
    if last is not None and (claim.epsilon_micro, claim.delta_pico) != (last.epsilon_micro, last.delta_pico):
        said = f"claims epsilon {_text(claim.epsilon_micro)} at {_delta(claim.delta_pico)}"
        report(f"{where}: {said}; its last record says {_text(last.epsilon_micro)} at {_delta(last.delta_pico)}")
    history = history_of(account.by_dataset.get(dataset, Counter[DpMechanism]()).items())
    spent = accounting.epsilon_micro(history, delta_pico=claim.delta_pico)
    if claim.epsilon_micro + _ROUNDING < spent:
        report(f"{where}: understates epsilon: claims {_text(claim.epsilon_micro)}, the uses amount to {_text(spent)}")


def _policy_in_force(evidence: Evidence, holder: HolderEvidence) -> UsagePolicy | None:
    named = [
        str(record.decision.get("policy"))
        for _, record in select(holder.log.entries, HolderDecision)
        if record.run == evidence.run_id
    ]
    used = [holder.policies[name].policy for name in named if name in holder.policies]
    if used:
        return used[-1]
    return max((one.policy for one in holder.policies.values()), key=lambda policy: policy.version, default=None)


def _text(micro: int) -> str:
    return f"{micro / MICRO:.6f}"


def _delta(pico: int) -> str:
    return f"delta {pico / accounting.PICO:g}"
