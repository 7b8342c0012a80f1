"""Every attack on a bundle is a failed check that names the holder, the round and the record.

The attacker here always has the coordinator's keys and seals the bundle again; what only a holder could sign is signed
by that holder where the attack is the holder's own. "Told" attacks lie while the run goes on; the others afterwards.
"""

import copy

import pytest

from ringfence_policy import bundle_layout as layout
from ringfence_policy import canonical
from ringfence_policy.identity import DocumentType, SigningKey, sign

OTHER = canonical.digest("something else")
STRANGER = SigningKey(kid="consortium/plan-1", seed=b"?" * 32)


def assert_caught(outcome, check, *words, garbage=False):
    """The bundle fails, and one problem of that check has all these words."""
    assert not outcome.passed
    details = [problem.detail for problem in outcome.problems if problem.name == check]
    assert any(all(word in detail for word in words) for detail in details), (check, words, outcome.problems)
    assert garbage or not any("be completed" in one.detail or "malformed" in one.detail for one in outcome.problems), (
        outcome.problems
    )


def first(records, kind, **members):
    """The position of the first record of a kind with these members."""
    return next(
        place
        for place, record in enumerate(records)
        if record["kind"] == kind and all(record.get(name) == value for name, value in members.items())
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


# --- records changed after the run ------------------------------------------------------------------------------------


def understate(records):
    records[first(records, "sent", round=2)]["epsilon_micro"] -= 1


def forge(records):
    place = first(records, "sent", round=2)
    records.insert(place, records[place] | {"hold_id": "forged", "round": 1})


def reorder(records):
    place = first(records, "sent", round=2)
    records[place - 1], records[place] = records[place], records[place - 1]


def drop(records):
    del records[first(records, "decision", round=2)]


def repeat(records):
    records.insert(3, records[3])


CHANGES = {"changed": understate, "forged": forge, "reordered": reorder, "dropped": drop, "inserted twice": repeat}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_holders_record_changed_in_the_bundle_is_caught_and_located(honest, change):
    records = honest.log("alpha")
    change(records)
    lines = b"".join(canonical.encode(record) + b"\n" for record in records)
    outcome = honest.verify({layout.holder_file("alpha", layout.LOG): lines})
    assert_caught(outcome, "logs", "holder alpha", "records")
    assert_caught(outcome, "exchanged checkpoints", "holder alpha showed another log", "coordinator, round 2")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_holder_cannot_rewrite_and_sign_its_own_log_again(honest, change):
    records = honest.log("alpha")
    change(records)
    outcome = honest.verify(honest.relog("alpha", records))
    assert_caught(
        outcome, "exchanged checkpoints", "holder alpha showed another log", "changed, dropped, inserted or moved"
    )


def test_the_records_between_which_a_log_was_changed_are_named(honest):
    records = honest.log("alpha")
    place = first(records, "sent", round=2)
    records[place]["weight"] += 1
    outcome = honest.verify(honest.relog("alpha", records))
    details = [problem.detail for problem in outcome.problems if problem.name == "exchanged checkpoints"]
    agreed, end = (int(details[0].split("records ")[1].split(" was")[0].split(" to ")[index]) for index in (0, 1))
    assert agreed <= place <= end
    assert end - agreed < 6


def test_a_coordinator_cannot_sign_a_holders_log_again(honest):
    records = honest.log("alpha")
    understate(records)
    key = SigningKey(kid="alpha/node-1", seed=honest.world.coordinator.log_key.seed)
    outcome = honest.verify(honest.relog("alpha", records, key=key))
    assert_caught(outcome, "logs", "holder alpha, final checkpoint", "signature does not hold")
    outcome = honest.verify(honest.relog("alpha", records, key=honest.world.coordinator.log_key))
    assert_caught(outcome, "logs", "holder alpha, final checkpoint", "signing key is unknown")


@pytest.mark.parametrize("kind", ["run-started", "decision", "update-received", "round-committed", "peer-checkpoint"])
def test_a_coordinator_cannot_rewrite_and_sign_its_own_log_again(honest, kind):
    records = honest.log("consortium")
    del records[first(records, kind)]
    outcome = honest.verify(honest.relog("consortium", records))
    assert_caught(outcome, "exchanged checkpoints", "coordinator showed another log there", "record")


@pytest.mark.parametrize("owner", ["alpha", "consortium"])
def test_a_log_cut_short_by_its_owner_is_caught(honest, owner):
    outcome = honest.verify(honest.relog(owner, honest.log(owner)[:-6]))
    assert_caught(outcome, "exchanged checkpoints", "records there, but only")


def test_a_log_with_a_record_added_at_its_end_by_someone_else_is_caught(honest):
    name = layout.holder_file("beta", layout.LOG)
    outcome = honest.verify({name: honest.files[name] + canonical.encode(honest.log("beta")[0]) + b"\n"})
    assert_caught(outcome, "logs", "holder beta", "records were dropped or added")


@pytest.mark.parametrize(
    "line",
    [b"{}", b"[]", b"", b"7", b'{"kind":"sent"}', b'{"a": 1}', b"\xff", b"[" * 50_000, b'{"kind":"gossip","v":1}'],
)
def test_a_line_that_is_no_record_is_caught_by_its_place(honest, line):
    name = layout.holder_file("beta", layout.LOG)
    lines = honest.files[name].split(b"\n")
    lines[4] = line
    assert_caught(honest.verify({name: b"\n".join(lines)}), "logs", "holder beta, record 4", garbage=True)
    assert_caught(
        honest.verify({name: honest.files[name][:-1]}), "logs", "holder beta", "does not end with a whole line"
    )


def test_a_line_that_is_json_but_no_object_is_named_plainly(honest):
    lines = honest.files[layout.holder_file("beta", layout.LOG)].split(b"\n")
    lines[4] = b"[]"
    outcome = honest.verify({layout.holder_file("beta", layout.LOG): b"\n".join(lines)})
    assert_caught(outcome, "logs", "holder beta, record 4", "a log line is not a record")


def test_a_record_of_the_other_sides_kind_is_caught(honest):
    records = [*honest.log("beta"), honest.log("consortium")[0]]
    assert_caught(honest.verify(honest.relog("beta", records)), "logs", "does not belong in this log")


# --- two histories ----------------------------------------------------------------------------------------------------


def test_a_coordinator_that_shows_one_holder_another_log_is_caught(world_of):
    """Split view: alpha is shown a log in which round 1 went differently."""
    world = world_of()

    def show_other(record):
        document = {"origin": world.coordinator.log.origin, "size": 9, "root": OTHER, "at_ms": world.now_ms}
        token = sign(document, type=DocumentType.CHECKPOINT, key=world.coordinator.log_key)
        return [record | {"checkpoint": token}]

    world.at_append["alpha"] = told("peer-checkpoint", show_other, round=1)
    assert_caught(world.run().verify(), "exchanged checkpoints", "holder alpha, round 1", "two histories")


def test_a_holder_that_shows_the_coordinator_another_log_is_caught(world_of):
    world = world_of()

    def show_other(record):
        holder = world.holders["gamma"]
        document = {"origin": holder.log.origin, "size": 5, "root": OTHER, "at_ms": world.now_ms}
        return [record | {"checkpoint": sign(document, type=DocumentType.CHECKPOINT, key=holder.log_key)}]

    world.at_append["consortium"] = told("peer-checkpoint", show_other, round=1, holder="gamma")
    assert_caught(
        world.run().verify(), "exchanged checkpoints", "coordinator, round 1", "holder gamma showed another log"
    )


def test_a_log_under_another_name_than_it_was_shown_is_caught(world_of):
    world = world_of()

    def rename(record):
        empty = {"origin": "ringfence/holder/gamma-2", "size": 0, "root": canonical.digest_bytes(b""), "at_ms": 1}
        key = world.holders["gamma"].log_key
        at_its_time = empty | {"at_ms": world.now_ms}
        return [record | {"checkpoint": sign(at_its_time, type=DocumentType.CHECKPOINT, key=key)}]

    world.at_append["consortium"] = told("peer-checkpoint", rename, round=1, holder="gamma")
    assert_caught(world.run().verify(), "exchanged checkpoints", "coordinator, round 1", "gamma-2", "not this one")


def test_two_parties_that_sign_for_one_log_are_caught(world_of):
    world = world_of()
    world.run()
    beta = world.holders["beta"]
    beta.log.origin = world.holders["alpha"].log.origin
    assert_caught(world.verify(), "logs", "holder beta and holder alpha sign for one and the same log")


def test_a_checkpoint_nobody_signed_is_caught(world_of):
    world = world_of()
    forged = sign(
        {"origin": "x", "size": 0, "root": OTHER, "at_ms": world.now_ms}, type=DocumentType.CHECKPOINT, key=STRANGER
    )
    world.at_append = {
        "alpha": told("peer-checkpoint", with_(checkpoint=forged), round=1),
        "consortium": told("peer-checkpoint", with_(checkpoint="garbage"), round=2, holder="beta"),
    }
    outcome = world.run().verify()
    assert_caught(outcome, "exchanged checkpoints", "holder alpha, round 1", "not a checkpoint of this coordinator")
    assert_caught(outcome, "exchanged checkpoints", "coordinator, round 2")


def test_a_round_that_was_never_shown_to_the_other_side_is_caught(world_of):
    def silence(_record):
        return []

    world = world_of(at_append={"consortium": told("peer-checkpoint", silence, holder="beta")})
    assert_caught(world.run().verify(), "witnesses", "holder beta, round 1", "(sent)")
    quiet = told("peer-checkpoint", silence, round=3)
    world = world_of(at_append=dict.fromkeys(("alpha", "beta", "gamma"), quiet))
    assert_caught(world.run().verify(), "witnesses", "coordinator, round 3", "model-released")


# --- what coordinator and holders say of each round -------------------------------------------------------------------


def test_an_update_that_the_coordinator_was_given_and_hid_is_caught(world_of):
    world = world_of()

    def hide(record):
        if record["kind"] == "round-committed" and record["round"] == 2:
            record["updates"].pop("beta")
            record["cohort"].remove("beta")
        is_receipt = record["kind"] == "update-received" and (record["round"], record["holder"]) == (2, "beta")
        return [] if is_receipt else [record]

    world.at_append["consortium"] = lambda record: hide(copy.deepcopy(record))
    outcome = world.run().verify()
    assert_caught(outcome, "nothing hidden", "holder beta, round 2", "(sent)", "neither received nor refused")
    assert_caught(outcome, "cohorts", "coordinator, round 2", "holder beta is not in the cohort")


def unheard(holder, round_number, *, keep_receipt=False):
    """What a coordinator logs that was not heard by a holder in time, or says so."""

    def change(record):
        record = copy.deepcopy(record)
        if record["kind"] == "round-committed" and record["round"] == round_number:
            record["updates"].pop(holder)
            record["cohort"].remove(holder)
            record["refused"][holder] = ["no-reply"]
        if record["kind"] == "update-received" and (record["round"], record["holder"]) == (round_number, holder):
            silence = {name: record[name] for name in ("v", "at_ms", "run", "round", "holder")}
            silence |= {"kind": "update-refused", "reason": "not heard in time", "code": "no-reply"}
            return [record, silence] if keep_receipt else [silence]
        return [record]

    return change


def test_an_update_that_left_and_was_not_heard_in_time_verifies_and_is_named(world_of):
    """Neither log can prove that it came or that it did not; who reads the evidence is told of it."""
    outcome = world_of(at_append={"consortium": unheard("beta", 2)}).run().verify()
    assert outcome.passed, outcome.problems
    (answered,) = (check for check in outcome.checks if check.name == "nothing hidden")
    assert "1 were sent and, by the coordinator's word alone, not heard in time: beta in round 2" in answered.detail


def test_an_update_that_was_received_and_is_then_said_not_to_have_come_is_caught(world_of):
    outcome = world_of(at_append={"consortium": unheard("beta", 2, keep_receipt=True)}).run().verify()
    assert_caught(outcome, "nothing hidden", "coordinator, round 2", "beta was not heard", "recorded as received")


def test_an_update_received_and_then_left_out_is_caught(world_of):
    def leave_out(record):
        record["updates"].pop("beta")
        record["cohort"].remove("beta")
        return [record]

    world = world_of(at_append={"consortium": told("round-committed", leave_out, round=2)})
    assert_caught(world.run().verify(), "nothing hidden", "coordinator, round 2", "holder beta", "left out")


def test_an_update_that_nobody_sent_is_caught(world_of):
    def invent(record):
        record["updates"]["beta"] = OTHER
        return [record]

    world = world_of(at_append={"consortium": told("round-committed", invent, round=2)})
    assert_caught(world.run().verify(), "cohorts", "coordinator, round 2", OTHER, "holder beta", "its log says")


def test_a_holder_committed_in_a_round_it_refused_is_caught(world_of):
    def add(record):
        return [record | {"updates": record["updates"] | {"gamma": OTHER}, "cohort": ["alpha", "beta", "gamma"]}]

    world = world_of(at_append={"consortium": told("round-committed", add, round=3)})
    outcome = world.run().verify()
    assert_caught(outcome, "cohorts", "coordinator, round 3", "holder gamma", "its log has no update in this round")
    assert_caught(outcome, "permits", "coordinator, round 3", "holder gamma is in the cohort without a permit")


def test_an_update_committed_without_a_record_of_receiving_it_is_caught(world_of):
    world = world_of(at_append={"consortium": told("update-received", lambda _record: [], round=2, holder="beta")})
    outcome = world.run().verify()
    assert_caught(outcome, "cohorts", "coordinator, round 2", "holder beta", "did not record receiving")


def test_a_holder_both_in_the_cohort_and_among_the_refusals_is_caught(world_of):
    world = world_of(at_append={"consortium": told("round-committed", with_(refused={"beta": ["purposes"]}), round=2)})
    assert_caught(world.run().verify(), "cohorts", "coordinator, round 2", "holder beta stands both")


def test_an_update_exchanged_for_another_on_the_way_is_caught(world_of):
    world = world_of(
        at_append={"consortium": told("update-received", with_(update_digest=OTHER), round=1, holder="alpha")}
    )
    assert_caught(world.run().verify(), "nothing hidden", "holder alpha, round 1", "another update")


def test_a_use_that_the_holder_leaves_out_of_its_log_is_caught(world_of):
    world = world_of(at_append={"alpha": told("sent", lambda _record: [], round=2)})
    outcome = world.run().verify()
    assert_caught(outcome, "cohorts", "coordinator, round 2", "holder alpha", "no update in this round")
    assert_caught(outcome, "budget", "holder alpha, round 3", "history")


def test_a_hold_given_back_after_its_update_left_is_caught(world_of):
    def and_release(record):
        more = {key: record[key] for key in ("v", "at_ms", "run", "round", "hold_id")}
        return [record, more | {"kind": "hold-released", "reason": "never mind"}]

    world = world_of(at_append={"beta": told("sent", and_release, round=2)})
    assert_caught(world.run().verify(), "nothing hidden", "holder beta, round 2", "(hold-released)")


def test_an_update_that_its_holder_calls_charged_and_unsent_is_caught(world_of):
    def as_unsent(record):
        kept = ("v", "at_ms", "run", "round", "hold_id", "mechanism", "epsilon_micro", "delta_pico", "history")
        return {key: record[key] for key in kept} | {"kind": "charged", "action": "train", "reason": "failed"}

    world = world_of(at_append={"beta": told("sent", lambda record: [as_unsent(record)], round=2)})
    assert_caught(world.run().verify(), "cohorts", "coordinator, round 2", "no update in this round")
    world = world_of(at_append={"beta": told("sent", lambda record: [record, as_unsent(record)], round=2)})
    outcome = world.run().verify()
    assert_caught(outcome, "nothing hidden", "holder beta, round 2", "charges hold", "sent or charged before")
    assert_caught(outcome, "budget", "holder beta, round 2", "history")


def test_two_updates_under_one_hold_are_caught(world_of):
    world = world_of(at_append={"beta": told("sent", lambda record: [record, record], round=2)})
    assert_caught(world.run().verify(), "nothing hidden", "holder beta, round 2", "second update")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: [record, record], "rounds must rise"),
        (with_(round=1), "rounds must rise"),
        (with_(round=4), "rounds must rise"),
        (with_(cohort=["alpha", "beta"]), "differ"),
        (with_(cohort=["alpha", "alpha", "beta", "gamma"]), "differ"),
    ],
)
def test_rounds_out_of_order_or_inconsistent_are_caught(world_of, change, words):
    world = world_of(at_append={"consortium": told("round-committed", change, round=2)})
    outcome = world.run().verify()
    assert any(words in problem.detail and "coordinator, round" in problem.detail for problem in outcome.problems)


def test_resuming_from_a_round_that_was_committed_is_caught(world_of):
    def resume(record):
        return [record, {"v": 1, "kind": "resumed", "at_ms": 1, "run": "run-1", "round": 2, "from_round": 2}]

    world = world_of(at_append={"consortium": told("round-committed", resume, round=2)})
    assert_caught(world.run().verify(), "course of the run", "resumed from round 2", "was committed")


@pytest.mark.parametrize(
    "change", [with_(plan_digest=OTHER), with_(holders=["alpha"]), lambda r: [r, r], lambda _r: []]
)
def test_a_run_started_otherwise_is_caught(world_of, change):
    world = world_of(at_append={"consortium": told("run-started", change)})
    assert any(problem.name == "course of the run" for problem in world.run().verify().problems)


def test_a_round_committed_before_its_run_started_is_caught(world_of):
    late = []

    def hold_back(record):
        if record["kind"] == "run-started":
            late.append(record)
            return []
        return [record, *late] if (record["kind"], record["round"]) == ("round-committed", 1) else [record]

    world = world_of(at_append={"consortium": hold_back})
    assert_caught(world.run().verify(), "course of the run", "run-started", "committed before the run started")


def test_a_plan_the_holder_was_never_shown_is_caught(world_of):
    world = world_of(at_append={"gamma": told("plan-shown", with_(plan_digest=OTHER))})
    assert_caught(world.run().verify(), "course of the run", "holder gamma, round 1", "never recorded being shown")


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_swapped_model_is_caught(honest):
    assert_caught(honest.verify({layout.MODEL: b"another model"}), "model", layout.MODEL, "model-released")
    assert_caught(honest.verify({layout.MODEL: None}), "model", layout.MODEL, "missing")


@pytest.mark.parametrize(
    ("owner", "kind", "change", "words"),
    [
        ("beta", "sent", with_(base_model_digest=OTHER), ("holder beta, round 2", "started from model")),
        ("alpha", "evaluated", with_(base_model_digest=OTHER), ("holder alpha, round 3", "none of this run's")),
        ("consortium", "round-committed", with_(model_digest=OTHER), ("round 3", "started from model")),
        ("consortium", "model-released", with_(rounds=4), ("never committed",)),
        ("consortium", "model-released", with_(rounds=[1, 9]), ("never committed",)),
        ("consortium", "model-released", lambda record: [record, record], ("a second model",)),
    ],
)
def test_a_broken_chain_of_models_is_caught(world_of, owner, kind, change, words):
    round_number = 2 if kind in {"sent", "round-committed"} else 3
    world = world_of(at_append={owner: told(kind, change, round=round_number)})
    assert_caught(world.run().verify(), "model", *words)


def test_a_model_beside_a_run_that_released_none_is_caught(world_of):
    world = world_of(at_append={"consortium": told("model-released", lambda _record: [])})
    world.run()
    assert world.verify().passed
    assert world.verify({name: data for name, data in world.files().items() if name != layout.MODEL}).passed
    assert_caught(world.verify({**world.files(), layout.MODEL: b"x"}), "model", "nothing was released")


@pytest.mark.parametrize("rounds", [[1, 2], [3, 2], [2, 3, 4], [1, 3]])
def test_an_average_of_other_rounds_than_the_last_is_caught(world_of, rounds):
    def average(world):
        world.coordinator.record("model-averaged", 3, model_digest=world.model_digest, rounds=rounds)

    outcome = world_of().run(after_rounds=average).verify()
    assert_caught(outcome, "model", "model-averaged", "not the last ones")
    assert_caught(outcome, "model", "model-averaged", "signed plan has no average")


def test_a_release_of_another_model_than_the_rounds_ended_in_is_caught(world_of):
    digest = canonical.digest_bytes(b"better model")
    world = world_of(at_append={"consortium": told("model-released", with_(model_digest=digest))})
    outcome = world.run().verify({**world.files(), layout.MODEL: b"better model"})
    assert_caught(outcome, "model", "model-released", digest, "the rounds ended in")


def test_a_round_after_the_release_is_caught(world_of):
    released = {"v": 1, "kind": "model-released", "at_ms": 1, "run": "run-1", "round": 2, "rounds": 2}

    def too_early(record):
        if record["kind"] == "model-released":
            return []
        if (record["kind"], record["round"]) != ("round-committed", 2):
            return [record]
        return [record, released | {"model_digest": record["model_digest"]}]

    outcome = world_of(at_append={"consortium": too_early}).run().verify()
    assert_caught(
        outcome, "model", "coordinator, round 3", "(round-committed)", "committed after the model was released"
    )


def test_two_releases_are_caught(world_of):
    world = world_of(at_append={"consortium": told("model-released", lambda record: [record, record])})
    assert_caught(world.run().verify(), "model", "coordinator, round 3", "a second model")


def test_a_release_without_a_contributors_permit_is_caught(world_of):
    world = world_of(at_append={"gamma": told("decision", lambda _record: [], action="release")})
    assert_caught(world.run().verify(), "permits", "model-released", "holder gamma contributed")
