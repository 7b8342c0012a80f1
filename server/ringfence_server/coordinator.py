"""The coordinator's own identity, evidence log and picture of every data holder, as its signed papers show it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringfence_policy import merkle
from ringfence_policy.database import Database
from ringfence_policy.decision import Decision, Point
from ringfence_policy.documents import KeyList, Participation, RequestBatch, Role, key_list_document, request_leaf
from ringfence_policy.durable import write_durably
from ringfence_policy.errors import RingfenceError, TrustRefused, UsageError
from ringfence_policy.evidence_log import EvidenceLog
from ringfence_policy.facts import Cost, use_request
from ringfence_policy.gate import PolicyGate
from ringfence_policy.identity import DocumentType, PublicKey, SigningKey, parse, sign
from ringfence_policy.ledger import now_ms
from ringfence_policy.log_views import LogViews
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.policy import UsagePolicy, policy_in
from ringfence_policy.protocol import HolderCard, Introduction, LogView, PeerPapers, RequestSignature, Standing
from ringfence_policy.request import RoundRequest
from ringfence_policy.settlement import loudest_training
from ringfence_policy.trust_memory import TrustMemory
from ringfence_policy.trust_store import TrustStore
from ringfence_policy.vocabulary import Action

_DAY_MS = 24 * 60 * 60 * 1000
_KEY_LIFETIME_MS = 2 * 365 * _DAY_MS


@dataclass(frozen=True)
class HolderView:
    """A holder as its newest papers show it. `standing` is its own unsigned word; the rest was verified."""

    card: HolderCard
    gate: PolicyGate
    introduction: Introduction
    is_revoked: bool
    is_suspended: bool

    @property
    def policy(self) -> UsagePolicy:
        """The signed policy."""
        return self.gate.policy

    @property
    def standing(self) -> Standing:
        """What the holder says its next round would cost."""
        return self.introduction.standing

    @property
    def papers(self) -> PeerPapers:
        """What its peers need in order to count it."""
        said = self.introduction
        return PeerPapers(keys=said.keys, status=said.status, participation=said.participation)


class Coordinator:
    """The neutral coordinator: signs plans, keeps a log, and asks only holders whose terms allow it.

    Its gate protects nobody; it saves a refused request. Every holder decides again on its own machine.

    Args:
        directory: Keys, log and memory; made at the first use.
        coordinator_id: The organisation's id, as policies name it.
        clock: Milliseconds since the Unix epoch.

    Raises:
        UsageError: The directory is another coordinator's.
    """

    def __init__(self, directory: Path, *, coordinator_id: str, clock: Callable[[], int] = now_ms) -> None:
        self.coordinator_id = coordinator_id
        self.clock = clock
        if not (directory / "keys.jws").exists():
            _make_keys(directory, coordinator_id, now_ms=clock())
        self.keys_token = (directory / "keys.jws").read_text()
        if (owner := KeyList.from_document(parse(self.keys_token).claimed()).holder_id) != coordinator_id:
            raise UsageError(
                "these are the keys and the log of another coordinator",
                expected=owner,
                got=coordinator_id,
                where=str(directory),
                next_step=f'write coordinator = "{owner}" into the plan again, or begin in a directory of its own',
            )
        self.root = PublicKey.from_jwk(json.loads((directory / "root.jwk").read_text()))
        self.key = SigningKey.load(directory / "plan.key.jwk")
        self.database = Database.open(directory / "log.db")
        self.log = EvidenceLog(self.database, origin=f"ringfence/coordinator/{coordinator_id}")
        self._views = LogViews(self.log, key=self.key)
        self._trust = TrustMemory(self.database)
        self._gates: dict[str, PolicyGate] = {}

    def close(self) -> None:
        """Close the log."""
        self.database.close()

    def sign_plan(self, plan: TrainingPlan) -> str:
        """Sign a plan. From now on its digest is what holders agree to."""
        return sign(plan.to_document(), type=DocumentType.PLAN, key=self.key)

    def sign_requests(self, message_type: str, bodies: Sequence[tuple[HolderCard, bytes]]) -> list[str]:
        """Sign messages of one type, one to each holder, at once. No holder listens to a message without.

        Returns:
            The signature for each, in the order of `bodies`.
        """
        leaves = [merkle.leaf_hash(request_leaf(card.holder_id, message_type, body)) for card, body in bodies]
        hash_of = merkle.leaf_hashes(leaves)
        root = "sha256:" + merkle.root(len(leaves), hash_of).hex()
        batch = RequestBatch(root=root, size=len(leaves), issued_ms=self.clock())
        token = sign(batch.to_document(), type=DocumentType.REQUEST, key=self.key)
        return [
            RequestSignature(
                batch=token,
                index=index,
                proof=tuple(node.hex() for node in merkle.inclusion_proof(index, len(leaves), hash_of)),
            )
            .to_bytes()
            .decode()
            for index in range(len(leaves))
        ]

    def append(self, kind: str, *, run_id: str, round_number: int = 0, **members: Any) -> None:
        """Add one record to the log, in the caller's transaction where there is one."""
        self.log.append({"v": 1, "kind": kind, "at_ms": self.clock(), "run": run_id, "round": round_number, **members})

    def log_view(self, *, since: int = 0) -> LogView:
        """Our checkpoint and the proof that it extends our first `since` records."""
        return self._views.since(since, now_ms=self.clock())

    def store(self, card: HolderCard) -> TrustStore:
        """What is known about a holder, pinned to the root key of its card.

        Raises:
            TrustRefused: The holder was known under another root key.
        """
        return self._trust.store(card.holder_id, PublicKey.from_jwk(card.root), owner=card.holder_id)

    def known_size(self, card: HolderCard) -> int:
        """How much of a holder's log we have seen, in any run."""
        try:
            return self.store(card).known_log_size(f"ringfence/holder/{card.holder_id}")
        except TrustRefused:
            return 0  # known under another root key: whatever it shows will be refused

    def save(self) -> None:
        """Keep what was learnt about holders."""
        self._trust.save()

    def meet(self, card: HolderCard, said: Introduction, *, plan: TrainingPlan, run_id: str) -> HolderView | Decision:
        """Verify a holder's papers; what does not hold is a denial that names it."""
        try:
            store = self.store(card)
            now = self.clock()
            store.accept_keys(said.keys)
            store.accept_policy(said.policy, now)
            policy = policy_in(said.policy)
            status = store.accept_status(said.status, now)
            participation = Participation.from_payload(
                store.accept_payload(said.participation, type=DocumentType.PARTICIPATION, role=Role.NODE, now_ms=now)
            )
            if (participation.run_id, participation.plan_digest) != (run_id, plan.digest):
                raise TrustRefused("the participation is for another run or plan")
            settled = DpMechanism.from_document(said.standing.mechanism)
            if said.coordinator_log_seen > self.log.size:
                raise TrustRefused(
                    "the holder has seen more of our log than there is",
                    next_step="restore the coordinator's log.db from the newest backup",
                )
            self.see(card, said.log, run_id=run_id)
        except RingfenceError as error:
            clause = "status" if "status" in error.summary else "signature"
            return Decision.deny(clause, error.summary, point=Point.COORDINATOR)
        if not _is_settled_under(plan, settled):
            meaning = "Clip, rate and steps must be the plan's, and the noise no more than it allows."
            return Decision.deny("mechanism", meaning, point=Point.COORDINATOR)
        gate = self._gates.get(policy.digest)
        if gate is None:
            gate = self._gates[policy.digest] = PolicyGate(policy)
        return HolderView(
            card=card,
            gate=gate,
            introduction=said,
            is_revoked=status.revocation_of(policy.policy_id) is not None,
            is_suspended=status.suspended is not None,
        )

    def see(self, card: HolderCard, view: LogView, *, run_id: str) -> None:
        """Accept a holder's checkpoint if its log only grew, and keep it in our own log.

        Raises:
            TrustRefused: The log was rewritten, or shown differently before.
        """
        store = self.store(card)
        before = store.revision
        proof = [bytes.fromhex(node) for node in view.proof]
        store.accept_checkpoint(view.checkpoint, role=Role.NODE, now_ms=self.clock(), proof=proof)
        if store.revision != before:
            self.append("peer-checkpoint", run_id=run_id, holder=card.holder_id, checkpoint=view.checkpoint)

    def decide(
        self, view: HolderView, *, plan: TrainingPlan, action: Action, cohort_size: int
    ) -> tuple[Decision, RoundRequest]:
        """Decide whether to ask a holder at all (the first enforcement point)."""
        standing = view.standing
        training = action is Action.TRAIN
        facts = use_request(
            plan,
            view.policy,
            action=action,
            now_ms=self.clock(),
            cohort_size=cohort_size,
            cost=Cost(
                rounds_used=standing.rounds_used,
                epsilon_after_micro=standing.epsilon_after_micro if training else 0,
                epsilon_cost_micro=standing.epsilon_cost_micro if training else 0,
            ),
            evaluation=standing.evaluation,
            sandboxed=True,  # the holder alone knows, and judges it
            revoked=view.is_revoked,
            suspended=view.is_suspended,
            status_fresh=True,
        )
        decision = view.gate.decide(facts, point=Point.COORDINATOR)
        if decision.permitted and training and standing.rounds_left < 1:
            decision = Decision.deny(
                "dataset-budget",
                point=Point.COORDINATOR,
                limit="at least one more round",
                policy=decision.policy,
                policy_digest=decision.policy_digest,
                inputs_digest=decision.inputs_digest,
            )
        return decision, facts


def _is_settled_under(plan: TrainingPlan, mechanism: DpMechanism) -> bool:
    # The bound on a holder's updates is computed from what it settled: it may not settle its way out of the bound.
    noise = mechanism.noise_multiplier_micro
    loudest = loudest_training(plan)
    return noise <= loudest.noise_multiplier_micro and mechanism == loudest.with_noise(noise)


def _make_keys(directory: Path, coordinator_id: str, *, now_ms: int) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for leftover in directory.glob("*.key.jwk"):  # of a start that was interrupted before keys.jws was written
        leftover.unlink()
    root, plan = (SigningKey.generate(f"{coordinator_id}/{name}-1") for name in ("root", "plan"))
    root.save(directory / "root.key.jwk")
    plan.save(directory / "plan.key.jwk")
    write_durably(directory / "root.jwk", json.dumps(root.public().jwk).encode())
    listed = key_list_document(
        coordinator_id, 1, [(plan.public(), now_ms - _DAY_MS, now_ms + _KEY_LIFETIME_MS, [Role.PLAN])]
    )
    write_durably(directory / "keys.jws", sign(listed, type=DocumentType.KEYS, key=root).encode())
