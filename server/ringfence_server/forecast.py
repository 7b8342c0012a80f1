"""Who would refuse a plan, why, and what change would make it pass: asked of the policies before anything runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ringfence_policy.accounting import gated_epsilon_micro
from ringfence_policy.database import Database
from ringfence_policy.decision import OUTSIDE_THE_POLICY, FailedClause
from ringfence_policy.errors import Unaccountable
from ringfence_policy.facts import Cost, use_request
from ringfence_policy.gate import PolicyGate
from ringfence_policy.ledger import PrivacyLedger, now_ms
from ringfence_policy.mechanism import History, history_of
from ringfence_policy.plan import PlanFile, PlanHolder, TrainingPlan
from ringfence_policy.preview import Change, HolderPreview, PreviewCase, preview
from ringfence_policy.request import RoundRequest
from ringfence_policy.settlement import settle
from ringfence_policy.vocabulary import PURPOSES, Action, Evaluation
from ringfence_policy.wording import counted
from ringfence_server.run_file import STOPS, reach
from ringfence_server.scenario import Scenario

_NOBODY = PlanHolder(weight=1, root_thumbprint="", root={})


def forecast(scenario: Scenario, plan: PlanFile, *, sandboxed: bool = False) -> list[HolderPreview]:
    """Ask every holder's policy about a plan, with its ledger and its officer's stops as they stand.

    Uses no data and records nothing.

    Args:
        scenario: The holders and their policies.
        plan: The plan.
        sandboxed: Whether the holders open their records in data sandboxes. Those of a scenario are simulated in the
            run's own process and have none.

    Raises:
        DocumentInvalid: The plan and the schema do not fit each other.
    """
    cases: list[PreviewCase] = []
    beyond: dict[str, HolderPreview] = {}
    for holder_id in scenario.holders:
        try:
            cases.append(_case(scenario, plan, holder_id, sandboxed=sandboxed))
        except Unaccountable as error:  # its ledger cannot take this plan; that is no reason to stop the others
            beyond[holder_id] = _unaccountable(holder_id, error)
    found = {one.holder_id: one for one in preview(cases)} | beyond
    previews = [found[holder_id] for holder_id in scenario.holders]
    return [_too_few(one, plan, there=len(previews)) for one in previews]


def forecast_document(plan: PlanFile, previews: list[HolderPreview]) -> dict[str, Any]:
    """A forecast as the report and `--json` show it."""
    return {
        "plan_id": plan.plan_id,
        "title": plan.title,
        "purpose": PURPOSES[plan.purpose].label,
        "holders": [
            {
                "holder": one.holder_id,
                "permitted": one.permitted,
                "rounds_permitted": one.rounds_permitted,
                "failed": [
                    {"clause": failed.clause, "meaning": failed.meaning, "limit": failed.limit} for failed in one.failed
                ],
                "change": one.change,
                "obstacles": list(one.obstacles),
            }
            for one in previews
        ],
    }


def _too_few(one: HolderPreview, plan: PlanFile, *, there: int) -> HolderPreview:
    """What a holder would say to a plan that itself asks for more holders than there are: it is never asked."""
    fewest = plan.cohort.min_holders
    if fewest <= there:
        return one
    failed = FailedClause(
        "plan-min-holders", "The plan itself asks for more data holders than there are.", f"at least {fewest}"
    )
    change = Change("plan-min-holders", f"ask for at most {counted(there, 'data holder')} ([cohort] min_holders)")
    return replace(
        one,
        permitted=False,
        rounds_permitted=0,
        failed=(*one.failed, failed),
        changes=() if one.obstacles else (*one.changes, change),
    )


def _unaccountable(holder_id: str, error: Unaccountable) -> HolderPreview:
    failed = FailedClause(error.code, OUTSIDE_THE_POLICY[error.code], error.expected or "")
    return HolderPreview(
        holder_id=holder_id, permitted=False, rounds_permitted=0, failed=(failed,), obstacles=(error.code,)
    )


def _case(scenario: Scenario, plan: PlanFile, holder_id: str, *, sandboxed: bool) -> PreviewCase:
    policy = scenario.policies[holder_id]
    profile = scenario.holders[holder_id]
    by_policy, by_dataset = _spent(scenario.holder_directory(holder_id) / "state" / "ledger.db", policy.policy_id,
                                   profile.dataset.dataset_id)  # fmt: skip
    whole = TrainingPlan(
        terms=plan, dataset_schema=scenario.schema, holders=dict.fromkeys(scenario.holders, _NOBODY), rehearsal=False
    )
    settlement = settle(
        plan=whole, policy=policy, dataset=profile.dataset, policy_history=by_policy, dataset_history=by_dataset
    )
    is_revoked, is_suspended = reach(STOPS)(str(scenario.holder_directory(holder_id)), policy_id=policy.policy_id)
    used = sum(count for mechanism, count in by_policy if mechanism.kind == "dp-sgd")

    def spent_after(rounds: int) -> int:
        history = history_of([*by_policy, (settlement.training, rounds)])
        return gated_epsilon_micro(
            history,
            epsilon_cap_micro=policy.epsilon_micro,
            delta_pico=policy.delta_pico,
            adaptive=bool(by_policy),
        )

    def request(action: Action, cohort_size: int, cost: Cost, evaluation: Evaluation = Evaluation.NONE) -> RoundRequest:
        return use_request(
            whole,
            policy,
            action=action,
            now_ms=now_ms(),
            cohort_size=cohort_size,
            cost=cost,
            evaluation=evaluation,
            sandboxed=sandboxed,
            revoked=is_revoked,
            suspended=is_suspended,
            status_fresh=True,  # as it will be: the run begins with a new one
        )

    def request_for(round_number: int, cohort_size: int) -> RoundRequest:
        after, before = spent_after(round_number), spent_after(round_number - 1)
        cost = Cost(rounds_used=used + round_number - 1, epsilon_after_micro=after, epsilon_cost_micro=after - before)
        return request(Action.TRAIN, cohort_size, cost)

    everyone = len(scenario.holders)
    also = [request(Action.RELEASE, everyone, Cost())]
    if settlement.evaluation_mode is not Evaluation.NONE:
        also.append(request(Action.EVALUATE, everyone, Cost(), settlement.evaluation_mode))
    return PreviewCase(
        holder_id=holder_id,
        gate=PolicyGate(policy),
        rounds=plan.training.rounds,
        request_for=request_for,
        also=tuple(also),
    )


def _spent(path: Path, policy_id: str, dataset_id: str) -> tuple[History, History]:
    if not (path.parent / "papers").exists():
        return (), ()  # nothing was set up yet
    with Database.open(path, must_exist=True) as database:
        ledger = PrivacyLedger(database)
        return ledger.history(dataset_id, policy_id=policy_id), ledger.history(dataset_id)
