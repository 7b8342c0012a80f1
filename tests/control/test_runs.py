"""From a proposal to a finished run: what is acknowledged happens, whatever ends in between."""

import asyncio

import pytest
from control_plane import ADMINISTRATOR, COORDINATOR, REGULATOR, RESEARCHER, officer_of, wait_until

from ringfence_policy.errors import Conflict, DocumentInvalid, NotAllowed, NotKnown, ScenarioBusy
from ringfence_server.control.pages.wording import most_epsilon
from ringfence_server.control.plane import open_plane
from ringfence_server.control.views import Answered, RunState
from ringfence_server.run_file import RunFile


def plan_of(plane):
    return plane.runs.plans(RESEARCHER)[0].text


def finished(plane, run_id):
    def over():
        run = plane.runs.run(COORDINATOR, run_id)
        assert run.state not in {RunState.FAILED, RunState.REFUSED, RunState.INTERRUPTED}, run.error
        return run if run.state is RunState.FINISHED else None

    return wait_until(over)


def test_a_proposal_becomes_a_run_whose_evidence_verifies(plane):
    proposal = plane.runs.propose(RESEARCHER, plan_of(plane))
    assert {one.answer for one in proposal.answers} == {"policy decides"}
    begun = plane.runs.start(COORDINATOR, proposal.id)
    run = finished(plane, begun.run_id)
    assert [one.round for one in run.rounds] == [1, 2, 3]
    assert all(cell.answer is Answered.TRAINS for one in run.rounds for cell in one.cells)
    assert all(0 < one.epsilon <= one.epsilon_cap for one in run.holders)
    assert run.verified is True
    assert not [one for one in plane.runs.events(RESEARCHER, run.run_id) if str(plane.site.directory) in str(one)]
    assert run.final_accuracy is not None
    evidence = plane.evidence.status(REGULATOR, run.run_id)
    assert evidence.state == "verified", [check for check in evidence.checks if not check.passed]
    assert plane.runs.proposal(COORDINATOR, proposal.id).runs == (run.run_id,)
    (listed,) = plane.runs.runs(RESEARCHER).items
    assert (listed.run_id, listed.rounds_closed) == (run.run_id, 3)


def test_followers_see_every_event_once_also_when_they_come_late_or_come_back(plane):
    run_id = plane.runs.start(COORDINATOR, plane.runs.propose(COORDINATOR, plan_of(plane)).id).run_id

    async def follow(after):
        return [event async for event in plane.runs.follow(RESEARCHER, run_id, after=after)]

    live = asyncio.run(follow(0))
    names = [event.name for event in live]
    assert names[0] == "run-started"
    assert names[-1] == "run-finished"
    assert names.count("round-closed") == 3
    assert [event.seq for event in live] == sorted({event.seq for event in live})
    assert asyncio.run(follow(0)) == live
    assert asyncio.run(follow(live[3].seq)) == live[4:]


def test_a_key_begins_a_run_once(plane):
    proposal = plane.runs.propose(RESEARCHER, plan_of(plane), once="p-1")
    assert plane.runs.propose(RESEARCHER, plan_of(plane), once="p-1").id == proposal.id
    with pytest.raises(Conflict):
        plane.runs.propose(RESEARCHER, plan_of(plane) + "# another\n", once="p-1")
    run_id = plane.runs.start(COORDINATOR, proposal.id, once="s-1").run_id
    assert plane.runs.start(COORDINATOR, proposal.id, once="s-1").run_id == run_id
    with pytest.raises(Conflict):
        plane.runs.start(COORDINATOR, proposal.id, seed=1, once="s-1")
    assert len(plane.runs.runs(COORDINATOR).items) == 1


def test_a_run_that_is_suspended_goes_on_from_its_last_round_at_no_new_cost(plane):
    text = plan_of(plane).replace("rounds = 3", "rounds = 20")
    run_id = plane.runs.start(COORDINATOR, plane.runs.propose(COORDINATOR, text).id).run_id
    wait_until(lambda: plane.runs.run(COORDINATOR, run_id).rounds)
    plane.runs.suspend(REGULATOR, run_id, "a complaint is looked into")
    stopped = wait_until(lambda: _in(plane, run_id, RunState.SUSPENDED))
    assert "a complaint is looked into" in stopped.reason
    with pytest.raises(Conflict):
        plane.runs.suspend(REGULATOR, run_id, "again")
    with pytest.raises(NotAllowed):
        plane.runs.resume(REGULATOR, run_id)
    plane.runs.resume(COORDINATOR, run_id)
    run = finished(plane, run_id)
    assert [one.round for one in run.rounds if one.committed] == list(range(1, 21))
    assert plane.evidence.status(REGULATOR, run_id).state == "verified"
    with pytest.raises(Conflict):
        plane.runs.resume(COORDINATOR, run_id)


def test_a_run_outlives_its_control_plane_and_is_mirrored_when_there_is_one_again(site):
    plane = open_plane(site)
    plane.start()
    text = plan_of(plane).replace("rounds = 3", "rounds = 20")
    run_id = plane.runs.start(COORDINATOR, plane.runs.propose(COORDINATOR, text).id).run_id
    wait_until(lambda: plane.runs.run(COORDINATOR, run_id).rounds)
    refused = open_plane(site)
    with pytest.raises(ScenarioBusy):
        refused.start()
    refused.close(end_runs=True)  # as a second workshop does in the same directory: the run is not its own
    plane.close()
    again = open_plane(site)
    again.start()
    try:
        run = finished(again, run_id)
        assert [one.round for one in run.rounds] == list(range(1, 21))
        assert RunFile.load(site / "runs" / run_id).attempt == 1
    finally:
        again.close(end_runs=True)


def test_a_run_waits_for_its_turn_and_finds_the_budget_that_the_one_before_it_left(plane):
    proposal = plane.runs.propose(COORDINATOR, plan_of(plane))
    first = plane.runs.start(COORDINATOR, proposal.id).run_id
    second = plane.runs.start(COORDINATOR, proposal.id).run_id
    last = wait_until(lambda: _in(plane, second, RunState.REFUSED))
    assert plane.runs.run(COORDINATOR, first).state is RunState.FINISHED
    assert last.error.code == "run-refused"
    assert len(plane.runs.compare(RESEARCHER, [first, second]).runs) == 2


def test_a_run_that_takes_nothing_shows_what_runs_before_it_have_spent(plane):
    first = finished(plane, plane.runs.start(COORDINATOR, plane.runs.propose(COORDINATOR, plan_of(plane)).id).run_id)
    text = plan_of(plane).replace('"disease-research"', '"commercial-research"')
    second = plane.runs.start(COORDINATOR, plane.runs.propose(COORDINATOR, text).id).run_id
    refused = wait_until(lambda: _in(plane, second, RunState.REFUSED))
    assert {one.holder: one.epsilon for one in refused.holders} == {one.holder: one.epsilon for one in first.holders}
    assert most_epsilon(first) == max(one.epsilon for one in first.holders)
    assert most_epsilon(refused) is None  # it cost nothing, whatever was spent before


def test_who_wants_to_be_asked_is_waited_for_and_who_declines_is_left_out(plane):
    elm = officer_of("elm")
    plane.holders.ask_first(elm, "elm", wanted=True)
    proposal = plane.runs.propose(RESEARCHER, plan_of(plane))
    assert plane.holders.pending(elm, "elm") == (proposal.id,)
    with pytest.raises(Conflict, match="has not answered"):
        plane.runs.start(COORDINATOR, proposal.id)
    plane.holders.answer(elm, "elm", proposal.id, approves=False, note="not this one")
    assert plane.holders.pending(elm, "elm") == ()
    run = finished(plane, plane.runs.start(COORDINATOR, proposal.id).run_id)
    assert "elm" not in {holder.holder for holder in run.holders}
    with pytest.raises(Conflict, match="was begun"):
        plane.holders.answer(elm, "elm", proposal.id, approves=True)


def test_who_wants_to_be_asked_only_after_a_run_answers_the_plan_when_it_is_proposed_again(plane):
    proposal = plane.runs.propose(RESEARCHER, plan_of(plane))
    finished(plane, plane.runs.start(COORDINATOR, proposal.id).run_id)
    elm = officer_of("elm")
    plane.holders.ask_first(elm, "elm", wanted=True)
    with pytest.raises(Conflict) as refused:
        plane.runs.start(COORDINATOR, proposal.id)
    assert "propose the plan again" in refused.value.next_step  # nobody can answer this one any more
    with pytest.raises(Conflict):
        plane.holders.answer(elm, "elm", proposal.id, approves=True)
    again = plane.runs.propose(RESEARCHER, proposal.text)
    assert plane.holders.pending(elm, "elm") == (again.id,)
    plane.holders.answer(elm, "elm", again.id, approves=True)
    plane.runs.start(COORDINATOR, again.id)


def test_an_approval_of_who_wants_to_be_asked_first_is_for_one_run(plane):
    elm = officer_of("elm")
    plane.holders.ask_first(elm, "elm", wanted=True)
    proposal = plane.runs.propose(RESEARCHER, plan_of(plane))
    plane.holders.answer(elm, "elm", proposal.id, approves=True)
    run = plane.runs.start(COORDINATOR, proposal.id, once="the first")
    with pytest.raises(Conflict, match="for one run") as refused:
        plane.runs.start(COORDINATOR, proposal.id, once="another")
    assert "elm" in refused.value.got
    assert run.run_id in refused.value.got
    assert plane.runs.start(COORDINATOR, proposal.id, once="the first").run_id == run.run_id  # sent again, begun once
    plane.holders.ask_first(elm, "elm", wanted=False)  # from here on elm's policy alone decides
    assert plane.runs.start(COORDINATOR, proposal.id, once="another").run_id != run.run_id


def test_a_revocation_on_the_page_bites_in_the_next_round(plane):
    text = plan_of(plane).replace("rounds = 3", "rounds = 20")
    run_id = plane.runs.start(COORDINATOR, plane.runs.propose(COORDINATOR, text).id).run_id
    wait_until(lambda: plane.runs.run(COORDINATOR, run_id).rounds)
    view = plane.holders.stop(officer_of("elm"), "elm", how="revoke", reason="consent withdrawn")
    assert (view.standing, view.reason) == ("revoked", "consent withdrawn")
    run = finished(plane, run_id)
    last = {cell.holder: cell for cell in run.rounds[-1].cells}
    assert last["elm"].answer is Answered.REFUSED
    assert [reason.clause for reason in last["elm"].reasons] == ["revoked"]
    assert last["alder"].answer is Answered.TRAINS


def test_what_is_no_plan_is_refused_with_the_place_and_without_a_path_of_this_machine(plane):
    with pytest.raises(DocumentInvalid) as told:
        plane.runs.propose(RESEARCHER, plan_of(plane).replace("rounds = 3", "rounds = 0"))
    assert "/tmp" not in str(told.value)  # noqa: S108 -- what must not be told
    with pytest.raises(NotKnown):
        plane.runs.run(COORDINATOR, "20260101T000000-abcdef")
    with pytest.raises(NotAllowed):
        plane.runs.start(RESEARCHER, "any")
    with pytest.raises(NotAllowed):
        plane.runs.propose(ADMINISTRATOR, plan_of(plane))


def test_a_preview_says_who_would_refuse_and_what_would_help(plane):
    text = plan_of(plane).replace('region = "CH"', 'region = "US"')
    found = plane.runs.preview(RESEARCHER, text)
    assert {one.permitted for one in found} == {False}
    assert all(one.reasons[0].sentence for one in found)


def _in(plane, run_id, state):
    run = plane.runs.run(COORDINATOR, run_id)
    return run if run.state is state else None


def test_a_follower_that_is_cut_off_at_the_moment_of_an_event_is_gone(plane):
    """A cancellation that comes together with an event must not be lost: what waits for its end would wait for ever."""
    run_id = plane.runs.start(COORDINATOR, plane.runs.propose(COORDINATOR, plan_of(plane)).id).run_id
    finished(plane, run_id)
    plane.mirror._look = lambda *_: ([], False)  # as a run of which nothing new is there

    async def follow():
        async for _ in plane.mirror.follow(run_id):
            pass

    async def cut_off():
        following = asyncio.create_task(follow())
        await asyncio.sleep(0.2)
        plane.mirror.wake(run_id)
        await asyncio.sleep(0)  # the event is set
        await asyncio.sleep(0)  # whoever waits for it knows, and has not gone on
        following.cancel()
        done, _ = await asyncio.wait({following}, timeout=4)
        return bool(done)

    assert asyncio.run(cut_off())


def test_a_fault_that_nobody_foresaw_does_not_end_the_runner(plane, monkeypatch):
    faults = iter([ValueError("unforeseen"), OSError("and another")])
    look = plane._runner._look

    def stumble():
        for fault in faults:
            raise fault
        look()

    monkeypatch.setattr(plane._runner, "_look", stumble)
    finished(plane, plane.runs.start(COORDINATOR, plane.runs.propose(COORDINATOR, plan_of(plane)).id).run_id)
    assert next(faults, None) is None  # both came up
