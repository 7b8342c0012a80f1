"""A small consortium that really runs: real policies, gates, ledgers, logs and keys; only training is left out.

A party can be made to lie through `at_append`: its log then holds, properly signed, what the lie makes of each record.
"""

import contextlib
import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ringfence_policy import bundle_layout as layout
from ringfence_policy import canonical, merkle
from ringfence_policy.accounting import epsilon_micro
from ringfence_policy.bundle import write_bundle
from ringfence_policy.cohort import largest_cohort
from ringfence_policy.database import Database
from ringfence_policy.decision import Decision, Point
from ringfence_policy.documents import (
    Role,
    key_list_document,
    manifest_document,
    participation_document,
    status_document,
)
from ringfence_policy.evidence_log import EvidenceLog, PrivateDetails
from ringfence_policy.facts import Cost, use_request
from ringfence_policy.gate import PolicyGate
from ringfence_policy.identity import DocumentType, SigningKey, sign
from ringfence_policy.ledger import PrivacyLedger
from ringfence_policy.mechanism import DpMechanism, history_to_document
from ringfence_policy.plan import PlanFile, PlanHolder, TrainingPlan
from ringfence_policy.policy import parse_policy
from ringfence_policy.schema import DatasetSchema
from ringfence_policy.strict_toml import parse_toml
from ringfence_policy.verify import Roots, verify_bundle
from ringfence_policy.vocabulary import Action, Evaluation, Relation, Unit

START_MS = int(datetime(2026, 11, 21, 9, tzinfo=UTC).timestamp() * 1000)
DELTA_PICO = 10**8
WEIGHTS = {"alpha": 300, "beta": 250, "gamma": 120}
TEXT = {path.stem: path.read_text() for path in (Path(__file__).parent / "consortium").glob("*.toml")}


def digest_of(*parts):
    return canonical.digest(list(parts))


class Party:
    """Keys, a database and a log, for a holder or the coordinator."""

    def __init__(self, world, name, roles):
        self.world = world
        self.name = name
        self.root = SigningKey(kid=f"{name}/root", seed=canonical.digest_bytes(f"{name} root".encode())[-32:].encode())
        self.key = {
            role: SigningKey(
                kid=f"{name}/{role.value}-1", seed=canonical.digest_bytes(f"{name} {role}".encode())[-32:].encode()
            )
            for role in roles
        }
        listed = [(key.public(), START_MS - 1, START_MS + 10**10, [role]) for role, key in self.key.items()]
        self.keys_token = sign(key_list_document(name, 1, listed), type=DocumentType.KEYS, key=self.root)
        self.database = Database.open(world.directory / f"{name}.db")
        kind = "coordinator" if name == "consortium" else "holder"
        self.log = EvidenceLog(self.database, origin=f"ringfence/{kind}/{name}")
        self.log_key = self.key[Role.PLAN if name == "consortium" else Role.NODE]

    def record(self, kind, round_number=0, *, private=None, **members):
        record = {
            "v": 1, "kind": kind, "at_ms": self.world.now_ms, "run": self.world.run_id, "round": round_number,
            **members,
        }  # fmt: skip
        lie = self.world.at_append.get(self.name)
        for one in [record] if lie is None else lie(record):
            self.log.append(one, private=private if one is record else None)

    def checkpoint(self):
        return self.log.checkpoint(key=self.log_key, now_ms=self.world.now_ms)


class Holder(Party):
    def __init__(self, world, name, policy):
        super().__init__(world, name, [Role.POLICY, Role.STATUS, Role.NODE])
        self.policy = policy
        self.gate = PolicyGate(policy)
        self.policy_token = sign(policy.to_document(), type=DocumentType.POLICY, key=self.key[Role.POLICY])
        self.ledger = PrivacyLedger(self.database, clock=lambda: world.now_ms)
        self.ledger.register_dataset(
            policy.dataset_id, fingerprint=digest_of(name), epsilon_micro=5_000_000, delta_pico=DELTA_PICO
        )
        self.ledger.register_policy(
            policy.policy_id, dataset_id=policy.dataset_id, version=policy.version,
            epsilon_micro=policy.epsilon_micro, delta_pico=policy.delta_pico, max_rounds=policy.max_rounds,
        )  # fmt: skip
        self.mechanism = mechanism(noise=30.0)
        self.noise_source = "csprng"
        self.status_seq = 7
        self.revoked = []
        self.ignores_revocation = False
        self.suspended = None
        self.ignores_suspension = False

    @property
    def dataset(self):
        return self.policy.dataset_id

    def status_token(self):
        document = status_document(
            self.name, seq=self.status_seq, issued_ms=self.world.now_ms, good_until_ms=self.world.now_ms + 900_000,
            revoked=self.revoked, suspended=self.suspended,
        )  # fmt: skip
        return sign(document, type=DocumentType.STATUS, key=self.key[Role.STATUS])

    def participation_token(self):
        document = participation_document(
            holder_id=self.name, run_id=self.world.run_id, plan_digest=self.world.plan.digest, last_round=3,
            history=history_to_document(self.ledger.history(self.dataset)), weight=WEIGHTS[self.name],
            issued_ms=self.world.now_ms, good_until_ms=self.world.now_ms + 10**7,
        )  # fmt: skip
        return sign(document, type=DocumentType.PARTICIPATION, key=self.key[Role.NODE])

    def request(self, action, cohort_size, *, applied=None, evaluation=Evaluation.NONE, records=None):
        quote = self.ledger.quote(
            dataset_id=self.dataset, policy_id=self.policy.policy_id, mechanism=applied, action=action
        )
        cost = Cost(
            rounds_used=quote.rounds_used,
            epsilon_after_micro=quote.policy_epsilon_after_micro,
            epsilon_cost_micro=quote.policy_epsilon_cost_micro,
        )
        return use_request(
            self.world.plan, self.policy, action=action, now_ms=self.world.now_ms, cohort_size=cohort_size, cost=cost,
            evaluation=evaluation, records=records, status_fresh=True,
            sandboxed=True,
            revoked=bool(self.revoked) and not self.ignores_revocation,
            suspended=self.suspended is not None and not self.ignores_suspension,
        )  # fmt: skip

    def decide(self, request, point, round_number, hold_id):
        decision = self.gate.decide(request, point=point)
        private = PrivateDetails.seal({"records": request.records})
        self.record(
            "decision", round_number, private=private, decision=decision.for_outsiders().to_document(),
            action=request.action.value, hold_id=hold_id, inputs=request.public_facts(), status_seq=self.status_seq,
            policy_key_id=self.key[Role.POLICY].kid, private_digest=private.digest,
        )  # fmt: skip
        return decision

    def use(self, action, round_number, cohort_size, base, *, applied, evaluation=Evaluation.NONE):
        """One use of the data, from permit to record. Returns (hold id, digest of what left), or None where denied."""
        hold_id = f"{self.world.run_id}/{round_number}/{self.world.attempt}/{self.name}/{action.value}"
        for point in (Point.BEFORE_TRAINING, Point.BEFORE_UPLOAD):
            request = self.request(action, cohort_size, applied=applied, evaluation=evaluation, records=200)
            if not self.decide(request, point, round_number, hold_id).permitted:
                return None
        what = digest_of(hold_id, "update")
        with self.database.transaction():
            if applied is not None:
                self.ledger.reserve(
                    hold_id, run_id=self.world.run_id, round_number=round_number,
                    attempt=self.world.attempt, dataset_id=self.dataset,
                    policy_id=self.policy.policy_id, mechanism=applied, action=action,
                )  # fmt: skip
                self.ledger.mark_sending(hold_id, update_digest=what)
            history = self.ledger.history(self.dataset, reserved=False)
            spent = {
                "hold_id": hold_id, "base_model_digest": base, "mechanism": applied and applied.to_document(),
                "epsilon_micro": epsilon_micro(history, delta_pico=DELTA_PICO), "delta_pico": DELTA_PICO,
                "history": history_to_document(history), "noise_source": self.noise_source if applied else "none",
            }  # fmt: skip
            if action is Action.TRAIN:
                self.record("sent", round_number, update_digest=what, weight=WEIGHTS[self.name], **spent)
            else:
                self.record("evaluated", round_number, result_digest=what, **spent)
        if applied is not None:
            self.ledger.commit(hold_id)
        return hold_id, what


def mechanism(*, noise, kind="dp-sgd"):
    return DpMechanism(
        kind=kind, clipping_norm=1.0 if kind == "score-histogram" else 0.5, noise_multiplier=noise, sampling_rate=1.0,
        steps=1, unit=Unit.RECORD, relation=Relation.ADD_OR_REMOVE,
    )  # fmt: skip


class World:
    """Three holders and a coordinator. gamma's policy allows two rounds, so it is refused in the third."""

    def __init__(self, directory, *, at_append=None, rehearsal=False, noise_source="csprng"):
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.at_append = at_append or {}
        self.rehearsal = rehearsal
        self.now_ms = START_MS
        self.run_id = "run-1"
        self.attempt = 1
        self.untrusted = set()  # holders whose papers do not hold, so that every gate refuses them unread
        self.coordinator = Party(self, "consortium", [Role.PLAN])
        self.holders = {
            name: Holder(
                self,
                name,
                parse_policy(
                    TEXT["policy"].format(
                        holder=name, version=1, max_rounds=2 if name == "gamma" else 20, epsilon="2.0",
                        evaluation="exact" if name == "alpha" else "private",
                        rehearsal="allowed" if rehearsal else "forbidden",
                    )
                ),
            )
            for name in WEIGHTS
        }  # fmt: skip
        for holder in self.holders.values():
            holder.noise_source = noise_source
        self.plan = TrainingPlan(
            terms=parse_toml(TEXT["plan"], PlanFile, source="plan.toml"),
            dataset_schema=parse_toml(TEXT["schema"], DatasetSchema, source="schema.toml"),
            holders={
                name: PlanHolder(
                    weight=WEIGHTS[name], root_thumbprint=one.root.public().thumbprint, root=one.root.public().jwk
                )
                for name, one in self.holders.items()
            },
            rehearsal=rehearsal,
        )
        self.roots = Roots(
            "consortium",
            self.coordinator.root.public(),
            {name: one.root.public() for name, one in self.holders.items()},
        )
        self.model = b"the model after the last round"

    def tick(self):
        self.now_ms += 1000

    def exchange(self, round_number):
        shown = self.coordinator.checkpoint()
        for holder in self.holders.values():
            holder.record("peer-checkpoint", round_number, checkpoint=shown)
        for holder in self.holders.values():
            self.coordinator.record("peer-checkpoint", round_number, holder=holder.name, checkpoint=holder.checkpoint())

    def run(self, run_id="run-1", **hooks):
        """Run the plan once. One transaction per database: what is tested here is evidence, not durability."""
        with contextlib.ExitStack() as stack:
            for party in (self.coordinator, *self.holders.values()):
                stack.enter_context(party.database.transaction())
            return self._run(run_id, **hooks)

    def _run(self, run_id, *, before_round=None, after_rounds=None):
        self.run_id = run_id
        self.model_digest = digest_of("initial model")
        self.participation = {name: one.participation_token() for name, one in self.holders.items()}
        self.coordinator.record(
            "run-started", plan_digest=self.plan.digest, holders=sorted(self.holders), model_digest=self.model_digest
        )
        for holder in self.holders.values():
            holder.record("plan-shown", plan_digest=self.plan.digest)
        self.exchange(0)
        for round_number in (1, 2, 3):
            self.tick()
            if before_round is not None:
                before_round(self, round_number)
            self.one_round(round_number)
        self.tick()
        if after_rounds is not None:
            after_rounds(self)
        self.evaluate()
        self.release()
        return self

    def one_round(self, round_number):
        requests = {}

        def permits(name, cohort):
            holder = self.holders[name]
            requests[name] = holder.request(Action.TRAIN, len(cohort), applied=holder.mechanism)
            return holder.gate.decide(requests[name], point=Point.COORDINATOR)

        found = largest_cohort(sorted(self.holders.keys() - self.untrusted), permits)
        asked = list(found.members)
        refused = {name: list(decision.clauses) for name, decision in found.refusals.items()}
        for name, decision in (found.decisions | found.refusals).items():
            self.coordinator.record(
                "decision", round_number, holder=name, decision=decision.for_outsiders().to_document(),
                action="train", inputs=requests[name].public_facts(),
            )  # fmt: skip
        for name in self.untrusted:
            refused[name] = ["signature"]
            unread = {"action": "train", "inputs": None}
            denied = Decision.deny("signature", point=Point.COORDINATOR).to_document()
            self.coordinator.record("decision", round_number, holder=name, decision=denied, **unread)
            denied = Decision.deny("signature", point=Point.BEFORE_TRAINING).to_document()
            self.holders[name].record(
                "decision", round_number, decision=denied, hold_id="", status_seq=None, policy_key_id=None,
                private_digest=None, **unread,
            )  # fmt: skip
        updates = {}
        for name in asked:
            used = self.holders[name].use(
                Action.TRAIN, round_number, len(asked), self.model_digest, applied=self.holders[name].mechanism
            )
            if used is None:
                refused[name] = ["on_revoke"]
                continue
            hold_id, updates[name] = used
            self.coordinator.record(
                "update-received", round_number, holder=name, hold_id=hold_id, update_digest=updates[name]
            )
        self.model_digest = (
            canonical.digest_bytes(self.model) if round_number == 3 else digest_of(self.run_id, round_number)
        )
        self.coordinator.record(
            "round-committed", round_number, cohort=sorted(updates), updates=updates, refused=refused,
            model_digest=self.model_digest,
        )  # fmt: skip
        self.exchange(round_number)

    def evaluate(self):
        cohort = len(self.holders)
        alpha, beta = self.holders["alpha"], self.holders["beta"]
        alpha.use(Action.EVALUATE, 3, cohort, self.model_digest, applied=None, evaluation=Evaluation.EXACT)
        histogram = mechanism(noise=25.0, kind="score-histogram")
        beta.use(Action.EVALUATE, 3, cohort, self.model_digest, applied=histogram, evaluation=Evaluation.PRIVATE)

    def release(self):
        for name in self.holders.keys() - self.untrusted:
            holder = self.holders[name]
            holder.decide(holder.request(Action.RELEASE, 3, records=200), Point.RELEASE, 3, "")
        self.coordinator.record("model-released", 3, model_digest=self.model_digest, rounds=3)
        self.exchange(3)

    def files(self):
        """The bundle's files, without the manifest."""
        self.tick()
        coordinator = self.coordinator
        files = {
            layout.PLAN: sign(self.plan.to_document(), type=DocumentType.PLAN, key=coordinator.key[Role.PLAN]).encode(),
            layout.CLAIMS: canonical.encode(self.claims()),
            layout.MODEL: self.model,
            layout.coordinator_file(layout.KEYS): coordinator.keys_token.encode(),
            layout.coordinator_file(layout.LOG): lines_of(coordinator.log),
            layout.coordinator_file(layout.CHECKPOINT): coordinator.checkpoint().encode(),
        }
        for name, holder in self.holders.items():
            papers = {
                layout.KEYS: holder.keys_token.encode(),
                layout.LOG: lines_of(holder.log),
                layout.CHECKPOINT: holder.checkpoint().encode(),
            }
            if name not in self.untrusted:
                policy = holder.policy
                papers[layout.STATUS] = holder.status_token().encode()
                papers[layout.PARTICIPATION] = self.participation[name].encode()
                files[layout.policy_file(name, policy.policy_id, policy.version)] = holder.policy_token.encode()
            files |= {layout.holder_file(name, file): data for file, data in papers.items()}
        return files

    def claims(self):
        holders = {}
        for name, holder in self.holders.items():
            history = holder.ledger.history(holder.dataset)
            sent = [r for r in holder.log.records() if r["kind"] == "sent" and r["run"] == self.run_id]
            holders[name] = {
                "epsilon_micro": epsilon_micro(history, delta_pico=DELTA_PICO), "delta_pico": DELTA_PICO,
                "epsilon_cap_micro": holder.policy.epsilon_micro, "rounds": len(sent),
                "mechanism": sent[-1]["mechanism"] if sent else None,
            }  # fmt: skip
        return {"run": self.run_id, "rehearsal": self.rehearsal, "holders": holders}

    def seal(self, files, **changes):
        """Add the coordinator's manifest over these files: what a dishonest coordinator can always do."""
        members = {
            "run_id": self.run_id, "coordinator": "consortium", "made_at_ms": self.now_ms, "rehearsal": self.rehearsal,
            "files": files,
        } | changes  # fmt: skip
        manifest = sign(manifest_document(**members), type=DocumentType.MANIFEST, key=self.coordinator.key[Role.PLAN])
        return {**files, layout.MANIFEST: manifest.encode()}

    def verify(self, files=None, *, roots=None, sealed=False):
        path = self.directory / "evidence.zip"
        write_bundle(path, files if sealed else self.seal(self.files() if files is None else files))
        return verify_bundle(path, roots or self.roots, now_ms=self.now_ms)


def lines_of(log):
    return b"".join(line + b"\n" for line in log.lines())


@pytest.fixture
def world_of(tmp_path):
    """Make worlds; each has its own directory."""
    made = []

    def make(**options):
        world = World(tmp_path / f"world-{len(made)}", **options)
        made.append(world)
        return world

    yield make
    for world in made:
        for party in (world.coordinator, *world.holders.values()):
            party.database.close()


@pytest.fixture(scope="session")
def honest(tmp_path_factory):
    """One honest run, shared by every test that only tampers with its files."""
    world = World(tmp_path_factory.mktemp("honest")).run()
    yield Honest(world, world.files())
    for party in (world.coordinator, *world.holders.values()):
        party.database.close()


@dataclasses.dataclass(frozen=True)
class Honest:
    world: World
    files: dict

    def verify(self, changes=None, **options):
        """Verify the bundle with some files changed (None: removed), sealed again by the coordinator."""
        merged = {**self.files, **(changes or {})}
        return self.world.verify({name: data for name, data in merged.items() if data is not None}, **options)

    def log(self, owner):
        """The records of one exported log."""
        return [json.loads(line) for line in self.files[log_file(owner)].splitlines()]

    def relog(self, owner, records, *, key=None):
        """Another log for `owner`, signed by its own key or by `key`: what whoever has that key can always make."""
        lines = [canonical.encode(record) for record in records]
        party = self.world.coordinator if owner == "consortium" else self.world.holders[owner]
        document = {
            "origin": party.log.origin, "size": len(lines), "at_ms": self.world.now_ms,
            "root": "sha256:" + merkle.root_of([merkle.leaf_hash(line) for line in lines]).hex(),
        }  # fmt: skip
        token = sign(document, type=DocumentType.CHECKPOINT, key=key or party.log_key)
        name = log_file(owner)
        return {
            name: b"".join(line + b"\n" for line in lines),
            name.replace(layout.LOG, layout.CHECKPOINT): token.encode(),
        }


def log_file(owner):
    return layout.coordinator_file(layout.LOG) if owner == "consortium" else layout.holder_file(owner, layout.LOG)
