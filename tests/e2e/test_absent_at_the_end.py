"""Data holders whose nodes are away when a run ends: they are asked again, and the run can be taken up again."""

import json
from pathlib import Path

import pytest
from late_grid import LateGrid

from ringfence_client import clientapp
from ringfence_client.home import HolderHome
from ringfence_client.officer import sign_policy
from ringfence_policy.decision import Decision, Point
from ringfence_policy.errors import RunFailed
from ringfence_policy.verify import read_roots, verify_bundle
from ringfence_server import conduct as conduct_module
from ringfence_server.conduct import conduct
from ringfence_server.embedded_grid import EmbeddedNode
from ringfence_server.run_file import start_run, unfinished_run
from ringfence_server.scenario import load_scenario

AT_THE_END = ("query.release", "query.evidence")
# The Grid of these tests asks twice about each message.
LOOKS = 2


@pytest.fixture
def at_its_end(tiny_scenario, monkeypatch):
    """A run, and a Grid on which elm is away for so many questions of each kind of the run's end."""
    monkeypatch.setattr(conduct_module, "_PAUSE_SECONDS", 0.01)
    configs = {}

    def start(*, questions, **plan):
        run = start_run(load_scenario(tiny_scenario(plan=plan).directory), out=None, seed=None)
        root = (run.root / "coordinator" / "root.jwk").read_text()
        configs.update(
            {
                node_id: {"holder-dir": run.holder_directories[card.holder_id], "coordinator-root": root}
                for node_id, card in run.nodes().items()
            }
        )
        grid = LateGrid(
            nodes=[
                EmbeddedNode(node_id=node_id, name=card.holder_id, config=configs[node_id])
                for node_id, card in run.nodes().items()
            ],
            cohort_app=clientapp.cohort,
            flower_run_id=run.flower_run_id,
        )
        (elm,) = (node_id for node_id, card in run.nodes().items() if card.holder_id == "elm")
        left = dict.fromkeys(AT_THE_END, questions * LOOKS)

        def is_away(message):
            metadata = message.metadata
            if metadata.dst_node_id != elm or not left.get(metadata.message_type):
                return False
            left[metadata.message_type] -= 1
            return True

        grid.is_offline = is_away
        return run, grid

    yield start
    clientapp.close_nodes()


def test_a_holder_that_is_away_for_a_moment_at_the_end_is_asked_again(at_its_end):
    run, grid = at_its_end(questions=3)
    conduct(grid, run)
    result = Path(run.directory)
    assert json.loads((result / "summary.json").read_text())["status"] == "completed"
    assert verify_bundle(result / "evidence.zip", read_roots(result / "roots.json")).passed


def test_a_run_whose_holder_stays_away_at_the_end_is_not_over_and_trains_nothing_when_it_is_taken_up(at_its_end):
    run, grid = at_its_end(questions=1000, **{"cohort.round_seconds": 1})
    with pytest.raises(RunFailed, match="did not say whether it may be released") as stopped:
        conduct(grid, run)
    assert "elm" in stopped.value.expected
    assert "offline" in stopped.value.got
    assert "--resume" in stopped.value.next_step
    grid.is_offline = lambda _message: False
    again = unfinished_run(run.root).next_attempt()
    results = conduct(grid, again)
    assert results.status == "completed"
    assert {one.attempt for one in results.governor.outcomes} == {1}


@pytest.mark.parametrize("step", ["_evaluate", "_release", "_hand_over"])
def test_a_cap_that_is_raised_while_a_run_ends_is_claimed_as_the_holder_last_decided(at_its_end, monkeypatch, step):
    run, grid = at_its_end(questions=0)
    elm = HolderHome(Path(run.holder_directories["elm"]))
    then = getattr(conduct_module._Conductor, step)

    def raise_it_before(*arguments):
        text = elm.policy_file.read_text()
        assert 'epsilon = "4"' in text
        assert "version = 1" in text
        elm.policy_file.write_text(
            text.replace('epsilon = "4"', 'epsilon = "4.5"').replace("version = 1", "version = 2")
        )
        sign_policy(elm)
        return then(*arguments)

    monkeypatch.setattr(conduct_module._Conductor, step, raise_it_before)
    conduct(grid, run)
    result = Path(run.directory)
    verified = verify_bundle(result / "evidence.zip", read_roots(result / "roots.json"))
    assert verified.passed, verified.problems


def test_a_holder_that_refuses_the_release_is_not_asked_again(at_its_end, monkeypatch):
    run, grid = at_its_end(questions=0)
    asked = []
    ask = conduct_module.ask
    monkeypatch.setattr(
        conduct_module, "ask", lambda grid, kind, *rest, **names: asked.append(kind) or ask(grid, kind, *rest, **names)
    )
    monkeypatch.setattr(clientapp.HolderNode, "judge_release", _refuse)
    results = conduct(grid, run)
    assert results.status == "stopped"
    assert asked == ["query.release", "query.evidence"]


def _refuse(_node, _request):
    return Decision.deny("release", limit="nobody", point=Point.RELEASE)
