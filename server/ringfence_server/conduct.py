"""One run from the first proposal to the released model and its evidence, on any Flower Grid."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from ringfence_policy.decision import Decision, Point
from ringfence_policy.documents import Role
from ringfence_policy.errors import DocumentInvalid, RunFailed, RunRefused
from ringfence_policy.identity import DocumentType
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.protocol import (
    EVIDENCE,
    RELEASE,
    Body,
    EvidenceReply,
    EvidenceRequest,
    ReleaseReply,
    ReleaseRequest,
)
from ringfence_policy.score_histogram import Rows
from ringfence_policy.trust_store import TrustStore
from ringfence_server.checkpoint import Checkpoints
from ringfence_server.conversation import ask, is_silence
from ringfence_server.coordinator import Coordinator
from ringfence_server.events import EventFile
from ringfence_server.evidence import gather_bundle, is_readable, roots_of_run
from ringfence_server.governed_strategy import WHAT_TO_DO_NEXT, GovernedStrategy
from ringfence_server.governor import Governor
from ringfence_server.outcome import RoundOutcome, Scores
from ringfence_server.results import Results, write_results
from ringfence_server.round_messages import model_digest, to_record
from ringfence_server.run_file import COMPARISON, INITIAL_MODEL, RunFile, reach
from ringfence_server.strategies import build_strategy

NO_REFERENCES = "No comparison lines: each data holder's records stay on its own machine, and no pool of them exists."

# How long to wait before a data holder that is away is asked again.
_PAUSE_SECONDS = 3.0

Arrays = dict[str, npt.NDArray[np.float32]]
B = TypeVar("B", bound=Body)
Report = Callable[[str, Mapping[str, object]], None]


def conduct(grid: Grid, run: RunFile, *, close_nodes: Callable[[], None] = lambda: None) -> Results:
    """Carry a run out, or go on with one from its last committed round.

    Args:
        grid: The way to the holders' nodes.
        run: The run.
        close_nodes: Called when no node is asked anything any more; the results are still to be written then.

    Raises:
        RunRefused: No data holder permits the plan, so nothing was trained.
        RunFailed: The strategy cannot work with the cohort it has.
    """
    with (
        closing(EventFile(Path(run.directory) / "events.jsonl")) as report,
        closing(Coordinator(run.root / "coordinator", coordinator_id=_coordinator_id(run))) as coordinator,
    ):
        return _Conductor(grid, run, coordinator, report, close_nodes).carry_out()


class _Conductor:
    """The run's steps, in their order; what they share is here."""

    def __init__(
        self, grid: Grid, run: RunFile, coordinator: Coordinator, report: Report, close_nodes: Callable[[], None]
    ) -> None:
        self.run = run
        self.close_nodes = close_nodes
        self.coordinator = coordinator
        self.report = report
        self.plan = read_plan(coordinator, run.plan_token)
        self.checkpoints = Checkpoints(Path(run.directory))
        self.timings: dict[str, float] = {}
        self.governor = Governor(
            coordinator=coordinator,
            cards=run.nodes(),
            plan=self.plan,
            plan_token=run.plan_token,
            run_id=run.run_id,
            attempt=run.attempt,
            seed=run.seed,
            report=report,
        )
        self.grid = self.governor.within_deadline(grid)
        self.strategy = GovernedStrategy(
            build_strategy(self.plan.terms.training),
            self.governor,
            on_commit=self._commit,
            first_round=self._next_round(),
            evaluate_every_round=self.plan.terms.evaluation.every_round,
        )

    def carry_out(self) -> Results:
        """Propose, train, measure, release, gather evidence, write results."""
        began = time.monotonic()
        with self._timed("setup"):
            self.governor.propose(self.grid)
            at_start = {holder: view.standing for holder, view in self.governor.views.items()}
            self._open_log()
        self.report("run-started", self._description())
        with self._timed("training"):
            self._train()
        committed = self.checkpoints.committed_rounds()
        if not committed:
            raise RunRefused(
                "no round was committed: no data holder's update could be used",
                expected="at least one data holder that permits the plan",
                got=self.governor.who_refused(),
                next_step=WHAT_TO_DO_NEXT,
            )
        model = self._averaged_model()
        with self._timed("evaluation"):
            final = self._evaluate(model)
        released = self._release(model, len(committed))
        with self._timed("references"):
            references = self._references(final)
        with self._timed("evidence"):
            replies = self._hand_over()
            bundle = gather_bundle(
                run=self.run,
                plan=self.plan,
                coordinator=self.coordinator,
                replies=replies,
                model=model if released is None else None,
            )
            # A thousand holders' logs are the bundle's now, and verifying them takes as much memory as their nodes did.
            replies = {holder: reply.model_copy(update={"records": ()}) for holder, reply in replies.items()}
            self.close_nodes()
        results = Results(
            run=self.run,
            plan=self.plan,
            coordinator=self.coordinator,
            governor=self.governor,
            at_start=at_start,
            model=model if released is None else None,
            not_released=released,
            final=Scores.of(final),
            references=references,
            evidence=replies,
            bundle=bundle,
            timings=self.timings,
            began=began,
        )
        write_results(results)
        replace(self.run, is_finished=True).save()
        self.report("run-finished", {"status": results.status, "out": self.run.out})
        return results

    # --- steps -------------------------------------------------------------------------------------------------------

    def _open_log(self) -> None:
        if not self._is_logged("run-started"):
            initial = self._initial_model()
            self.checkpoints.save_model(0, initial)
            self.coordinator.append(
                "run-started",
                run_id=self.run.run_id,
                plan_digest=self.plan.digest,
                holders=sorted(self.plan.holders),
                model_digest=model_digest(initial),
            )
            return
        last = self.checkpoints.last()
        if last is not None:
            self.governor.outcomes = [RoundOutcome.from_document(one) for one in last["outcomes"]]
            if not self._is_logged("round-committed", last["round"]):
                self._log_committed(last["round"], last["record"])
        self.coordinator.append("resumed", run_id=self.run.run_id, from_round=self._next_round())

    def _train(self) -> None:
        earlier = self.checkpoints.trained()
        if earlier is not None:
            self.governor.outcomes = earlier
            return
        first = self._next_round()
        remaining = self.plan.terms.training.rounds - first + 1
        self.checkpoints.restore_strategy(self.strategy.inner)
        arrays = self.checkpoints.model(first - 1) if first == 1 else self._last_model()
        self.strategy.start(grid=self.grid, initial_arrays=to_record(arrays), num_rounds=remaining)
        if self.checkpoints.committed_rounds():
            self.checkpoints.save_trained(self.governor.outcomes)

    def _commit(self, round_number: int, arrays: ArrayRecord, record: dict[str, object]) -> None:
        # Invariant: the checkpoint is the truth. A crash between the two lines is mended when the run is resumed.
        self.checkpoints.save_round(
            round_number,
            {name: array.numpy() for name, array in arrays.items()},
            strategy=self.strategy.inner,
            outcomes=self.governor.outcomes,
            record=record,
        )
        self._log_committed(round_number, record)

    def _log_committed(self, round_number: int, record: Mapping[str, Any]) -> None:
        self.coordinator.append("round-committed", run_id=self.run.run_id, round_number=round_number, **record)

    def _is_logged(self, kind: str, round_number: int = 0) -> bool:
        wanted = (kind, self.run.run_id, round_number)
        return any((one["kind"], one["run"], one["round"]) == wanted for one in self.coordinator.log.records())

    def _averaged_model(self) -> Arrays:
        rounds = self.checkpoints.last_rounds(float(self.plan.terms.training.average_last))
        model = self.checkpoints.average(rounds)
        if len(rounds) > 1 and not self._is_logged("model-averaged"):
            self.coordinator.append(
                "model-averaged", run_id=self.run.run_id, model_digest=model_digest(model), rounds=rounds
            )
        return model

    def _evaluate(self, model: Arrays) -> dict[str, Rows]:
        self.report("evaluating", {})
        earlier = self.checkpoints.measured()
        if earlier is not None:
            return earlier
        measured = self.strategy.evaluate_finally(self.grid, to_record(model), self.plan.terms.training.rounds)
        self.checkpoints.save_measured(measured)
        return measured

    def _references(self, final: Mapping[str, Rows]) -> Mapping[str, Any]:
        if self.run.superlink is not None:
            return {"note": NO_REFERENCES}
        found: Mapping[str, Any] = reach(COMPARISON)(self.run.holder_directories, self.plan, measured_on=sorted(final))
        return found

    def _release(self, model: Arrays, rounds: int) -> dict[str, Decision] | None:
        """Ask every holder whose updates are in the model; None when it may be released, else who refused and why."""
        if self._is_logged("model-released"):
            return None
        contributors = {holder for outcome in self.governor.outcomes if outcome.committed for holder in outcome.cohort}
        digest = model_digest(model)
        questions = {
            node_id: ReleaseRequest(run_id=self.run.run_id, plan_digest=self.plan.digest, model_digest=digest)
            for node_id, card in self.governor.cards.items()
            if card.holder_id in contributors
        }
        refused = {}
        for node_id, said in self._ask_patiently(RELEASE, questions, ReleaseReply).items():
            decision = said if isinstance(said, Decision) else _decision_in(said)
            if not decision.permitted:
                refused[self.governor.cards[node_id].holder_id] = decision
        if refused and all(map(is_silence, refused.values())):
            raise RunFailed(
                "data holders whose updates are in the model did not say whether it may be released",
                expected=f"an answer of {', '.join(refused)} within {self.plan.terms.cohort.round_seconds} seconds",
                got="; ".join(sorted({one.meaning for denial in refused.values() for one in denial.failed})),
                where=self.run.directory,
                next_step="see that their nodes are online; `ringfence run --resume DIR` asks again",
            )
        if refused:
            return refused
        self.coordinator.append("model-released", run_id=self.run.run_id, model_digest=digest, rounds=rounds)
        return None

    def _hand_over(self) -> dict[str, EvidenceReply]:
        self.governor.offer(self.grid, self.plan.terms.training.rounds)
        questions = {
            node_id: EvidenceRequest(
                run_id=self.run.run_id, plan_digest=self.plan.digest, log=self.governor.log_view_for(card.holder_id)
            )
            for node_id, card in self.governor.cards.items()
        }
        said = self._ask_patiently(EVIDENCE, questions, EvidenceReply)
        return {
            self.governor.cards[node_id].holder_id: reply
            for node_id, reply in said.items()
            if not isinstance(reply, Decision) and is_readable(reply)
        }

    # --- inside ------------------------------------------------------------------------------------------------------

    def _ask_patiently(
        self, message_type: str, questions: Mapping[int, Body], answer: type[B]
    ) -> dict[int, B | Decision]:
        """Ask, and ask those who are away again until they are back or the plan's time for an answer is over.

        A round goes on without a node that is being started anew. The end of a run cannot: it is asked for once.
        """
        until = time.monotonic() + self.plan.terms.cohort.round_seconds
        said: dict[int, B | Decision] = {}
        waiting = dict(questions)
        while waiting:
            said |= ask(self.grid, message_type, waiting, answer, sign=self.governor.sign)
            waiting = {node_id: body for node_id, body in waiting.items() if is_silence(said[node_id])}
            if time.monotonic() + _PAUSE_SECONDS > until:
                break
            if waiting:
                time.sleep(_PAUSE_SECONDS)
        return said

    def _next_round(self) -> int:
        last = self.checkpoints.last()
        return 1 if last is None else int(last["round"]) + 1

    def _last_model(self) -> Arrays:
        return self.checkpoints.model(self.checkpoints.committed_rounds()[-1])

    def _initial_model(self) -> Arrays:
        spec = json.loads(self.plan.terms.model.model_dump_json())
        arrays: Arrays = reach(INITIAL_MODEL)(spec, self.plan.dataset_schema.feature_count)
        return arrays

    def _description(self) -> dict[str, object]:
        return {
            "run_id": self.run.run_id,
            "rounds": self.plan.terms.training.rounds,
            "first_round": self._next_round(),
            "holders": {holder: card["name"] for holder, card in sorted(self.run.cards.items())},
            "caps": {
                holder: min(view.policy.epsilon_micro, view.standing.dataset_epsilon_cap_micro) / 1e6
                for holder, view in self.governor.views.items()
            },
            "spent": {
                holder: view.standing.dataset_epsilon_micro / 1e6 for holder, view in self.governor.views.items()
            },
            "refused": {holder: list(denial.clauses) for holder, denial in self.governor.absent.items()},
            "rehearsal": self.plan.rehearsal,
            # Of earlier attempts: a kill may have come between a round's commit and its event.
            "earlier": self.governor.outcomes,
        }

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.timings[name] = time.monotonic() - start


def _decision_in(reply: ReleaseReply) -> Decision:
    try:
        return Decision.from_document(reply.decision)
    except DocumentInvalid:
        return Decision.deny("malformed", "The holder's decision could not be read.", point=Point.RELEASE)


def read_plan(coordinator: Coordinator, token: str) -> TrainingPlan:
    """The plan that this coordinator signed.

    Raises:
        TrustRefused: The token is not this coordinator's plan.
    """
    store = TrustStore(coordinator.root)
    store.accept_keys(coordinator.keys_token)
    now_ms = coordinator.clock()
    return TrainingPlan.from_document(store.accept(token, type=DocumentType.PLAN, role=Role.PLAN, now_ms=now_ms))


def _coordinator_id(run: RunFile) -> str:
    return roots_of_run(run).coordinator_id
