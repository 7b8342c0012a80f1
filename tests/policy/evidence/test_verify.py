"""Honest bundles verify; what a verification says about rehearsals and other runs, and what it needs."""

import json
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from ringfence_policy import bundle_layout as layout
from ringfence_policy import canonical, evidence_decisions
from ringfence_policy.documents import RevokedPolicy, Suspension
from ringfence_policy.errors import UsageError
from ringfence_policy.gate import PolicyGate
from ringfence_policy.identity import DocumentType, SigningKey, sign
from ringfence_policy.verify import UNPROVEN, read_roots, roots_document, verify_bundle

DOCS = Path(__file__).parents[3] / "docs" / "evidence.md"


def problems(outcome):
    return [f"{check.name}: {check.detail}" for check in outcome.problems]


def changed(document, **changes):
    """The same frozen document with other members. Not `model_copy`, which would keep a remembered digest."""
    members = {name: getattr(document, name) for name in type(document).model_fields}
    return type(document).model_construct(**members | changes)


def test_an_honest_run_verifies(honest):
    outcome = honest.verify()
    assert problems(outcome) == []
    assert outcome.passed
    assert outcome.run_id == "run-1"
    assert not outcome.rehearsal
    document = json.loads(json.dumps(outcome.to_document()))
    assert document["verified"] is True
    assert len(document["checks"]) == len({check["name"] for check in document["checks"]}) == 21


def test_the_honest_run_has_a_refusal_an_exact_and_a_private_evaluation(honest):
    """Or the checks on them would pass for want of anything to check."""
    decisions = [record for record in honest.log("consortium") if record["kind"] == "decision"]
    denied = [one for one in decisions if one["decision"]["effect"] == "deny"]
    assert [(one["holder"], one["decision"]["failed"][0]["clause"]) for one in denied] == [("gamma", "max_rounds")]
    measured = {owner: [r for r in honest.log(owner) if r["kind"] == "evaluated"] for owner in ("alpha", "beta")}
    assert measured["alpha"][0]["mechanism"] is None
    assert measured["beta"][0]["mechanism"]["kind"] == "score-histogram"


def test_a_rehearsal_verifies_and_is_called_not_private(world_of):
    outcome = world_of(rehearsal=True, noise_source="seeded").run().verify()
    assert problems(outcome) == []
    assert outcome.rehearsal
    assert any("NOT PRIVATE" in check.detail for check in outcome.checks)


def test_a_second_run_is_charged_on_top_of_the_first(world_of):
    world = world_of()
    world.run("run-1")
    first = world.claims()["holders"]["alpha"]["epsilon_micro"]
    world.run("run-2")
    assert world.claims()["holders"]["alpha"]["epsilon_micro"] > first * 1.3
    assert problems(world.verify()) == []


def test_an_earlier_rehearsal_on_the_same_data_is_mentioned(world_of):
    world = world_of(rehearsal=True, noise_source="seeded")
    world.run("run-1")
    for holder in world.holders.values():
        holder.noise_source = "csprng"
    world.rehearsal = False
    world.plan = changed(world.plan, rehearsal=False)
    outcome = world.run("run-2").verify()
    assert problems(outcome) == []
    assert not outcome.rehearsal
    assert any("other runs were rehearsals and NOT PRIVATE" in check.detail for check in outcome.checks)


def test_a_revocation_that_is_respected_verifies(world_of):
    """Revoking ends future use; what was learned before stays under the policy's release terms."""

    def revoke(world, round_number):
        if round_number == 3:
            alpha = world.holders["alpha"]
            entry = RevokedPolicy(policy_id="alpha-terms", at_ms=world.now_ms, reason="board", on_revoke="stop-now")
            alpha.revoked, alpha.status_seq = [entry], 8
            alpha.record("revoked", round_number, policy_id="alpha-terms")

    world = world_of()
    world.run(before_round=revoke)
    assert problems(world.verify()) == []
    assert world.claims()["holders"]["alpha"]["rounds"] == 2


def test_a_suspension_that_is_respected_and_lifted_verifies(world_of):
    """The officer stops round 2 and lets round 3 go on: nothing of it is hidden, and nothing is wrong with it."""

    def stop(world, round_number):
        alpha = world.holders["alpha"]
        if round_number == 2:
            alpha.suspended, alpha.status_seq = Suspension(at_ms=world.now_ms, reason="an audit"), 8
            alpha.record("suspended", round_number, status_seq=8)
        if round_number == 3:
            alpha.suspended, alpha.status_seq = None, 9
            alpha.record("suspension-lifted", round_number, status_seq=9)

    world = world_of()
    world.run(before_round=stop)
    assert problems(world.verify()) == []
    assert world.claims()["holders"]["alpha"]["rounds"] == 2


def test_a_run_whose_result_is_an_average_of_its_last_rounds_verifies(world_of):
    world = world_of()
    training = changed(world.plan.terms.training, average_last=Decimal("0.5"))
    world.plan = changed(world.plan, terms=changed(world.plan.terms, training=training))

    def average(the_world):
        the_world.model, the_world.model_digest = b"the average", canonical.digest_bytes(b"the average")
        the_world.coordinator.record("model-averaged", 3, model_digest=the_world.model_digest, rounds=[2, 3])

    assert problems(world.run(after_rounds=average).verify()) == []


def test_a_holder_that_refused_at_once_needs_no_valid_terms(world_of):
    """A policy edited after signing: gamma's node refuses every use, and hands over its log without papers."""
    world = world_of()
    world.untrusted = {"gamma"}
    world.run()
    names = set(world.files())
    assert layout.holder_file("gamma", layout.LOG) in names
    assert layout.holder_file("gamma", layout.STATUS) not in names
    assert problems(world.verify()) == []


def test_a_run_that_was_interrupted_and_resumed_verifies(world_of):
    """Round 2 is sent by everyone, the coordinator crashes, and the round is done again under new holds."""
    lost = []

    def interrupted(record):
        if record["kind"] in {"update-received", "round-committed"} and record["round"] == 2 and len(lost) < 4:
            lost.append(record)
            return []
        return [record]

    world = world_of(at_append={"consortium": interrupted})

    def again(world, round_number):
        if round_number == 3:
            world.coordinator.record("resumed", from_round=2)
            commits = [one for one in world.coordinator.log.records() if one["kind"] == "round-committed"]
            world.model_digest = commits[-1]["model_digest"]
            world.attempt = 2
            world.one_round(2)

    # gamma's two rounds are used up by the lost attempt: what may have left is never given back.
    outcome = world.run(before_round=again).verify()
    assert problems(outcome) == []


def test_a_run_under_another_coordinator_in_a_holders_log_is_no_concern_of_this_one(world_of):
    world = world_of()
    world.run_id = "run-of-others"
    stranger = SigningKey(kid="others/plan-1", seed=b"o" * 32)
    empty = {"origin": "x", "size": 0, "root": canonical.digest_bytes(b""), "at_ms": world.now_ms}
    token = sign(empty, type=DocumentType.CHECKPOINT, key=stranger)
    world.holders["alpha"].record("peer-checkpoint", checkpoint=token)
    assert problems(world.run("run-1").verify()) == []


def test_each_policy_is_compiled_once_however_many_decisions_were_made_under_it(honest, monkeypatch):
    compiled = []

    def gate(policy):
        compiled.append(policy.reference)
        return PolicyGate(policy)

    monkeypatch.setattr(evidence_decisions, "PolicyGate", gate)
    assert honest.verify().passed
    assert sorted(compiled) == sorted(set(compiled))
    assert len(compiled) == 3


def test_verifying_needs_neither_flower_nor_torch_nor_a_ledger(honest):
    path = honest.world.directory / "evidence.zip"
    assert honest.verify().passed
    keys = honest.world.directory / "keys.json"
    keys.write_text(json.dumps(roots_document(honest.world.roots)))
    code = (
        "import sys; from pathlib import Path; from ringfence_policy.verify import *; "
        f"out = verify_bundle(Path({str(path)!r}), read_roots(Path({str(keys)!r}))); "
        "print(out.passed, sorted({'flwr', 'torch', 'numpy', 'sqlite3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "True []"


def test_root_keys_are_read_back_as_written(honest, tmp_path):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(roots_document(honest.world.roots)))
    assert read_roots(path) == honest.world.roots


@pytest.mark.parametrize("change", [
    lambda document: document.pop("holders"),
    lambda document: document.update(more=1),
    lambda document: document["coordinator"].pop("id"),
    lambda document: document["coordinator"].update(id=7),
    lambda document: document["coordinator"]["jwk"].update(d="secret"),
    lambda document: document["holders"].update(alpha=[]),
    lambda document: document.update(holders=[]),
])  # fmt: skip
def test_a_file_of_root_keys_in_another_form_is_refused_with_a_next_step(honest, tmp_path, change):
    document = json.loads(json.dumps(roots_document(honest.world.roots)))
    change(document)
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match="never from the bundle"):
        read_roots(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        read_roots(path)
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UsageError):
        read_roots(path)
    with pytest.raises(UsageError):
        read_roots(tmp_path / "missing.json")


def test_a_bundle_dated_in_the_future_fails(honest):
    honest.verify()
    path = honest.world.directory / "evidence.zip"
    outcome = verify_bundle(path, honest.world.roots, now_ms=honest.world.now_ms - 1)
    assert any("future" in problem for problem in problems(outcome))
    assert verify_bundle(path, honest.world.roots).passed


def test_the_documentation_names_every_check_and_every_limit(honest):
    text = re.sub(r"\s+", " ", DOCS.read_text())
    for check in honest.verify().checks:
        assert f"| {check.name} |" in text
    for limit in UNPROVEN:
        assert limit in text


def test_the_exported_evidence_holds_no_count_of_records_and_no_secret_key(honest):
    everything = b"\n".join(honest.files.values())
    assert b'"records"' not in everything
    assert b'"d":' not in everything
    for holder in honest.world.holders.values():
        for key in (holder.root, *holder.key.values()):
            assert canonical.digest_bytes(key.seed).encode() not in everything
            assert key.seed not in everything
    assert layout.MANIFEST not in honest.files
