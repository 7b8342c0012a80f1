"""What a dishonest data holder sends is refused with its reason, the run goes on, and the log shows it."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from refusal_facts import refusals
from safetensors.numpy import save

from ringfence_policy import canonical
from ringfence_policy.protocol import (
    ARRAYS_RECORD,
    BODY_KEY,
    BODY_RECORD,
    EVIDENCE,
    FILE_KEY,
    FILE_TYPE,
    METRICS_RECORD,
    OFFER,
    REFUSED_CODE,
    RELEASE,
    WEIGHT_KEY,
)
from ringfence_server.conduct import conduct
from ringfence_server.round_messages import packed, to_record, unpacked

WEIGHT = "layers.weight"


def lying(run, kind, change, *, holder="elm"):
    """Let one holder's true answers of one kind be changed on their way."""

    true = run.deliver

    def deliver(messages, contexts):
        replies = true(messages, contexts)
        return [
            change(message, reply)
            if message.metadata.message_type == kind and message.metadata.dst_node_id == run.node_ids[holder]
            else reply
            for message, reply in zip(messages, replies, strict=True)
        ]

    run.deliver = deliver


def with_arrays(change):
    def changed(message, reply):
        arrays = change(unpacked(reply.content[ARRAYS_RECORD]))
        content = RecordDict(dict(reply.content))
        content[ARRAYS_RECORD] = packed(arrays)
        return Message(content, reply_to=message)

    return changed


def unlike(record_of):
    """An update that travels in another way than it has to."""

    def changed(message, reply):
        content = RecordDict(dict(reply.content))
        content[ARRAYS_RECORD] = record_of(unpacked(reply.content[ARRAYS_RECORD]))
        return Message(content, reply_to=message)

    return changed


def half(record):
    data = record[FILE_KEY].data
    return file_of(data[: len(data) // 2])


def file_of(data):
    return ArrayRecord({FILE_KEY: Array(dtype="uint8", shape=(len(data),), stype=FILE_TYPE, data=data)})


def with_weight(weight):
    def changed(message, reply):
        content = RecordDict(dict(reply.content))
        content[METRICS_RECORD] = MetricRecord({WEIGHT_KEY: weight})
        return Message(content, reply_to=message)

    return changed


def with_body(**members):
    def changed(message, reply):
        if reply.has_error():
            return reply
        body = canonical.decode(reply.content[BODY_RECORD][BODY_KEY])
        for path, value in members.items():
            place = body
            *way, last = path.split("__")
            for step in way:
                place = place[step]
            place[last] = value
        content = RecordDict(dict(reply.content))
        content[BODY_RECORD] = ConfigRecord({BODY_KEY: canonical.encode(body)})
        return Message(content, reply_to=message)

    return changed


def poisoned(value):
    def change(arrays):
        weight = arrays[WEIGHT].copy()
        weight[0, 0] = value
        return arrays | {WEIGHT: weight}

    return change


def without(record):
    def changed(message, reply):
        return Message(
            RecordDict({name: one for name, one in reply.content.items() if name != record}), reply_to=message
        )

    return changed


BAD_UPDATES = {
    "NaN": (with_arrays(poisoned(np.nan)), "not-finite"),
    "Inf": (with_arrays(poisoned(np.inf)), "not-finite"),
    "another shape": (with_arrays(lambda arrays: arrays | {WEIGHT: arrays[WEIGHT].T.copy()}), "wrong-shape"),
    "a parameter less": (with_arrays(lambda arrays: {WEIGHT: arrays[WEIGHT]}), "wrong-shape"),
    "a parameter more": (with_arrays(lambda arrays: arrays | {"more": np.zeros(1, np.float32)}), "wrong-shape"),
    "another number type": (
        with_arrays(lambda arrays: {name: array.astype(np.float64) for name, array in arrays.items()}),
        "wrong-dtype",
    ),
    "1000 times the norm": (
        with_arrays(lambda arrays: {name: array * np.float32(1000) for name, array in arrays.items()}),
        "norm",
    ),
    "1e9 rows": (with_weight(10**9), "count"),
    "a weight that is no whole number": (with_weight(60.0), "count"),
    "another update than it logged": (
        with_arrays(lambda arrays: arrays | {WEIGHT: arrays[WEIGHT] * np.float32(0.5)}),
        "digest",
    ),
    "arrays as Flower's own": (unlike(to_record), "malformed"),
    "no file": (unlike(lambda _: file_of(bytes(range(40)))), "malformed"),
    "a file as Flower's own array": (
        unlike(lambda arrays: ArrayRecord({FILE_KEY: Array(np.frombuffer(save(arrays), np.uint8))})),
        "malformed",
    ),
    "half a file": (unlike(lambda arrays: half(packed(arrays))), "malformed"),
    "no arrays": (without(ARRAYS_RECORD), "malformed"),
    "no weight": (without(METRICS_RECORD), "malformed"),
    "other noise than it settled": (with_body(mechanism__noise_multiplier_micro=1), "mechanism"),
    "seeded noise in a real run": (with_body(noise_source="seeded"), "mechanism"),
    "a log that is not its own": (with_body(log__checkpoint="x.y.z"), "log"),
}


def test_a_bad_update_is_refused_with_its_reason_and_the_others_go_on(tiny_run):
    """One run in which a holder sends something else in every round."""
    run = tiny_run(plan={"training.rounds": len(BAD_UPDATES), "privacy.noise_multiplier_max": "40"})
    changes = iter([change for change, _ in BAD_UPDATES.values()])

    def another_each_round(message, reply):
        return next(changes)(message, reply)

    lying(run, "train", another_each_round)
    outcomes = run.train()
    for outcome, (name, (_, code)) in zip(outcomes, BAD_UPDATES.items(), strict=True):
        assert [(one.holder, one.code) for one in outcome.rejected_updates] == [("elm", code)], name
        assert outcome.rejected_updates[0].reason
        assert (outcome.committed, outcome.cohort, outcome.refused) == (True, ["alder", "birch"], []), name
        assert all(np.isfinite(array).all() for array in run.models[outcome.round].values()), name
    refused = [(record["round"], record["holder"], record["code"]) for record in run.own_log("update-refused")]
    assert refused == [(number, "elm", code) for number, (_, code) in enumerate(BAD_UPDATES.values(), start=1)]
    received = [(record["round"], record["holder"]) for record in run.own_log("update-received")]
    assert received == [(outcome.round, holder) for outcome in outcomes for holder in ("alder", "birch")]
    # What it sent in vain stays spent: it left.
    assert [record["round"] for record in run.log_of("elm", "sent")] == [outcome.round for outcome in outcomes]
    assert run.spent("elm") == run.spent("alder")


# --- everything else a holder can say ------------------------------------------------------------------------------


def refusal_of(text):
    return lambda message, _: Message(Error(code=REFUSED_CODE, reason=text), reply_to=message)


def permitting_refusal(message, reply):  # noqa: ARG001
    decision = {
        "effect": "permit", "point": "node-before-training", "failed": [], "errors": [], "policy": None,
        "policy_digest": None, "inputs_digest": "", "engine": {}, "reference_agrees": True, "not_judged": [],
        "obligations": [],
    }  # fmt: skip
    text = canonical.encode({"decision": decision}).decode()
    return Message(Error(code=REFUSED_CODE, reason=text), reply_to=message)


def endless_refusal(message, _):
    failed = [{"clause": "x" * 5000, "meaning": "y" * 10**5, "limit": "", "actual": None}]
    decision = {
        "effect": "deny", "point": "node-before-training", "failed": failed, "errors": [], "policy": None,
        "policy_digest": None, "inputs_digest": "", "engine": {}, "reference_agrees": True, "not_judged": [],
        "obligations": [],
    }  # fmt: skip
    text = canonical.encode({"decision": decision}).decode()
    return Message(Error(code=REFUSED_CODE, reason=text), reply_to=message)


def lost(message, _):
    return Message(RecordDict(), reply_to=message)


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (refusal_of("not JSON"), "malformed"),
        (refusal_of(""), "malformed"),
        (permitting_refusal, "malformed"),
        (endless_refusal, "malformed"),
        (lost, "malformed"),
        (with_body(hold_id="h" * 10**5), "malformed"),
        (with_body(digest="no digest"), "malformed"),
        (lambda message, _: Message(Error(code=500, reason="gone"), reply_to=message), "fault"),
    ],
    ids=["words", "nothing", "a permit", "no end", "no body", "an endless name", "no digest", "a fault"],
)
def test_an_answer_that_cannot_be_read_costs_only_its_own_holder_the_round(tiny_run, change, clause):
    run = tiny_run()
    lying(run, "train", change)
    outcome = run.train(rounds=1)[0]
    assert refusals(outcome)["elm"][1] == (clause,)
    assert outcome.committed
    assert outcome.cohort == ["alder", "birch"]


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (with_body(standing__mechanism={}), "signature"),
        (with_body(standing__mechanism__noise_multiplier_micro=10**12), "mechanism"),
        (with_body(standing__mechanism__clipping_norm_micro=10**12), "mechanism"),
        (with_body(policy="x.y.z"), "signature"),
        (with_body(participation=""), "signature"),
        (with_body(log__proof=["zz"]), "malformed"),
        (with_body(standing__rounds_left=-1), "malformed"),
        (endless_refusal, "malformed"),
    ],
    ids=[
        "no mechanism",
        "more noise",
        "a wide clip",
        "no policy",
        "no participation",
        "no proof",
        "negative",
        "no end",
    ],
)
def test_papers_that_do_not_hold_keep_their_holder_out_and_nobody_else(tiny_run, change, clause):
    run = tiny_run()
    lying(run, OFFER, change)
    outcome = run.train(rounds=1)[0]
    assert refusals(outcome)["elm"][1] == (clause,)
    assert outcome.committed
    assert run.log_of("elm", "sent") == []


@pytest.mark.parametrize(
    "histogram",
    [None, [[1], [1]], [[], []], [[0] * 200, [0] * 198], [[2**53 - 1] * 200, [-(2**53 - 1)] * 200]],
    ids=["none", "too short", "empty", "uneven", "enormous"],
)
def test_a_histogram_that_is_none_ends_no_run(tiny_run, histogram):
    run = tiny_run(plan={"evaluation.every_round": True})
    lying(run, "evaluate", with_body(histogram=histogram))
    outcome = run.train(rounds=1)[0]
    assert outcome.committed
    assert {"alder", "birch"} <= set(outcome.metrics.per_holder)


# --- whole runs with a liar in them ---------------------------------------------------------------------------------


def carry_out(run):
    """The whole of `ringfence run`, in this process, over the liar's answers."""
    run.coordinator.close()
    conduct(run.grid, run.file)
    return json.loads((run.scenario.directory / "runs" / run.file.run_id / "summary.json").read_text())


QUICK = {"data.rehearsal": "forbidden"}  # without comparison lines, which cost seconds and prove nothing here


@pytest.fixture
def quick_run(tiny_run):
    return lambda **changes: tiny_run(
        **{"plan": {"training.rounds": 2}, "policies": dict.fromkeys(("alder", "birch", "elm"), QUICK)} | changes
    )


def test_a_run_with_a_poisoned_update_completes_and_its_summary_and_evidence_show_it(quick_run):
    run = quick_run()
    lying(run, "train", with_arrays(poisoned(np.nan)))
    summary = carry_out(run)
    assert summary["status"] == "completed"
    for shown in summary["rounds"]:
        assert shown["cohort"] == ["alder", "birch"]
        assert [(one["holder"], one["code"]) for one in shown["rejected_updates"]] == [("elm", "not-finite")]
    assert summary["evidence"]["verified"], summary["evidence"]["checks"]
    assert summary["holders"]["elm"]["epsilon"] > 0


def test_holders_that_answer_nonsense_at_the_end_do_not_cost_the_others_their_results(quick_run):
    run = quick_run()
    lying(run, RELEASE, with_body(decision={"effect": "permit"}), holder="alder")
    lying(run, RELEASE, permitting_refusal, holder="birch")
    lying(run, EVIDENCE, with_body(records=["not a record"]), holder="elm")
    summary = carry_out(run)
    assert [shown["committed"] for shown in summary["rounds"]] == [True, True]
    assert not (run.scenario.directory / "runs" / run.file.run_id / "model.safetensors").exists()
    assert not summary["evidence"]["verified"]
    assert any("elm" in check["detail"] for check in summary["evidence"]["checks"] if not check["passed"])


def test_a_holder_whose_paper_vanishes_still_lets_the_others_finish(quick_run):
    run = quick_run()
    run.before("train", 2, (run.home("elm").papers / "status.jws").unlink)
    summary = carry_out(run)
    assert [shown["cohort"] for shown in summary["rounds"]] == [["alder", "birch", "elm"], ["alder", "birch"]]
    assert summary["rounds"][1]["refused"][0]["clauses"] == ["status"]
