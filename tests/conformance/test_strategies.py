"""Flower strategies behind the gate, unmodified, over real nodes with real ledgers, gates and training."""

import hashlib

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from tiny_run import EVERYONE

from ringfence_client import clientapp
from ringfence_policy.errors import RunFailed
from ringfence_policy.protocol import ARRAYS_RECORD, BODY_KEY, BODY_RECORD, UseReply
from ringfence_server.round_messages import arrays_of, unpacked
from ringfence_server.strategies import STRATEGIES, build_strategy

ROUNDS = 2
WEIGHTS = {"alder": 60, "birch": 40, "elm": 100, "fir": 60}
CROWD = {"holders": tuple(WEIGHTS), "profiles": {name: {"dataset.weight": weight} for name, weight in WEIGHTS.items()}}


def copied_replies(run):
    """Keep what holders answered as it was: the coordinator strips an accepted reply for the strategy."""

    def deliver(messages, contexts):
        replies = clientapp.cohort(messages, contexts)
        kept.extend(
            Message(RecordDict(dict(reply.content)), reply_to=message) if not reply.has_error() else reply
            for message, reply in zip(messages, replies, strict=True)
        )
        return replies

    kept: list[Message] = []
    run.deliver = deliver
    return kept


class Median(flower.Strategy):
    """A strategy of nobody's library: the middle one of all updates, asked of everybody it is shown."""

    def summary(self):
        """Nothing to say."""

    def configure_train(self, server_round, arrays, config, grid):  # noqa: ARG002
        content = RecordDict({"arrays": arrays, "mine": ConfigRecord({"round": server_round})})
        return [Message(content, node_id, "train") for node_id in grid.get_node_ids()]

    def aggregate_train(self, server_round, replies):  # noqa: ARG002
        found = [arrays_of(next(iter(reply.content.array_records.values()))) for reply in replies]
        middle = {name: np.median([one[name] for one in found], axis=0).astype(np.float32) for name in found[0]}
        return ArrayRecord({name: Array(array) for name, array in middle.items()}), MetricRecord({"n": len(found)})

    def configure_evaluate(self, server_round, arrays, config, grid):  # noqa: ARG002
        return []

    def aggregate_evaluate(self, server_round, replies):  # noqa: ARG002
        return None


UNNAMED = {
    "FedMedian": lambda: flower.FedMedian(**EVERYONE),
    "FedAvgM": lambda: flower.FedAvgM(**EVERYONE, server_momentum=0.5),
    "FedAdagrad": lambda: flower.FedAdagrad(**EVERYONE),
    "Krum": lambda: flower.Krum(**EVERYONE, num_malicious_nodes=1),
    "MultiKrum": lambda: flower.MultiKrum(**EVERYONE, num_malicious_nodes=1, num_nodes_to_select=2),
    "Bulyan": lambda: flower.Bulyan(**EVERYONE, num_malicious_nodes=0),
    "server-side clipping": lambda: flower.DifferentialPrivacyServerSideFixedClipping(
        flower.FedAvg(**EVERYONE), noise_multiplier=0.01, clipping_norm=1.0, num_sampled_clients=4
    ),
    "a strategy of one's own": Median,
}


def assert_trained(run, outcomes):
    assert [outcome.committed for outcome in outcomes] == [True] * ROUNDS
    assert all(sorted(WEIGHTS) == outcome.cohort for outcome in outcomes)
    assert sorted(run.models) == [1, 2]
    for model in run.models.values():
        assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in model.values())
    assert any((run.models[1][name] != run.initial()[name]).any() for name in run.models[1])
    for holder in WEIGHTS:
        assert [record["round"] for record in run.log_of(holder, "sent")] == [1, 2]


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_a_plan_can_name_trains_behind_the_gate(tiny_run, name):
    run = tiny_run(**CROWD, plan={"training.strategy": name, "training.rounds": ROUNDS, "training.proximal_mu": "0.1"})
    inner = build_strategy(run.plan.terms.training)
    assert type(inner).__name__ == name
    assert_trained(run, run.train(inner))


@pytest.mark.parametrize("name", sorted(UNNAMED))
def test_a_strategy_that_no_plan_names_trains_behind_the_gate_unmodified(tiny_run, name):
    run = tiny_run(**CROWD, plan={"training.rounds": ROUNDS})
    assert_trained(run, run.train(UNNAMED[name]()))


def test_governed_fedavg_is_the_average_weighted_by_what_the_holders_declared(tiny_run):
    run = tiny_run(**CROWD, plan={"training.rounds": 1})
    replies = copied_replies(run)
    run.train()
    sent = {reply.metadata.src_node_id: unpacked(reply.content[ARRAYS_RECORD]) for reply in replies
            if not reply.has_error() and ARRAYS_RECORD in reply.content}  # fmt: skip
    total = sum(WEIGHTS.values())
    for name, model in run.models[1].items():
        expected = sum(
            sent[run.node_ids[holder]][name].astype(np.float64) * weight / total for holder, weight in WEIGHTS.items()
        )
        np.testing.assert_allclose(model, expected, rtol=1e-6)


def test_a_strategys_own_settings_reach_every_holder_and_no_holders_papers_reach_another(tiny_run):
    run = tiny_run(**CROWD, plan={"training.rounds": 1})
    sent = []

    def deliver(messages, contexts):
        sent.extend(message for message in messages if message.metadata.message_type == "train")
        return clientapp.cohort(messages, contexts)

    run.deliver = deliver
    run.train(Median())
    assert [message.content["mine"]["round"] for message in sent] == [1] * len(WEIGHTS)
    assert len({id(message.content) for message in sent}) == len(WEIGHTS)
    bodies = [message.content[BODY_RECORD][BODY_KEY] for message in sent]
    assert len({hashlib.sha256(body).digest() for body in bodies}) > 1


def test_a_strategy_that_samples_a_part_asks_only_that_part(tiny_run):
    run = tiny_run(**CROWD, plan={"training.rounds": 1})
    outcomes = run.train(flower.FedAvg(**EVERYONE | {"fraction_train": 0.5}))
    assert len(outcomes[0].cohort) == 2
    asked = [holder for holder in WEIGHTS if run.log_of(holder, "sent")]
    assert sorted(asked) == outcomes[0].cohort


def test_a_strategy_that_samples_fewer_than_a_policy_asks_for_loses_that_holder_not_the_round(tiny_run):
    run = tiny_run(holders=("alder", "birch", "elm"), plan={"training.rounds": 1},
                   policies={"elm": {"settings.min_holders": 3}})  # fmt: skip
    chosen = [run.node_ids["alder"], run.node_ids["elm"]]

    class Two(Median):
        def configure_train(self, server_round, arrays, config, grid):
            messages = super().configure_train(server_round, arrays, config, grid)
            return [message for message in messages if message.metadata.dst_node_id in chosen]

    outcome = run.train(Two())[0]
    assert outcome.cohort == ["alder"]
    assert [(one.holder, one.clauses) for one in outcome.refused] == [("elm", ("min_holders",))]
    assert run.log_of("elm", "sent") == []


def test_a_strategy_that_remembers_a_holder_which_no_longer_permits_does_not_reach_it(tiny_run):
    run = tiny_run(plan={"training.rounds": ROUNDS}, profiles={"elm": {"simulation.revoke_at_round": 2}})
    everyone = list(run.node_ids.values())

    class Stubborn(Median):
        def configure_train(self, server_round, arrays, config, grid):  # noqa: ARG002
            return [Message(RecordDict({"arrays": arrays}), node_id, "train") for node_id in [*everyone, 999]]

    outcomes = run.train(Stubborn())
    assert [outcome.cohort for outcome in outcomes] == [["alder", "birch", "elm"], ["alder", "birch"]]
    assert [record["round"] for record in run.log_of("elm", "sent")] == [1]


def test_a_strategy_that_needs_more_holders_than_permit_ends_the_run_and_says_so(tiny_run, monkeypatch):
    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", lambda _: None)
    run = tiny_run(plan={"training.rounds": 1}, policies={"elm": {"people.who": ["somebody-else"]}})
    with pytest.raises(RunFailed, match="more data holders than permit"):
        run.train(flower.FedAvg(min_available_nodes=3))


def test_one_message_through_the_client_app_gives_the_model_that_the_cohort_gives(tiny_run):
    """One code path for one holder and for many, in rehearsal with one seed: bit for bit."""
    together = tiny_run("together", seed=7, plan={"training.rounds": ROUNDS, "evaluation.every_round": True})
    alone = tiny_run("alone", seed=7, plan={"training.rounds": ROUNDS, "evaluation.every_round": True})
    alone.deliver = lambda messages, contexts: [
        clientapp.app(message, context) for message, context in zip(messages, contexts, strict=True)
    ]
    first, second = together.train(), alone.train()
    for number in (1, 2):
        for name, array in together.models[number].items():
            np.testing.assert_array_equal(array, alone.models[number][name])
    assert [outcome.metrics for outcome in first] == [outcome.metrics for outcome in second]
    assert first[0].metrics is not None
    assert [outcome.epsilon for outcome in first] == [outcome.epsilon for outcome in second]
    for holder in together.node_ids:
        pairs = zip(together.log_of(holder), alone.log_of(holder), strict=True)
        assert all(one["kind"] == other["kind"] for one, other in pairs)
        digests = [record["update_digest"] for record in together.log_of(holder, "sent")]
        assert digests == [record["update_digest"] for record in alone.log_of(holder, "sent")]


def test_a_reply_carries_the_declared_weight_and_nothing_that_follows_the_number_of_records(tiny_run):
    said = []
    for rows in (57, 58):
        run = tiny_run(f"with-{rows}", holders=("alder",), rows=rows, plan={"training.rounds": 1})
        replies = copied_replies(run)
        run.train()
        (trained,) = [reply for reply in replies if not reply.has_error() and ARRAYS_RECORD in reply.content]
        assert dict(trained.content["metrics"]) == {"num-examples": 60}
        body = UseReply.from_bytes(trained.content[BODY_RECORD][BODY_KEY])
        said.append((body.model_dump(exclude={"log", "digest", "hold_id", "next"}), body.next.standing))
    assert said[0] == said[1]
