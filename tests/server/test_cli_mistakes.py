"""What people do wrong on the command line ends with a message and an exit code, as JSON too; never a traceback."""

import json
import subprocess
import sys

import pytest
from tiny_scenario import write_scenario
from typer.testing import CliRunner

from ringfence_client.home import HolderHome
from ringfence_client.officer import set_up
from ringfence_policy.errors import ScenarioInvalid
from ringfence_policy.ledger import now_ms
from ringfence_policy.shell_words import typed
from ringfence_server.cli import app
from ringfence_server.coordinator import Coordinator
from ringfence_server.run_file import unfinished_run


def ringfence(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_of(*arguments, exit_code=2):
    result = ringfence(*arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)["error"]


@pytest.mark.parametrize("module", ["ringfence_server.cli", "ringfence_client.cli"])
@pytest.mark.parametrize("words", [("nonsense",), ("policy", "check"), ("policy", "explain", "x", "--loud")])
def test_a_wrong_command_line_is_answered_in_json_where_that_is_asked_for(module, words):
    done = subprocess.run(
        [sys.executable, "-m", module, *words, "--json"], capture_output=True, text=True, check=False, timeout=60
    )
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"], done.stderr) == (2, "usage", "")
    assert error["next_step"].endswith("--help")


def test_a_right_command_line_answers_as_ever():
    done = subprocess.run(
        [sys.executable, "-m", "ringfence_server.cli", "policy", "check", "no-such-policy.toml", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["valid"] is False


def test_what_the_system_refuses_is_a_fault_with_its_place(tmp_path):
    (tmp_path / "file").write_text("in the way")
    error = error_of("scenario", "new", tmp_path / "file" / "mine", exit_code=1)
    assert (error["code"], error["got"]) == ("fault", "Not a directory")
    assert str(tmp_path / "file") in error["where"]
    assert error["next_step"]


def test_a_file_where_a_demonstration_would_go_is_wrong_usage(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert error_of("demo", "--out", tmp_path / "file")["got"] == "File exists"


def test_a_mistyped_bundle_is_wrong_usage_and_no_finding_against_it(tmp_path):
    (tmp_path / "keys.json").write_text("{}")
    (tmp_path / "evidence.zip").write_text("something")
    for bundle, keys, where in (
        ("evidense.zip", "keys.json", "evidense.zip"),
        (".", "keys.json", ""),
        ("evidence.zip", "kyes.json", "kyes.json"),
    ):
        error = error_of("evidence", "verify", tmp_path / bundle, "--root", tmp_path / keys)
        assert (error["summary"], error["where"]) == ("no such file", str(tmp_path / where))


def test_evidence_is_exported_over_nothing(tmp_path):
    scenario = write_scenario(tmp_path / "trees")
    run = scenario.directory / "runs" / "one"
    _unstarted(scenario, run)
    (run / "evidence.zip").write_bytes(b"")
    for name in ("thesis.zip", "thesis.roots.json"):
        (tmp_path / name).write_text("years of work")
        error = error_of("evidence", "export", run, "--out", tmp_path / "thesis.zip")
        assert error["where"] == str(tmp_path / name)
        assert (tmp_path / name).read_text() == "years of work"
        (tmp_path / name).unlink()


def test_brackets_in_a_name_are_text_and_style_and_break_nothing(tmp_path):
    scenario = write_scenario(tmp_path / "trees", plan={"title": "[/] A study"})
    file = scenario.holder("elm") / "holder.toml"
    file.write_text(file.read_text().replace('name = "Elm Institute"', 'name = "[/bold] [red]Elm[/]"'))
    for command in (("policy", "preview"), ("scenario", "show")):
        result = ringfence(*command, scenario.directory)
        assert result.exit_code == 0, result.output
        assert "[red]Elm[/]" in result.output.replace("\n", "")


def test_a_policy_for_other_data_is_said_before_a_run_and_by_the_preview(tmp_path):
    scenario = write_scenario(tmp_path / "trees", policies={"elm": {"policy.dataset": "oaks"}})
    for command in ("policy", "preview"), ("run",):
        error = error_of(*command, scenario.directory)
        assert (error["code"], error["where"]) == ("document-invalid", str(scenario.holder("elm") / "policy.toml"))
        assert "oaks" in error["got"]


def test_a_holder_without_a_policy_is_found_by_the_check_of_a_scenario(tmp_path):
    scenario = write_scenario(tmp_path / "trees")
    missing = scenario.holder("elm") / "policy.toml"
    missing.unlink()
    result = ringfence("policy", "check", scenario.directory, "--json")
    assert result.exit_code == 2
    assert [one["file"] for one in json.loads(result.stdout)["policies"] if one["error"]] == [str(missing)]


def test_a_plan_that_asks_for_more_holders_than_there_are_is_previewed_as_it_would_end(tmp_path):
    scenario = write_scenario(tmp_path / "trees", plan={"cohort.min_holders": 4})
    found = json.loads(ringfence("policy", "preview", scenario.directory, "--json").stdout)["holders"]
    assert [one["rounds_permitted"] for one in found] == [0, 0, 0]
    assert {one["failed"][-1]["clause"] for one in found} == {"plan-min-holders"}
    assert "at most 3 data holders" in found[0]["change"]


def test_a_directory_of_another_coordinator_says_whose_it_is(tmp_path):
    scenario = write_scenario(tmp_path / "trees")
    Coordinator(scenario.directory / "coordinator", coordinator_id="another-consortium").close()
    error = error_of("run", scenario.directory)
    assert (error["code"], error["expected"], error["got"]) == ("usage", "another-consortium", "tree-consortium")


def test_where_no_run_is_left_to_resume_the_last_ones_results_are_named(tmp_path):
    scenario = write_scenario(tmp_path / "trees")
    run = scenario.directory / "runs" / "one"
    _unstarted(scenario, run, is_finished=True)
    with pytest.raises(ScenarioInvalid) as refused:
        unfinished_run(scenario.directory)
    assert str(run) in refused.value.got


def test_results_that_could_not_be_written_are_found_out_before_anything_is_spent(tmp_path):
    scenario = write_scenario(tmp_path / "trees")
    (tmp_path / "file").write_text("in the way")
    error = error_of("run", scenario.directory, "--out", tmp_path / "file")
    assert (error["summary"], error["where"]) == ("results cannot be written there", str(tmp_path / "file"))
    assert not (scenario.holder("elm") / "state").exists()


def test_a_ledger_that_is_gone_is_said_to_be_gone_by_whatever_would_read_it(tmp_path):
    scenario = write_scenario(tmp_path / "trees")
    _unstarted(scenario, scenario.directory / "runs" / "one")
    ledger = scenario.holder("elm") / "state" / "ledger.db"
    assert json.loads(ringfence("decisions", scenario.directory, "--json").stdout) == []
    ledger.unlink()
    for command in (("policy", "preview"), ("ledger", "show"), ("decisions",), ("run",)):
        assert error_of(*command, scenario.directory, exit_code=1)["where"] == str(ledger)
    with pytest.raises(ScenarioInvalid, match="ledger is gone"):
        set_up(HolderHome(scenario.holder("elm")), now_ms=now_ms())
    assert not ledger.exists()


def test_a_path_with_spaces_can_be_typed_as_it_is_shown(tmp_path):
    result = ringfence("scenario", "new", tmp_path / "Größe und Name")
    assert f"ringfence run '{tmp_path}/Größe und Name'" in result.output
    assert typed("plain/path.toml") == "plain/path.toml"


def _unstarted(scenario, directory, **changes):
    """A run's file, as a run would have it, in a directory of its own."""
    from ringfence_server.run_file import start_run  # noqa: PLC0415 -- Flower
    from ringfence_server.scenario import load_scenario  # noqa: PLC0415

    run = start_run(load_scenario(scenario.directory), out=None, seed=None, run_id=directory.name)
    document = json.loads((directory / "run.json").read_text()) | changes
    (directory / "run.json").write_text(json.dumps(document))
    return run
