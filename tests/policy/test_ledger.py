"""No use is forgotten and no cap is passed, whatever the order, the crash or the number of processes."""

import itertools
import re
import threading

import pytest

from ringfence_policy import accounting, composition
from ringfence_policy.database import Database
from ringfence_policy.errors import BudgetExhausted, LedgerFault, TrustRefused, Unaccountable
from ringfence_policy.ledger import HoldState, PrivacyLedger
from ringfence_policy.mechanism import DpMechanism, history_of
from ringfence_policy.vocabulary import Action, Relation, Unit

DELTA = 10**7  # 1e-5 in trillionths
EPSILON = 10**6  # 1.0 in millionths


def training(noise=20.0, **changes):
    values = {
        "kind": "dp-sgd",
        "clipping_norm": 0.5,
        "noise_multiplier": noise,
        "sampling_rate": 1.0,
        "steps": 1,
        "unit": Unit.RECORD,
        "relation": Relation.ADD_OR_REMOVE,
    }
    return DpMechanism(**(values | changes))


def measuring(noise=50.0):
    return training(noise, kind="score-histogram", clipping_norm=1.0)


@pytest.fixture
def database(tmp_path):
    with Database.open(tmp_path / "ledger.db") as opened:
        yield opened


@pytest.fixture
def ledger(database):
    ticks = itertools.count(1_800_000_000_000)
    opened = PrivacyLedger(database, clock=lambda: next(ticks))
    opened.register_dataset("patients", fingerprint="sha256:one", epsilon_micro=EPSILON, delta_pico=DELTA)
    register_policy(opened)
    return opened


def register_policy(ledger, policy_id="research", **changes):
    terms = {"dataset_id": "patients", "version": 1, "epsilon_micro": EPSILON, "delta_pico": DELTA, "max_rounds": 100}
    return ledger.register_policy(policy_id, **(terms | changes))


def reserve(ledger, hold_id="run/1/1", **changes):
    use = {
        "run_id": "run",
        "round_number": 1,
        "attempt": 1,
        "dataset_id": "patients",
        "policy_id": "research",
        "mechanism": training(),
        "action": Action.TRAIN,
    }
    return ledger.reserve(hold_id, **(use | changes))


def spend(ledger, hold_id="run/1/1", **changes):
    reserve(ledger, hold_id, **changes)
    ledger.mark_sending(hold_id, update_digest=f"sha256:{hold_id}")
    return ledger.commit(hold_id)


def fill(ledger, prefix="fill", **changes):
    """Spend until the ledger refuses; return how many uses it took and the refusal."""
    number = 0
    while True:
        try:
            spend(ledger, f"{prefix}/{number}", **changes)
        except BudgetExhausted as refusal:
            return number, refusal
        number += 1


def meter(ledger, name):
    kind, owner, quantity = name.split("/")
    (found,) = [
        each for each in ledger.meters() if (each.owner_kind, each.owner_id, each.quantity) == (kind, owner, quantity)
    ]
    return found


def cost(*uses, delta=DELTA):
    return accounting.epsilon_micro(history_of(uses), delta_pico=delta)


def transitions(ledger, hold_id):
    rows = ledger._database.rows(
        "SELECT from_state, to_state FROM hold_transition WHERE hold_id = ? ORDER BY seq", (hold_id,)
    )
    return [after for _, after in rows]


# -------------------- the way of a use


def test_a_use_goes_from_reserved_to_sending_to_committed_and_every_step_is_kept(ledger):
    assert reserve(ledger).state is HoldState.RESERVED
    assert ledger.mark_sending("run/1/1", update_digest="sha256:update").state is HoldState.SENDING
    assert ledger.commit("run/1/1").state is HoldState.COMMITTED
    assert transitions(ledger, "run/1/1") == ["reserved", "sending", "committed"]
    assert ledger.hold("run/1/1").update_digest == "sha256:update"


def test_a_reservation_counts_at_once_and_a_release_gives_it_back(ledger):
    reserve(ledger)
    one = cost((training(), 1))
    assert (meter(ledger, "dataset/patients/epsilon").reserved, meter(ledger, "policy/research/rounds").reserved) == (
        one,
        1,
    )
    ledger.release("run/1/1", "revoked by the data officer")
    assert (meter(ledger, "dataset/patients/epsilon").reserved, meter(ledger, "policy/research/rounds").reserved) == (
        0,
        0,
    )
    assert ledger.hold("run/1/1").detail == "revoked by the data officer"


def test_what_is_being_sent_counts_as_spent(ledger):
    reserve(ledger)
    ledger.mark_sending("run/1/1", update_digest="sha256:update")
    found = meter(ledger, "dataset/patients/epsilon")
    assert (found.committed, found.reserved) == (cost((training(), 1)), 0)


def test_what_may_have_left_is_never_released(ledger):
    reserve(ledger)
    ledger.mark_sending("run/1/1", update_digest="sha256:update")
    with pytest.raises(LedgerFault, match="cannot become released"):
        ledger.release("run/1/1", "please")
    ledger.commit("run/1/1")
    with pytest.raises(LedgerFault, match="cannot become released"):
        ledger.release("run/1/1", "please")


def test_nothing_is_committed_that_was_not_marked_sending(ledger):
    reserve(ledger)
    with pytest.raises(LedgerFault, match="cannot become committed"):
        ledger.commit("run/1/1")


def test_a_released_hold_can_neither_send_nor_be_reserved_again(ledger):
    reserve(ledger)
    ledger.release("run/1/1", "stopped")
    with pytest.raises(LedgerFault, match="cannot become sending"):
        ledger.mark_sending("run/1/1", update_digest="sha256:update")
    with pytest.raises(LedgerFault, match="reserves nothing"):
        reserve(ledger)


def test_repeating_a_step_changes_nothing(ledger):
    for _ in range(2):
        reserve(ledger)
    for _ in range(2):
        ledger.mark_sending("run/1/1", update_digest="sha256:update")
    for _ in range(2):
        ledger.commit("run/1/1")
    ledger.mark_sending("run/1/1", update_digest="sha256:update")
    assert reserve(ledger).state is HoldState.COMMITTED
    assert transitions(ledger, "run/1/1") == ["reserved", "sending", "committed"]
    assert meter(ledger, "policy/research/rounds").committed == 1
    reserve(ledger, "run/2/1")
    for _ in range(2):
        ledger.release("run/2/1", "stopped")
    assert transitions(ledger, "run/2/1") == ["reserved", "released"]


def test_the_same_hold_cannot_send_two_different_updates(ledger):
    reserve(ledger)
    ledger.mark_sending("run/1/1", update_digest="sha256:first")
    with pytest.raises(LedgerFault, match="sending"):
        ledger.mark_sending("run/1/1", update_digest="sha256:second")
    ledger.commit("run/1/1")
    with pytest.raises(LedgerFault, match="sending"):
        ledger.mark_sending("run/1/1", update_digest="sha256:second")


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "other"},
        {"round_number": 2},
        {"attempt": 2},
        {"mechanism": training(30.0)},
        {"action": Action.EVALUATE},
    ],
)
def test_one_hold_id_stands_for_one_use(ledger, change):
    reserve(ledger)
    with pytest.raises(LedgerFault, match="another use"):
        reserve(ledger, **change)


def test_an_unknown_hold_is_a_fault(ledger):
    for step in (
        ledger.commit,
        lambda name: ledger.release(name, "x"),
        lambda name: ledger.mark_sending(name, update_digest="x"),
    ):
        with pytest.raises(LedgerFault, match="no hold"):
            step("nobody")


# -------------------- caps


def test_uses_compose_and_are_refused_exactly_where_the_cap_is(ledger):
    fits = accounting.rounds_that_fit((), training(), epsilon_micro=EPSILON, delta_pico=DELTA, at_most=1000)
    used, _ = fill(ledger)
    assert used == fits
    assert meter(ledger, "dataset/patients/epsilon").committed == cost((training(), fits)) <= EPSILON


def test_a_refusal_names_the_meter_the_limit_the_need_and_a_next_step_that_works(ledger):
    _, refusal = fill(ledger, mechanism=training(8.0))
    text = str(refusal)
    assert "dataset patients" in text
    assert "1.000000" in text
    assert "this use needs" in text
    least = float(re.search(r"at least ([\d.]+)", text)[1])
    spend(ledger, "after", mechanism=training(least))


def test_a_refused_reservation_leaves_nothing_behind(ledger):
    before = ledger.meters()
    with pytest.raises(BudgetExhausted):
        reserve(ledger, mechanism=training(0.5))
    assert ledger.meters() == before
    assert ledger.holds() == []
    assert transitions(ledger, "run/1/1") == []


def test_rounds_are_a_meter_of_their_own_and_measuring_does_not_take_one(ledger):
    register_policy(ledger, version=2, max_rounds=2)
    spend(ledger, "run/1/1")
    spend(ledger, "run/2/1")
    spend(ledger, "run/2/1/measure", action=Action.EVALUATE, mechanism=measuring())
    with pytest.raises(BudgetExhausted, match="no rounds left"):
        reserve(ledger, "run/3/1")
    assert meter(ledger, "policy/research/rounds").committed == 2
    assert meter(ledger, "dataset/patients/epsilon").committed == cost((training(), 2), (measuring(), 1))


def test_an_action_given_as_a_word_is_the_same_action(ledger):
    register_policy(ledger, version=2, max_rounds=0)
    with pytest.raises(BudgetExhausted, match="no rounds left"):
        reserve(ledger, action="train")
    assert not ledger.quote(dataset_id="patients", policy_id="research", mechanism=training(), action="train").fits


def test_two_policies_on_one_dataset_share_its_budget(ledger):
    register_policy(ledger, "industry")
    alone = accounting.rounds_that_fit((), training(), epsilon_micro=EPSILON, delta_pico=DELTA, at_most=1000)
    for number in range(alone):
        spend(ledger, f"run/{number}", policy_id=("research", "industry")[number % 2])
    with pytest.raises(BudgetExhausted, match="dataset patients"):
        reserve(ledger, "one too many", policy_id="industry")
    assert meter(ledger, "policy/industry/epsilon").committed < EPSILON


def test_two_runs_at_once_compose(ledger):
    reserve(ledger, "a/1/1", run_id="a")
    reserve(ledger, "b/1/1", run_id="b")
    found = meter(ledger, "dataset/patients/epsilon")
    assert found.committed + found.reserved == cost((training(), 2))
    ledger.mark_sending("a/1/1", update_digest="sha256:a")
    found = meter(ledger, "dataset/patients/epsilon")
    assert (found.committed, found.reserved) == (cost((training(), 1)), cost((training(), 2)) - cost((training(), 1)))


def test_a_thread_that_is_working_out_an_answer_lets_no_other_reserve_by_old_figures(ledger):
    working, reserved = threading.Event(), threading.Event()

    def work():
        working.set()
        reserved.wait(1.0)

    ledger.meters()
    asking = threading.Thread(target=lambda: ledger._while_unchanged(("slow",), work))
    asking.start()
    assert working.wait(10)
    fit, _ = fill(ledger)
    reserved.set()
    asking.join()
    assert cost((training(), fit)) <= EPSILON < cost((training(), fit + 1))


def test_a_second_run_starts_from_what_the_first_one_spent(ledger, database):
    used, _ = fill(ledger)
    with Database.open(database.path) as again:
        later = PrivacyLedger(again)
        later.register_dataset("patients", fingerprint="sha256:one", epsilon_micro=EPSILON, delta_pico=DELTA)
        register_policy(later)
        assert later.rounds_that_fit(dataset_id="patients", policy_id="research", mechanism=training(), at_most=10) == 0
        with pytest.raises(BudgetExhausted):
            reserve(later, "second run", run_id="second")
        assert later.quote(dataset_id="patients", policy_id="research", mechanism=None).rounds_used == used


def test_the_first_use_takes_all_of_delta_and_later_ones_no_more(ledger):
    assert meter(ledger, "dataset/patients/delta").committed == 0
    spend(ledger, "run/1/1")
    spend(ledger, "run/2/1")
    found = meter(ledger, "dataset/patients/delta")
    assert (found.committed, found.reserved, found.cap) == (DELTA, 0, DELTA)


def test_each_meter_reads_epsilon_at_its_own_delta(ledger):
    register_policy(ledger, "strict", delta_pico=DELTA // 1000)
    reserve(ledger, policy_id="strict")
    assert meter(ledger, "policy/strict/epsilon").reserved == cost((training(), 1), delta=DELTA // 1000)
    assert meter(ledger, "dataset/patients/epsilon").reserved == cost((training(), 1))


@pytest.mark.parametrize(
    "mechanism",
    [training(0.0), training(unit=Unit.SUBJECT), training(relation=Relation.REPLACE_ONE)],
)
def test_a_mechanism_that_cannot_be_composed_with_the_history_is_refused(ledger, mechanism):
    spend(ledger)
    before = ledger.meters()
    with pytest.raises(Unaccountable):
        reserve(ledger, "run/2/1", mechanism=mechanism)
    assert ledger.meters() == before


# -------------------- registration


def test_a_new_version_of_a_dataset_inherits_what_was_spent(ledger):
    used, _ = fill(ledger)
    assert ledger.register_dataset(
        "patients", fingerprint="sha256:one-row-more", epsilon_micro=EPSILON, delta_pico=DELTA
    )
    with pytest.raises(BudgetExhausted):
        reserve(ledger, "after the new row")
    assert ledger.history("patients") == ((training(), used),)


def test_a_new_name_for_the_same_content_opens_no_fresh_budget(ledger):
    ledger.register_dataset("patients", fingerprint="sha256:two", epsilon_micro=EPSILON, delta_pico=DELTA)
    for content in ("sha256:one", "sha256:two"):
        with pytest.raises(TrustRefused, match="another name"):
            ledger.register_dataset("patients-again", fingerprint=content, epsilon_micro=EPSILON, delta_pico=DELTA)


def test_registering_the_same_again_records_nothing(ledger):
    assert not ledger.register_dataset("patients", fingerprint="sha256:one", epsilon_micro=EPSILON, delta_pico=DELTA)
    assert not register_policy(ledger)


@pytest.mark.parametrize(
    "change", [{"epsilon_micro": EPSILON + 1}, {"delta_pico": DELTA + 1}, {"delta_pico": DELTA - 1}]
)
def test_a_datasets_budget_is_not_raised_by_editing_a_file(ledger, change):
    terms = {"fingerprint": "sha256:one", "epsilon_micro": EPSILON, "delta_pico": DELTA}
    with pytest.raises(TrustRefused, match="cannot be raised"):
        ledger.register_dataset("patients", **(terms | change))


def test_a_cap_lowered_below_what_is_spent_exhausts_the_meter_and_erases_nothing(ledger):
    spend(ledger, "run/1/1")
    reserve(ledger, "run/2/1")
    spent = meter(ledger, "dataset/patients/epsilon")
    ledger.register_dataset("patients", fingerprint="sha256:one", epsilon_micro=10, delta_pico=DELTA)
    found = meter(ledger, "dataset/patients/epsilon")
    assert (found.cap, found.committed, found.reserved) == (10, spent.committed, spent.reserved)
    assert found.exceeded
    assert found.left == 0
    with pytest.raises(BudgetExhausted):
        reserve(ledger, "run/3/1")
    ledger.mark_sending("run/2/1", update_digest="sha256:late")  # what was reserved before may still settle
    ledger.commit("run/2/1")
    assert meter(ledger, "dataset/patients/epsilon").committed == cost((training(), 2))
    with pytest.raises(TrustRefused):
        ledger.register_dataset("patients", fingerprint="sha256:one", epsilon_micro=EPSILON, delta_pico=DELTA)


def test_a_new_version_of_a_policy_inherits_what_was_used_under_it(ledger):
    spend(ledger)
    assert register_policy(ledger, version=2, max_rounds=1)
    with pytest.raises(BudgetExhausted, match="rounds"):
        reserve(ledger, "run/2/1")
    assert register_policy(ledger, version=3, max_rounds=2)
    spend(ledger, "run/2/1")


@pytest.mark.parametrize(
    "change", [{"version": 1}, {"version": 2, "max_rounds": 50}, {"version": 9, "dataset_id": "other"}]
)
def test_an_old_or_edited_policy_is_refused(ledger, change):
    ledger.register_dataset("other", fingerprint="sha256:other", epsilon_micro=EPSILON, delta_pico=DELTA)
    register_policy(ledger, version=2)
    with pytest.raises(TrustRefused):
        register_policy(ledger, **change)


def test_a_use_of_an_unregistered_dataset_or_policy_is_a_fault(ledger):
    ledger.register_dataset("other", fingerprint="sha256:other", epsilon_micro=EPSILON, delta_pico=DELTA)
    for change in ({"policy_id": "nobody"}, {"dataset_id": "nowhere"}, {"dataset_id": "other"}):
        with pytest.raises(LedgerFault, match="does not know"):
            reserve(ledger, **change)


# -------------------- questions


def test_a_quote_says_what_reserving_will_do(ledger):
    spend(ledger)
    quote = ledger.quote(dataset_id="patients", policy_id="research", mechanism=training(10.0))
    assert quote.fits
    assert quote.dataset_epsilon_before_micro == cost((training(), 1))
    reserve(ledger, "run/2/1", mechanism=training(10.0))
    found = meter(ledger, "dataset/patients/epsilon")
    assert quote.dataset_epsilon_after_micro == found.committed + found.reserved
    assert quote.policy_epsilon_cost_micro == found.reserved
    assert (quote.rounds_used, quote.max_rounds) == (1, 100)


def test_a_quote_changes_nothing_and_names_what_would_be_exceeded(ledger):
    before = ledger.meters()
    register_policy(ledger, "tight", epsilon_micro=100, max_rounds=0)
    quote = ledger.quote(dataset_id="patients", policy_id="tight", mechanism=training(1.0))
    assert quote.exhausted == ("dataset/epsilon", "policy/epsilon", "policy/rounds")
    measured = ledger.quote(dataset_id="patients", policy_id="tight", mechanism=measuring(1e5), action=Action.EVALUATE)
    assert measured.fits
    assert [each for each in ledger.meters() if each.owner_id != "tight"] == before


def test_rounds_that_fit_is_the_least_of_all_meters(ledger):
    def fits(at_most=1000, **changes):
        return ledger.rounds_that_fit(
            **({"dataset_id": "patients", "policy_id": "research", "mechanism": training()} | changes), at_most=at_most
        )

    by_epsilon = fits()
    assert 3 < by_epsilon < 100
    assert fits(at_most=3) == 3
    assert fits(alongside=((training(), 1),)) == by_epsilon // 2
    register_policy(ledger, version=2, max_rounds=4)
    assert fits() == 4
    spend(ledger)
    assert fits() == 3
    register_policy(ledger, version=3, epsilon_micro=cost((training(), 2)))
    assert fits() == 1


def test_rounds_that_fit_counts_down_with_the_run_and_always_agrees_with_reserving(ledger):
    at_first = ledger.rounds_that_fit(dataset_id="patients", policy_id="research", mechanism=training(), at_most=1000)
    for number in range(at_first):
        left = ledger.rounds_that_fit(dataset_id="patients", policy_id="research", mechanism=training(), at_most=1000)
        assert left == at_first - number
        spend(ledger, f"run/{number}")
    with pytest.raises(BudgetExhausted):
        reserve(ledger, "one too many")


def test_a_short_answer_does_not_stand_for_a_longer_question(ledger):
    plan = {"dataset_id": "patients", "policy_id": "research", "mechanism": training()}
    assert ledger.rounds_that_fit(**plan, at_most=2) == 2
    spend(ledger)
    fits = accounting.rounds_that_fit((), training(), epsilon_micro=EPSILON, delta_pico=DELTA, at_most=1000)
    assert ledger.rounds_that_fit(**plan, at_most=1000) == fits - 1


def test_another_runs_use_between_rounds_is_noticed(ledger):
    def ask():
        return ledger.rounds_that_fit(dataset_id="patients", policy_id="research", mechanism=training(), at_most=1000)

    before = ask()
    spend(ledger, "other", run_id="other", mechanism=training(10.0))  # as much as four of ours
    assert ask() == before - 4


def test_a_round_of_an_unchanged_plan_builds_no_distribution_and_composes_at_most_once(ledger):
    mechanism = training(3.0, sampling_rate=0.0625, steps=10)
    plan = {"dataset_id": "patients", "policy_id": "research", "mechanism": mechanism, "run_id": "run"}
    assert ledger.rounds_that_fit(**plan, at_most=6) == 6
    reserve(ledger, "warm", mechanism=mechanism)
    for number in range(1, 6):
        built = composition._losses.cache_info().misses
        composed = accounting._epsilon.cache_info().misses
        assert ledger.rounds_that_fit(**plan, at_most=6 - number) == 6 - number
        spend(ledger, f"run/{number}/1", mechanism=mechanism)
        ledger.meters()
        assert composition._losses.cache_info().misses == built
        assert accounting._epsilon.cache_info().misses <= composed + 1


# -------------------- a run that may have been planned after seeing another's outputs

SAMPLED = {"sampling_rate": 0.1, "steps": 10}


def filtered(*uses, cap=EPSILON):
    history = history_of(uses)
    found = accounting.gated_epsilon_micro(history, epsilon_cap_micro=cap, delta_pico=DELTA, adaptive=True)
    assert found > accounting.epsilon_micro(history, delta_pico=DELTA)
    return found


def test_one_sampled_run_is_held_against_the_cap_by_its_own_composition(ledger):
    mechanism = training(3.0, **SAMPLED)
    used, _ = fill(ledger, mechanism=mechanism)
    assert cost((mechanism, used)) <= EPSILON < cost((mechanism, used + 1))
    assert meter(ledger, "dataset/patients/epsilon").committed == cost((mechanism, used))


def test_a_second_sampled_run_is_held_against_the_cap_by_the_filter_of_everything(ledger):
    first, second = training(3.0, **SAMPLED), training(4.0, **SAMPLED)
    spend(ledger, "first/1", run_id="first", mechanism=first)
    used, refusal = fill(ledger, "second", run_id="second", mechanism=second)
    assert filtered((first, 1), (second, used)) <= EPSILON < filtered((first, 1), (second, used + 1))
    assert cost((first, 1), (second, used + 1)) < EPSILON  # by itself, composition would have let it through
    assert "too little privacy budget" in str(refusal)


def test_crossing_to_a_second_run_never_passes_the_cap_and_giving_it_up_goes_back(ledger):
    mechanism = training(3.0, **SAMPLED)
    used, _ = fill(ledger, "first", run_id="first", mechanism=mechanism)
    alone = meter(ledger, "dataset/patients/epsilon")
    with pytest.raises(BudgetExhausted):
        reserve(ledger, "second/1", run_id="second", mechanism=training(500.0, **SAMPLED))
    assert meter(ledger, "dataset/patients/epsilon") == alone
    assert not ledger.quote(
        dataset_id="patients", policy_id="research", mechanism=training(500.0), run_id="second"
    ).fits
    assert used > 0


def test_a_released_second_run_leaves_the_first_to_its_own_composition(ledger):
    mechanism = training(3.0, **SAMPLED)
    spend(ledger, "first/1", run_id="first", mechanism=mechanism)
    alone = meter(ledger, "dataset/patients/epsilon")
    reserve(ledger, "second/1", run_id="second", mechanism=mechanism)
    both = meter(ledger, "dataset/patients/epsilon")
    assert (both.committed, both.committed + both.reserved) == (alone.committed, filtered((mechanism, 2)))
    ledger.release("second/1", "changed our minds")
    assert meter(ledger, "dataset/patients/epsilon") == alone


def test_a_quote_counts_the_run_that_asks_before_it_has_reserved_anything(ledger):
    mechanism = training(3.0, **SAMPLED)
    spend(ledger, "first/1", run_id="first", mechanism=mechanism)
    ask = {"dataset_id": "patients", "policy_id": "research", "mechanism": mechanism}
    assert ledger.quote(**ask, run_id="first").dataset_epsilon_after_micro == cost((mechanism, 2))
    for other in ("second", None):
        assert ledger.quote(**ask, run_id=other).dataset_epsilon_after_micro == filtered((mechanism, 2))
    fits = {run: ledger.rounds_that_fit(**ask, at_most=1000, run_id=run) for run in ("first", "second")}
    assert fits["second"] < fits["first"]


def test_runs_without_sampling_need_no_filter_whoever_planned_them(ledger):
    spend(ledger, "first/1", run_id="first")
    spend(ledger, "second/1", run_id="second")
    assert meter(ledger, "dataset/patients/epsilon").committed == cost((training(), 2))
