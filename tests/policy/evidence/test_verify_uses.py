"""Every use without permission, after revocation, in rehearsal or beyond its budget is a failed check."""

import copy

import pytest

from ringfence_policy import bundle_layout as layout
from ringfence_policy import canonical
from ringfence_policy.decision import Decision, Effect, FailedClause, Point
from ringfence_policy.documents import RevokedPolicy, Suspension, participation_document
from ringfence_policy.identity import DocumentType, sign
from ringfence_policy.policy import UsagePolicy
from ringfence_policy.vocabulary import Action, Evaluation

OTHER = canonical.digest("something else")


def assert_caught(outcome, check, *words):
    """The bundle fails, and one problem of that check has all these words."""
    assert not outcome.passed
    details = [problem.detail for problem in outcome.problems if problem.name == check]
    assert any(all(word in detail for word in words) for detail in details), (check, words, outcome.problems)
    assert not any("be completed" in one.detail or "malformed" in one.detail for one in outcome.problems), (
        outcome.problems
    )


def told(kind, change, **members):
    """A lie: `change` makes, of each record of this kind with these members, the list of records that is logged."""

    def lie(record):
        if record["kind"] != kind or any(record.get(name) != value for name, value in members.items()):
            return [record]
        return change(copy.deepcopy(record))

    return lie


def with_(**changes):
    """A change that replaces members of a record."""
    return lambda record: [record | changes]


def facts(**changes):
    """A change of a decision's facts, with the digest that fits them."""

    def change(record):
        record["inputs"] |= changes
        record["decision"]["inputs_digest"] = canonical.digest(record["inputs"])
        return [record]

    return change


def at_point(point, change):
    """A change of the decisions at one point only."""
    return lambda record: change(record) if record["decision"]["point"] == point.value else [record]


def into(effect, clause="purposes"):
    """A decision turned into its opposite."""

    def change(record):
        failed = () if effect is Effect.PERMIT else (FailedClause(clause, "made up", ""),)
        old = Decision.from_document(record["decision"])
        made = Decision(
            effect=effect, point=old.point, failed=failed, policy=old.policy, policy_digest=old.policy_digest,
            inputs_digest=old.inputs_digest, engine=old.engine, obligations=old.obligations, not_judged=old.not_judged,
        )  # fmt: skip
        return [record | {"decision": made.to_document()}]

    return change


# --- attempts ---------------------------------------------------------------------------------------------------------


def test_a_use_that_was_interrupted_and_done_later_is_charged_by_the_permits_of_its_own_attempt(world_of):
    """A measure without a hold is named by its round alone: other uses came between its attempts, and were charged."""

    def interrupted(world, round_number):
        alpha = world.holders["alpha"]
        if round_number == 2:
            measure = alpha.request(Action.EVALUATE, len(world.holders), evaluation=Evaluation.EXACT, records=200)
            assert alpha.decide(measure, Point.BEFORE_TRAINING, 3, "").permitted

    def without_a_hold(record):
        is_measure = record["kind"] == "evaluated" or record.get("action") == "evaluate"
        return [record | {"hold_id": ""} if is_measure else record]

    world = world_of(at_append={"alpha": without_a_hold}).run(before_round=interrupted)
    outcome = world.verify()
    assert outcome.passed, outcome.problems


# --- permits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", [Point.BEFORE_TRAINING, Point.BEFORE_UPLOAD])
def test_an_update_sent_without_a_permit_is_caught(world_of, point):
    drop = at_point(point, lambda _record: [])
    world = world_of(at_append={"beta": told("decision", drop, round=2, action="train")})
    assert_caught(world.run().verify(), "permits", "holder beta, round 2", "(sent)", point.value)


def test_an_update_sent_despite_a_denial_is_caught(world_of):
    deny = at_point(Point.BEFORE_UPLOAD, into(Effect.DENY, "status"))
    world = world_of(at_append={"beta": told("decision", deny, round=2, action="train")})
    outcome = world.run().verify()
    assert_caught(outcome, "permits", "holder beta, round 2", "sent without a permit at node-before-upload")
    assert_caught(outcome, "decisions", "holder beta, round 2", "a denial for status")


def test_an_update_sent_after_its_holder_said_that_its_time_was_over_is_caught(world_of):
    deny = at_point(Point.BEFORE_UPLOAD, into(Effect.DENY, "deadline"))
    world = world_of(at_append={"beta": told("decision", deny, round=2, action="train")})
    outcome = world.run().verify()
    assert_caught(outcome, "permits", "holder beta, round 2", "sent without a permit at node-before-upload")
    assert {problem.name for problem in outcome.problems} == {"permits"}  # the word itself is no offence


def test_a_permit_that_the_policy_does_not_give_is_caught(world_of):
    world = world_of(at_append={"consortium": told("decision", into(Effect.PERMIT), round=3, holder="gamma")})
    assert_caught(world.run().verify(), "decisions", "coordinator, round 3", "a permit", "max_rounds")


def test_a_made_up_refusal_is_caught(world_of):
    world = world_of(at_append={"consortium": told("decision", into(Effect.DENY), round=2, holder="beta")})
    outcome = world.run().verify()
    assert_caught(outcome, "decisions", "coordinator, round 2", "purposes", "does not refuse")
    assert_caught(outcome, "permits", "coordinator, round 2", "holder beta is in the cohort without a permit")
    assert_caught(outcome, "permits", "holder beta, round 2", "sent, though the coordinator's log has no permit")


def test_a_refusal_under_another_reason_than_the_true_one_is_caught(world_of):
    def other_reason(record):
        record["decision"]["failed"][0]["clause"] = "regions"
        return [record]

    world = world_of(at_append={"consortium": told("decision", other_reason, round=3, holder="gamma")})
    outcome = world.run().verify()
    assert_caught(outcome, "decisions", "coordinator, round 3", "leaves out max_rounds")
    assert_caught(outcome, "decisions", "coordinator, round 3", "denial for regions")
    assert_caught(outcome, "cohorts", "coordinator, round 3", "gamma", "max_rounds")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (facts(purpose="marketing"), "purpose is not what the signed plan"),
        (facts(task="other"), "task is not what the signed plan"),
        (facts(region="US"), "region is not what"),
        (facts(release_to="none"), "release_to is not what"),
        (facts(dataset_id="other-data"), "dataset_id is not what"),
        (facts(plan_digest=OTHER), "plan_digest is not what"),
        (facts(delta_pico=1), "delta_pico is not what"),
        (facts(now="2026-06-01T00:00:00.000Z"), "more than an hour off"),
        (with_(policy_key_id="someone"), "names key someone"),
        (with_(policy_key_id="alpha/status-1"), "names key alpha/status-1"),
        (with_(action="evaluate"), "recorded as evaluate, decided as train"),
        (with_(inputs=None), "a permit without the facts"),
    ],
)
def test_facts_that_contradict_plan_policy_or_record_are_caught(world_of, change, words):
    world = world_of(at_append={"alpha": told("decision", change, round=2, action="train")})
    assert_caught(world.run().verify(), "decisions", "holder alpha, round 2", words)


@pytest.mark.parametrize("point", [Point.BEFORE_TRAINING, Point.BEFORE_UPLOAD])
def test_a_permit_without_a_sandbox_under_a_policy_that_requires_one_is_caught(world_of, point):
    change = at_point(point, facts(sandboxed=False))
    world = world_of(at_append={"alpha": told("decision", change, round=2, action="train")})
    assert_caught(world.run().verify(), "decisions", "holder alpha, round 2", "a permit", "sandbox")


def test_a_denial_for_want_of_walls_that_stood_is_caught(world_of):
    deny = at_point(Point.BEFORE_TRAINING, into(Effect.DENY, "sandbox"))
    world = world_of(at_append={"beta": told("decision", deny, round=2, action="train")})
    assert_caught(world.run().verify(), "decisions", "holder beta, round 2", "a denial for sandbox", "does not refuse")


def test_facts_changed_under_a_decisions_digest_are_caught(world_of):
    def change(record):
        record["inputs"]["epsilon_after_micro"] -= 1
        return [record]

    world = world_of(at_append={"alpha": told("decision", change, round=2, action="train")})
    assert_caught(world.run().verify(), "decisions", "holder alpha, round 2", "not the ones that were decided on")


def test_a_decision_at_a_point_that_is_not_that_sides_is_caught(world_of):
    def move(record):
        record["decision"]["point"] = Point.COORDINATOR.value
        return [record]

    world = world_of(at_append={"alpha": told("decision", move, round=2, action="train")})
    assert_caught(world.run().verify(), "decisions", "holder alpha, round 2", "not this side's to decide")


def test_a_decision_document_in_another_form_is_caught(world_of):
    def bend(record):
        record["decision"]["note"] = "trust me"
        return [record]

    world = world_of(at_append={"alpha": told("decision", bend, round=2, action="train")})
    assert_caught(world.run().verify(), "decisions", "holder alpha, round 2", "not a decision")


def test_a_cohort_said_to_be_larger_than_it_was_is_caught(world_of):
    world = world_of(at_append={"alpha": told("decision", facts(holders=3), round=3, action="train")})
    assert_caught(world.run().verify(), "permits", "holder alpha, round 3", "cohort of 3", "only 2")


def test_a_weight_other_than_the_plans_is_caught(world_of):
    world = world_of(at_append={"alpha": told("sent", with_(weight=10**9), round=1)})
    assert_caught(world.run().verify(), "permits", "holder alpha, round 1", "1000000000", "300")


def test_going_back_to_an_older_policy_or_status_is_caught(world_of):
    world = world_of(at_append={"alpha": told("decision", with_(status_seq=3), round=2, action="train")})
    assert_caught(world.run().verify(), "decisions", "holder alpha, round 2", "under status 3")
    world = world_of(at_append={"alpha": told("decision", with_(status_seq=None), round=2, action="train")})
    assert_caught(world.run().verify(), "decisions", "holder alpha, round 2", "under status None")

    def older(record):
        record["decision"]["policy"] = "alpha-terms@0"
        return [record]

    world = world_of(at_append={"alpha": told("decision", older, round=2, action="train")})
    assert_caught(world.run().verify(), "decisions", "holder alpha, round 2", "alpha-terms@0")


def test_going_back_to_an_older_signed_policy_is_caught(world_of):
    """Both versions are in the bundle, and each decision fits the version it names; only their order is wrong."""

    def change_terms(world, round_number):
        alpha = world.holders["alpha"]
        if round_number == 2:
            world.first_terms = (alpha.policy, alpha.policy_token)
            newer = {name: getattr(alpha.policy, name) for name in UsagePolicy.model_fields} | {"version": 2}
            alpha.policy = UsagePolicy.model_construct(**newer)
            alpha.policy_token = sign(
                alpha.policy.to_document(), type=DocumentType.POLICY, key=next(iter(alpha.key.values()))
            )
        if round_number == 3:
            world.second_terms = alpha.policy_token
            alpha.policy, alpha.policy_token = world.first_terms
        alpha.gate = type(alpha.gate)(alpha.policy)

    world = world_of().run(before_round=change_terms)
    files = {**world.files(), layout.policy_file("alpha", "alpha-terms", 2): world.second_terms.encode()}
    assert_caught(world.verify(files), "decisions", "holder alpha, round 3", "alpha-terms@1, though version 2")


def test_a_record_about_a_holder_that_is_not_in_the_run_is_caught(world_of):
    def stranger(record):
        return [record, record | {"holder": "delta"}]

    world = world_of(at_append={"consortium": told("decision", stranger, round=1, holder="beta")})
    assert_caught(world.run().verify(), "decisions", "coordinator, round 1", "about holder delta")
    world = world_of(at_append={"consortium": told("peer-checkpoint", stranger, round=1, holder="beta")})
    assert_caught(world.run().verify(), "exchanged checkpoints", "coordinator, round 1", "delta, whose log is not here")


def test_an_evaluation_without_a_permit_or_of_another_kind_is_caught(world_of):
    world = world_of(at_append={"beta": told("decision", lambda _record: [], action="evaluate")})
    assert_caught(world.run().verify(), "permits", "holder beta, round 3", "without a permit at")
    as_exact = with_(mechanism=None, noise_source="none")
    world = world_of(at_append={"beta": told("evaluated", as_exact)})
    outcome = world.run().verify()
    assert_caught(outcome, "permits", "holder beta, round 3", "measured as exact, permitted as private")
    assert_caught(outcome, "budget", "holder beta, round 3", "history")


# --- revocation -------------------------------------------------------------------------------------------------------


def revoke_in_round_3(*, tell, lifetime_later=False, on_revoke="stop-now"):
    """alpha's officer revokes before round 3; its node goes on regardless."""

    def before(world, round_number):
        alpha = world.holders["alpha"]
        if round_number != 3:
            return
        at_ms = world.now_ms - (2_000_000 if lifetime_later else 0)
        entry = RevokedPolicy(policy_id="alpha-terms", at_ms=at_ms, reason="board", on_revoke=on_revoke)
        alpha.revoked, alpha.ignores_revocation = [entry], True
        if tell == "status":
            alpha.status_seq = 8
        if tell == "record":
            alpha.record("revoked", round_number, policy_id="alpha-terms")

    return before


def test_a_use_after_the_node_knew_of_a_revocation_is_caught(world_of):
    outcome = world_of().run(before_round=revoke_in_round_3(tell="record")).verify()
    assert_caught(outcome, "revocation", "holder alpha, round 3", "after the node knew", "(revoked)")


def test_a_use_under_the_very_status_that_revokes_is_caught(world_of):
    outcome = world_of().run(before_round=revoke_in_round_3(tell="status")).verify()
    assert_caught(outcome, "revocation", "holder alpha, round 3", "under status 8, which revokes alpha-terms")


def test_a_use_later_than_a_status_lives_after_a_revocation_is_caught(world_of):
    world = world_of()
    world.run(before_round=revoke_in_round_3(tell="nobody", lifetime_later=True))
    world.holders["alpha"].status_seq = 9
    assert_caught(world.verify(), "revocation", "holder alpha, round 3", "more than a status's lifetime")


def test_a_revocation_that_the_officer_seems_to_have_taken_back_is_caught(world_of):
    def tell(world, round_number):
        if round_number == 3:
            world.holders["alpha"].record("revoked", round_number, policy_id="alpha-terms")

    assert_caught(
        world_of().run(before_round=tell).verify(), "revocation", "holder alpha, round 3", "a revocation is final"
    )


# --- suspension -------------------------------------------------------------------------------------------------------


def suspend_in_round_2(*, tell, lift_in_round_3=False, lifetime_later=False):
    """alpha's officer suspends before round 2; its node goes on regardless."""

    def before(world, round_number):
        alpha = world.holders["alpha"]
        if round_number == 2:
            at_ms = world.now_ms - (2_000_000 if lifetime_later else 0)
            alpha.suspended, alpha.ignores_suspension = Suspension(at_ms=at_ms, reason="an audit"), True
            if tell != "nobody":
                alpha.status_seq = 8
            if tell == "record":
                alpha.record("suspended", round_number, status_seq=8)
        if round_number == 3 and lift_in_round_3:
            alpha.suspended, alpha.status_seq = None, 9
            alpha.record("suspension-lifted", round_number, status_seq=9)

    return before


def test_a_use_while_the_node_knew_of_a_suspension_is_caught_also_after_it_was_lifted(world_of):
    outcome = world_of().run(before_round=suspend_in_round_2(tell="record", lift_in_round_3=True)).verify()
    assert_caught(outcome, "suspension", "holder alpha, round 2", "after the node knew that use was suspended")
    assert not any("round 3" in check.detail for check in outcome.problems)


def test_a_use_under_the_very_status_that_suspends_is_caught(world_of):
    outcome = world_of().run(before_round=suspend_in_round_2(tell="status")).verify()
    assert_caught(outcome, "suspension", "holder alpha, round 2", "under status 8, which suspends every use")


def test_a_use_recorded_before_the_suspension_it_was_decided_under_is_caught(world_of):
    """The order of records is the holder's own: what number of status a permit names is held against it too."""
    found = world_of()

    def before(world, round_number):
        alpha = world.holders["alpha"]
        if round_number == 2:
            alpha.status_seq = 8
        if round_number == 3:
            alpha.record("suspended", round_number, status_seq=8)
            alpha.record("suspension-lifted", round_number, status_seq=9)
            alpha.status_seq = 9

    outcome = found.run(before_round=before).verify()
    assert_caught(outcome, "suspension", "holder alpha, round 2", "under status 8, while use was suspended")


def test_a_use_later_than_a_status_lives_after_a_suspension_is_caught(world_of):
    world = world_of()
    world.run(before_round=suspend_in_round_2(tell="nobody", lifetime_later=True))
    world.holders["alpha"].status_seq = 9
    assert_caught(world.verify(), "suspension", "holder alpha, round 2", "more than a status's lifetime")


def test_a_status_newer_than_the_newest_one_shown_is_caught(world_of):
    world = world_of(at_append={"alpha": told("decision", with_(status_seq=99), round=3)})
    assert_caught(world.run().verify(), "revocation", "holder alpha, round 3", "newer than the newest one here")


# --- rehearsal --------------------------------------------------------------------------------------------------------


def test_a_rehearsal_whose_mark_is_removed_is_caught(world_of):
    world = world_of(rehearsal=True, noise_source="seeded").run()
    files = world.files()
    assert world.verify(files).rehearsal
    unmarked = canonical.encode(world.claims() | {"rehearsal": False})
    outcome = world.verify(world.seal({**files, layout.CLAIMS: unmarked}, rehearsal=False), sealed=True)
    assert_caught(outcome, "rehearsal", "manifest and the signed plan disagree")
    assert_caught(outcome, "rehearsal", "holder alpha, round 1", "NOT PRIVATE")
    assert outcome.rehearsal
    assert_caught(world.verify({**files, layout.CLAIMS: unmarked}), "claims", "rehearsal False")


def test_predictable_noise_in_a_run_that_is_no_rehearsal_is_caught(world_of):
    outcome = world_of(noise_source="seeded").run().verify()
    assert_caught(outcome, "rehearsal", "holder beta, round 3", "(evaluated)", "predictable noise")
    assert outcome.rehearsal


# --- budget -----------------------------------------------------------------------------------------------------------


def fewer_uses(record):
    record["history"][0][1] -= 1
    return [record]


def more_noise(record):
    record["mechanism"]["noise_multiplier_micro"] *= 2
    return [record]


def other_clip(record):
    record["mechanism"]["clipping_norm_micro"] += 1
    return [record]


def less(record):
    return [record | {"epsilon_micro": record["epsilon_micro"] - 2}]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (less, "understates epsilon"),
        (with_(delta_pico=10**11), "asks for less"),
        (fewer_uses, "history is not the 2 uses of alpha-data"),
        (more_noise, "history"),
        (more_noise, "more noise than the signed plan allows"),
        (other_clip, "clipping_norm_micro is 500001, the signed plan says 500000"),
        (with_(history=[]), "history"),
        (with_(hold_id="run-1/2/1/alpha/other"), "no permit says which dataset"),
    ],
)
def test_a_record_that_understates_its_cost_is_caught(world_of, change, words):
    world = world_of(at_append={"alpha": told("sent", change, round=2)})
    assert_caught(world.run().verify(), "budget", "holder alpha, round 2", words)


@pytest.mark.parametrize(("kind", "holder"), [("sent", "alpha"), ("evaluated", "beta")])
@pytest.mark.parametrize(("member", "word"), [("unit", "subject"), ("relation", "replace-one")])
def test_a_use_that_protects_another_unit_than_the_plans_is_caught(world_of, kind, holder, member, word):
    def other(record):
        record["mechanism"][member] = word
        return [record]

    world = world_of(at_append={holder: told(kind, other)})
    assert_caught(world.run().verify(), "budget", f"holder {holder}", f"{member} is {word}, the signed plan says")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda record: facts(epsilon_after_micro=record["inputs"]["epsilon_after_micro"] - 2)(record),
            "decided on epsilon",
        ),
        (facts(epsilon_cost_micro=0), "decided on a cost of epsilon 0.000000"),
        (facts(rounds_used=0), "decided on 0 rounds used before; the log has 1"),
    ],
)
def test_a_decision_on_understated_costs_is_caught(world_of, change, words):
    world = world_of(at_append={"alpha": told("decision", change, round=2, action="train")})
    assert_caught(world.run().verify(), "budget", "holder alpha, round 2", words)


def test_uses_beyond_the_policys_cap_are_caught(world_of):
    """The gates are told less than was spent, so they permit; the sum still shows."""
    tiny = facts(epsilon_after_micro=1, epsilon_cost_micro=1)
    world = world_of(at_append={"beta": told("decision", tiny)})
    holder = world.holders["beta"]
    members = {name: getattr(holder.policy, name) for name in UsagePolicy.model_fields} | {"epsilon_micro": 20_000}
    holder.policy = UsagePolicy.model_construct(**members)
    holder.gate = type(holder.gate)(holder.policy)
    holder.policy_token = sign(
        holder.policy.to_document(), type=DocumentType.POLICY, key=next(iter(holder.key.values()))
    )
    original = holder.request

    def request(*arguments, **named):
        return original(*arguments, **named).model_copy(update={"epsilon_after_micro": 1, "epsilon_cost_micro": 1})

    holder.request = request
    outcome = world.run().verify()
    assert_caught(
        outcome, "budget", "holder beta, round 1", "brings policy beta-terms@1 to epsilon", "its cap is 0.020000"
    )


@pytest.mark.parametrize(
    ("member", "change", "words"),
    [
        ("epsilon_micro", lambda claim: claim["epsilon_micro"] - 2, "understates epsilon"),
        ("epsilon_micro", lambda claim: claim["epsilon_micro"] + 2, "its last record says"),
        ("delta_pico", lambda _claim: 10**11, "asks for less"),
        ("epsilon_cap_micro", lambda _claim: 9_000_000, "claims a cap of epsilon 9.000000, the signed one is 2.000000"),
        ("rounds", lambda claim: claim["rounds"] - 1, "claims 2 rounds, its log has 3"),
        ("mechanism", lambda _claim: None, "another mechanism"),
    ],
)
def test_claims_other_than_the_records_are_caught(honest, member, change, words):
    claims = honest.world.claims()
    claim = claims["holders"]["alpha"]
    claims["holders"]["alpha"] = claim | {member: change(claim)}
    assert_caught(honest.verify({layout.CLAIMS: canonical.encode(claims)}), "claims", "holder alpha", words)


@pytest.mark.parametrize("change", [
    lambda claims: claims["holders"].pop("beta"),
    lambda claims: claims["holders"].update(delta=claims["holders"]["beta"]),
    lambda claims: claims.update(run="run-9"),
    lambda claims: claims.update(more=1),
    lambda claims: claims["holders"]["beta"].update(rounds="3"),
])  # fmt: skip
def test_claims_of_another_shape_are_caught(honest, change):
    claims = copy.deepcopy(honest.world.claims())
    change(claims)
    outcome = honest.verify({layout.CLAIMS: canonical.encode(claims)})
    assert [problem.name for problem in outcome.problems] == ["claims"]
    assert "be completed" not in outcome.problems[0].detail


def test_a_second_run_that_forgets_the_first_is_caught(world_of):
    world = world_of()
    world.run("run-1")
    after_first = world.claims()["holders"]["alpha"]
    world.run("run-2")
    claims = world.claims()
    claims["holders"]["alpha"]["epsilon_micro"] = after_first["epsilon_micro"]
    outcome = world.verify({**world.files(), layout.CLAIMS: canonical.encode(claims)})
    assert_caught(outcome, "claims", "holder alpha", "understates epsilon")


def test_terms_given_on_another_history_or_for_fewer_rounds_are_caught(honest):
    world = honest.world
    sent = next(record for record in honest.log("alpha") if record["kind"] == "sent")
    used = [[sent["mechanism"], 9]]
    for change, check, words in (
        ({"history": used}, "budget", "none that this log ever had"),
        ({"last_round": 2}, "budget", "after round 2, the last"),
        ({"weight": 10**6}, "participation", "another holder, run, plan or weight"),
        ({"run_id": "run-9"}, "participation", "another holder, run, plan or weight"),
    ):
        members = {
            "holder_id": "alpha", "run_id": "run-1", "plan_digest": world.plan.digest, "last_round": 3, "history": [],
            "weight": 300, "issued_ms": world.now_ms, "good_until_ms": world.now_ms + 1,
        } | change  # fmt: skip
        token = sign(
            participation_document(**members), type=DocumentType.PARTICIPATION, key=world.holders["alpha"].log_key
        )
        outcome = honest.verify({layout.holder_file("alpha", layout.PARTICIPATION): token.encode()})
        assert_caught(outcome, check, "holder alpha", words)
