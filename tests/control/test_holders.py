"""What a data officer does here is what its commands do; what others see holds no figure that is not theirs."""

import re

import pytest
from control_plane import ADMINISTRATOR, COORDINATOR, REGULATOR, RESEARCHER, officer_of, wait_until

from ringfence_policy.errors import DocumentInvalid, NotAllowed, NotKnown, RingfenceError, Stale, UsageError
from ringfence_server.control.actor import Role
from ringfence_server.control.permissions import ALLOWED, Act, allow, may
from ringfence_server.control.views import RunState

ELM = officer_of("elm")
OTHERS = [COORDINATOR, RESEARCHER, REGULATOR, ADMINISTRATOR]


@pytest.fixture
def ran(plane):
    """A control plane after one run, and the run's id."""
    text = plane.runs.plans(COORDINATOR)[0].text
    run_id = plane.runs.start(COORDINATOR, plane.runs.propose(COORDINATOR, text).id).run_id
    wait_until(lambda: plane.runs.run(COORDINATOR, run_id).state is RunState.FINISHED)
    return plane, run_id


def test_an_edit_with_the_line_ends_of_another_system_is_named_as_it_is_read(plane):
    before = plane.holders.policy_text(ELM, "elm")
    text = before.text.replace("version = 1", "version = 2").replace("\n", "\r\n")
    after = plane.holders.edit_policy(ELM, "elm", text, etags=[before.etag])
    assert plane.holders.policy_text(ELM, "elm") == after
    third = after.text.replace("version = 2", "version = 3")
    plane.holders.edit_policy(ELM, "elm", third, etags=[after.etag])


def test_a_policy_that_is_just_being_written_keeps_no_other_officer_from_stopping_a_use(plane):
    plane.holders.holders(COORDINATOR)  # everybody is set up
    written = plane.site.directory / "holders" / "birch" / "policy.toml"
    whole = written.read_text()
    written.write_text(whole[: len(whole) // 2] + '"')
    assert plane.holders.stop(ELM, "elm", how="suspend", reason="an inquiry").standing == "suspended"
    birch = officer_of("birch")
    assert plane.holders.view(birch, "birch").standing == "edited"
    edited = plane.holders.policy_text(birch, "birch")
    plane.holders.edit_policy(birch, "birch", whole.replace("version = 1", "version = 2"), etags=[edited.etag])
    assert plane.holders.view(birch, "birch").standing == "stands"


def test_an_officer_edits_and_signs_the_policy_and_an_edit_of_an_older_text_is_refused(plane):
    before = plane.holders.policy_text(ELM, "elm")
    text = before.text.replace("version = 1", "version = 2").replace("max_rounds = 100", "max_rounds = 7")
    after = plane.holders.edit_policy(ELM, "elm", text, etags=[before.etag])
    view = plane.holders.view(ELM, "elm")
    assert (view.policy.rpartition("@")[2], view.standing) == ("2", "stands")
    assert any("7 rounds" in sentence for sentence in view.sentences)
    with pytest.raises(Stale):
        plane.holders.edit_policy(ELM, "elm", text, etags=[before.etag])
    with pytest.raises(DocumentInvalid):
        plane.holders.edit_policy(ELM, "elm", text.replace("= 7", "= 9"), etags=[after.etag])
    assert plane.holders.policy_text(ELM, "elm") == after


def test_use_is_suspended_lifted_and_revoked_with_a_reason(plane):
    with pytest.raises(UsageError):
        plane.holders.stop(ELM, "elm", how="suspend", reason="  ")
    assert plane.holders.stop(ELM, "elm", how="suspend", reason="an audit").standing == "suspended"
    assert plane.holders.view(RESEARCHER, "elm").reason == "an audit"
    assert plane.holders.stop(ELM, "elm", how="resume").standing == "stands"
    assert plane.holders.stop(ELM, "elm", how="revoke", reason="withdrawn").standing == "revoked"


def test_words_that_nobody_can_see_are_refused_on_a_page_too(plane):
    unseen = "ok \u202eevil\x07"
    run = plane.runs.start(COORDINATOR, plane.runs.propose(COORDINATOR, plane.runs.plans(COORDINATOR)[0].text).id)
    proposal = plane.runs.propose(COORDINATOR, plane.runs.plans(COORDINATOR)[0].text).id
    for ask in (
        lambda: plane.holders.stop(ELM, "elm", how="suspend", reason=unseen),
        lambda: plane.holders.answer(ELM, "elm", proposal, approves=False, note=unseen),
        lambda: plane.runs.suspend(COORDINATOR, run.run_id, unseen),
    ):
        with pytest.raises(UsageError, match="nobody can see"):
            ask()
    assert plane.holders.view(ELM, "elm").standing == "stands"
    wait_until(lambda: plane.runs.run(COORDINATOR, run.run_id).state is RunState.FINISHED)


def test_an_officer_sees_what_was_used_and_decided_with_its_own_figures(ran):
    plane, run_id = ran
    (use,) = plane.holders.uses(ELM, "elm")
    assert (use.run, use.rounds) == (run_id, 3)
    assert use.epsilon > 0
    decisions = plane.holders.decisions(ELM, "elm")
    assert {one.permitted for one in decisions} == {True}
    meters = {(one.owner, one.quantity): one for one in plane.holders.view(ELM, "elm").meters}
    assert meters["policy", "rounds"].spent == 3
    assert 0 < meters["dataset", "epsilon"].used <= 1


def test_nobody_else_sees_an_officers_figures_and_another_officer_knows_of_nothing(ran):
    plane, _ = ran
    for actor in OTHERS:
        view = plane.holders.view(actor, "elm")
        assert not view.own
        assert all(one.cap is None and one.spent is None and one.reserved is None for one in view.meters)
        for act in (plane.holders.policy_text, plane.holders.uses, plane.holders.decisions, plane.holders.pending):
            with pytest.raises(NotAllowed):
                act(actor, "elm")
    birch = officer_of("birch")
    assert [one.holder for one in plane.holders.holders(birch)] == ["birch"]
    for act in (plane.holders.view, plane.holders.policy_text, plane.holders.uses, plane.holders.decisions):
        with pytest.raises(NotKnown):
            act(birch, "elm")
        with pytest.raises(RingfenceError):
            act(birch, "no-such-holder")


def test_no_count_of_records_is_in_what_any_role_is_shown_of_another(tiny_scenario):
    """The number of rows is a canary: it stands in no answer to anybody but the holder's own officer."""
    from ringfence_server.control.plane import open_plane  # noqa: PLC0415

    weights = {holder: {"dataset.weight": 8000} for holder in ("alder", "birch", "elm")}
    plane = open_plane(tiny_scenario("canary", rows=7919, profiles=weights).directory)
    plane.start()
    try:
        text = plane.runs.plans(COORDINATOR)[0].text
        run_id = plane.runs.start(COORDINATOR, plane.runs.propose(COORDINATOR, text).id).run_id
        wait_until(lambda: plane.runs.run(COORDINATOR, run_id).state is RunState.FINISHED)
        for actor in [*OTHERS, officer_of("birch")]:
            shown = [plane.runs.run(actor, run_id), *plane.runs.events(actor, run_id), *plane.holders.holders(actor)]
            shown += [plane.evidence.status(actor, run_id)]
            if may(actor, Act.INSPECT):
                shown += plane.evidence.entries(actor, run_id, "coordinator")
            if actor.role is not Role.HOLDER:
                shown += [plane.holders.view(actor, "elm")]
            # As a number of its own: among the digits of a digest or of a fraction it stands by chance.
            assert not [one for one in shown if re.search(r"(?<![\w.])7,?919(?!\w)", one.model_dump_json())]
    finally:
        plane.close(end_runs=True)


def test_any_record_is_shown_with_a_proof_that_holds(ran):
    plane, run_id = ran
    entries = plane.evidence.entries(REGULATOR, run_id, "elm")
    sent = next(one for one in entries if one.kind == "sent")
    proof = plane.evidence.proof(REGULATOR, run_id, "elm", sent.position)
    assert proof.holds
    assert proof.record["kind"] == "sent"
    assert plane.evidence.entries(ELM, run_id, "elm") == entries
    with pytest.raises(NotKnown):
        plane.evidence.entries(officer_of("birch"), run_id, "elm")
    with pytest.raises(NotKnown):
        plane.evidence.proof(REGULATOR, run_id, "elm", 10**6)
    with pytest.raises(NotAllowed):
        plane.evidence.bundle(RESEARCHER, run_id)
    with pytest.raises(NotKnown):
        plane.evidence.status(REGULATOR, "../../etc")


def test_what_a_regulator_looks_at_is_kept_and_what_others_look_at_is_not(ran):
    plane, run_id = ran
    plane.runs.run(REGULATOR, run_id)
    plane.holders.view(REGULATOR, "elm")
    plane.runs.run(RESEARCHER, run_id)
    for _ in range(3):  # as a page that is open does
        plane.runs.run(REGULATOR, run_id)
        plane.runs.events(REGULATOR, run_id)
    reads = plane.access.reads(ADMINISTRATOR, limit=2)
    assert [one.what for one in reads.items] == ["holder elm", f"run {run_id}"]
    assert {one.by for one in reads.items} == {REGULATOR.name}
    seen = {one.what for one in plane.access.reads(ADMINISTRATOR).items}
    for look in (plane.runs.runs, plane.runs.proposals, plane.runs.plans, plane.holders.holders):
        look(REGULATOR)
    plane.evidence.entries(REGULATOR, run_id, "elm")
    new = {one.what for one in plane.access.reads(ADMINISTRATOR).items} - seen
    assert new == {"runs", "proposals", "plans", "data holders", f"elm's log, run {run_id}"}
    with pytest.raises(NotAllowed):
        plane.access.reads(RESEARCHER)


def test_a_token_speaks_for_its_role_until_it_ends(plane):
    token = plane.access.issue_token(ADMINISTRATOR, name="nightly", role=Role.RESEARCHER, holder=None, days=1)
    actor = plane.access.by_token(token.secret)
    assert (actor.role, actor.name, actor.via) == (Role.RESEARCHER, "nightly", "token")
    assert plane.access.by_token(token.secret + "x") is None
    assert all(one.secret is None for one in plane.access.tokens(ADMINISTRATOR))
    plane.access.revoke_token(ADMINISTRATOR, token.id)
    assert plane.access.by_token(token.secret) is None
    for wrong in ({"role": Role.HOLDER, "holder": None}, {"role": Role.RESEARCHER, "holder": "elm"}):
        with pytest.raises(UsageError):
            plane.access.issue_token(ADMINISTRATOR, name="n", days=1, **wrong)
    with pytest.raises(NotAllowed):
        plane.access.issue_token(COORDINATOR, name="n", role=Role.RESEARCHER, holder=None, days=1)


@pytest.mark.parametrize("act", Act)
def test_the_table_of_permissions_is_what_is_asked(act):
    for actor in [*OTHERS, ELM]:
        assert may(actor, act) is (actor.role in ALLOWED[act])
        if actor.role in ALLOWED[act]:
            allow(actor, act)
        else:
            with pytest.raises(NotAllowed):
                allow(actor, act)
