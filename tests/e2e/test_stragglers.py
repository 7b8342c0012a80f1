"""Holders that are late, gone, or not there yet: what their round, their budget and the evidence make of it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from late_grid import LateGrid
from refusal_facts import BEFORE_TRAINING, BEFORE_UPLOAD, assert_nothing_left, holds, refusals, sent_rounds
from tiny_run import clauses_of, round_of

from ringfence_client import clientapp, deadline
from ringfence_client.home import HolderHome
from ringfence_policy.errors import RunFailed
from ringfence_policy.ledger import HoldState
from ringfence_policy.verify import Verification, read_roots, verify_bundle
from ringfence_server.conduct import conduct
from ringfence_server.embedded_grid import EmbeddedNode
from ringfence_server.run_file import RunFile, start_run
from ringfence_server.scenario import load_scenario
from ringfence_server.strategies import build_strategy

COORDINATOR = "coordinator-before-round"
SECONDS = {"cohort.round_seconds": 1}
Chosen = Callable[[Message], bool]


def said_to(run: Any, *holders: str, kind: str = "train", rounds: tuple[int, ...] = (1, 2, 3)) -> Chosen:
    """Messages of one kind to these holders, in these rounds."""
    nodes = {run.node_ids[holder] for holder in holders}
    return lambda message: (
        message.metadata.dst_node_id in nodes
        and message.metadata.message_type == kind
        and (round_of(message) in rounds or kind == "query.propose")
    )


def refused_updates(run: Any) -> list[tuple[int, str, str]]:
    return [(record["round"], record["holder"], record["code"]) for record in run.own_log("update-refused")]


def meanings(outcome: Any, holder: str) -> str:
    return " ".join(reason["meaning"] for one in outcome.refused if one.holder == holder for reason in one.reasons)


class Clock:
    """The holders' monotonic clock, as `deadline` reads it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed = 1000.0
        monkeypatch.setattr(deadline, "monotonic", lambda: self.passed)

    def while_training(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        """Let every training take so long."""
        train = clientapp.use_together

        def slowly(uses: Any) -> Any:
            self.passed += seconds
            return train(uses)

        monkeypatch.setattr(clientapp, "use_together", slowly)


# --- sent, but too late ---------------------------------------------------------------------------------------------


def test_an_update_that_comes_too_late_is_left_out_of_its_round_and_of_every_later_one(tiny_run):
    run = tiny_run(plan=SECONDS)
    run.grid.keeps = said_to(run, "elm", rounds=(1,))
    # Just before round 2 is trained, what elm sent for round 1 arrives, and a Grid that knows no order brings it.
    run.before("train", 2, run.grid.let_go)
    run.grid.brings_everything = True
    first, second = run.train(rounds=2)

    assert (first.committed, first.cohort) == (True, ["alder", "birch"])
    assert refusals(first) == {"elm": (COORDINATOR, ("no-reply",))}
    assert "did not answer before the round closed" in meanings(first, "elm")
    assert (second.committed, second.cohort) == (True, ["alder", "birch", "elm"])
    assert refused_updates(run) == [(1, "elm", "no-reply")]
    late, on_time = (record["update_digest"] for record in run.log_of("elm", "sent"))
    (commit,) = (record for record in run.own_log("round-committed") if record["round"] == 2)
    assert commit["updates"]["elm"] == on_time != late


def test_what_was_sent_too_late_stays_charged(tiny_run):
    run = tiny_run(plan=SECONDS)
    run.grid.keeps = said_to(run, "elm", rounds=(1,))
    run.train(rounds=1)
    (hold,) = holds(run, "elm", HoldState.SENDING)
    assert hold.round_number == 1
    charged = run.spent("elm")
    assert charged == run.spent("alder") > 0
    run.governor.offer(run.grid, 2)
    assert [hold.hold_id for hold in holds(run, "elm", HoldState.COMMITTED)] == [hold.hold_id]
    assert run.spent("elm") == charged
    assert run.governor.views["elm"].standing.rounds_used == 1


# --- not sent in time -----------------------------------------------------------------------------------------------


def test_a_holder_whose_time_runs_out_sends_nothing_and_gives_its_reservation_back(tiny_run, monkeypatch):
    run = tiny_run()
    run.propose()
    clock = Clock(monkeypatch)
    clock.while_training(monkeypatch, 600)
    assert clauses_of(run.request("elm")) == ("deadline",)
    assert_nothing_left(run, "elm")
    assert len(holds(run, "elm", HoldState.RELEASED)) == 1
    assert run.denials("elm") == [(1, BEFORE_UPLOAD, ("deadline",))]
    assert [record["reason"] for record in run.log_of("elm", "hold-released")] == ["deadline"]


def test_a_holder_that_is_just_in_time_sends(tiny_run, monkeypatch):
    run = tiny_run()
    run.propose()
    Clock(monkeypatch).while_training(monkeypatch, 599.9)
    assert not run.request("elm").has_error()
    assert sent_rounds(run, "elm") == [1]


def test_the_time_is_the_plans(tiny_run, monkeypatch):
    run = tiny_run(plan={"cohort.round_seconds": 30})
    run.propose()
    Clock(monkeypatch).while_training(monkeypatch, 31)
    reply = run.request("elm")
    assert clauses_of(reply) == ("deadline",)
    assert "30 seconds" in reply.error.reason


def test_a_request_that_waited_too_long_before_it_was_worked_on_reserves_nothing(tiny_run, monkeypatch):
    """Whoever lets requests wait at a holder says when each came."""
    run = tiny_run()
    run.propose()
    clock = Clock(monkeypatch)
    token = deadline.arrived.set(clock.passed - 601)
    assert clauses_of(run.request("elm")) == ("deadline",)
    deadline.arrived.reset(token)
    assert_nothing_left(run, "elm")
    assert run.node("elm").ledger.holds(run.file.run_id) == []
    assert run.denials("elm") == [(1, BEFORE_TRAINING, ("deadline",))]
    assert not run.request("elm").has_error()


def test_a_use_that_fails_after_its_time_leaves_no_trace_of_the_fault(tiny_run, monkeypatch):
    run = tiny_run()
    run.propose()
    clock = Clock(monkeypatch)

    def broken(uses: Any) -> Any:
        clock.passed += 700
        return [clientapp.Fault("the use failed after data was opened") for _ in uses]

    monkeypatch.setattr(clientapp, "use_together", broken)
    assert clauses_of(run.request("elm")) == ("deadline",)
    assert_nothing_left(run, "elm")


def test_an_update_that_left_in_time_is_sent_again_however_late_it_is(tiny_run, monkeypatch):
    run = tiny_run()
    run.propose()
    clock = Clock(monkeypatch)
    assert not run.request("elm").has_error()
    charged = run.spent("elm")
    token = deadline.arrived.set(clock.passed - 10_000)
    assert not run.request("elm").has_error()
    deadline.arrived.reset(token)
    assert sent_rounds(run, "elm") == [1]
    assert run.spent("elm") == charged


def test_a_date_set_wrong_makes_no_holder_late(tiny_run, monkeypatch):
    run = tiny_run(plan={"cohort.round_seconds": 30})
    run.propose()
    node = run.node("elm")
    true, train = node.clock, clientapp.use_together

    def and_set_the_date(uses: Any) -> Any:
        node.clock = lambda: true() + 10 * 60 * 1000
        return train(uses)

    monkeypatch.setattr(clientapp, "use_together", and_set_the_date)
    assert not run.request("elm").has_error()
    assert sent_rounds(run, "elm") == [1]


# --- more asked than needed -----------------------------------------------------------------------------------------


def test_a_round_closes_as_soon_as_enough_updates_are_there(tiny_run):
    run = tiny_run(plan={"cohort.min_holders": 2, "cohort.enough_holders": 2})  # and ten minutes for an answer
    run.grid.keeps = said_to(run, "birch")
    outcomes = run.train(rounds=2)
    assert [(one.committed, one.cohort) for one in outcomes] == [(True, ["alder", "elm"])] * 2
    assert all(one.seconds < 60 for one in outcomes)
    assert refused_updates(run) == [(1, "birch", "no-reply"), (2, "birch", "no-reply")]
    assert sent_rounds(run, "birch") == [1, 2]  # asked, and left out: it has paid all the same


def let_go_once_awaited(run: Any) -> list[int]:
    """Let what was kept arrive once the coordinator has looked in vain; how many answers each of its looks found."""
    pull, looks = run.grid.pull_messages, []

    def look(ids: Any) -> list[Message]:
        found = pull(ids)
        looks.append(len(found))
        if run.grid.kept and not found:
            run.grid.let_go()
        return found

    run.grid.pull_messages = look
    return looks


@pytest.mark.parametrize("spoilt", ["an error", "an update that cannot be used"])
def test_only_updates_that_can_be_used_make_a_round_full(tiny_run, spoilt):
    run = tiny_run(plan={"cohort.enough_holders": 2, "cohort.round_seconds": 60})
    run.grid.keeps = said_to(run, "elm")
    answer = clientapp.cohort

    def spoil(messages: Any, contexts: Any) -> list[Message]:
        replies = answer(messages, contexts)
        for place, message in enumerate(messages):
            if said_to(run, "alder")(message) and spoilt == "an error":
                replies[place] = Message(clientapp.Error(code=500, reason="gone"), reply_to=message)
            elif said_to(run, "alder")(message):
                replies[place].content.metric_records["metrics"]["num-examples"] = 10**9
        return replies

    run.deliver = spoil
    looks = let_go_once_awaited(run)
    (outcome,) = run.train(rounds=1)
    assert 0 in looks  # two answers were there, and it went on waiting
    assert (outcome.committed, outcome.cohort) == (True, ["birch", "elm"])


def test_a_round_is_not_full_while_those_who_came_want_more_company(tiny_run):
    """Otherwise the policy of each would leave its update out, round after round, and each would pay for it."""
    run = tiny_run(
        plan={"cohort.enough_holders": 2, "cohort.round_seconds": 60},
        policies={name: {"settings.min_holders": 3} for name in ("alder", "birch", "elm")},
    )
    run.grid.keeps = said_to(run, "birch")
    let_go_once_awaited(run)
    (outcome,) = run.train(rounds=1)
    assert (outcome.committed, outcome.cohort) == (True, ["alder", "birch", "elm"])


def test_a_round_that_fewer_than_the_plans_minimum_answer_in_time_is_not_committed_and_the_run_goes_on(tiny_run):
    run = tiny_run(plan=SECONDS | {"cohort.min_holders": 3})
    run.grid.keeps = said_to(run, "elm", rounds=(2,))
    outcomes = run.train(rounds=3)
    assert [one.committed for one in outcomes] == [True, False, True]
    assert "no data holder's update may be used" in outcomes[1].reason
    assert refusals(outcomes[1])["elm"][1] == ("no-reply",)
    assert {one.holder: one.code for one in outcomes[1].rejected_updates} == dict.fromkeys(
        ("alder", "birch"), "plan-min-holders"
    )
    assert outcomes[2].cohort == ["alder", "birch", "elm"]
    assert sent_rounds(run, "alder") == sent_rounds(run, "elm") == [1, 2, 3]


# --- gone, and not there yet ----------------------------------------------------------------------------------------


def test_a_node_that_is_offline_is_its_holders_silence_and_no_refusal(tiny_run):
    run = tiny_run()  # ten minutes for an answer: the SuperLink's word ends the waiting
    run.grid.is_offline = said_to(run, "elm", rounds=(1,))
    first, second = run.train(rounds=2)
    assert refusals(first) == {"elm": (COORDINATOR, ("no-reply",))}
    assert meanings(first, "elm") == "The holder's node is offline."
    assert (first.committed, first.cohort, first.seconds < 60) == (True, ["alder", "birch"], True)
    assert second.cohort == ["alder", "birch", "elm"]
    assert refused_updates(run) == [(1, "elm", "no-reply")]
    assert run.log_of("elm", "sent")[0]["round"] == 2


@pytest.mark.parametrize("fate", ["loses", "is_offline"])
def test_a_holder_that_is_not_there_at_the_start_is_shown_the_plan_again_and_takes_part_from_then(tiny_run, fate):
    run = tiny_run(plan=SECONDS)
    proposed = []

    def first_two_proposals(message: Message) -> bool:
        if not said_to(run, "elm", kind="query.propose")(message):
            return False
        proposed.append(message)
        return len(proposed) <= 2 * (2 if fate == "is_offline" else 1)  # this Grid asks twice about each

    setattr(run.grid, fate, first_two_proposals)
    outcomes = run.train(rounds=3)
    assert [one.cohort for one in outcomes] == [["alder", "birch"], *[["alder", "birch", "elm"]] * 2]
    assert refusals(outcomes[0]) == {"elm": (COORDINATOR, ("no-reply",))}
    assert sent_rounds(run, "elm") == [2, 3]


def test_a_holder_that_misses_the_offer_is_not_asked_in_that_round_and_is_in_the_next(tiny_run):
    run = tiny_run(plan=SECONDS)
    run.grid.loses = said_to(run, "elm", kind="query.offer", rounds=(1,))
    outcomes = run.train(rounds=3)
    everyone = ["alder", "birch", "elm"]
    assert [one.cohort for one in outcomes] == [["alder", "birch"], everyone, everyone]
    assert sent_rounds(run, "elm") == [2, 3]


def test_a_run_that_nobody_answers_stops_and_does_not_say_that_anybody_refused(tiny_run):
    run = tiny_run(plan=SECONDS)
    run.grid.is_offline = lambda _message: True
    with pytest.raises(RunFailed, match="no data holder answered") as stopped:
        run.train(rounds=1)
    assert "offline" in str(stopped.value)
    assert "--resume" in str(stopped.value)


def test_a_strategy_with_a_memory_goes_on_after_a_round_it_missed(tiny_run):
    run = tiny_run(plan=SECONDS | {"training.strategy": "FedAdam", "cohort.min_holders": 2})
    run.grid.loses = said_to(run, "alder", "elm", rounds=(2,))
    outcomes = run.train(build_strategy(run.plan.terms.training), rounds=3)
    assert [one.committed for one in outcomes] == [True, False, True]
    assert sorted(run.models) == [1, 3]
    started_from = {record["round"]: record["base_model_digest"] for record in run.log_of("alder", "sent")}
    committed = {record["round"]: record["model_digest"] for record in run.own_log("round-committed")}
    assert started_from[3] == committed[1]
    assert committed[3] != committed[1]


# --- the evidence ---------------------------------------------------------------------------------------------------


@pytest.fixture
def carry_out(tiny_scenario: Any) -> Iterator[Callable[..., tuple[RunFile, Verification]]]:
    """Conducts a whole run over a Grid that a test has prepared, and verifies its evidence."""

    def go(prepare: Callable[[LateGrid, dict[str, int]], None], **changes: Any) -> tuple[RunFile, Verification]:
        run = start_run(load_scenario(tiny_scenario(**changes).directory), out=None, seed=None)
        root = (run.root / "coordinator" / "root.jwk").read_text()
        configs = {
            node_id: {"holder-dir": run.holder_directories[card.holder_id], "coordinator-root": root}
            for node_id, card in run.nodes().items()
        }
        grid = LateGrid(
            nodes=[
                EmbeddedNode(node_id=node_id, name=card.holder_id, config=configs[node_id])
                for node_id, card in run.nodes().items()
            ],
            cohort_app=clientapp.cohort,
            flower_run_id=run.flower_run_id,
        )
        prepare(grid, {card.holder_id: node_id for node_id, card in run.nodes().items()})
        conduct(grid, run)
        directory = Path(run.directory)
        return run, verify_bundle(directory / "evidence.zip", read_roots(directory / "roots.json"))

    yield go
    clientapp.close_nodes()


def chosen(nodes: dict[str, int], holder: str, round_number: int) -> Chosen:
    return lambda message: (
        message.metadata.dst_node_id == nodes[holder]
        and message.metadata.message_type == "train"
        and round_of(message) == round_number
    )


def test_the_evidence_of_a_run_with_late_lost_and_missing_answers_verifies(carry_out, monkeypatch):
    """elm sends too late in round 1, birch gets no request in round 2, and in round 3 elm runs out of time."""
    clock = Clock(monkeypatch)

    def prepare(grid: LateGrid, nodes: dict[str, int]) -> None:
        grid.keeps = chosen(nodes, "elm", 1)
        grid.loses = chosen(nodes, "birch", 2)
        judge = clientapp.finish

        def finish(prepared: Any, result: Any) -> Any:
            if (prepared.node.holder_id, prepared.request.round_number) == ("elm", 3) and result is not None:
                late, clock.passed = clock.passed, clock.passed + 1
                answer = judge(prepared, result)
                clock.passed = late
                return answer
            return judge(prepared, result)

        monkeypatch.setattr(clientapp, "finish", finish)

    run, outcome = carry_out(prepare, plan=SECONDS)
    assert outcome.passed, outcome.problems
    summary = json.loads((Path(run.directory) / "summary.json").read_text())
    reasons = [{one["holder"]: one["clauses"] for one in entry["refused"]} for entry in summary["rounds"]]
    assert reasons == [{"elm": ["no-reply"]}, {"birch": ["no-reply"]}, {"elm": ["deadline"]}]
    node = clientapp._open_node(run.holder_directories["elm"], (run.root / "coordinator" / "root.jwk").read_text())
    states = {hold.round_number: hold.state for hold in node.ledger.holds(run.run_id)}
    assert states == {1: HoldState.COMMITTED, 2: HoldState.COMMITTED, 3: HoldState.RELEASED}
    assert HolderHome(Path(run.holder_directories["elm"])).database.exists()
    (answered,) = (check for check in outcome.checks if check.name == "nothing hidden")
    assert "elm in round 1" in answered.detail
