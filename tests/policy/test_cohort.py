from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence_policy.cohort import largest_cohort
from ringfence_policy.decision import Decision, Effect, Point
from ringfence_policy.errors import Fault
from ringfence_policy.gate import PolicyGate

PERMIT = Decision(effect=Effect.PERMIT, point=Point.COORDINATOR)


def at_least(minimums):
    def permits(holder, cohort):
        if len(cohort) >= minimums[holder]:
            return PERMIT
        return Decision.deny("min_holders", point=Point.COORDINATOR, actual=str(len(cohort)))

    return permits


def test_one_refusal_can_break_anothers_minimum_and_so_on():
    cohort = largest_cohort(["e", "d", "c", "b", "a"], at_least({"a": 9, "b": 5, "c": 4, "d": 1, "e": 2}))
    assert cohort.members == ("d", "e")
    assert sorted(cohort.refusals) == ["a", "b", "c"]
    assert [cohort.refusals[holder].failed[0].actual for holder in "abc"] == ["5", "4", "3"]
    assert cohort.passes == 4
    assert sorted(cohort.decisions) == ["d", "e"]


def test_everybody_refusing_leaves_an_empty_cohort():
    cohort = largest_cohort(["a", "b"], at_least({"a": 3, "b": 2}))
    assert cohort.members == ()
    assert sorted(cohort.refusals) == ["a", "b"]
    assert largest_cohort([], at_least({})).members == ()


def test_holder_named_twice_is_a_fault():
    with pytest.raises(Fault):
        largest_cohort(["a", "a"], at_least({"a": 1}))


@settings(max_examples=200)
@given(st.lists(st.integers(0, 8), max_size=7))
def test_cohort_is_the_greatest_set_in_which_all_permit(minimums):
    by_holder = {f"h{number}": minimum for number, minimum in enumerate(minimums)}
    permits = at_least(by_holder)
    cohort = largest_cohort(list(by_holder), permits)
    assert all(permits(holder, frozenset(cohort.members)).permitted for holder in cohort.members)
    stable = [
        set(chosen)
        for size in range(len(by_holder) + 1)
        for chosen in combinations(by_holder, size)
        if all(permits(holder, frozenset(chosen)).permitted for holder in chosen)
    ]
    assert set(cohort.members) == set().union(*stable)
    assert cohort.passes <= len(by_holder) + 1


def test_cohort_over_real_policies_leaves_out_who_needs_more_company(make_policy, make_request):
    gates = {
        "alone": PolicyGate(make_policy(min_holders=1)),
        "pair": PolicyGate(make_policy(min_holders=2)),
        "three": PolicyGate(make_policy(min_holders=3)),
        "never": PolicyGate(make_policy(purposes=("marketing",), not_purposes=())),
    }

    def permits(holder, cohort):
        return gates[holder].decide(make_request(holders=len(cohort)), point=Point.COORDINATOR)

    cohort = largest_cohort(list(gates), permits)
    assert cohort.members == ("alone", "pair", "three")
    assert cohort.refusals["never"].clauses == ("purposes",)
    without = largest_cohort(["pair", "three", "never"], permits)
    assert without.members == ()
    assert without.refusals["pair"].clauses == without.refusals["three"].clauses == ("min_holders",)
