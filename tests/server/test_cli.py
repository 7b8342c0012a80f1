"""Every command of `ringfence`: what it prints, as JSON too, and how it exits (0 done, 1 fault, 2 usage, 3 refused)."""

import fcntl
import json
import re
import subprocess
import sys
from importlib import import_module

import pytest
from tiny_scenario import TinyScenario, write_scenario
from typer.testing import CliRunner

from ringfence_policy.identity import SigningKey
from ringfence_server.cli import app

# `demo` and `run` start a process of their own and are proved by tests/e2e; here they only fail early.
GROUPS = {
    "": {
        "demo",
        "run",
        "decisions",
        "doctor",
        "policy",
        "scenario",
        "ledger",
        "evidence",
        "coordinator",
        "workshop",
        "control",
    },
    "policy": {"check", "explain", "purposes", "library", "preview", "sign", "export-odrl", "import-odrl"},
    "scenario": {"list", "show", "new"},
    "ledger": {"show"},
    "evidence": {"export", "verify"},
    "coordinator": {"init", "register", "holders", "remove", "renew", "start"},
    "control": {"start", "token", "openapi"},
}


def ringfence(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def call(*arguments):
    """The command as a process of its own, for what starts another one."""
    command = [sys.executable, "-m", "ringfence_server.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)


def answer(*arguments, exit_code=0):
    result = ringfence(*arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def fault(*arguments, exit_code=2):
    """What a command says when it fails, and the same as JSON."""
    words = ringfence(*arguments)
    assert words.exit_code == exit_code, words.output
    assert words.stderr
    return words.stderr, answer(*arguments, exit_code=exit_code)["error"]


REFUSING = {"alder": {"data.rehearsal": "forbidden"}, "elm": {"projects.not_purposes": ["disease-research"]}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, worker_id):
    """A scenario in which one short run was carried out by the real command and its worker process, once for all."""
    base = tmp_path_factory.getbasetemp()
    place = (base if worker_id == "master" else base.parent) / "finished-run"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "summary.json").exists():
            scenario = write_scenario(place / "trees", plan={"training.rounds": 2}, policies=REFUSING)
            done = call("run", scenario.directory, "--json")
            assert done.returncode == 0, done.stderr
            (place / "summary.json").write_text(done.stdout)
    return TinyScenario(place / "trees", ("alder", "birch", "elm")), json.loads((place / "summary.json").read_text())


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_help_lists_every_command_with_a_sentence(group):
    result = ringfence(*group.split(), "--help")
    assert result.exit_code == 0
    listed = set(re.findall(r"^│ ([a-z][a-z-]+)\s+\S", result.output, flags=re.MULTILINE))
    assert listed == GROUPS[group]


@pytest.mark.parametrize("module", ["ringfence_server.cli", "ringfence_client.cli"])
def test_help_imports_nothing_heavy(module):
    """`--help` answers at once: no torch, no Flower, no Pydantic, no numpy."""
    program = (
        f"import sys; sys.argv = ['x', '--help']\n"
        f"from {module} import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'flwr', 'pydantic', 'numpy', 'opacus', 'cedarpy', 'joserfc', 'polars', 'matplotlib'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_arguments_show_the_help_and_are_wrong_usage():
    result = ringfence()
    assert result.exit_code == 2
    assert "Usage" in result.output


def test_an_unknown_command_or_option_is_wrong_usage():
    assert ringfence("trian").exit_code == 2
    assert ringfence("doctor", "--fast").exit_code == 2
    assert ringfence("demo", "--seed", "-1").exit_code == 2


# --- wrong usage: 2, with place and mend, and no traceback ----------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("demo", "--scenario", "lungs"),
        ("scenario", "new", "DIR", "--from", "lungs"),
        ("scenario", "show", "lungs"),
        ("run", "no-such-directory"),
        ("run", "no-such-directory", "--resume"),
        ("policy", "preview", "no-such-directory"),
        ("policy", "explain", "no-such-file.toml"),
        ("decisions", "no-such-directory"),
        ("ledger", "show", "no-such-directory"),
        ("evidence", "export", "no-such-run"),
        ("evidence", "verify", "no-such-bundle.zip", "--root", "no-such-keys.json"),
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_wrong_usage_with_a_next_step_or_an_expectation(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    words, error = fault(*command)
    assert set(error) == {"code", "summary", "expected", "got", "where", "next_step"}
    assert error["summary"] in words
    assert error["expected"] or error["next_step"]


def test_a_mistake_in_a_policy_is_shown_with_its_file_and_line(tiny_scenario):
    scenario = tiny_scenario()
    path = scenario.holder("elm") / "policy.toml"
    text = path.read_text().replace("max_rounds", "max_round")
    path.write_text(text)
    line = 1 + text[: text.index("max_round ")].count("\n")
    for command in (
        ("policy", "check", path),
        ("policy", "explain", path),
        ("policy", "preview", scenario.directory),
        ("run", scenario.directory),
        ("scenario", "show", scenario.directory),
    ):
        result = ringfence(*command)
        assert result.exit_code == 2, command
        assert f"policy.toml:{line}" in result.stderr.replace("\n", ""), command
        assert "max_rounds" in result.stderr
    assert fault("run", scenario.directory)[1]["where"].endswith(f"policy.toml:{line}")
    assert not (scenario.directory / "runs").exists()


@pytest.mark.parametrize("name", ["plan.toml", "schema.toml", "holders/elm/holder.toml"])
def test_a_file_that_is_not_toml_is_shown_with_its_line(tiny_scenario, name):
    scenario = tiny_scenario()
    path = scenario.directory / name
    path.write_text(path.read_text() + '\nbroken = "no end\n')
    line = path.read_text().count("\n")
    _, error = fault("run", scenario.directory)
    assert error["code"] == "document-invalid"
    assert f"{path.name}:{line}" in error["where"]


def test_a_scenario_that_contradicts_itself_is_wrong_usage(tiny_scenario):
    scenario = tiny_scenario()
    scenario.holder("elm").rename(scenario.holder("oak"))
    assert fault("run", scenario.directory)[1]["code"] == "scenario-invalid"


def test_data_that_does_not_fit_is_said_before_a_run_without_its_values(tiny_scenario):
    scenario = tiny_scenario()
    data = scenario.holder("elm") / "data.csv"
    data.write_text(data.read_text().replace("wet", "QX7-secret", 1))
    words, error = fault("run", scenario.directory)
    assert error["code"] == "data-invalid"
    assert "soil" in words
    assert "QX7" not in words


def test_a_demonstration_overwrites_nothing(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    _, error = fault("demo", "--out", tmp_path)
    assert error["code"] == "usage"
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_new_scenario_overwrites_nothing(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert fault("scenario", "new", tmp_path)[1]["code"] == "scenario-invalid"


def test_there_is_nothing_to_resume_after_a_finished_run(finished):
    scenario, _ = finished
    assert fault("run", scenario.directory, "--resume")[1]["code"] == "scenario-invalid"


# --- refused: 3 -----------------------------------------------------------------------------------------------------


def test_a_plan_that_nobody_permits_is_refused_by_preview_and_by_run(tiny_scenario):
    scenario = tiny_scenario()
    scenario.write_plan(purpose="marketing")
    previewed = answer("policy", "preview", scenario.directory, exit_code=3)
    assert [one["permitted"] for one in previewed["holders"]] == [False] * 3
    assert ringfence("policy", "preview", scenario.directory).exit_code == 3
    done = call("run", scenario.directory, "--json")
    assert done.returncode == 3, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "run-refused"
    assert all(f"{holder}: purposes" in error["got"] for holder in scenario.holders)
    denials = answer("decisions", scenario.directory, "--denied")
    assert {one["holder"] for one in denials} == set(scenario.holders)


def test_a_bundle_with_a_changed_byte_is_refused(finished, tmp_path):
    scenario, summary = finished
    run = scenario.directory / "runs" / summary["run_id"]
    out = tmp_path / "evidence.zip"
    answer("evidence", "export", run, "--out", out)
    data = bytearray(out.read_bytes())
    data[len(data) // 2] ^= 1
    out.write_bytes(bytes(data))
    verdict = answer("evidence", "verify", out, "--root", tmp_path / "evidence.roots.json", exit_code=3)
    assert not verdict["verified"]
    assert ringfence("evidence", "verify", out, "--root", tmp_path / "evidence.roots.json").exit_code == 3


# --- done: 0, and the JSON of each command --------------------------------------------------------------------------


def test_a_real_run_completes_without_the_holder_that_refused_and_its_evidence_verifies(finished):
    scenario, summary = finished
    assert summary["status"] == "completed"
    assert [shown["cohort"] for shown in summary["rounds"]] == [["alder", "birch"]] * 2
    for shown in summary["rounds"]:
        assert [(one["holder"], one["clauses"]) for one in shown["refused"]] == [("elm", ["not_purposes"])]
    assert summary["evidence"]["verified"], summary["evidence"]["checks"]
    out = scenario.directory / "runs" / summary["run_id"]
    assert {"report.html", "model.safetensors", "evidence.zip", "summary.json"} <= {path.name for path in out.iterdir()}


def test_a_preview_names_who_refuses_why_and_what_would_pass(tiny_scenario):
    scenario = tiny_scenario(policies=REFUSING)
    document = answer("policy", "preview", scenario.directory)
    by_holder = {one["holder"]: one for one in document["holders"]}
    assert not by_holder["elm"]["permitted"]
    assert [one["clause"] for one in by_holder["elm"]["failed"]] == ["not_purposes"]
    assert "purpose" in by_holder["elm"]["change"]
    assert by_holder["birch"]["permitted"]
    assert "Elm Institute" in ringfence("policy", "preview", scenario.directory).output


def test_decisions_are_listed_by_run_by_holder_and_by_denial(finished):
    scenario, summary = finished
    everything = answer("decisions", scenario.directory)
    assert {one["effect"] for one in everything} == {"permit", "deny"}
    denied = answer("decisions", scenario.directory, "--denied", "--holder", "elm")
    assert denied
    assert all(one["effect"] == "deny" and one["holder"] == "elm" for one in denied)
    assert {clause["clause"] for one in denied for clause in one["failed"]} == {"not_purposes"}
    assert {one["point"] for one in denied} == {"coordinator-before-round", "node-before-training"}
    assert answer("decisions", scenario.directory, "--run", summary["run_id"]) == everything
    assert answer("decisions", scenario.directory, "--run", "another") == []
    assert ringfence("decisions", scenario.directory).exit_code == 0


def test_the_ledger_shows_what_each_holder_spent(finished):
    scenario, summary = finished
    meters = answer("ledger", "show", scenario.directory)
    assert set(meters) == set(scenario.holders)
    spent = max(one["committed"] for one in meters["birch"] if one["quantity"] == "epsilon")
    assert spent / 1e6 == pytest.approx(summary["holders"]["birch"]["epsilon"])
    assert all(one["committed"] + one["reserved"] <= one["cap"] for of in meters.values() for one in of)
    alone = answer("ledger", "show", scenario.holder("birch"))
    assert list(alone) == ["birch"]
    assert ringfence("ledger", "show", scenario.directory).exit_code == 0


def test_evidence_is_exported_by_path_or_id_and_verifies(finished, tmp_path):
    scenario, summary = finished
    run = scenario.directory / "runs" / summary["run_id"]
    exported = answer("evidence", "export", run, "--out", tmp_path / "a.zip")
    assert exported["run"] == summary["run_id"]
    answer("evidence", "export", summary["run_id"], "--dir", scenario.directory, "--out", tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    verdict = answer("evidence", "verify", exported["bundle"], "--root", exported["roots"])
    assert verdict["verified"]
    assert all(check["passed"] for check in verdict["checks"])
    assert verdict["not_proved"]
    words = ringfence("evidence", "verify", exported["bundle"], "--root", exported["roots"])
    assert words.exit_code == 0
    assert "VERIFIED" in words.output


def test_scenarios_are_listed_shown_and_copied(tmp_path):
    assert "heart" in answer("scenario", "list")
    shown = answer("scenario", "show", "heart")
    assert set(shown["holders"]) == {"budapest", "cleveland", "long-beach", "zurich-basel"}
    assert answer("scenario", "new", tmp_path / "mine")["from"] == "heart"
    assert set(answer("scenario", "show", tmp_path / "mine")["holders"]) == set(shown["holders"])
    for command in (("scenario", "list"), ("scenario", "show", "heart"), ("scenario", "new", tmp_path / "again")):
        assert ringfence(*command).exit_code == 0


def test_the_policy_commands_answer_in_json(tiny_scenario, tmp_path):
    scenario = tiny_scenario()
    path = scenario.holder("elm") / "policy.toml"
    assert answer("policy", "check", scenario.directory)["valid"]
    missing = answer("policy", "check", tmp_path / "no-such-policy.toml", exit_code=2)
    assert [one["error"]["code"] for one in missing["policies"]] == ["document-invalid"]
    explained = answer("policy", "explain", path)
    assert explained["policy"] == "elm-terms@1"
    assert explained["sentences"]
    assert any(one["id"] == "research" for one in answer("policy", "purposes")["purposes"])
    assert answer("policy", "library")["policies"]
    SigningKey.generate("elm/policy-9").save(tmp_path / "key.jwk")
    signed = answer("policy", "sign", path, "--key", tmp_path / "key.jwk", "--out", tmp_path / "elm.jws")
    assert signed["policy"] == "elm-terms@1"
    answer("policy", "export-odrl", path, "--out", tmp_path / "elm.json")
    assert answer("policy", "import-odrl", tmp_path / "elm.json")["policy"] == "elm-terms@1"


def test_the_doctor_finds_this_machine_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    findings = answer("doctor")
    assert {one["check"] for one in findings} >= {"python", "libraries", "policy engine", "noise", "keys", "ledger"}
    assert all(one["passed"] for one in findings), findings


def test_a_doctor_that_finds_a_fault_exits_as_a_fault(monkeypatch):
    def broken():
        raise RuntimeError("no more entropy")

    checks = import_module("ringfence_server.doctor").CHECKS
    monkeypatch.setitem(checks, "noise", broken)
    findings = answer("doctor", exit_code=1)
    assert [one["check"] for one in findings if not one["passed"]] == ["noise"]
