"""One data holder's node as it speaks with the coordinator: it is shown plans, shows papers and hands over evidence.

The data itself is used elsewhere (`enforcement`). What is said here is signed or public, and no count of records.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from ringfence_client.home import HolderHome
from ringfence_client.known_stops import KnownStops
from ringfence_client.officer import revoke, root_of
from ringfence_client.outbox import Outbox
from ringfence_client.papers import Papers, read_papers, read_token, without_status
from ringfence_client.participation import Participations
from ringfence_client.peers import present_peers, read_peers
from ringfence_client.plan_checks import problem_with
from ringfence_client.recovery import Presence, settle_open_holds
from ringfence_client.run_terms import KnownTerms, RunTerms
from ringfence_client.signed_requests import check_request
from ringfence_client.standing import rounds_left, standing_of
from ringfence_client.watched_files import WatchedFiles
from ringfence_client.workroom import Workroom
from ringfence_policy.accounting import PICO, epsilon_micro, epsilon_under
from ringfence_policy.database import Database
from ringfence_policy.decision import Decision, Point
from ringfence_policy.documents import Role
from ringfence_policy.errors import DataInvalid, TrustRefused
from ringfence_policy.evidence_log import EvidenceLog, PrivateDetails, decision_record
from ringfence_policy.facts import Cost, use_request
from ringfence_policy.gate import PolicyGate
from ringfence_policy.identity import DocumentType, PublicKey, SigningKey
from ringfence_policy.ledger import HoldState, PrivacyLedger, now_ms
from ringfence_policy.log_views import LogViews
from ringfence_policy.mechanism import MICRO, DpMechanism
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.policy import UsagePolicy
from ringfence_policy.protocol import (
    Body,
    EvidenceReply,
    EvidenceRequest,
    Introduction,
    LogView,
    Offer,
    PeerPapers,
    Proposal,
    ReleaseReply,
    ReleaseRequest,
)
from ringfence_policy.request import RoundRequest
from ringfence_policy.settlement import settle
from ringfence_policy.trust_memory import remembered
from ringfence_policy.trust_store import TrustStore
from ringfence_policy.vocabulary import Action, Relation


class HolderNode:
    """One holder, opened: ledger, log, keys and what it remembers. One per process and holder.

    Args:
        home: The holder's directory.
        coordinator_root: The coordinator's root key as this holder learnt it; pinned at the first meeting.
        workroom: Where its records are used.
        clock: Milliseconds since the Unix epoch.

    Raises:
        LedgerFault: The ledger is missing or cannot be used. Without a ledger no data is used.
        TrustRefused: What the holder remembers of signed documents is missing or unreadable, or a key is.
    """

    def __init__(
        self,
        home: HolderHome,
        *,
        coordinator_root: PublicKey,
        workroom: Workroom,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.home = home
        self.holder_id = home.profile.holder_id
        self.clock = clock
        self.database = Database.open(home.database, must_exist=True)
        with ExitStack() as opened:
            opened.callback(self.database.close)
            # Before the key is read: it is replaced only while nobody is present.
            self._presence = Presence(home)
            opened.callback(self._presence.close)
            self.ledger = PrivacyLedger(self.database, clock=clock)
            self.log = EvidenceLog(self.database, origin=f"ringfence/holder/{self.holder_id}")
            self._key = SigningKey.load(home.keys / "node.jwk")
            self._trust = remembered(self.database, is_new=self.log.size == 0, root=root_of(home))
            opened.pop_all()
        self.outbox = Outbox(self.database)
        self._files = WatchedFiles()
        self._terms = KnownTerms(home, self._files)
        self._participations = Participations(home, self.ledger, key=self._key)
        self._views = LogViews(self.log, key=self._key)
        self._coordinator_root = coordinator_root
        self._gates: dict[str, PolicyGate] = {}
        self.workroom = workroom
        self._stops = KnownStops(self.log)
        if self._presence.is_alone:
            settle_open_holds(self.database, self.ledger, self.append, charged=self._ran_own_code)
            self._presence.share()

    def close(self) -> None:
        """Close the ledger, and end what runs in the workroom."""
        self.workroom.close()
        self.database.close()
        self._presence.close()

    # --- what the coordinator asks -----------------------------------------------------------------------------------

    def propose(self, proposal: Proposal) -> Introduction | Decision:
        """Be shown a plan: check it, settle its noise, keep it. From now on no other plan is this run's.

        The plan's names (who asks, what for, which columns, which schema) are decided before any record is read.
        """
        point = Point.BEFORE_TRAINING
        papers = self.papers(point=point)
        if isinstance(papers, Decision):
            return papers
        coordinator = self.coordinator
        coordinator.accept_keys(proposal.coordinator_keys)
        payload = coordinator.accept_payload(proposal.plan, type=DocumentType.PLAN, role=Role.PLAN, now_ms=self.clock())
        plan = TrainingPlan.from_payload(payload)
        shown = self._terms.of(proposal.run_id, coordinator=coordinator, now_ms=self.clock())
        problem = problem_with(plan, proposal, home=self.home, known=self._known_peers(), shown=shown)
        if problem is not None:
            return Decision.deny("plan", limit=problem, point=point, policy=papers.policy.reference)
        if shown is None:
            decision = self._judge_names(plan, papers)
            if not decision.permitted:
                return decision
        try:
            self._register(plan, papers.policy, proposal.run_id)
        except DataInvalid:
            # Which record does not fit, or how many, is for the data officer: `ringfence-node schema DIR` says it.
            return Decision.deny("data", point=point, policy=papers.policy.reference)
        if shown is None:
            shown = self._settle(proposal, plan, papers.policy)
        self._trust.save()
        return without_status(papers) or self._introduction(shown, papers, known_size=proposal.known_size)

    def _judge_names(self, plan: TrainingPlan, papers: Papers) -> Decision:
        facts = use_request(
            plan,
            papers.policy,
            action=Action.TRAIN,
            now_ms=self.clock(),
            cohort_size=len(plan.holders),
            cost=Cost(),
            sandboxed=self.workroom.sandboxed,
            **papers.officers_word,
        )
        # What a round costs and how many records there are is judged again, with the figures, before each round.
        return self._gate(papers.policy).redecide(facts, point=Point.BEFORE_TRAINING)

    def _settle(self, proposal: Proposal, plan: TrainingPlan, policy: UsagePolicy) -> RunTerms:
        settlement = settle(
            plan=plan,
            policy=policy,
            dataset=self.home.profile.dataset,
            policy_history=self.ledger.history(policy.dataset_id, policy_id=policy.policy_id),
            dataset_history=self.ledger.history(policy.dataset_id),
        )
        shown = RunTerms(
            run_id=proposal.run_id,
            plan_token=proposal.plan,
            plan=plan,
            settlement=settlement,
            rehearsal_seed=proposal.rehearsal_seed,
            coordinator_keys=proposal.coordinator_keys,
        )
        # First the record, on disk: a crash in between leaves it twice, and never a use under a plan that nothing
        # records. The file does not wait for the disk together with other holders' databases, so the record may not.
        self.append("plan-shown", run_id=proposal.run_id, plan_digest=plan.digest)
        self.database.sync()
        shown.save(self.home)
        return shown

    def answer(self, offer: Offer) -> Introduction | Decision:
        """Show fresh papers before a round."""
        self._simulated_officer(offer.round_number)
        terms = self.terms(offer.run_id, plan_digest=offer.plan_digest, point=Point.BEFORE_TRAINING)
        papers = self.papers(point=Point.BEFORE_TRAINING)
        if isinstance(terms, Decision):
            return terms
        if isinstance(papers, Decision):
            return papers
        self.acknowledge(offer.run_id)
        refusal, round_number = without_status(papers), offer.round_number
        return refusal or self._introduction(terms, papers, known_size=offer.known_size, round_number=round_number)

    def shown_next(self, terms: RunTerms, *, round_number: int) -> Introduction | None:
        """Fresh papers for a round, to go beside a view of all of our log; None where the answer would be a denial."""
        self._simulated_officer(round_number)
        papers = self.papers(point=Point.BEFORE_TRAINING)
        if isinstance(papers, Decision) or without_status(papers) is not None:
            return None
        return self._introduction(terms, papers, known_size=self.log.size, round_number=round_number)

    def judge_release(self, request: ReleaseRequest) -> ReleaseReply | Decision:
        """Decide whether the model may be released as the plan says (the fourth enforcement point)."""
        terms = self.terms(request.run_id, plan_digest=request.plan_digest, point=Point.RELEASE)
        papers = self.papers(point=Point.RELEASE)
        if isinstance(terms, Decision):
            return terms
        if isinstance(papers, Decision):
            return papers
        self.acknowledge(request.run_id)
        decision, facts = self.decide(
            terms, papers, action=Action.RELEASE, point=Point.RELEASE, cohort_size=1, mechanism=None
        )
        self.record_decision(
            decision, terms=terms, papers=papers, facts=facts, action=Action.RELEASE, round_number=0, hold_id=""
        )
        return ReleaseReply(decision=decision.for_outsiders().to_document())

    def hand_over(self, request: EvidenceRequest) -> EvidenceReply:
        """Give the coordinator the public evidence of this and every earlier run, and empty the outbox.

        A holder that refuses every use gives its evidence too: the refusals are in it.
        """
        self.acknowledge(request.run_id)
        self.see(request.log, run_id=request.run_id)
        self.outbox.empty(request.run_id)
        papers = self.papers(point=Point.RELEASE)
        terms = self._terms.of(request.run_id, coordinator=self.coordinator, now_ms=self.clock())
        participation = ""
        if terms is not None:
            # What was sent before is proved also where the papers no longer hold: then there is no further round.
            left = rounds_left(self.ledger, terms, papers.policy) if isinstance(papers, Papers) else 0
            participation = self._participations.signed_now(terms, rounds_left=left, now_ms=self.clock())
        with self.database.transaction():
            records = tuple(line.decode() for line in self.log.lines())
            checkpoint = self.log.checkpoint(key=self._key, now_ms=self.clock())
        dataset = self.home.profile.dataset
        spent = self.ledger.history(dataset.dataset_id, reserved=False)
        replaced = epsilon_under(spent, relation=Relation.REPLACE_ONE, delta=dataset.delta_pico / PICO)
        return EvidenceReply(
            keys=read_token(self.home.key_list),
            policies=tuple(read_token(path) for path in sorted((self.home.papers / "policies").glob("*.jws"))),
            status=read_token(self.home.status),
            participation=participation,
            records=records,
            checkpoint=checkpoint,
            dataset_epsilon_micro=epsilon_micro(spent, delta_pico=dataset.delta_pico),
            dataset_epsilon_replace_one_micro=math.ceil(replaced * MICRO),
            dataset_delta_pico=dataset.delta_pico,
        )

    # --- what enforcement needs --------------------------------------------------------------------------------------

    @property
    def coordinator(self) -> TrustStore:
        """What is known about the coordinator, pinned to its root key."""
        return self._trust.store("coordinator", self._coordinator_root)

    @property
    def coordinator_log_seen(self) -> int:
        """How many records of the coordinator's log this holder has seen."""
        return self.coordinator.largest_log_size

    def papers(self, *, point: Point) -> Papers | Decision:
        """This holder's papers as they are on disk now, or the denial that their state amounts to."""
        trust = self._trust.store("self", root_of(self.home, self._files))
        papers = read_papers(self.home, self._files, trust, now_ms=self.clock(), point=point)
        self._trust.save()
        if isinstance(papers, Papers):
            self._stops.note(papers, self.append)
        return papers

    def terms(self, run_id: str, *, plan_digest: str, point: Point) -> RunTerms | Decision:
        """What was shown for a run, if it is the plan that is asked about now; otherwise a denial (clause plan)."""
        terms = self._terms.of(run_id, coordinator=self.coordinator, now_ms=self.clock())
        if terms is None or terms.plan.digest != plan_digest:
            actual = "no plan was shown for this run" if terms is None else f"plan {plan_digest}"
            limit = "a plan shown before the first round" if terms is None else f"plan {terms.plan.digest}"
            return Decision.deny("plan", limit=limit, actual=actual, point=point)
        return terms

    def decide(
        self,
        terms: RunTerms,
        papers: Papers,
        *,
        action: Action,
        point: Point,
        cohort_size: int,
        mechanism: DpMechanism | None,
        cost: Cost | None = None,
    ) -> tuple[Decision, RoundRequest]:
        """Decide one use with every fact this machine can establish itself.

        Args:
            terms: What this holder was shown for the run.
            papers: Its papers, just read.
            action: What would be done.
            point: Where the question is asked.
            cohort_size: Holders this node has counted, itself included.
            mechanism: What the use would add to the history; None where it adds nothing.
            cost: Its cost where it is already reserved, so that it is not counted twice.
        """
        policy = papers.policy
        facts = use_request(
            terms.plan,
            policy,
            action=action,
            now_ms=self.clock(),
            cohort_size=cohort_size,
            cost=cost if cost is not None else self.cost(terms, policy, mechanism),
            evaluation=terms.settlement.evaluation_mode,
            records=self.workroom.facts(terms.plan).records,
            sandboxed=self.workroom.sandboxed,
            **papers.officers_word,
        )
        return self._gate(policy).decide(facts, point=point), facts

    def _gate(self, policy: UsagePolicy) -> PolicyGate:
        gate = self._gates.get(policy.digest)
        if gate is None:
            gate = self._gates[policy.digest] = PolicyGate(policy)
        return gate

    def cost(self, terms: RunTerms, policy: UsagePolicy, mechanism: DpMechanism | None) -> Cost:
        """What one more use by the run would cost under the policy, from the ledger."""
        quote = self.ledger.quote(
            dataset_id=policy.dataset_id, policy_id=policy.policy_id, mechanism=mechanism, run_id=terms.run_id
        )
        return Cost(
            rounds_used=quote.rounds_used,
            epsilon_after_micro=quote.policy_epsilon_after_micro,
            epsilon_cost_micro=quote.policy_epsilon_cost_micro,
        )

    def count_cohort(self, terms: RunTerms, cohort: Mapping[str, PeerPapers], *, training_round: int | None) -> int:
        """Count the cohort from its members' own signatures, this holder included.

        A peer counts when this holder knows it, the plan names it, its keys lead to the root key it is known by, its
        status is fresh and revokes nothing, and it signed that it takes part in this run under this plan; for training,
        also that its budget reaches `training_round` (None for an evaluation).
        """
        present = present_peers(
            self._known_peers(),
            cohort,
            terms,
            store=lambda holder_id, root: self._trust.store(f"peer/{holder_id}", root),
            training_round=training_round,
            now_ms=self.clock(),
        )
        self._trust.save()
        return len(present - {self.holder_id}) + 1

    def check_signature(self, token: object, body: Body, data: bytes, *, message_type: str) -> None:
        """Refuse (TrustRefused) a message that came as `data` and that the coordinator did not sign for us lately."""
        coordinator, now = self.coordinator, self.clock()
        if isinstance(body, Proposal):
            coordinator.accept_keys(body.coordinator_keys)
        else:  # a node that was restarted in the middle of a run learns the coordinator's keys from what it was shown
            self._terms.of(str(getattr(body, "run_id", "")), coordinator=coordinator, now_ms=now)
        check_request(
            token, data, message_type=message_type, holder_id=self.holder_id, coordinator=coordinator, now_ms=now
        )

    def see(self, view: LogView, *, run_id: str) -> None:
        """Accept the coordinator's checkpoint if its log only grew, and keep it in our own; else raise TrustRefused."""
        coordinator = self.coordinator
        before = coordinator.revision
        seen = self.coordinator_log_seen
        if view.since != seen:
            raise TrustRefused(
                "the coordinator's log was not shown from where we had seen it",
                expected=f"a proof from size {seen}",
                got=f"a proof from size {view.since}",
                next_step="the coordinator asks for papers, which say what was seen, and shows its log again",
            )
        proof = [bytes.fromhex(node) for node in view.proof]
        coordinator.accept_checkpoint(view.checkpoint, role=Role.PLAN, now_ms=self.clock(), proof=proof)
        if coordinator.revision != before:
            self.append("peer-checkpoint", run_id=run_id, checkpoint=view.checkpoint)
        self._trust.save()

    def acknowledge(self, run_id: str) -> None:
        """The coordinator goes on with the run, so what was sent has arrived or is lost: either way it is spent."""
        for hold in self.ledger.holds(run_id, state=HoldState.SENDING):
            self.ledger.commit(hold.hold_id)

    def log_view(self, *, since: int) -> LogView:
        """Our own checkpoint, with the proof that it extends what the coordinator saw."""
        return self._views.since(since, now_ms=self.clock())

    def append(self, kind: str, *, run_id: str = "", round_number: int = 0, **members: Any) -> int:
        """Add one record to the evidence log, in the caller's transaction where there is one."""
        return self.log.append(
            {"v": 1, "kind": kind, "at_ms": self.clock(), "run": run_id, "round": round_number, **members}
        )

    def record_decision(
        self,
        decision: Decision,
        *,
        terms: RunTerms,
        papers: Papers,
        facts: RoundRequest | None,
        action: Action,
        round_number: int,
        hold_id: str,
    ) -> None:
        """Log a decision: for outsiders in the open, with the holder's own figures sealed beside it."""
        self._record(
            decision,
            records=None if facts is None else facts.records,
            run=terms.run_id,
            round=round_number,
            action=action.value,
            hold_id=hold_id,
            inputs=None if facts is None else facts.public_facts(),
            status_seq=None if papers.status is None else papers.status.seq,
            policy_key_id=papers.policy_key_id,
        )

    def record_refusal(self, decision: Decision, *, run_id: str, round_number: int, action: Action) -> None:
        """Log a denial that came before any facts were gathered: a wrong plan, a signature, a rewritten log."""
        unknown = dict.fromkeys(("records", "inputs", "status_seq", "policy_key_id"))
        self._record(decision, run=run_id, round=round_number, action=action.value, hold_id="", **unknown)

    def _record(self, decision: Decision, *, records: int | None, **members: Any) -> None:
        record, private = decision_record(decision, records=records, at_ms=self.clock())
        self.log.append(record | members, private=private)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _register(self, plan: TrainingPlan, policy: UsagePolicy, run_id: str) -> None:
        dataset = self.home.profile.dataset
        data = self.workroom.facts(plan)
        with self.database.transaction():
            is_new = self.ledger.register_dataset(
                dataset.dataset_id,
                fingerprint=data.fingerprint,
                epsilon_micro=dataset.epsilon_micro,
                delta_pico=dataset.delta_pico,
            )
            if is_new:
                salted = PrivateDetails.seal({"fingerprint": data.fingerprint}).digest
                self.append("dataset-version", dataset_id=dataset.dataset_id, fingerprint_digest=salted)
            self.ledger.register_policy(
                policy.policy_id,
                dataset_id=policy.dataset_id,
                version=policy.version,
                epsilon_micro=policy.epsilon_micro,
                delta_pico=policy.delta_pico,
                max_rounds=policy.max_rounds,
            )
            # A proposal starts or resumes a run, so nothing of it is alive here: what was only reserved never left.
            settle_open_holds(
                self.database, self.ledger, self.append, charged=lambda _: plan.runs_own_code, run_id=run_id
            )

    def _ran_own_code(self, run_id: str) -> bool:
        try:
            terms = self._terms.of(run_id, coordinator=self.coordinator, now_ms=self.clock())
        except TrustRefused:
            return True  # what cannot be read may have been anything
        return terms is None or terms.plan.runs_own_code

    def _introduction(self, terms: RunTerms, papers: Papers, *, known_size: int, round_number: int = 0) -> Introduction:
        """What is shown before a round; before any round (0), what a next one would cost."""
        sent = self.outbox.cost_of(self.ledger, terms.run_id, round_number=round_number)
        left = rounds_left(self.ledger, terms, papers.policy)
        return Introduction(
            holder_id=self.holder_id,
            keys=papers.keys_token,
            policy=papers.policy_token,
            status=papers.status_token,
            participation=self._participations.shown(terms, rounds_left=left, now_ms=self.clock()),
            standing=standing_of(self.ledger, terms, papers.policy, sent=sent),
            strangers=tuple(sorted(terms.plan.holders.keys() - self._known_peers().keys() - {self.holder_id})),
            coordinator_log_seen=self.coordinator_log_seen,
            log=self.log_view(since=known_size),
        )

    def _known_peers(self) -> Mapping[str, PublicKey]:
        return self._files.read(self.home.peers, read_peers) if self.home.peers.exists() else {}

    def _simulated_officer(self, round_number: int) -> None:
        if self.home.profile.simulation.revoke_at_round == round_number:
            revoke(self.home, reason="the data officer withdrew the policy (simulated)", now_ms=self.clock())
