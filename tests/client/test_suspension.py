"""A data officer suspends use and lifts it again: signed, visible to all, and effective at the next gate."""

import sqlite3
from contextlib import closing

import pytest
from officer_desk import answer, node
from tiny_run import TinyRun, clauses_of
from tiny_scenario import TinyScenario

from ringfence_client import clientapp, officer
from ringfence_client.home import HolderHome
from ringfence_client.known_stops import KnownStops
from ringfence_client.recovery import is_open
from ringfence_policy.decision import Point
from ringfence_policy.documents import Status
from ringfence_policy.errors import TrustRefused
from ringfence_policy.identity import DocumentType, SigningKey, sign
from ringfence_policy.ledger import HoldState, now_ms
from ringfence_policy.protocol import OFFER

BEFORE_TRAINING, BEFORE_UPLOAD = "node-before-training", "node-before-upload"


def stop(run, holder="elm"):
    return lambda: officer.suspend(run.home(holder), reason="an audit", now_ms=now_ms())


def lift(run, holder="elm"):
    return lambda: officer.resume(run.home(holder), now_ms=now_ms())


def another_run(home):
    """One more run over the scenario that a holder lies in."""
    return TinyRun(TinyScenario(home.directory.parent.parent, ("alder", "birch", "elm")))


def refusals(outcome):
    return {one.holder: (one.point, one.clauses) for one in outcome.refused}


def sent_rounds(run, holder="elm"):
    return [record["round"] for record in run.log_of(holder, "sent")]


def test_a_suspended_holder_is_left_out_until_the_suspension_is_lifted(tiny_run):
    run = tiny_run(plan={"training.rounds": 4})
    run.before("train", 2, stop(run))
    run.before(OFFER, 4, lift(run))
    outcomes = run.train(rounds=4)
    assert ["elm" in outcome.cohort for outcome in outcomes] == [True, False, False, True]
    assert [refusals(outcome) for outcome in outcomes[1:3]] == [
        {"elm": (BEFORE_TRAINING, ("suspended",))},  # its papers for this round were from before
        {"elm": ("coordinator-before-round", ("suspended",))},
    ]
    assert sent_rounds(run) == [1, 4]
    stops = [record for record in run.log_of("elm") if record["kind"] in ("suspended", "suspension-lifted")]
    assert [record["kind"] for record in stops] == ["suspended", "suspension-lifted"]
    assert stops[0]["status_seq"] < stops[1]["status_seq"]


def test_a_suspension_between_offer_and_training_is_refused_by_the_holder_itself(tiny_run):
    run = tiny_run()
    run.before("train", 1, stop(run))
    outcome = run.train(rounds=1)[0]
    assert refusals(outcome) == {"elm": (BEFORE_TRAINING, ("suspended",))}
    assert sent_rounds(run) == []
    assert run.node("elm").ledger.holds(run.file.run_id) == []


@pytest.mark.parametrize("on_revoke", ["stop-now", "finish-round"])
def test_a_suspension_during_training_lets_nothing_leave_and_gives_the_budget_back(tiny_run, monkeypatch, on_revoke):
    """Also where a revocation would let the round finish: a suspension is the brake that always works."""
    run = tiny_run(policies={"elm": {"outputs.on_revoke": on_revoke}})
    train = clientapp.use_together

    def then_stop(uses, **options):
        results = train(uses, **options)
        if uses:
            stop(run)()
        return results

    monkeypatch.setattr(clientapp, "use_together", then_stop)
    outcome = run.train(rounds=1)[0]
    assert refusals(outcome) == {"elm": (BEFORE_UPLOAD, ("suspended",))}
    assert sent_rounds(run) == []
    assert [hold.state for hold in run.node("elm").ledger.holds(run.file.run_id)] == [HoldState.RELEASED]


def test_a_suspended_holder_agrees_to_no_new_plan(tiny_run):
    run = tiny_run()
    stop(run)()
    run.propose()
    assert run.governor.absent["elm"].clauses == ("suspended",)


def test_a_suspended_holder_is_no_company_for_others(tiny_run):
    run = tiny_run(policies={"alder": {"settings.min_holders": 3}})
    run.propose()
    stop(run)()
    run.governor.offer(run.grid, 1)
    assert clauses_of(run.request("alder")) == ("min_holders",)


def test_an_older_status_does_not_lift_a_suspension(tiny_run):
    run = tiny_run()
    run.propose()
    home = run.home("elm")
    before = home.status.read_bytes()
    stop(run)()
    home.status.write_bytes(before)
    assert clauses_of(run.request("elm")) == ("status",)
    with pytest.raises(TrustRefused, match="older document was replayed"):
        officer.resume(home, now_ms=now_ms())
    with pytest.raises(TrustRefused, match="older document was replayed"):
        officer.renew_status(home, now_ms=now_ms())


def test_a_renewal_keeps_the_suspension_and_a_revocation_survives_its_end(tiny_run):
    home = tiny_run().home("elm")
    first = officer.suspend(home, reason="an audit", now_ms=1_000)
    assert officer.suspend(home, reason="another", now_ms=2_000).suspended == first.suspended
    assert officer.renew_status(home, now_ms=3_000).suspended == first.suspended
    withdrawn = officer.revoke(home, reason="consent", now_ms=4_000)
    assert (withdrawn.suspended, len(withdrawn.revoked)) == (first.suspended, 1)
    lifted = officer.resume(home, now_ms=5_000)
    assert (lifted.suspended, lifted.revoked) == (None, withdrawn.revoked)


def test_lifting_what_was_never_suspended_changes_nothing(tiny_run):
    home = tiny_run().home("elm")
    assert officer.resume(home, now_ms=now_ms()).suspended is None
    assert not officer.is_suspended(home)


def test_a_status_without_the_member_means_not_suspended():
    """As those that were signed before there were suspensions."""
    old = {"holder_id": "elm", "seq": 1, "issued_ms": 1, "good_until_ms": 2, "revoked": []}
    assert Status.from_document(old).suspended is None


def test_a_suspension_signed_by_somebody_else_stops_nothing_and_permits_nothing(tiny_run):
    run = tiny_run()
    run.propose()
    home = run.home("elm")
    status = officer.last_status(home)
    assert status is not None
    thief = SigningKey.generate("elm/status-1")
    document = status.model_copy(update={"seq": status.seq + 1}).to_document()
    home.status.write_text(sign(document, type=DocumentType.STATUS, key=thief))
    assert officer.last_status(home) is None
    assert officer.is_suspended(home)
    assert clauses_of(run.request("elm")) == ("status",)


def test_no_comparison_line_is_drawn_over_a_suspended_holder(tiny_scenario):
    from ringfence_client.comparison import compare  # noqa: PLC0415

    run = TinyRun(tiny_scenario())
    stop(run)()
    lines = compare(run.file.holder_directories, run.plan, measured_on=["alder", "birch"])
    run.close()
    assert lines["left_out"] == ["elm"]


def test_a_second_process_of_a_holder_writes_the_end_of_a_suspension_that_another_one_saw_begin(tiny_run):
    run = tiny_run()
    run.propose()
    node_of_elm = run.node("elm")
    second = KnownStops(node_of_elm.log)  # as a process that opened before the suspension
    stop(run)()
    node_of_elm.papers(point=Point.BEFORE_TRAINING)
    lift(run)()
    node_of_elm._stops = second
    node_of_elm.papers(point=Point.BEFORE_TRAINING)
    kinds = [record["kind"] for record in run.log_of("elm")]
    assert [kind for kind in kinds if kind.startswith("suspen")] == ["suspended", "suspension-lifted"]


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def elm(tiny_scenario):
    run = TinyRun(tiny_scenario())
    run.train(rounds=1)
    run.close()
    return run.home("elm")


def test_the_commands_suspend_and_resume_and_status_says_so(elm):
    assert answer("suspend", elm.directory, "--reason", "an [audit]")["suspended"]["reason"] == "an [audit]"
    assert answer("status", elm.directory)["standing"] == "suspended"
    shown = node("status", elm.directory).output
    assert "is suspended" in shown
    assert "an [audit]" in shown
    assert answer("resume", elm.directory)["suspended"] is None
    assert answer("status", elm.directory)["standing"] == "stands"


@pytest.mark.parametrize("command", ["suspend", "revoke"])
def test_a_reason_that_no_status_can_carry_is_refused_and_nothing_is_signed(elm, command):
    before = elm.status.read_bytes()
    assert answer(command, elm.directory, "--reason", "x" * 501, exit_code=2)["error"]["code"] == "usage"
    assert elm.status.read_bytes() == before


def test_status_shows_standing_budgets_decisions_and_whether_a_node_is_open(elm):
    said = answer("status", elm.directory)
    assert (said["standing"], said["policy"], said["node_is_open"]) == ("stands", "elm-terms@1", False)
    assert said["decisions"] == {"permitted": 2, "denied": 0, "last_at_ms": said["decisions"]["last_at_ms"]}
    epsilon = next(one for one in said["budgets"] if (one["owner_kind"], one["quantity"]) == ("policy", "epsilon"))
    assert 0 < epsilon["committed"] < epsilon["cap"]
    assert said["known_holders"] == ["alder", "birch"]
    assert said["coordinator"] is None
    assert any("tree-consortium" in sentence for sentence in said["terms"])


def test_status_says_when_the_policy_was_edited_after_it_was_signed(elm):
    path = elm.policy_file
    path.write_text(path.read_text().replace("min_records = 20", "min_records = 10"))
    assert answer("status", elm.directory)["standing"] == "edited"
    assert "ringfence-node sign" in node("status", elm.directory).output


def test_an_open_node_is_seen_and_a_closed_one_is_not(tiny_run):
    run = tiny_run()
    assert not is_open(run.home("elm"))
    run.propose()
    assert is_open(run.home("elm"))
    run.restart_nodes()
    assert not is_open(HolderHome(run.home("elm").directory))


def test_the_ledger_shows_budgets_and_what_each_run_took(elm):
    said = answer("ledger", elm.directory)
    (run,) = said["runs"]
    assert (run["rounds"], run["evaluations"], run["reserved"], run["given_back"]) == (1, 0, 0, 0)
    spent = next(one for one in said["budgets"] if (one["owner_kind"], one["quantity"]) == ("dataset", "epsilon"))
    assert run["epsilon_micro"] == spent["committed"] > 0
    shown = node("ledger", elm.directory).output
    assert "What each run took" in shown
    assert "rounds" in shown


def test_decisions_show_the_holders_own_figures_which_its_exported_log_does_not_have(elm):
    answer("suspend", elm.directory)
    run = another_run(elm)
    run.propose()
    run.close()
    everything = answer("decisions", elm.directory)
    assert {one["records"] for one in everything if one["effect"] == "permit"} == {60}
    (denied,) = answer("decisions", elm.directory, "--denied")
    (failed,) = denied["failed"]
    assert (failed["clause"], failed["limit"], failed["actual"]) == ("suspended", "not suspended", "suspended")
    assert answer("decisions", elm.directory, "--run", denied["run"]) == [denied]
    assert answer("decisions", elm.directory, "--run", "no-such-run") == []
    with closing(sqlite3.connect(elm.database)) as connection:
        exported = b"".join(row[0] for row in connection.execute("SELECT record FROM evidence_leaf")).decode()
    assert '"actual":null' in exported
    assert '"actual":"suspended"' not in exported
    shown = node("decisions", elm.directory).output
    assert "For the data officer alone" in shown
    assert "permitted" in shown
