"""Refusals are real: each holder decides on its own machine, whatever the coordinator, the disk or the clock does.

Everything here is the product's own: nodes, ledgers, logs, keys, gate and training. Only messages, files and clocks are
tampered with. Each test looks into the holder's evidence as well, for a refusal that leaves no trace proves nothing.
"""

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace

import pytest
from refusal_facts import BEFORE_TRAINING, BEFORE_UPLOAD, assert_nothing_left, offer_of, refusals, sent_rounds
from tiny_run import clauses_of

from ringfence_client import clientapp, officer
from ringfence_client.home import HolderHome
from ringfence_policy.database import Database
from ringfence_policy.decision import Effect
from ringfence_policy.errors import TrustRefused
from ringfence_policy.evidence_log import EvidenceLog
from ringfence_policy.ledger import HoldState, now_ms
from ringfence_policy.vocabulary import Action
from ringfence_server.coordinator import Coordinator


@pytest.fixture
def no_gate(monkeypatch):
    """Take the coordinator's gate away: it permits everything."""
    decide = Coordinator.decide

    def permit(self, view, **asked):
        decision, facts = decide(self, view, **asked)
        return replace(decision, effect=Effect.PERMIT, failed=(), errors=(), reference_agrees=True), facts

    monkeypatch.setattr(Coordinator, "decide", permit)


# --- the coordinator's gate is gone --------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_gate")
def test_without_the_coordinators_gate_a_holder_still_refuses_a_purpose(tiny_run):
    run = tiny_run(policies={"elm": {"projects.not_purposes": ["disease-research"]}})
    outcome = run.train(rounds=1)[0]
    assert refusals(outcome) == {"elm": (BEFORE_TRAINING, ("not_purposes",))}
    assert outcome.cohort == ["alder", "birch"]
    assert outcome.committed
    assert clauses_of(run.request("elm")) == ("plan",)  # it was never agreed to, so there is nothing to ask under
    assert_nothing_left(run, "elm")
    assert {clauses for _, _, clauses in run.denials("elm")} == {("not_purposes",), ("plan",)}


@pytest.mark.usefixtures("no_gate")
def test_without_the_coordinators_gate_a_purpose_forbidden_after_the_plan_was_agreed_to_is_refused(tiny_run):
    run = tiny_run()
    run.propose()
    stricter = {"policy.version": 2, "projects.not_purposes": ["disease-research"]}
    run.scenario.write_policy("elm", stricter)
    officer.sign_policy(run.home("elm"))
    assert clauses_of(run.request("elm")) == ("not_purposes",)
    assert_nothing_left(run, "elm")
    assert run.denials("elm") == [(1, BEFORE_TRAINING, ("not_purposes",))]


@pytest.mark.usefixtures("no_gate")
@pytest.mark.parametrize(
    ("changes", "clause"),
    [
        ({"policies": {"elm": {"privacy.epsilon": "2"}}}, "epsilon"),
        ({"profiles": {"elm": {"dataset.epsilon": "2"}}}, "dataset-budget"),
        ({"policies": {"elm": {"projects.max_rounds": 1}}}, "max_rounds"),
    ],
)
def test_without_the_coordinators_gate_a_holder_never_spends_more_than_its_budget(
    tiny_run, monkeypatch, changes, clause
):
    monkeypatch.setattr("ringfence_client.peers.takes_part", lambda *_, **__: True)
    run = tiny_run(plan={"privacy.noise_multiplier_max": "2.2"}, **changes)
    outcomes = run.train(rounds=3)
    assert sent_rounds(run, "elm") == [1]
    for outcome in outcomes[1:]:
        point, clauses = refusals(outcome)["elm"]
        assert point == BEFORE_TRAINING
        assert clause in clauses
    assert [(number, clause in clauses) for number, _, clauses in run.denials("elm")] == [(2, True), (3, True)]
    assert all(one.committed + one.reserved <= one.cap for one in run.node("elm").ledger.meters())
    assert all(outcome.committed for outcome in outcomes)


@pytest.mark.usefixtures("no_gate")
def test_without_the_coordinators_gate_a_revoked_policy_is_refused(tiny_run):
    run = tiny_run()
    run.propose()
    officer.revoke(run.home("elm"), reason="consent withdrawn", now_ms=now_ms())
    run.governor.offer(run.grid, 1)
    for action in (Action.TRAIN, Action.EVALUATE):
        members = {"log": None} if action is Action.EVALUATE else {}
        assert clauses_of(run.request("elm", action=action, **members)) == ("revoked",)
    assert_nothing_left(run, "elm")
    assert [record["policy_id"] for record in run.log_of("elm", "revoked")] == ["elm-terms"]
    assert run.denials("elm") == [(1, BEFORE_TRAINING, ("revoked",))] * 2


# --- the coordinator lies about the cohort -------------------------------------------------------------------------


def lies(run):
    """Ways to claim a third member that is not there, by name."""
    honest = {holder: view.papers for holder, view in run.governor.views.items()}
    two = {holder: honest[holder] for holder in ("alder", "elm")}
    alder, birch = honest["alder"], honest["birch"]
    middle = len(birch.participation) // 2
    letter = "A" if birch.participation[middle] != "A" else "B"
    forged = birch.participation[:middle] + letter + birch.participation[middle + 1 :]
    return {
        "a member is left out": two,
        "a member has another's papers": two | {"birch": alder},
        "a member that the plan does not know": two | {"oak": birch},
        "a member twice under two names": two | {"Birch": birch, "oak": alder},
        "the holder itself again": two | {"birch": honest["elm"]},
        "a forged participation": two | {"birch": birch.model_copy(update={"participation": forged})},
        "no participation": two | {"birch": birch.model_copy(update={"participation": ""})},
        "another member's participation": two | {
            "birch": birch.model_copy(update={"participation": alder.participation})
        },
        "no status": two | {"birch": birch.model_copy(update={"status": ""})},
        "another member's status": two | {"birch": birch.model_copy(update={"status": alder.status})},
        "another member's keys": two | {"birch": birch.model_copy(update={"keys": alder.keys})},
        "a status in place of a participation": two | {
            "birch": birch.model_copy(update={"participation": birch.status})
        },
    }  # fmt: skip


@pytest.mark.usefixtures("no_gate")
def test_a_holder_that_wants_company_counts_its_peers_by_their_own_signatures(tiny_run):
    run = tiny_run(policies={"elm": {"settings.min_holders": 3}})
    run.propose()
    tried = lies(run)
    for name, cohort in tried.items():
        assert clauses_of(run.request("elm", cohort=cohort)) == ("min_holders",), name
    assert_nothing_left(run, "elm")
    assert run.denials("elm") == [(1, BEFORE_TRAINING, ("min_holders",))] * len(tried)
    assert {record["inputs"]["holders"] for record in run.log_of("elm", "decision")} == {2}
    assert not run.request("elm").has_error()  # and with three true papers it takes part
    assert sent_rounds(run, "elm") == [1]


@pytest.mark.usefixtures("no_gate")
def test_papers_of_another_run_make_no_company(tiny_run):
    run = tiny_run(policies={"elm": {"settings.min_holders": 3}})
    run.propose()
    honest = {holder: view.papers for holder, view in run.governor.views.items()}
    other = type(run)(run.scenario)
    other.propose()
    replayed = honest | {"birch": other.governor.views["birch"].papers}
    assert clauses_of(run.request("elm", cohort=replayed)) == ("min_holders",)
    other.coordinator.close()


@pytest.mark.usefixtures("no_gate")
def test_papers_from_before_a_peers_revocation_make_no_company_once_the_newer_ones_were_seen(tiny_run):
    run = tiny_run(policies={"elm": {"settings.min_holders": 3}})
    run.propose()
    before = {holder: view.papers for holder, view in run.governor.views.items()}
    officer.revoke(run.home("birch"), reason="withdrawn", now_ms=now_ms())
    run.governor.offer(run.grid, 1)
    after = {holder: view.papers for holder, view in run.governor.views.items()}
    assert clauses_of(run.request("elm", cohort=after)) == ("min_holders",)
    assert clauses_of(run.request("elm", cohort=before)) == ("min_holders",)
    assert_nothing_left(run, "elm")


@pytest.mark.usefixtures("no_gate")
def test_papers_that_have_run_out_make_no_company(tiny_run):
    run = tiny_run(policies={"elm": {"settings.min_holders": 3}})
    run.propose()
    elm = run.node("elm")
    elm.clock = lambda: now_ms() + 20 * 60 * 1000
    reply = run.request("elm")
    assert clauses_of(reply) == ("min_holders",)
    assert run.denials("elm") == [(1, BEFORE_TRAINING, ("min_holders",))]


@pytest.mark.usefixtures("no_gate")
def test_a_peer_whose_budget_ends_before_the_round_is_no_company_in_it(tiny_run):
    run = tiny_run(policies={"elm": {"settings.min_holders": 3}, "birch": {"projects.max_rounds": 1}})
    outcomes = run.train(rounds=2)
    assert outcomes[0].cohort == ["alder", "birch", "elm"]
    assert refusals(outcomes[1])["elm"] == (BEFORE_TRAINING, ("min_holders",))
    assert "max_rounds" in refusals(outcomes[1])["birch"][1]
    assert sent_rounds(run, "elm") == [1]


# --- the data officer revokes in the middle of a run ----------------------------------------------------------------


def withdraw(run, holder="elm"):
    return lambda: officer.revoke(run.home(holder), reason="consent withdrawn", now_ms=now_ms())


def test_a_revocation_between_rounds_excludes_the_holder_from_the_next_one(tiny_run):
    run = tiny_run()
    run.before("train", 2, withdraw(run))
    outcomes = run.train(rounds=3)
    assert [outcome.cohort for outcome in outcomes] == [
        ["alder", "birch", "elm"],
        ["alder", "birch"],
        ["alder", "birch"],
    ]
    assert [refusals(outcome) for outcome in outcomes[1:]] == [
        {"elm": (BEFORE_TRAINING, ("revoked",))},  # its papers for this round were from before
        {"elm": ("coordinator-before-round", ("revoked",))},
    ]
    assert sent_rounds(run, "elm") == [1]
    assert len(run.log_of("elm", "revoked")) == 1
    assert all(outcome.committed for outcome in outcomes)


def test_a_revocation_between_offer_and_training_is_refused_by_the_holder_itself(tiny_run):
    run = tiny_run()
    run.before("train", 1, withdraw(run))
    outcomes = run.train(rounds=2)
    assert refusals(outcomes[0]) == {"elm": (BEFORE_TRAINING, ("revoked",))}
    assert outcomes[0].committed
    assert_nothing_left(run, "elm")
    assert run.node("elm").ledger.holds(run.file.run_id) == []
    assert run.denials("elm") == [(1, BEFORE_TRAINING, ("revoked",))]
    refused = run.own_log("update-refused")
    assert [(one["holder"], one["round"], one["code"]) for one in refused] == [("elm", 1, "revoked")]


def during_training(monkeypatch, act):
    """Let something happen when training is done and nothing has left yet."""
    real = clientapp.use_together

    def wrapped(uses, **options):
        results = real(uses, **options)
        if uses:
            act()
        return results

    monkeypatch.setattr(clientapp, "use_together", wrapped)


def test_a_revocation_between_training_and_upload_lets_nothing_leave_and_gives_the_budget_back(tiny_run, monkeypatch):
    run = tiny_run()
    during_training(monkeypatch, withdraw(run))
    outcome = run.train(rounds=1)[0]
    assert refusals(outcome) == {"elm": (BEFORE_UPLOAD, ("revoked",))}
    assert outcome.cohort == ["alder", "birch"]
    assert_nothing_left(run, "elm")
    assert [hold.state for hold in run.node("elm").ledger.holds(run.file.run_id)] == [HoldState.RELEASED]
    assert [record["reason"] for record in run.log_of("elm", "hold-released")] == ["revoked"]
    assert run.denials("elm") == [(1, BEFORE_UPLOAD, ("revoked",))]
    permits = [record for record in run.log_of("elm", "decision") if record["decision"]["effect"] == "permit"]
    assert [record["decision"]["point"] for record in permits] == [BEFORE_TRAINING]


def test_a_policy_that_lets_a_round_finish_does_so_and_refuses_the_next(tiny_run, monkeypatch):
    run = tiny_run(policies={"elm": {"outputs.on_revoke": "finish-round"}})
    during_training(monkeypatch, withdraw(run))
    outcomes = run.train(rounds=2)
    assert sent_rounds(run, "elm") == [1]
    assert [outcome.cohort for outcome in outcomes] == [["alder", "birch", "elm"], ["alder", "birch"]]


# --- policies and statuses on the holder's disk ---------------------------------------------------------------------


def test_a_policy_edited_after_signing_stops_every_use_until_it_is_signed_again(tiny_run):
    run = tiny_run()
    run.scenario.write_policy("elm", {"privacy.epsilon": "4.5"})
    outcome = run.train(rounds=1)[0]
    assert refusals(outcome) == {"elm": (BEFORE_TRAINING, ("signature",))}
    assert "edited after it was signed" in outcome.refused[0].reasons[0]["meaning"]
    assert_nothing_left(run, "elm")
    assert {clauses for _, _, clauses in run.denials("elm")} == {("signature",)}
    run.scenario.write_policy("elm", {"privacy.epsilon": "4.5", "policy.version": 2})
    officer.sign_policy(run.home("elm"))
    run.governor.offer(run.grid, 2)
    assert "elm" in run.governor.views


def test_a_policy_edited_in_the_middle_of_a_run_stops_the_next_use(tiny_run):
    run = tiny_run()
    run.before("train", 2, lambda: run.scenario.write_policy("elm", {"settings.min_holders": 2}))
    outcomes = run.train(rounds=3)
    assert [refusals(outcome) for outcome in outcomes[1:]] == [{"elm": (BEFORE_TRAINING, ("signature",))}] * 2
    assert sent_rounds(run, "elm") == [1]
    assert all(outcome.committed for outcome in outcomes)
    assert [one[0] for one in run.denials("elm")] == [2, 3]


def test_a_policy_signed_by_somebody_else_is_no_policy(tiny_run):
    run = tiny_run()
    shutil.copy(run.home("birch").papers / "policy.jws", run.home("elm").papers / "policy.jws")
    outcome = run.train(rounds=1)[0]
    assert refusals(outcome) == {"elm": (BEFORE_TRAINING, ("signature",))}
    assert_nothing_left(run, "elm")


def test_without_a_signed_policy_there_is_no_use(tiny_run):
    run = tiny_run()
    (run.home("elm").papers / "policy.jws").unlink()
    outcome = run.train(rounds=1)[0]
    assert refusals(outcome) == {"elm": (BEFORE_TRAINING, ("no-policy",))}
    assert_nothing_left(run, "elm")
    assert {clauses for _, _, clauses in run.denials("elm")} == {("no-policy",)}


def test_a_replayed_old_policy_is_refused_also_after_a_restart(tiny_run):
    run = tiny_run()
    home = run.home("elm")
    wide, wide_text = (home.papers / "policy.jws").read_bytes(), (home.directory / "policy.toml").read_bytes()
    run.scenario.write_policy("elm", {"policy.version": 2, "settings.min_holders": 3})
    officer.sign_policy(home)
    run.propose()
    (home.papers / "policy.jws").write_bytes(wide)
    (home.directory / "policy.toml").write_bytes(wide_text)
    assert clauses_of(run.request("elm")) == ("signature",)
    run.restart_nodes()
    assert clauses_of(run.request("elm")) == ("signature",)
    assert_nothing_left(run, "elm")
    assert run.denials("elm") == [(1, BEFORE_TRAINING, ("signature",))] * 2
    sealed = run.node("elm").log.private_details(run.node("elm").log.size - 1)
    assert "older document was replayed" in str(sealed)


@pytest.mark.parametrize("seen", [True, False], ids=["seen by the node", "not yet seen by the node"])
def test_a_replayed_status_does_not_undo_a_revocation_and_is_never_signed_anew(tiny_run, seen):
    run = tiny_run()
    run.propose()
    home = run.home("elm")
    status = home.papers / "status.jws"
    before = status.read_bytes()
    officer.revoke(home, reason="consent withdrawn", now_ms=now_ms())
    if seen:
        run.governor.offer(run.grid, 1)
    status.write_bytes(before)
    for minutes in (0, 10, 20):  # fresh, due for renewal, stale
        run.node("elm").clock = lambda minutes=minutes: now_ms() + minutes * 60 * 1000
        assert clauses_of(run.request("elm")) == ("status",)
    assert status.read_bytes() == before
    with pytest.raises(TrustRefused, match="older document was replayed"):
        officer.renew_status(home, now_ms=now_ms())
    run.restart_nodes()
    assert clauses_of(run.request("elm")) == ("status",)
    assert status.read_bytes() == before
    assert_nothing_left(run, "elm")
    assert run.denials("elm") == [(1, BEFORE_TRAINING, ("status",))] * 4


def test_a_status_that_ran_out_stops_every_use(tiny_run):
    run = tiny_run()
    run.propose()
    (run.home("elm").keys / "status.jwk").unlink()
    run.node("elm").clock = lambda: now_ms() + 20 * 60 * 1000
    assert clauses_of(run.request("elm")) == ("status",)
    run.governor.offer(run.grid, 1)
    assert run.governor.absent["elm"].clauses == ("status",)
    assert_nothing_left(run, "elm")
    assert run.denials("elm") == [(1, BEFORE_TRAINING, ("status",))] * 2


def test_a_holder_that_lost_what_it_remembers_uses_nothing(tiny_run):
    run = tiny_run()
    run.propose()
    run.restart_nodes()
    with closing(sqlite3.connect(run.home("elm").database)) as connection:
        connection.executescript("DROP TRIGGER trust_no_delete; DELETE FROM trust;")
    reply = run.say("elm", "query.offer", offer_of(run))
    assert clauses_of(reply) == ("trust-refused",)


# --- a real run, in the processes that `ringfence run` starts -------------------------------------------------------


def test_officers_who_act_while_the_worker_runs_are_obeyed_from_the_next_gate_on(tiny_scenario):
    """One revokes, another edits the policy without signing it: from outside, as data officers do."""
    rounds = 16
    scenario = tiny_scenario(
        plan={"training.rounds": rounds, "privacy.noise_multiplier_max": "40"},
        policies={"alder": {"data.rehearsal": "forbidden"}},
    )
    command = [sys.executable, "-m", "ringfence_server.cli", "run", str(scenario.directory), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        wait_for(scenario, '"round-closed"', running)
        officer.revoke(HolderHome(scenario.holder("elm")), reason="consent withdrawn", now_ms=now_ms())
        scenario.write_policy("birch", {"settings.min_holders": 2})
        out, errors = running.communicate(timeout=250)
    summary = json.loads(out)
    # Without terms that hold, birch cannot permit the release of a model that its update is in.
    assert (running.returncode, summary["status"]) == (3, "stopped"), errors
    assert "birch: signature" in summary["reason"]
    assert summary["evidence"]["verified"], summary["evidence"]["checks"]
    last = summary["rounds"][-1]
    assert last["round"] == rounds
    assert last["cohort"] == ["alder"]
    assert {one["holder"]: one["clauses"] for one in last["refused"]} == {"birch": ["signature"], "elm": ["revoked"]}
    for holder, clause in (("birch", "signature"), ("elm", "revoked")):
        with_it = [shown["round"] for shown in summary["rounds"] if holder in shown["cohort"]]
        assert with_it == list(range(1, len(with_it) + 1))
        assert 1 <= len(with_it) < rounds
        assert summary["holders"][holder]["rounds"] == len(with_it)
        with closing(Database.open(HolderHome(scenario.holder(holder)).database, must_exist=True)) as database:
            records = EvidenceLog(database, origin=f"ringfence/holder/{holder}").records()
        assert [record["round"] for record in records if record["kind"] == "sent"] == with_it
        kinds = {record["kind"] for record in records if record["kind"] == "revoked"}
        denied = {
            one["clause"] for record in records if record["kind"] == "decision" for one in record["decision"]["failed"]
        }
        assert clause in denied | kinds


def wait_for(scenario, words, running):
    while running.poll() is None:
        if any(words in path.read_text() for path in scenario.directory.glob("runs/*/events.jsonl")):
            return
        time.sleep(0.02)
    raise AssertionError(running.communicate())
