"""Epsilon is an upper bound, close to the truth, and never falls as more is done."""

import math
import subprocess
import sys

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ringfence_policy import accounting
from ringfence_policy.errors import BudgetExhausted, Unaccountable
from ringfence_policy.mechanism import DpMechanism, history_of
from ringfence_policy.vocabulary import Relation, Unit


def gaussian(noise, *, rate=1.0, steps=1, relation=Relation.ADD_OR_REMOVE, unit=Unit.RECORD, clip=1.0):
    return DpMechanism(
        kind="dp-sgd",
        clipping_norm=clip,
        noise_multiplier=noise,
        sampling_rate=rate,
        steps=steps,
        unit=unit,
        relation=relation,
    )


def histogram(noise, *, relation=Relation.ADD_OR_REMOVE):
    return DpMechanism(
        kind="score-histogram",
        clipping_norm=1.0,
        noise_multiplier=noise,
        sampling_rate=1.0,
        steps=1,
        unit=Unit.RECORD,
        relation=relation,
    )


def exact_delta(epsilon, mu):
    """Balle and Wang 2018, theorem 8, with 50 digits: an oracle that shares no code with the product."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):
        e, m = mpmath.mpf(epsilon), mpmath.mpf(mu)
        return mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(-m / 2 - e / m)


noises = st.integers(300_000, 200_000_000).map(lambda micro: micro / 1e6)
unsampled_histories = st.lists(
    st.tuples(st.builds(gaussian, noises, steps=st.integers(1, 50)), st.integers(1, 20)), max_size=5
)
deltas_pico = st.integers(1, 10**11)


def test_importing_the_accounting_does_not_import_the_accountant():
    script = (
        "import sys, ringfence_policy.accounting; sys.exit('dp_accounting' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


def test_nothing_done_costs_nothing():
    assert accounting.epsilon((), delta=1e-5) == 0
    assert accounting.epsilon_micro((), delta_pico=0) == 0


@given(st.floats(0.001, 60.0), st.integers(3, 11))
def test_the_gaussian_answer_is_above_the_exact_one_by_less_than_two_millionths(mu, exponent):
    delta = 10.0**-exponent
    noise = math.ceil(1e6 / mu) / 1e6
    mu = 1 / noise
    micro = accounting.epsilon_micro(history_of([(gaussian(noise), 1)]), delta_pico=10 ** (12 - exponent))
    assert exact_delta(micro / 1e6, mu) <= delta
    if micro > 2:
        assert exact_delta((micro - 2) / 1e6, mu) > delta


@pytest.mark.parametrize(
    ("noise", "steps", "relation", "delta", "expected"),
    [
        # notes/privacy.md section 6, measured with dp_accounting's PLD accountant: unsampled, noise 10, 100 steps.
        (10.0, 100, Relation.ADD_OR_REMOVE, 1e-5, 4.38),
        (10.0, 100, Relation.REPLACE_ONE, 1e-5, 10.00),
    ],
)
def test_known_answers_without_sampling(noise, steps, relation, delta, expected):
    history = history_of([(gaussian(noise, steps=steps, relation=relation), 1)])
    assert accounting.epsilon(history, delta=delta) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "expected"),
    [
        # notes/privacy.md section 5, column PLD1e-4, delta 1e-5.
        (0.01, 0.8, 1000, 3.141),
        (0.01, 1.5, 1000, 0.9176),
        (0.05, 1.0, 100, 3.5021),
        (0.1, 4.0, 10_000, 13.4984),
        (0.5, 4.0, 1000, 24.3806),
    ],
)
def test_known_answers_with_poisson_sampling(rate, noise, steps, expected):
    history = history_of([(gaussian(noise, rate=rate, steps=steps), 1)])
    found = accounting.epsilon(history, delta=1e-5)
    assert expected - 0.0001 <= found <= expected * 1.0005


@pytest.mark.parametrize(("mu", "delta"), [(0.1, 1e-5), (1.0, 1e-5), (3.0, 1e-6)])
def test_the_gaussian_answer_agrees_with_dp_accountings_distribution(mu, delta):
    pld = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    oracle = pld.from_gaussian_mechanism(1 / mu).get_epsilon_for_delta(delta)
    found = accounting.epsilon(history_of([(gaussian(math.ceil(1e6 / mu) / 1e6), 1)]), delta=delta)
    assert found == pytest.approx(oracle, rel=2e-3, abs=1e-4)
    assert found <= oracle + 1e-4


def test_calibrating_balle_and_wangs_gaussian_finds_the_noise_of_dp_accounting():
    """dp_accounting.gaussian_mechanism's analytic calibration is Balle and Wang's algorithm 1."""
    privacy = pytest.importorskip("dp_accounting.pld.privacy_loss_mechanism")
    for epsilon_micro, delta_pico in ((10**5, 10**6), (10**6, 10**7), (10**7, 10**7)):
        parameters = privacy.common.DifferentialPrivacyParameters(epsilon_micro / 1e6, delta_pico / 1e12)
        oracle = privacy.GaussianPrivacyLoss.from_privacy_guarantee(parameters).standard_deviation
        found = accounting.calibrate_noise(
            history=(), mechanism=gaussian(1.0), uses=1, epsilon_micro=epsilon_micro, delta_pico=delta_pico
        )
        assert found.noise_multiplier == pytest.approx(oracle, rel=1e-5)


@given(unsampled_histories, noises, deltas_pico)
def test_epsilon_never_falls_as_history_grows(uses, noise, delta_pico):
    before = accounting.epsilon_micro(history_of(uses), delta_pico=delta_pico)
    after = accounting.epsilon_micro(history_of([*uses, (gaussian(noise), 1)]), delta_pico=delta_pico)
    assert after >= before


@given(unsampled_histories, unsampled_histories, deltas_pico)
def test_epsilon_of_two_histories_is_never_above_the_sum_at_half_the_delta_each(one, other, delta_pico):
    """Basic composition, Dwork and Roth 2014 theorem 3.16: an upper bound that any tight accountant must respect."""
    together = accounting.epsilon_micro(history_of([*one, *other]), delta_pico=2 * delta_pico)
    apart = sum(accounting.epsilon_micro(history_of(uses), delta_pico=delta_pico) for uses in (one, other))
    assert together <= apart + 2


@given(unsampled_histories, deltas_pico, deltas_pico)
def test_a_larger_delta_never_costs_more(uses, one, other):
    small, large = sorted((one, other))
    costs = [accounting.epsilon_micro(history_of(uses), delta_pico=delta) for delta in (small, large)]
    assert costs[0] >= costs[1]


@pytest.mark.parametrize("delta", [1e-4, 1e-6])
def test_sampled_epsilon_grows_with_history_and_stays_below_no_sampling(delta):
    base = [(gaussian(3.0, steps=5), 1)]
    costs = [
        accounting.epsilon(history_of([*base, (gaussian(1.5, rate=0.1, steps=10), uses)]), delta=delta)
        for uses in (0, 1, 5, 20)
    ]
    assert costs == sorted(costs)
    unsampled = accounting.epsilon(history_of([*base, (gaussian(1.5, steps=10), 20)]), delta=delta)
    assert costs[-1] < unsampled


def test_mixed_sampled_and_unsampled_agrees_with_dp_accountings_accountant():
    dp = pytest.importorskip("dp_accounting")
    pld = pytest.importorskip("dp_accounting.pld")
    accountant = pld.PLDAccountant()
    accountant.compose(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(1.5)), 100)
    accountant.compose(dp.GaussianDpEvent(20.0), 10)
    accountant.compose(dp.PoissonSampledDpEvent(0.05, dp.GaussianDpEvent(1.0)), 50)
    history = history_of(
        [(gaussian(1.5, rate=0.1, steps=10), 10), (histogram(20.0), 10), (gaussian(1.0, rate=0.05, steps=50), 1)]
    )
    found = accounting.epsilon(history, delta=1e-5)
    assert accountant.get_epsilon(1e-5) - 1e-6 <= found <= accountant.get_epsilon(1e-5) * 1.001


def test_hopeless_noise_is_answered_by_the_unsampled_bound_and_not_by_a_grid_of_millions():
    sampled = accounting.epsilon(history_of([(gaussian(0.01, rate=0.5), 1)]), delta=1e-5)
    assert sampled == accounting.epsilon(history_of([(gaussian(0.01), 1)]), delta=1e-5)


def test_a_delta_below_what_transforms_resolve_is_answered_by_the_unsampled_bound():
    sampled = accounting.epsilon(history_of([(gaussian(2.0, rate=0.5), 1)]), delta=1e-12)
    assert sampled == accounting.epsilon(history_of([(gaussian(2.0), 1)]), delta=1e-12)


def test_the_clipping_norm_does_not_change_the_cost():
    costs = {accounting.epsilon(history_of([(gaussian(2.0, clip=clip), 3)]), delta=1e-5) for clip in (0.1, 1.0, 50.0)}
    assert len(costs) == 1


def test_replacing_one_record_moves_two_cells_of_a_histogram_at_right_angles():
    replaced = accounting.epsilon(history_of([(histogram(10.0, relation=Relation.REPLACE_ONE), 1)]), delta=1e-5)
    twice = accounting.epsilon(history_of([(histogram(10.0), 2)]), delta=1e-5)
    assert replaced == pytest.approx(twice, abs=1e-8)


@pytest.mark.parametrize(
    ("history", "delta"),
    [
        (((gaussian(0.0), 1),), 1e-5),
        (((gaussian(0.0, rate=0.1), 1),), 1e-5),
        (((gaussian(1.0), 1), (gaussian(1.0, unit=Unit.SUBJECT), 1)), 1e-5),
        (((gaussian(1.0), 1), (gaussian(1.0, relation=Relation.REPLACE_ONE), 1)), 1e-5),
        (((gaussian(1.0), 1),), 0.0),
        (((gaussian(1.0), 1),), 1.0),
        (((gaussian(1.0), 1),), math.nan),
        (((gaussian(1e-6), 1),), 1e-5),
    ],
)
def test_what_has_no_analysis_is_never_counted_as_zero(history, delta):
    with pytest.raises(Unaccountable):
        accounting.epsilon(history, delta=delta)


@given(
    unsampled_histories,
    noises,
    st.integers(0, 30_000_000),
    deltas_pico,
    st.integers(0, 60),
)
def test_rounds_that_fit_fit_and_one_more_does_not(uses, noise, cap, delta_pico, at_most):
    history, mechanism = history_of(uses), gaussian(noise)
    rounds = accounting.rounds_that_fit(history, mechanism, epsilon_micro=cap, delta_pico=delta_pico, at_most=at_most)

    def cost(count):
        return accounting.epsilon_micro(history_of([*history, (mechanism, count)]), delta_pico=delta_pico)

    assert 0 <= rounds <= at_most
    assert rounds == 0 or cost(rounds) <= cap
    assert rounds == at_most or cost(rounds + 1) > cap


def test_rounds_that_fit_are_computed_once_per_plan():
    mechanism = gaussian(2.0, rate=0.125, steps=7)
    plan = {"epsilon_micro": 2 * 10**6, "delta_pico": 10**7, "at_most": 200}
    first = accounting.rounds_that_fit((), mechanism, **plan)
    computed = accounting.rounds_that_fit.cache_info().misses
    assert all(accounting.rounds_that_fit((), mechanism, **plan) == first for _ in range(100))
    assert accounting.rounds_that_fit.cache_info().misses == computed
    assert 0 < first < 200


def test_what_comes_alongside_each_round_is_charged_too():
    plan = {"epsilon_micro": 10**6, "delta_pico": 10**7, "at_most": 1000}
    alone = accounting.rounds_that_fit((), gaussian(30.0), **plan)
    measured = accounting.rounds_that_fit((), gaussian(30.0), alongside=((histogram(30.0), 1),), **plan)
    assert measured == alone // 2


@given(
    st.lists(st.tuples(st.builds(gaussian, st.integers(20, 200).map(float)), st.integers(1, 5)), max_size=3),
    st.integers(1, 100),
    st.integers(1, 20),
    st.integers(10_000, 20_000_000),
    st.integers(10**4, 10**9),
)
def test_calibrated_noise_fits_the_cap_and_a_millionth_less_does_not(uses, rounds, steps, cap, delta_pico):
    history = history_of(uses)
    assume(accounting.epsilon_micro(history, delta_pico=delta_pico) < cap * 0.99)
    found = accounting.calibrate_noise(
        history=history,
        mechanism=gaussian(1.0, steps=steps),
        uses=rounds,
        epsilon_micro=cap,
        delta_pico=delta_pico,
    )

    def cost(noise_micro):
        return accounting.epsilon_micro(
            history_of([*history, (found.with_noise(noise_micro), rounds)]), delta_pico=delta_pico
        )

    assert cost(found.noise_multiplier_micro) <= cap
    assert found.noise_multiplier_micro == 1 or cost(found.noise_multiplier_micro - 1) > cap


@settings(max_examples=2)
@given(st.integers(50_000, 500_000).map(lambda micro: micro / 1e6), st.integers(300_000, 5_000_000))
def test_calibrated_noise_of_a_sampled_mechanism_fits_and_two_parts_in_ten_thousand_less_does_not(rate, cap):
    found = accounting.calibrate_noise(
        history=((histogram(50.0), 2),),
        mechanism=gaussian(1.0, rate=rate, steps=10),
        uses=5,
        epsilon_micro=cap,
        delta_pico=10**7,
    )

    def cost(noise_micro):
        history = history_of([(histogram(50.0), 2), (found.with_noise(noise_micro), 5)])
        return accounting.gated_epsilon_micro(history, epsilon_cap_micro=cap, delta_pico=10**7, adaptive=False)

    assert cost(found.noise_multiplier_micro) <= cap
    assert cost(math.floor(found.noise_multiplier_micro * 0.9998)) > cap


def test_a_budget_that_is_already_spent_cannot_be_calibrated_into():
    with pytest.raises(BudgetExhausted, match="no amount of noise"):
        accounting.calibrate_noise(
            history=((gaussian(1.0), 5),), mechanism=gaussian(1.0), uses=1, epsilon_micro=10**6, delta_pico=10**7
        )


def test_the_analysis_is_named_for_privacy_cards():
    assert "Balle" in accounting.accountant_of(((gaussian(1.0), 1),))
    assert "privacy loss" in accounting.accountant_of(((gaussian(1.0, rate=0.5), 1),))
