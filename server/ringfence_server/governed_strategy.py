"""Any Flower strategy behind the gate: the inner one samples and aggregates, the governor says who and what it sees."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore.run import Run

from ringfence_policy.errors import RunFailed, RunRefused
from ringfence_policy.protocol import METRICS_RECORD, WEIGHT_KEY
from ringfence_policy.score_histogram import Rows
from ringfence_policy.vocabulary import Action
from ringfence_server.governor import Governor
from ringfence_server.outcome import Scores
from ringfence_server.round_messages import arrays_of, clean_reply, to_record

# Flower's sampling polls until enough nodes are there; it asks twice per round when it does not have to wait.
_PATIENCE = 8
WHAT_TO_DO_NEXT = (
    "where all policies lie on this machine `ringfence policy preview DIR` says what change of the plan would pass; "
    "where they do not, each data holder's `ringfence-node decisions DIR --denied` says what was asked for and found"
)

Commit = Callable[[int, ArrayRecord, dict[str, object]], None]


class GovernedStrategy(Strategy):
    """Run a Flower strategy over data holders whose policies are asked before every round.

    The inner strategy is used unmodified: it sees only nodes whose holders permit, and only updates that passed every
    check, weighted by the holders' declared weights.

    Args:
        inner: Any Flower strategy.
        governor: Permissions of this run.
        on_commit: Makes a round durable; called with the round, the new model and the record to log.
        first_round: The round Flower's round 1 stands for; above 1 after a resumption.
        evaluate_every_round: Whether to measure the model after each round where policies allow exact measures.
    """

    def __init__(
        self,
        inner: Strategy,
        governor: Governor,
        *,
        on_commit: Commit,
        first_round: int = 1,
        evaluate_every_round: bool = False,
    ) -> None:
        self.inner = inner
        self._governor = governor
        self._on_commit = on_commit
        self._offset = first_round - 1
        self._evaluate_every_round = evaluate_every_round
        self._base = ArrayRecord()

    def summary(self) -> None:
        """Log the inner strategy's configuration."""
        self.inner.summary()

    def start(self, grid: Grid, *arguments: Any, **options: Any) -> Result:
        """Run the rounds as Flower does, over a Grid that waits for answers as long as the plan says."""
        return super().start(self._governor.within_deadline(grid), *arguments, **options)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask who permits this round, let the inner strategy choose among those, and write to each of them."""
        number = server_round + self._offset
        self._base = arrays
        permitted = self._governor.open_round(grid, number)
        if not permitted and not any(outcome.committed for outcome in self._governor.outcomes):
            self._governor.close_round("no data holder permits the plan")
            self._governor.stop_if_all_are_silent()
            raise RunRefused(
                "no data holder permits this plan, so nothing was trained",
                expected="at least one data holder that permits the plan",
                got=self._governor.who_refused(),
                next_step=WHAT_TO_DO_NEXT,
            )
        view = CohortView(grid, permitted)
        proposed = list(self.inner.configure_train(number, arrays, config, view)) if permitted else []
        return self._governor.admit(number, proposed, arrays, Action.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Give the inner strategy the updates that count, and make what it makes of them durable."""
        number = server_round + self._offset
        accepted = self._governor.receive(replies)
        if not accepted:
            self._governor.close_round("no data holder's update may be used this round")
            return None, None
        key = str(getattr(self.inner, "weighted_by_key", WEIGHT_KEY))
        weights = {holder: self._governor.views[holder].card.weight for holder in accepted}
        clean = [
            clean_reply(reply, weights[holder], key, like=self._base) for holder, (reply, _) in sorted(accepted.items())
        ]
        arrays, metrics = self.inner.aggregate_train(number, clean)
        if arrays is None:
            self._governor.close_round(f"{type(self.inner).__name__} made no model from {len(accepted)} updates")
            return None, metrics
        model = _typed_like(arrays, self._base)
        self._on_commit(number, model, self._governor.commit(model, accepted))
        return model, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask who permits an exact measure of this round's model, if the plan wants one every round."""
        number = server_round + self._offset
        outcome = self._governor.outcomes[-1]
        if not self._evaluate_every_round or not outcome.committed:
            return []
        return self._evaluation_messages(number, arrays, config, grid, final=False)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Read the histograms, and give the inner strategy plain accuracies."""
        outcome = self._governor.outcomes[-1]
        gathered = list(replies)
        histograms = self._governor.measured(gathered)
        outcome.metrics = Scores.of(histograms)
        metrics = self._inner_metrics(server_round + self._offset, gathered, outcome.metrics)
        if outcome.committed:
            self._governor.close_round()
        return metrics

    def evaluate_finally(self, grid: Grid, arrays: ArrayRecord, round_number: int) -> dict[str, Rows]:
        """Measure the model that is to be released, also where the measure is private and charged."""
        self._governor.offer(grid, round_number)
        messages = self._evaluation_messages(round_number, arrays, ConfigRecord(), grid, final=True)
        return self._governor.measured(self._governor.within_deadline(grid).send_and_receive(messages))

    def _evaluation_messages(
        self, number: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid, *, final: bool
    ) -> list[Message]:
        permitted = self._governor.evaluators(number, final=final)
        if not permitted:
            return []
        proposed = list(self.inner.configure_evaluate(number, arrays, config, CohortView(grid, permitted)))
        return self._governor.admit(number, proposed, arrays, Action.EVALUATE)

    def _inner_metrics(self, number: int, replies: Sequence[Message], scores: Scores | None) -> MetricRecord | None:
        if scores is None:
            return None
        plain = []
        by_node = {card.holder_id: node_id for node_id, card in self._governor.cards.items()}
        for reply in replies:
            for holder, measured in scores.per_holder.items():
                if reply.metadata.src_node_id == by_node[holder] and measured["accuracy"] is not None:
                    weight = self._governor.views[holder].card.weight
                    record = MetricRecord({"accuracy": measured["accuracy"], WEIGHT_KEY: weight})
                    reply.content = RecordDict({METRICS_RECORD: record})
                    plain.append(reply)
        return self.inner.aggregate_evaluate(number, plain) if plain else None


def _typed_like(arrays: ArrayRecord, base: ArrayRecord) -> ArrayRecord:
    """The model in the number types that it started with: FedAdam answers float32 updates with float64."""
    found = arrays_of(arrays)
    return to_record({name: found[name].astype(start.dtype) for name, start in arrays_of(base).items()})


class CohortView(Grid):  # the refused methods keep Flower's signatures
    """The Grid as the inner strategy sees it: only nodes that may be asked, and no way to write to any."""

    def __init__(self, grid: Grid, node_ids: Sequence[int]) -> None:
        self._grid = grid
        self._node_ids = list(node_ids)
        self._asked = 0

    def set_run(self, run: Run) -> None:  # noqa: ARG002
        """Refused: the run is the governed one's."""
        raise self._closed()

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Build a message; the governor decides whether it is sent."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The nodes that may be asked.

        Raises:
            RunFailed: The strategy keeps polling for more nodes than permit, which would wait for ever.
        """
        self._asked += 1
        if self._asked > _PATIENCE:
            raise RunFailed(
                "the strategy waits for more data holders than permit this round",
                got=f"{len(self._node_ids)} that permit",
                next_step="lower the strategy's min_available_nodes, or set [cohort] min_holders in the plan",
            )
        return list(self._node_ids)

    def get_nodes(self) -> list[NodeInfo]:
        """The nodes that may be asked, with their names."""
        wanted = set(self.get_node_ids())
        return [node for node in self._grid.get_nodes() if node.node_id in wanted]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:  # noqa: ARG002
        """Refused: messages go through the gate."""
        raise self._closed()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:  # noqa: ARG002
        """Refused: replies go through the checks."""
        raise self._closed()

    def send_and_receive(
        self,
        messages: Iterable[Message],  # noqa: ARG002
        *,
        timeout: float | None = None,  # noqa: ARG002
    ) -> Iterable[Message]:
        """Refused: messages go through the gate."""
        raise self._closed()

    def _closed(self) -> RunFailed:
        return RunFailed("a strategy may not reach data holders by itself", next_step="return the messages instead")
