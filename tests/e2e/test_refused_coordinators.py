"""A holder refuses a coordinator that changes a plan, is another one, or rewrites what it did."""

from contextlib import closing

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from refusal_facts import BEFORE_TRAINING, assert_nothing_left, offer_of, sent_rounds
from safetensors.numpy import save
from tiny_run import clauses_of

from ringfence_client.enforcement import model_digest
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.protocol import FILE_KEY, FILE_TYPE, Proposal
from ringfence_server.coordinator import Coordinator
from ringfence_server.round_messages import packed, to_record

# --- plans ----------------------------------------------------------------------------------------------------------


def test_a_plan_changed_after_approval_is_refused_whatever_it_is_called(tiny_run):
    run = tiny_run()
    run.propose()
    other = TrainingPlan.from_document(run.plan.to_document() | {"rehearsal": True}).digest
    assert clauses_of(run.request("elm", plan_digest=other)) == ("plan",)
    assert clauses_of(run.request("elm", run_id="another-run")) == ("plan",)
    assert clauses_of(run.request("elm", round_number=4)) == ("plan",)
    assert clauses_of(run.request("elm", base_model_digest=model_digest({}))) == ("plan",)
    assert_nothing_left(run, "elm")
    assert [clauses for _, _, clauses in run.denials("elm")] == [("plan",)] * 4
    assert not run.request("elm").has_error()


def test_a_run_keeps_the_plan_it_was_shown_with(tiny_run):
    run = tiny_run()
    run.propose()
    terms = run.plan.terms.model_copy(update={"title": "The same study, only better"})
    other = run.coordinator.sign_plan(run.plan.model_copy(update={"terms": terms}))
    proposal = Proposal(run_id=run.file.run_id, plan=other, coordinator_keys=run.coordinator.keys_token)
    assert clauses_of(run.say("elm", "query.propose", proposal)) == ("plan",)
    assert run.denials("elm") == [(0, BEFORE_TRAINING, ("plan",))]
    assert len(run.log_of("elm", "plan-shown")) == 1


@pytest.mark.parametrize("found", ["another plan of the coordinator", "a plan with a forged letter", "no plan at all"])
def test_a_plan_file_changed_on_the_holders_disk_stops_the_run_there(tiny_run, found):
    run = tiny_run()
    run.propose()
    path = run.home("elm").run_file(run.file.run_id)
    token = run.file.plan_token
    if found == "no plan at all":
        path.write_text("{")
    else:
        terms = run.plan.terms.model_copy(update={"title": "Another study"})
        other = run.coordinator.sign_plan(run.plan.model_copy(update={"terms": terms}))
        forged = token[:-2] + ("AA" if not token.endswith("AA") else "BB")
        path.write_text(path.read_text().replace(token, other if found.startswith("another") else forged))
    assert clauses_of(run.request("elm")) in {("plan",), ("trust-refused",)}
    assert_nothing_left(run, "elm")
    assert len(run.denials("elm")) == 1


def proposal_of(run, **changes):
    holders = {**run.plan.holders, **changes.pop("holders", {})}
    plan = run.plan.model_copy(update={"holders": holders, **changes})
    token = run.coordinator.sign_plan(plan)
    return Proposal(run_id="another-run", plan=token, coordinator_keys=run.coordinator.keys_token)


def test_a_plan_that_is_not_about_this_holder_as_it_is_gets_refused(tiny_run):
    run = tiny_run()
    run.propose()
    elm, birch = run.plan.holders["elm"], run.plan.holders["birch"]
    without = run.plan.model_copy(update={"holders": {"birch": birch}})
    wrong = [
        Proposal(
            run_id="another-run",
            plan=run.coordinator.sign_plan(without),
            coordinator_keys=run.coordinator.keys_token,
        ),
        proposal_of(run, holders={"elm": birch}),
        proposal_of(run, holders={"elm": elm.model_copy(update={"weight": 61})}),
        proposal_of(run, holders={"birch": birch.model_copy(update={"root": elm.root})}),
        proposal_of(run, holders={"oak": birch}),
        proposal_of(run, rehearsal=True),
    ]
    for proposal in wrong:
        assert clauses_of(run.say("elm", "query.propose", proposal)) == ("plan",)
    assert [clauses for _, _, clauses in run.denials("elm")] == [("plan",)] * len(wrong)
    assert len(run.log_of("elm", "plan-shown")) == 1


# --- the coordinator itself -----------------------------------------------------------------------------------------


def stranger(run, tmp_path):
    return Coordinator(tmp_path / "stranger", coordinator_id=run.coordinator.coordinator_id)


def test_a_plan_signed_by_somebody_else_is_refused(tiny_run, tmp_path):
    run = tiny_run()
    with closing(stranger(run, tmp_path)) as other:
        forged = Proposal(run_id="another-run", plan=other.sign_plan(run.plan), coordinator_keys=other.keys_token)
        mixed = Proposal(
            run_id="another-run", plan=other.sign_plan(run.plan), coordinator_keys=run.coordinator.keys_token
        )
    for proposal in (forged, mixed):
        assert clauses_of(run.say("elm", "query.propose", proposal)) == ("trust-refused",)
    assert_nothing_left(run, "elm")
    assert [clauses for _, _, clauses in run.denials("elm")] == [("trust-refused",)] * 2


def test_another_coordinator_than_the_one_first_met_is_refused_also_after_a_restart(tiny_run, tmp_path):
    run = tiny_run()
    run.propose()
    run.restart_nodes()
    honest = run.root
    with closing(stranger(run, tmp_path)):
        run.root = (tmp_path / "stranger" / "root.jwk").read_text()
    context = run.grid._contexts[run.node_ids["elm"]]
    context.node_config["coordinator-root"] = run.root
    assert clauses_of(run.say("elm", "query.offer", offer_of(run))) == ("trust-refused",)
    assert run.denials("elm") == [(1, BEFORE_TRAINING, ("trust-refused",))]
    run.node("elm").close()
    run.root = honest


def test_a_coordinator_that_rewrites_its_log_is_refused(tiny_run, tmp_path):
    run = tiny_run()
    run.train(rounds=1)
    with closing(stranger(run, tmp_path)) as other:
        other.key = run.coordinator.key
        seen = max(log["size"] for log in run.node("elm").coordinator.memory()["logs"].values())
        for _ in range(seen + 3):
            other.append("resumed", run_id=run.file.run_id, from_round=1)
        rewritten = other.log_view(since=seen)
        shortened = run.coordinator.log_view(since=0).model_copy(update={"since": seen, "proof": ()})
    untrue_start = run.coordinator.log_view(since=0)
    model = run.models[1]
    for view in (rewritten, shortened, untrue_start):
        assert clauses_of(run.request("elm", round_number=2, log=view, arrays=model)) == ("trust-refused",)
    assert sent_rounds(run, "elm") == [1]
    assert run.denials("elm") == [(2, BEFORE_TRAINING, ("trust-refused",))] * 3
    assert not run.request("elm", round_number=2, arrays=model).has_error()


def half_of(arrays):
    data = packed(arrays)[FILE_KEY].data
    return file_of(data[: len(data) // 2])


def file_of(data):
    return ArrayRecord({FILE_KEY: Array(dtype="uint8", shape=(len(data),), stype=FILE_TYPE, data=data)})


UNREADABLE = {
    "arrays as Flower's own": to_record,
    "another array beside it": lambda arrays: ArrayRecord({**packed(arrays), "more": Array(np.zeros(1, np.uint8))}),
    "half a file": half_of,
    "no file": lambda _: file_of(bytes(range(40))),
    "a file as Flower's own array": lambda arrays: ArrayRecord(
        {FILE_KEY: Array(np.frombuffer(save(arrays), np.uint8))}
    ),
    "another number type": lambda arrays: packed({name: array.astype(np.float64) for name, array in arrays.items()}),
}


@pytest.mark.parametrize("record_of", UNREADABLE.values(), ids=UNREADABLE)
def test_a_model_that_cannot_be_read_is_refused_before_anything_is_reserved(tiny_run, monkeypatch, record_of):
    run = tiny_run()
    run.propose()
    monkeypatch.setattr("tiny_run.packed", record_of)
    assert clauses_of(run.request("elm")) == ("trust-refused",)
    assert run.node("elm").ledger.holds(run.file.run_id) == []
