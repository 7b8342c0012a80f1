"""Papers swapped, forged, edited, misfiled or missing, and the wrong root keys, are failed checks that name them.

The attacker has the coordinator's keys and seals the bundle again after each change.
"""

import pytest

from ringfence_policy import bundle_layout as layout
from ringfence_policy.documents import Role, key_list_document
from ringfence_policy.identity import DocumentType, SigningKey, sign
from ringfence_policy.verify import Roots

STRANGER = SigningKey(kid="consortium/plan-1", seed=b"?" * 32)


def assert_caught(outcome, check, *words, garbage=False):
    """The bundle fails, and one problem of that check has all these words."""
    assert not outcome.passed
    details = [problem.detail for problem in outcome.problems if problem.name == check]
    assert any(all(word in detail for word in words) for detail in details), (check, words, outcome.problems)
    assert garbage or not any("be completed" in one.detail or "malformed" in one.detail for one in outcome.problems), (
        outcome.problems
    )


def changed(document, **changes):
    """The same frozen document with other members. Not `model_copy`, which would keep a remembered digest."""
    members = {name: getattr(document, name) for name in type(document).model_fields}
    return type(document).model_construct(**members | changes)


def test_a_policy_swapped_for_another_text_of_the_same_version_is_caught(honest):
    world = honest.world
    policy = changed(world.holders["alpha"].policy, epsilon_micro=9_000_000)
    token = sign(policy.to_document(), type=DocumentType.POLICY, key=world.holders["alpha"].key[Role.POLICY])
    outcome = honest.verify({layout.policy_file("alpha", "alpha-terms", 1): token.encode()})
    assert_caught(outcome, "decisions", "holder alpha, round 1", "another text of policy alpha-terms@1")


def test_a_policy_exchanged_for_a_newer_one_or_a_strangers_is_caught(honest):
    world = honest.world
    name = layout.policy_file("alpha", "alpha-terms", 1)
    newer = changed(world.holders["alpha"].policy, version=2)
    token = sign(newer.to_document(), type=DocumentType.POLICY, key=world.holders["alpha"].key[Role.POLICY])
    outcome = honest.verify({name: None, layout.policy_file("alpha", "alpha-terms", 2): token.encode()})
    assert_caught(outcome, "decisions", "coordinator, round 1", "alpha-terms@1", "did not sign here")
    assert_caught(honest.verify({name: token.encode()}), "policies", name, "under another's name")
    forged = sign(newer.to_document(), type=DocumentType.POLICY, key=world.coordinator.log_key)
    assert_caught(honest.verify({name: forged.encode()}), "policies", name, "signing key is unknown")
    betas = honest.files[layout.policy_file("beta", "beta-terms", 1)]
    assert not honest.verify({name: betas}).passed


def test_a_policy_edited_after_signing_is_caught(honest):
    name = layout.policy_file("alpha", "alpha-terms", 1)
    head, _, signature = honest.files[name].decode().split(".")
    payload = honest.files[layout.policy_file("beta", "beta-terms", 1)].decode().split(".")[1]
    outcome = honest.verify({name: f"{head}.{payload}.{signature}".encode()})
    assert_caught(outcome, "policies", name, "signature does not hold")


def test_a_plan_swapped_after_the_run_is_caught(honest):
    world = honest.world
    other = changed(world.plan, terms=changed(world.plan.terms, purpose="research"))
    token = sign(other.to_document(), type=DocumentType.PLAN, key=world.coordinator.key[Role.PLAN])
    outcome = honest.verify({layout.PLAN: token.encode()})
    assert_caught(outcome, "participation", "holder alpha", "another holder, run, plan")
    assert_caught(outcome, "course of the run", "another plan than the signed one")
    assert_caught(outcome, "decisions", "holder alpha, round 1", "plan_digest is not what the signed plan")


def test_a_plan_that_names_another_coordinator_is_caught(honest):
    world = honest.world
    other = changed(world.plan, terms=changed(world.plan.terms, coordinator="other-org"))
    token = sign(other.to_document(), type=DocumentType.PLAN, key=world.coordinator.key[Role.PLAN])
    assert_caught(honest.verify({layout.PLAN: token.encode()}), "plan", "other-org")


def test_a_plan_of_someone_else_is_caught(honest):
    token = sign(honest.world.plan.to_document(), type=DocumentType.PLAN, key=STRANGER)
    assert_caught(honest.verify({layout.PLAN: token.encode()}), "plan", "signature does not hold")


def test_a_missing_holder_is_caught_by_name(honest):
    gone = dict.fromkeys(name for name in honest.files if name.startswith("holders/gamma/"))
    assert_caught(honest.verify(gone), "plan", "holder gamma", "missing")


def test_an_added_holder_is_caught(honest):
    added = {
        name.replace("holders/gamma/", "holders/delta/"): data
        for name, data in honest.files.items()
        if name.startswith("holders/gamma/")
    }
    assert_caught(honest.verify(added), "plan", "holder delta", "not in the plan")


@pytest.mark.parametrize("name", ["alpha", "consortium"])
def test_wrong_root_keys_are_caught(honest, name):
    right, wrong = honest.world.roots, SigningKey(kid=f"{name}/root", seed=b"w" * 32).public()
    if name == "consortium":
        roots = Roots("consortium", wrong, right.holders)
        assert_caught(honest.verify(roots=roots), "manifest", "signature does not hold")
        roots = Roots("other-org", right.coordinator, right.holders)
        assert_caught(honest.verify(roots=roots), "manifest", "belongs to somebody else")
    else:
        roots = Roots("consortium", right.coordinator, {**right.holders, name: wrong})
        assert_caught(honest.verify(roots=roots), "plan", f"holder {name}", "another root key")
        roots = Roots("consortium", right.coordinator, {k: v for k, v in right.holders.items() if k != name})
        assert_caught(honest.verify(roots=roots), "plan", f"holder {name}", "no root key was given")


def test_a_key_list_that_the_root_did_not_sign_is_caught(honest):
    listed = [(STRANGER.public(), 0, 10**14, [Role.NODE, Role.POLICY, Role.STATUS])]
    forged = sign(
        key_list_document("alpha", 1, listed), type=DocumentType.KEYS, key=SigningKey(kid="alpha/root", seed=b"f" * 32)
    )
    outcome = honest.verify({layout.holder_file("alpha", layout.KEYS): forged.encode()})
    assert_caught(outcome, "keys", "holder alpha", "signature does not hold")


@pytest.mark.parametrize("paper", [layout.STATUS, layout.PARTICIPATION, layout.CHECKPOINT, layout.KEYS])
def test_papers_of_one_holder_do_not_pass_for_anothers(honest, paper):
    outcome = honest.verify({layout.holder_file("alpha", paper): honest.files[layout.holder_file("beta", paper)]})
    assert not outcome.passed
    assert any("holder alpha" in problem.detail for problem in outcome.problems)


@pytest.mark.parametrize("paper", ["plan.jws", "coordinator/keys.jws", "holders/alpha/status.jws", "claims.json"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"a.b.c", b"\xff\xfe", b"{}", b"[" * 50_000])
def test_garbage_in_place_of_a_paper_is_a_failed_check(honest, paper, content):
    outcome = honest.verify({paper: content})
    assert not outcome.passed


def test_a_missing_file_is_caught_by_name(honest):
    for name in honest.files:
        if name != layout.MODEL and not name.endswith(("-1.jws", layout.STATUS, layout.PARTICIPATION)):
            outcome = honest.verify({name: None})
            assert any(name in problem.detail for problem in outcome.problems), name
    for paper, what in ((layout.STATUS, "status"), (layout.PARTICIPATION, "participation")):
        outcome = honest.verify({layout.holder_file("beta", paper): None})
        assert_caught(outcome, what, "holder beta", f"no valid {what} of it is here")
    outcome = honest.verify({layout.policy_file("beta", "beta-terms", 1): None})
    assert_caught(outcome, "policies", "holder beta", "no valid policy of it is here")


@pytest.mark.parametrize(
    "name", ["readme.txt", "holders/alpha/extra.jws", "holders/alpha/policy-x/y.jws", "holders/alpha/policy-x-1.txt"]
)
def test_a_file_that_nobody_would_check_is_caught(honest, name):
    assert_caught(honest.verify({name: b""}), "manifest", name)


def test_a_manifest_that_lists_other_files_or_is_not_the_coordinators_is_caught(honest):
    world = honest.world
    files = {**honest.files}
    fewer = {name: data for name, data in files.items() if name != layout.MODEL}
    outcome = world.verify({**world.seal(fewer), layout.MODEL: files[layout.MODEL]}, sealed=True)
    assert_caught(outcome, "manifest", layout.MODEL, "not listed")
    outcome = world.verify(
        {name: data for name, data in world.seal(files).items() if name != layout.MODEL}, sealed=True
    )
    assert_caught(outcome, "manifest", layout.MODEL, "not in the bundle")
    swapped = world.verify({**world.seal(files), layout.MODEL: b"other"}, sealed=True)
    assert_caught(swapped, "manifest", layout.MODEL, "not the file the coordinator listed")
    foreign = world.verify(world.seal(files, coordinator="someone"), sealed=True)
    assert_caught(foreign, "manifest", "another coordinator's")
    assert not world.verify(files, sealed=True).passed


def test_another_runs_manifest_is_caught(honest):
    world = honest.world
    outcome = world.verify(world.seal(honest.files, run_id="run-9"), sealed=True)
    assert_caught(outcome, "course of the run", "run run-9 is recorded as started 0 times")
