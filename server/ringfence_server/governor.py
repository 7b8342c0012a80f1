"""The coordinator's side of a governed round: who is asked, what each is asked, and which answers count.

Flower's strategy decides how to sample and aggregate; everything about permission stands here, so that any strategy can
be governed without knowing it.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from safetensors.numpy import load

from ringfence_policy import canonical
from ringfence_policy.cohort import Cohort, largest_cohort
from ringfence_policy.decision import Decision, Point
from ringfence_policy.errors import RingfenceError, RunFailed
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.protocol import (
    ARRAYS_RECORD,
    BODY_KEY,
    METRICS_RECORD,
    OFFER,
    PROPOSE,
    SIGNATURE_KEY,
    WEIGHT_KEY,
    Body,
    HolderCard,
    Introduction,
    LogView,
    Offer,
    PeerPapers,
    Proposal,
    UseReply,
    UseRequest,
)
from ringfence_policy.protocol import Refusal as HolderRefusal
from ringfence_policy.request import RoundRequest
from ringfence_policy.score_histogram import EXACT_BINS, PRIVATE_BINS, THOUSANDTHS, Rows
from ringfence_policy.vocabulary import Action, Evaluation
from ringfence_server.conversation import ask, read_reply, replies_by_node, silence
from ringfence_server.coordinator import Coordinator, HolderView
from ringfence_server.outcome import NO_REPLY, Refusal, RejectedUpdate, RoundOutcome, clauses_by_holder
from ringfence_server.round_grid import POLL_SECONDS, RoundGrid
from ringfence_server.round_messages import Arrays, arrays_of, file_in, governed_message, model_digest, packed
from ringfence_server.shown_papers import ShownPapers
from ringfence_server.update_checks import Defect, find_defect, norm_bound

Use = Literal[Action.TRAIN, Action.EVALUATE]

# A declared weight is a round figure; no holder measures on many times as many records.
_MOST_RECORDS_PER_WEIGHT = 4
# A peer whose papers run out on the way must not cost a holder its round.
_SPARE_PEERS = 2


class Governor:
    """Keeps one run's permissions.

    Args:
        coordinator: The coordinator, opened.
        cards: The registered holders' cards by Flower node number.
        plan: The signed plan.
        plan_token: The plan as signed.
        run_id: Ringfence's name for the run.
        attempt: 1 for a run's first process, one more for each resumption.
        seed: The rehearsal's seed; None for a real run.
        report: Called with each event of the run as it happens.
        poll_seconds: How long to wait before asking for replies again.
    """

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        cards: Mapping[int, HolderCard],
        plan: TrainingPlan,
        plan_token: str,
        run_id: str,
        attempt: int = 1,
        seed: int | None = None,
        report: Callable[[str, Mapping[str, object]], None] = lambda _name, _members: None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.coordinator = coordinator
        self.plan = plan
        self.run_id = run_id
        self.attempt = attempt
        self.outcomes: list[RoundOutcome] = []
        self.mechanisms: dict[str, DpMechanism] = {}
        self.views: dict[str, HolderView] = {}
        self.absent: dict[str, Decision] = {}
        self.seen: dict[str, int] = {}
        self.cards = dict(cards)
        self._nodes = {card.holder_id: node_id for node_id, card in cards.items()}
        self._plan_token = plan_token
        self._seed = seed
        self._report = report
        self._opened = 0.0
        self._shown = ShownPapers()
        self._poll_seconds = poll_seconds
        self._sent: dict[int, Message] = {}
        self._base: Arrays = {}
        self._usable: dict[int, bool] = {}
        self._found: tuple[tuple[Action, frozenset[str]], Cohort, Mapping[str, RoundRequest]] | None = None

    def within_deadline(self, grid: Grid) -> RoundGrid:
        """The Grid, on which questions have the plan's deadline and a round closes when enough updates are there."""
        if isinstance(grid, RoundGrid):
            return grid
        seconds = self.plan.terms.cohort.round_seconds
        return RoundGrid(grid, seconds=seconds, is_enough=self._is_enough, poll_seconds=self._poll_seconds)

    # --- before the run ----------------------------------------------------------------------------------------------

    def propose(self, grid: Grid) -> None:
        """Show the plan to every holder and take in its papers."""
        self.views.clear()
        self.absent.clear()
        self._ask_papers(grid, PROPOSE, {node_id: self._proposal(card) for node_id, card in self.cards.items()})

    def offer(self, grid: Grid, round_number: int) -> None:
        """Have fresh papers of every holder: a revocation or an empty budget is then known before data is asked for.

        Who showed them with its last update is not asked. Who refused the plan is shown it again: its data officer may
        have signed other terms since.
        """
        introduced, shown = set(self.mechanisms), self._shown.take()
        offers = {
            node_id: Offer(
                run_id=self.run_id,
                round_number=round_number,
                plan_digest=self.plan.digest,
                known_size=self.coordinator.known_size(card),
            )
            for node_id, card in self.cards.items()
            if card.holder_id in introduced and card.holder_id not in shown
        }
        proposals = {
            node_id: self._proposal(card) for node_id, card in self.cards.items() if card.holder_id not in introduced
        }
        self.views = shown
        self.absent.clear()
        self._ask_papers(grid, OFFER, offers)
        self._ask_papers(grid, PROPOSE, proposals)

    def _proposal(self, card: HolderCard) -> Proposal:
        return Proposal(
            run_id=self.run_id,
            plan=self._plan_token,
            coordinator_keys=self.coordinator.keys_token,
            rehearsal_seed=self._seed,
            known_size=self.coordinator.known_size(card),
        )

    def _ask_papers(self, grid: Grid, message_type: str, questions: Mapping[int, Body]) -> None:
        def note(node_id: int, refusal: HolderRefusal) -> None:
            if refusal.coordinator_log_seen is not None:
                self.seen[self.cards[node_id].holder_id] = min(refusal.coordinator_log_seen, self.coordinator.log.size)

        self._found = None  # new papers: everything is decided anew
        answers = ask(
            self.within_deadline(grid), message_type, questions, Introduction, sign=self.sign, on_refusal=note
        )
        with self.coordinator.database.transaction():
            for node_id, said in answers.items():
                card = self.cards[node_id]
                met = said if isinstance(said, Decision) else self._met(card.holder_id, said)
                if isinstance(met, Decision):
                    self.absent[card.holder_id] = met
                else:
                    self.views[card.holder_id] = met
                    # What it first says holds for the run, also where its first answer could not be used.
                    settled = DpMechanism.from_document(met.standing.mechanism)
                    self.mechanisms.setdefault(card.holder_id, settled)
        self.coordinator.save()

    def _met(self, holder: str, said: Introduction) -> HolderView | Decision:
        return self.coordinator.meet(self.cards[self._nodes[holder]], said, plan=self.plan, run_id=self.run_id)

    # --- one round ---------------------------------------------------------------------------------------------------

    def open_round(self, grid: Grid, round_number: int) -> list[int]:
        """Begin a round: fresh papers, and the largest cohort in which every holder permits.

        Returns:
            The node numbers of that cohort; empty where nobody may be asked.
        """
        self._opened = time.monotonic()
        self.offer(grid, round_number)
        self.outcomes.append(RoundOutcome(round=round_number, attempt=self.attempt))
        members, refusals = self._cohort(list(self.views), Action.TRAIN, round_number, final=False)
        self.outcomes[-1].refused = [Refusal.of(holder, denial) for holder, denial in refusals.items()]
        return [self._nodes[holder] for holder in members]

    def admit(self, round_number: int, proposed: Sequence[Message], arrays: ArrayRecord, action: Use) -> list[Message]:
        """Turn what the strategy wants to send into one governed message for each holder that permits it.

        The strategy may have sampled some of the cohort only, so permission is asked again for exactly those.
        """
        wanted: dict[str, Message] = {}
        for message in proposed:
            card = self.cards.get(message.metadata.dst_node_id)
            # A strategy may remember nodes from earlier rounds. Whoever showed no papers for this one is not asked.
            if card is not None and card.holder_id in self.views:
                wanted[card.holder_id] = message
        members, refusals = self._cohort(list(wanted), action, round_number, final=True)
        outcome = self.outcomes[-1]
        if action is Action.TRAIN:
            outcome.cohort = list(members)
            outcome.refused += [Refusal.of(holder, denial) for holder, denial in refusals.items()]
            self._report("round-opened", {"round": round_number, "cohort": members, "refused": outcome.refused})
        model = arrays_of(arrays)
        base, travelling = model_digest(model), packed(model)
        bodies = {
            self._nodes[holder]: UseRequest(
                run_id=self.run_id,
                round_number=round_number,
                attempt=self.attempt,
                action=action,
                plan_digest=self.plan.digest,
                base_model_digest=base,
                cohort=self._company(holder, members),
                known_size=self.coordinator.known_size(self.views[holder].card),
                log=self.log_view_for(holder) if action is Action.TRAIN else None,
            ).to_bytes()
            for holder in members
        }
        signatures = self.sign(action.value, bodies)
        self._sent, self._usable, self._base = {}, {}, model
        for holder in members:
            node_id = self._nodes[holder]
            record = ConfigRecord({BODY_KEY: bodies[node_id], SIGNATURE_KEY: signatures[node_id]})
            self._sent[node_id] = governed_message(wanted[holder], record, travelling)
        return list(self._sent.values())

    def _company(self, holder: str, members: Sequence[str]) -> dict[str, PeerPapers]:
        """The papers of as many other members as a holder's own minimum asks for, and some to spare.

        Every holder verifies every paper that it is sent: a thousand of them would verify a million. Those that a
        holder does not know by root key count for nothing there, so they come last.
        """
        view = self.views[holder]
        strangers = frozenset(view.introduction.strangers)
        enough = view.policy.min_holders + _SPARE_PEERS
        others = [member for member in members if member != holder]
        chosen = [member for member in others if member not in strangers][:enough]
        return {member: self.views[member].papers for member in chosen}

    def receive(self, replies: Iterable[Message]) -> dict[str, tuple[Message, UseReply]]:
        """Keep the updates that may be aggregated; log every other one with its reason."""
        sent = self._sent
        by_node = replies_by_node(sent.values(), replies)
        accepted: dict[str, tuple[Message, UseReply]] = {}
        with self.coordinator.database.transaction():
            for node_id in sent:
                card = self.cards[node_id]
                reply = by_node.get(node_id)
                body = silence() if reply is None else read_reply(reply, UseReply)
                if isinstance(body, Decision) or reply is None:
                    self._refused_by_holder(card, body if isinstance(body, Decision) else silence())
                    continue
                defect = self._defect(card, reply, body)
                if defect is None:
                    accepted[card.holder_id] = (reply, body)
                    self.outcomes[-1].epsilon[card.holder_id] = body.epsilon_micro / 1e6
                else:
                    self._reject(card, defect)
            accepted = self._still_permitted(accepted)
            for holder, (_, body) in accepted.items():
                self._log("update-received", holder=holder, hold_id=body.hold_id, update_digest=body.digest)
            self._shown.keep({holder: body for holder, (_, body) in accepted.items()}, self._met)
        self.coordinator.save()
        return accepted

    def commit(self, arrays: ArrayRecord, accepted: Mapping[str, tuple[Message, UseReply]]) -> dict[str, object]:
        """The record of a committed round; it is logged once the checkpoint that holds the model is on disk."""
        outcome = self.outcomes[-1]
        outcome.committed = True
        outcome.cohort = sorted(accepted)
        return {
            "cohort": outcome.cohort,
            "updates": {holder: body.digest for holder, (_, body) in sorted(accepted.items())},
            "refused": {refusal.holder: list(refusal.clauses) for refusal in outcome.refused},
            "model_digest": model_digest(arrays_of(arrays)),
        }

    def close_round(self, reason: str | None = None) -> None:
        """End a round, committed or not."""
        outcome = self.outcomes[-1]
        outcome.reason = reason
        outcome.seconds = time.monotonic() - self._opened
        self._report("round-closed", {"outcome": outcome})

    # --- evaluation --------------------------------------------------------------------------------------------------

    def evaluators(self, round_number: int, *, final: bool) -> list[int]:
        """The nodes that may be asked to measure the model: in between only where that is exact and costs nothing."""
        willing = [
            holder
            for holder, view in self.views.items()
            if view.standing.evaluation is Evaluation.EXACT
            or (final and view.standing.evaluation is Evaluation.PRIVATE)
        ]
        members, _ = self._cohort(willing, Action.EVALUATE, round_number, final=False)
        return [self._nodes[holder] for holder in members]

    def measured(self, replies: Iterable[Message]) -> dict[str, Rows]:
        """The histograms that holders gave, by holder; refusals and malformed ones are left out."""
        found: dict[str, Rows] = {}
        with self.coordinator.database.transaction():
            for node_id, reply in replies_by_node(self._sent.values(), replies).items():
                card = self.cards[node_id]
                body = read_reply(reply, UseReply)
                if isinstance(body, Decision) or body.histogram is None:
                    continue
                exact = self.views[card.holder_id].standing.evaluation is Evaluation.EXACT
                cells = {len(row) for row in body.histogram}
                most = _MOST_RECORDS_PER_WEIGHT * card.weight * THOUSANDTHS
                if cells != {EXACT_BINS if exact else PRIVATE_BINS} or sum(map(sum, body.histogram)) > most:
                    continue
                try:
                    self.coordinator.see(card, body.log, run_id=self.run_id)
                except RingfenceError:
                    continue
                found[card.holder_id] = body.histogram
        self.coordinator.save()
        return found

    def log_view_for(self, holder_id: str) -> LogView:
        """Our log as a holder must be shown it: with the proof from what it has seen of it."""
        if holder_id in self.views:
            self.seen[holder_id] = self.views[holder_id].introduction.coordinator_log_seen
        return self.coordinator.log_view(since=self.seen.get(holder_id, 0))

    def sign(self, message_type: str, bodies: Mapping[int, bytes]) -> dict[int, str]:
        """Sign messages of one type, by node, as the coordinator."""
        signed = self.coordinator.sign_requests(
            message_type, [(self.cards[node_id], body) for node_id, body in bodies.items()]
        )
        return dict(zip(bodies, signed, strict=True))

    def who_refused(self) -> str:
        """Every holder that refused or was refused in any round so far, with the clauses."""
        return clauses_by_holder(self.absent, self.outcomes)

    def stop_if_all_are_silent(self) -> None:
        """Tell a run that nobody refused from one that nobody answered.

        Raises:
            RunFailed: Not one data holder said anything.
        """
        if self.absent and not self.views and all(denial.clauses == (NO_REPLY,) for denial in self.absent.values()):
            raise RunFailed(
                "no data holder answered, so nothing was trained",
                expected=f"an answer within {self.plan.terms.cohort.round_seconds} seconds",
                got="; ".join(sorted({one.meaning for denial in self.absent.values() for one in denial.failed})),
                next_step="see that the holders' nodes are online; `ringfence run --resume DIR` goes on",
            )

    # --- inside ------------------------------------------------------------------------------------------------------

    def _cohort(
        self, candidates: Sequence[str], action: Action, round_number: int, *, final: bool
    ) -> tuple[tuple[str, ...], dict[str, Decision]]:
        found, facts = self._permitting(candidates, action)
        refusals = dict(found.refusals)
        members = found.members
        if action is Action.TRAIN and len(members) < self.plan.terms.cohort.min_holders:
            too_few = Decision.deny(
                "plan-min-holders",
                "The plan itself asks for more data holders than permit this round.",
                limit=f"at least {self.plan.terms.cohort.min_holders}",
                point=Point.COORDINATOR,
            )
            refusals |= dict.fromkeys(members, too_few)
            members = ()
        asked_for = action is Action.TRAIN and not final
        # What a holder refused is in its own log; in ours stands that it was therefore not asked.
        not_asked = {holder: replace(denial, point=Point.COORDINATOR) for holder, denial in self.absent.items()}
        permits_kept = {holder: found.decisions[holder] for holder in members} if final else {}
        with self.coordinator.database.transaction():
            decisions = {**refusals, **(not_asked if asked_for else {}), **permits_kept}
            for holder, decision in decisions.items():
                self._log(
                    "decision",
                    round_number=round_number,
                    holder=holder,
                    decision=decision.for_outsiders().to_document(),
                    action=action.value,
                    inputs=facts[holder].public_facts() if holder in facts else None,
                )
        return members, {**refusals, **(self.absent if asked_for else {})}

    def _permitting(self, candidates: Sequence[str], action: Action) -> tuple[Cohort, Mapping[str, RoundRequest]]:
        """The largest cohort among candidates; where all of a cohort just found are asked again, that very answer."""
        key = (action, frozenset(candidates))
        if self._found is not None and self._found[0] == key:
            return self._found[1:]
        facts: dict[str, RoundRequest] = {}

        def permits(holder: str, members: frozenset[str]) -> Decision:
            decision, facts[holder] = self.coordinator.decide(
                self.views[holder], plan=self.plan, action=action, cohort_size=len(members)
            )
            return decision

        found = largest_cohort(candidates, permits)
        self._found = ((action, frozenset(found.members)), replace(found, refusals={}), facts)
        return found, facts

    def _still_permitted(self, accepted: dict[str, tuple[Message, UseReply]]) -> dict[str, tuple[Message, UseReply]]:
        """Leave out who would not have taken part in the smaller cohort that is left after refusals and defects."""
        found, _ = self._permitting(list(accepted), Action.TRAIN)
        for holder, denial in found.refusals.items():
            words = "; ".join(one.meaning for one in denial.failed)
            self._reject(self.cards[self._nodes[holder]], Defect(",".join(denial.clauses), words))
        fewest = self.plan.terms.cohort.min_holders
        if len(found.members) >= fewest:
            return {holder: accepted[holder] for holder in found.members}
        for holder in found.members:
            too_few = Defect(
                "plan-min-holders", f"the plan asks for at least {fewest} updates, {len(found.members)} came"
            )
            self._reject(self.cards[self._nodes[holder]], too_few)
        return {}

    def _is_enough(self, replies: Sequence[Message]) -> bool:
        """Whether a training round may close: as many holders as the plan calls enough gave updates that can be used.

        An answer that cannot be used counts for nothing, nor does one whose holder wants more company than came.
        """
        enough = self.plan.terms.cohort.enough_holders
        if not enough or any(one.metadata.message_type != Action.TRAIN.value for one in self._sent.values()):
            return False
        came = replies_by_node(self._sent.values(), replies)  # none of the answers to a question is among these
        for node_id, reply in came.items():
            if node_id not in self._usable:
                body = read_reply(reply, UseReply)
                card = self.cards[node_id]
                self._usable[node_id] = isinstance(body, UseReply) and self._defect_in(card, reply, body) is None
        usable = [self.cards[node_id].holder_id for node_id in came if self._usable[node_id]]
        return len(usable) >= enough and len(self._permitting(usable, Action.TRAIN)[0].members) >= enough

    def _defect(self, card: HolderCard, reply: Message, body: UseReply) -> Defect | None:
        try:
            self.coordinator.see(card, body.log, run_id=self.run_id)
        except RingfenceError as error:
            return Defect("log", error.summary)
        return self._defect_in(card, reply, body)

    def _defect_in(self, card: HolderCard, reply: Message, body: UseReply) -> Defect | None:
        """What is wrong with an update in itself; records nothing."""
        training = self.plan.terms.training
        mechanism = self.mechanisms.get(card.holder_id)
        expected_source = "seeded" if self.plan.rehearsal else "csprng"
        if mechanism is None or body.mechanism != mechanism.to_document() or body.noise_source != expected_source:
            return Defect("mechanism", "clip, noise and rate must be those the holder settled before the run")
        try:
            file = file_in(reply.content.array_records[ARRAYS_RECORD])
            update = load(file)
            claimed = reply.content.metric_records[METRICS_RECORD].get(WEIGHT_KEY)
        except Exception as error:  # noqa: BLE001 -- whatever a holder sends must not end the run for the others
            return Defect("malformed", f"the update could not be read: {type(error).__name__}")
        bound = norm_bound(
            mechanism,
            learning_rate=float(training.learning_rate),
            weight=card.weight,
            parameters=sum(array.size for array in self._base.values()),
        )
        defect = find_defect(update, base=self._base, bound=bound, claimed_weight=claimed, weight=card.weight)
        if defect is None and canonical.digest_bytes(file) != body.digest:
            return Defect("digest", "the update must be the one whose digest the holder logged")
        return defect

    def _refused_by_holder(self, card: HolderCard, denial: Decision) -> None:
        self.outcomes[-1].refused.append(Refusal.of(card.holder_id, denial))
        reason = "; ".join(one.meaning for one in denial.failed)
        code = ",".join(denial.clauses)[:90]
        self._log("update-refused", holder=card.holder_id, reason=reason[:1900], code=code)

    def _reject(self, card: HolderCard, defect: Defect) -> None:
        self.outcomes[-1].rejected_updates.append(RejectedUpdate(card.holder_id, defect.code, defect.reason))
        self._log("update-refused", holder=card.holder_id, reason=defect.reason[:1900], code=defect.code[:90])

    def _log(self, kind: str, *, round_number: int | None = None, **members: object) -> None:
        number = self.outcomes[-1].round if round_number is None else round_number
        self.coordinator.append(kind, run_id=self.run_id, round_number=number, **members)
