"""Where the engine, the ledger or the data fails, nothing is used, and nobody else is held up."""

import sqlite3
from contextlib import closing

import pytest
from refusal_facts import BEFORE_TRAINING, BEFORE_UPLOAD, assert_nothing_left, offer_of, refusals
from tiny_run import clauses_of

from ringfence_client import clientapp, officer
from ringfence_client.holder_records import HolderRecords
from ringfence_client.home import HolderHome
from ringfence_client.open_workroom import OpenWorkroom
from ringfence_policy.errors import RunRefused
from ringfence_policy.ledger import now_ms
from ringfence_server.forecast import forecast
from ringfence_server.scenario import load_scenario

# --- the engine, the ledger, the data -------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["ringfence_policy.cedar.CedarEngine.ask", "ringfence_policy.gate.failed_clauses"])
def test_an_engine_that_fails_permits_nothing(tiny_run, monkeypatch, target):
    def broken(*_, **__):
        raise MemoryError("cedar has no more memory")

    run = tiny_run()
    run.propose()
    monkeypatch.setattr(target, broken)
    assert clauses_of(run.request("elm")) == ("engine",)
    assert_nothing_left(run, "elm")
    assert run.denials("elm") == [(1, BEFORE_TRAINING, ("engine",))]
    with pytest.raises(RunRefused, match="elm: engine"):
        run.train(rounds=1)


def test_an_engine_that_disagrees_with_the_reference_permits_nothing(tiny_run, monkeypatch):
    run = tiny_run()
    run.propose()
    monkeypatch.setattr("ringfence_policy.gate.failed_clauses", lambda *_, **__: frozenset({"columns"}))
    assert "engine" in clauses_of(run.request("elm"))
    assert_nothing_left(run, "elm")


def test_a_locked_ledger_stops_its_holder_and_nobody_else(tiny_run):
    run = tiny_run()
    run.propose()
    database = run.node("elm").database
    database.connection.execute("PRAGMA busy_timeout = 20")
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        outcome = run.train(rounds=1)[0]
        other.execute("ROLLBACK")
    assert refusals(outcome)["elm"][1] == ("ledger-fault",)
    assert outcome.cohort == ["alder", "birch"]
    assert outcome.committed
    assert_nothing_left(run, "elm")
    assert not run.request("elm", round_number=2).has_error()


@pytest.mark.parametrize("fate", ["corrupt", "missing", "emptied"])
def test_without_a_sound_ledger_a_holder_uses_nothing(tiny_run, fate):
    run = tiny_run()
    run.train(rounds=1)
    run.restart_nodes()
    path = run.home("elm").database
    for leftover in path.parent.glob("ledger.db-*"):
        leftover.unlink()
    if fate == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if fate == "emptied" else b"\x00\xff" * 4096)
    reply = run.say("elm", "query.offer", offer_of(run))
    assert clauses_of(reply) == ("ledger-fault",)
    outcome = run.train(rounds=1)[-1]
    assert refusals(outcome)["elm"][1] == ("ledger-fault",)
    assert outcome.cohort == ["alder", "birch"]
    if fate == "missing":
        assert not path.exists()


def test_a_ledger_taken_away_under_an_open_node_stops_it(tiny_run):
    run = tiny_run()
    run.propose()
    path = run.home("elm").database
    path.rename(path.with_name("elsewhere.db"))
    assert clauses_of(run.request("elm")) == ("ledger-fault",)
    path.with_name("elsewhere.db").rename(path)
    assert_nothing_left(run, "elm")
    assert not run.request("elm").has_error()


def test_data_that_does_not_fit_is_refused_and_none_of_its_values_is_said_anywhere(tiny_run):
    run = tiny_run()
    data = run.scenario.holder("elm") / "data.csv"
    data.write_text(data.read_text().replace("wet", "QX7-4711-secret-soil", 1))
    outcome = run.train(rounds=1)[0]
    assert refusals(outcome) == {"elm": (BEFORE_TRAINING, ("data",))}
    assert outcome.cohort == ["alder", "birch"]
    assert_nothing_left(run, "elm")
    assert {clauses for _, _, clauses in run.denials("elm")} == {("data",)}
    run.restart_nodes()
    places = [run.scenario.directory / "coordinator", run.scenario.directory / "runs", run.home("elm").state]
    for path in (path for place in places for path in place.rglob("*") if path.is_file()):
        assert b"QX7-4711" not in path.read_bytes(), path  # fewer characters stand in a signature by chance
    assert all("QX7" not in (reply.error.reason or "") for reply in run.replies if reply.has_error())


# --- the walls ------------------------------------------------------------------------------------------------------


def test_a_holder_without_walls_refuses_and_opens_no_record(tiny_run, monkeypatch):
    """Unless its policy says in so many words that no sandbox is required; a simulated holder has none."""
    opened = []
    load = HolderRecords.whole

    def noted(records, plan):
        opened.append(records._directory.name)
        return load(records, plan)

    monkeypatch.setattr(HolderRecords, "whole", noted)
    run = tiny_run(policies={"elm": {"settings.sandbox": None}})
    (outcome,) = run.train(rounds=1)
    assert refusals(outcome) == {"elm": (BEFORE_TRAINING, ("sandbox",))}
    assert (outcome.cohort, outcome.committed) == (["alder", "birch"], True)
    assert "elm" not in opened
    assert set(opened) == {"alder", "birch"}
    assert {clauses for _, _, clauses in run.denials("elm")} == {("sandbox",)}
    assert run.log_of("elm", "dataset-version") == []
    assert_nothing_left(run, "elm")


def test_walls_that_fall_during_a_run_stop_the_use_before_anything_is_reserved(tiny_run, monkeypatch):
    monkeypatch.setattr(OpenWorkroom, "sandboxed", True)
    run = tiny_run(policies={"elm": {"settings.sandbox": "required"}})
    run.propose()
    monkeypatch.setattr(OpenWorkroom, "sandboxed", False)
    assert clauses_of(run.request("elm")) == ("sandbox",)
    assert_nothing_left(run, "elm")
    assert run.node("elm").ledger.holds(run.file.run_id) == []
    assert run.denials("elm") == [(1, BEFORE_TRAINING, ("sandbox",))]


def test_walls_that_fall_while_a_round_trains_stop_its_update(tiny_run, monkeypatch):
    monkeypatch.setattr(OpenWorkroom, "sandboxed", True)
    run = tiny_run(policies={"elm": {"settings.sandbox": "required"}})
    run.propose()
    train = clientapp.use_together

    def then_without_walls(uses):
        results = train(uses)
        monkeypatch.setattr(OpenWorkroom, "sandboxed", False)
        return results

    monkeypatch.setattr(clientapp, "use_together", then_without_walls)
    assert clauses_of(run.request("elm")) == ("sandbox",)
    assert_nothing_left(run, "elm")
    assert run.denials("elm") == [(1, BEFORE_UPLOAD, ("sandbox",))]


def test_a_preview_names_who_would_refuse_for_want_of_walls(tiny_scenario):
    scenario = load_scenario(tiny_scenario(policies={"elm": {"settings.sandbox": None}}).directory)
    alder, birch, elm = forecast(scenario, scenario.plan)
    assert (alder.permitted, birch.permitted, elm.permitted) == (True, True, False)
    assert (elm.obstacles, elm.change) == (("sandbox",), None)
    assert all(one.permitted for one in forecast(scenario, scenario.plan, sandboxed=True))


def test_a_preview_names_who_has_stopped_the_use_of_its_data(tiny_scenario):
    scenario = load_scenario(tiny_scenario().directory)
    assert all(one.permitted for one in forecast(scenario, scenario.plan))  # nothing was signed yet
    homes = [HolderHome(scenario.holder_directory(holder)) for holder in scenario.holders]
    for home in homes:
        officer.set_up(home, now_ms=now_ms())
    officer.revoke(homes[0], reason="consent", now_ms=now_ms())
    officer.suspend(homes[1], reason="an audit", now_ms=now_ms())
    alder, birch, elm = forecast(scenario, scenario.plan)
    assert (alder.obstacles, birch.obstacles, elm.permitted) == (("revoked",), ("suspended",), True)
    homes[2].status.write_text("nobody's")
    assert forecast(scenario, scenario.plan)[2].obstacles == ("revoked", "suspended")
