"""One run of a tiny scenario inside the test's own process, with every part real: nodes, ledgers, logs, gates, Grid.

Between coordinator and holders stands `TinyRun.deliver`, where a test may read, change or lose messages.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy
from late_grid import LateGrid
from tiny_scenario import TinyScenario

from ringfence_client import clientapp
from ringfence_client.home import HolderHome
from ringfence_client.node import HolderNode
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.protocol import ARRAYS_RECORD, BODY_KEY, BODY_RECORD, SIGNATURE_KEY, Body, UseRequest
from ringfence_policy.vocabulary import Action
from ringfence_server.conduct import read_plan
from ringfence_server.conversation import read_refusal
from ringfence_server.coordinator import Coordinator
from ringfence_server.embedded_grid import EmbeddedNode
from ringfence_server.governed_strategy import GovernedStrategy
from ringfence_server.governor import Governor
from ringfence_server.outcome import RoundOutcome
from ringfence_server.round_messages import arrays_of, model_digest, packed, to_record
from ringfence_server.run_file import INITIAL_MODEL, RunFile, reach, start_run
from ringfence_server.scenario import load_scenario

EVERYONE = {
    "fraction_train": 1.0,
    "fraction_evaluate": 1.0,
    "min_train_nodes": 1,
    "min_evaluate_nodes": 1,
    "min_available_nodes": 1,
}
Deliver = Callable[[Sequence[Message], Sequence[Context]], list[Message]]


class TinyRun:
    """A run that a test drives step by step.

    Attributes:
        file: The run as `ringfence run` would start it.
        plan: Its signed plan.
        coordinator, governor, grid: The coordinator's side.
        deliver: How messages reach the holders; `clientapp.cohort` unless a test puts something else there.
        replies: Every reply that came back, in order.
        models: The model after each committed round, by round.
    """

    def __init__(self, scenario: TinyScenario, *, seed: int | None = None, plan: Path | None = None) -> None:
        self.scenario = scenario
        self.file: RunFile = start_run(load_scenario(scenario.directory, plan=plan), out=None, seed=seed)
        self.plan: TrainingPlan
        self.coordinator = Coordinator(scenario.directory / "coordinator", coordinator_id="tree-consortium")
        self.plan = read_plan(self.coordinator, self.file.plan_token)
        self.deliver: Deliver = clientapp.cohort
        self.replies: list[Message] = []
        self.models: dict[int, dict[str, np.ndarray]] = {}
        self.governor = Governor(
            coordinator=self.coordinator,
            cards=self.file.nodes(),
            plan=self.plan,
            plan_token=self.file.plan_token,
            run_id=self.file.run_id,
            seed=seed,
            poll_seconds=0.02,
        )
        self.root = (scenario.directory / "coordinator" / "root.jwk").read_text()
        self.node_ids = {card.holder_id: node_id for node_id, card in self.file.nodes().items()}
        self.grid = LateGrid(
            nodes=[
                EmbeddedNode(node_id=node_id, name=holder, config=self._config(holder))
                for holder, node_id in self.node_ids.items()
            ],
            cohort_app=self._deliver,
            flower_run_id=self.file.flower_run_id,
        )

    def close(self) -> None:
        """Close every node and the coordinator."""
        self.restart_nodes()
        self.coordinator.close()

    # --- the holders' side -------------------------------------------------------------------------------------------

    def node(self, holder: str) -> HolderNode:
        """The holder's open node, as the messages reach it."""
        config = self._config(holder)
        return clientapp._open_node(config["holder-dir"], config["coordinator-root"])

    def restart_nodes(self) -> None:
        """Close every node; the next message opens it anew, as after a restart of the holders' machines."""
        clientapp.close_nodes()

    def home(self, holder: str) -> HolderHome:
        """The holder's directory."""
        return HolderHome(self.scenario.holder(holder))

    # --- one step after another --------------------------------------------------------------------------------------

    def propose(self) -> None:
        """Show the plan to all holders and log the start."""
        self.governor.propose(self.grid)

    def initial(self) -> dict[str, np.ndarray]:
        """The model that a run starts from."""
        spec = json.loads(self.plan.terms.model.model_dump_json())
        return reach(INITIAL_MODEL)(spec, self.plan.dataset_schema.feature_count)

    def govern(self, inner: Strategy | None = None) -> GovernedStrategy:
        """A strategy behind the gate."""
        return GovernedStrategy(
            FedAvg(**EVERYONE) if inner is None else inner,
            self.governor,
            on_commit=self._commit,
            evaluate_every_round=self.plan.terms.evaluation.every_round,
        )

    def train(self, inner: Strategy | None = None, *, rounds: int | None = None) -> list[RoundOutcome]:
        """Propose, and train some rounds."""
        self.propose()
        number = self.plan.terms.training.rounds if rounds is None else rounds
        self.govern(inner).start(grid=self.grid, initial_arrays=to_record(self.initial()), num_rounds=number)
        return self.governor.outcomes

    def before(self, kind: str, round_number: int, act: Callable[[], object]) -> None:
        """Let something happen just before the messages of one kind and round are delivered."""
        deliver = self.deliver

        def wrapped(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
            if messages and messages[0].metadata.message_type == kind and round_of(messages[0]) == round_number:
                act()
            return deliver(messages, contexts)

        self.deliver = wrapped

    def request(self, holder: str, *, arrays: Mapping[str, np.ndarray] | None = None, **changes: Any) -> Message:
        """Ask one holder for a use past every gate of the coordinator, and give its reply.

        Args:
            holder: Who is asked. Its peers' papers are those of the last offer.
            arrays: The model; the initial one by default.
            changes: Members of the UseRequest that differ from an honest one.
        """
        model = self.initial() if arrays is None else arrays
        logs = self.node(holder).coordinator.memory()["logs"].values()
        members: dict[str, Any] = {
            "run_id": self.file.run_id,
            "round_number": 1,
            "attempt": 1,
            "action": Action.TRAIN,
            "plan_digest": self.plan.digest,
            "base_model_digest": model_digest(model),
            "cohort": {name: view.papers for name, view in self.governor.views.items()},
            "known_size": 0,
            "log": self.coordinator.log_view(since=max((log["size"] for log in logs), default=0)),
        }
        body = UseRequest(**(members | changes))
        return self.say(holder, body.action.value, body, arrays=model)

    def say(self, holder: str, kind: str, body: Body, *, arrays: Mapping[str, np.ndarray] | None = None) -> Message:
        """Send one holder one message and give its reply."""
        data = body.to_bytes()
        signature = self.governor.sign(kind, {self.node_ids[holder]: data})[self.node_ids[holder]]
        content = RecordDict({BODY_RECORD: ConfigRecord({BODY_KEY: data, SIGNATURE_KEY: signature})})
        if arrays is not None:
            content[ARRAYS_RECORD] = packed(arrays)
        (reply,) = self.grid.send_and_receive([Message(content, self.node_ids[holder], kind)])
        return reply

    # --- what is left of it ------------------------------------------------------------------------------------------

    def log_of(self, holder: str, kind: str | None = None) -> list[Mapping[str, Any]]:
        """A holder's evidence."""
        return _of_kind(self.node(holder).log.records(), kind)

    def own_log(self, kind: str | None = None) -> list[Mapping[str, Any]]:
        """The coordinator's evidence."""
        return _of_kind(self.coordinator.log.records(), kind)

    def denials(self, holder: str) -> list[tuple[int, str, tuple[str, ...]]]:
        """Round, point and clauses of each denial in a holder's evidence."""
        return [
            (record["round"], record["decision"]["point"], tuple(one["clause"] for one in record["decision"]["failed"]))
            for record in self.log_of(holder, "decision")
            if record["decision"]["effect"] == "deny"
        ]

    def spent(self, holder: str) -> int:
        """Epsilon of everything that left the holder or may have, in millionths, reservations included."""
        meters = self.node(holder).ledger.meters()
        return max((one.committed + one.reserved for one in meters if one.quantity == "epsilon"), default=0)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _config(self, holder: str) -> dict[str, str]:
        return {"holder-dir": self.file.holder_directories[holder], "coordinator-root": self.root}

    def _deliver(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        replies = self.deliver(messages, contexts)
        self.replies += replies
        return replies

    def _commit(self, round_number: int, arrays: ArrayRecord, record: Mapping[str, Any]) -> None:
        self.models[round_number] = arrays_of(arrays)
        self.coordinator.append("round-committed", run_id=self.file.run_id, round_number=round_number, **record)


def round_of(message: Message) -> int:
    """The round that a question or a request is about; 0 where it is about none."""
    body = json.loads(message.content[BODY_RECORD][BODY_KEY])
    return int(body.get("round_number", 0))


def clauses_of(reply: Message) -> tuple[str, ...]:
    """What a refusal names; nothing where the reply is none."""
    return read_refusal(reply).clauses if reply.has_error() else ()


def _of_kind(records: Sequence[Mapping[str, Any]], kind: str | None) -> list[Mapping[str, Any]]:
    return [record for record in records if kind is None or record["kind"] == kind]
