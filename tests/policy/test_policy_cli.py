import json
import subprocess
import sys
import warnings

import pytest

from ringfence_policy.identity import DocumentType, SigningKey, open_signed
from ringfence_policy.policy import UsagePolicy, parse_policy, read_policy

with warnings.catch_warnings():  # the newest click deprecates what the typer that Flower pins still imports
    warnings.simplefilter("ignore", DeprecationWarning)
    from typer.testing import CliRunner

    from ringfence_policy.cli import LIBRARY, policy_app

COMMANDS = ("check", "explain", "purposes", "library", "sign", "export-odrl", "import-odrl")


def run(*arguments, code=0):
    result = CliRunner().invoke(policy_app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def policy_file(tmp_path, policy_toml):
    path = tmp_path / "policy.toml"
    path.write_text(policy_toml)
    return path


@pytest.fixture
def bad_file(tmp_path, policy_toml):
    path = tmp_path / "bad.toml"
    path.write_text(policy_toml.replace("max_rounds", "max_round"))
    return path


def test_check_says_which_policies_hold_and_which_line_is_wrong(policy_file, bad_file):
    assert "cleveland-heart@1" in run("check", policy_file).stdout
    result = run("check", policy_file.parent, code=2)
    assert "✓" in result.stdout
    assert f"{bad_file}:" in result.stderr
    assert "did you mean max_rounds?" in result.stderr
    answer = json.loads(run("check", policy_file.parent, "--json", code=2).stdout)
    assert not answer["valid"]
    assert [one["error"] is None for one in answer["policies"]] == [False, True]
    assert answer["policies"][0]["error"]["code"] == "document-invalid"


def test_check_of_a_directory_leaves_other_toml_files_alone(policy_file):
    (policy_file.parent / "plan.toml").write_text("title = 'not a policy'")
    answer = json.loads(run("check", policy_file.parent, "--json").stdout)
    assert [one["file"] for one in answer["policies"]] == [str(policy_file)]
    policy_file.unlink()
    run("check", policy_file.parent, code=2)
    run("check", policy_file.parent / "absent.toml", code=2)


def test_check_finds_a_compiled_policy_that_does_not_do_what_it_says(policy_file, monkeypatch):
    monkeypatch.setattr("ringfence_policy.gate.compile_policy", lambda _: "nonsense")
    result = run("check", policy_file, code=1)
    assert "the compiled policy does not do what it says" in result.stderr


def test_explain_reads_the_policy_aloud(policy_file):
    text = run("explain", policy_file).stdout
    assert "At most 12 rounds may use this data." in text
    assert "What for, when and how often" in text
    answer = json.loads(run("explain", policy_file, "--json").stdout)
    assert answer["digest"] == read_policy(policy_file).digest
    assert {"clause": "max_rounds", "table": "projects", "text": "At most 12 rounds may use this data."} in answer[
        "sentences"
    ]


def test_purposes_are_shown_as_a_tree():
    lines = run("purposes").stdout.splitlines()
    research = lines.index("research  (research of any kind)")
    assert any(line.startswith("  health-research") for line in lines[research:])
    assert {"id", "parent", "label", "source_iri"} == set(json.loads(run("purposes", "--json").stdout)["purposes"][0])


def test_signed_policy_opens_under_its_key_and_reads_back(policy_file, tmp_path):
    key = SigningKey.generate("officer-1")
    key.save(tmp_path / "officer.key")
    out = tmp_path / "policy.jws"
    result = run("sign", policy_file, "--key", tmp_path / "officer.key", "--out", out)
    assert "At most 12 rounds may use this data." in result.stdout
    document = open_signed(out.read_text(), type=DocumentType.POLICY, key=key.public())
    assert UsagePolicy.from_document(document) == read_policy(policy_file)
    answer = json.loads(run("sign", policy_file, "--key", tmp_path / "officer.key", "--out", out, "--json").stdout)
    assert (answer["policy"], answer["key"]) == ("cleveland-heart@1", "officer-1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["officer.key", "policy.jws", "policy.toml"]


def test_nothing_is_signed_when_the_policy_or_the_key_is_wrong(policy_file, bad_file, tmp_path):
    key = SigningKey.generate("officer-1")
    key.save(tmp_path / "officer.key")
    out = tmp_path / "policy.jws"
    run("sign", bad_file, "--key", tmp_path / "officer.key", "--out", out, code=2)
    result = CliRunner().invoke(
        policy_app, ["sign", str(policy_file), "--key", str(tmp_path / "absent.key"), "--out", str(out)]
    )
    assert result.exit_code in {2, 3}
    assert not out.exists()
    run("sign", policy_file, "--key", tmp_path / "officer.key", "--out", tmp_path / "no" / "such" / "place", code=2)


def test_odrl_goes_out_and_comes_back_as_the_same_policy(policy_file, tmp_path):
    offer = tmp_path / "offer.json"
    offer.write_text(run("export-odrl", policy_file).stdout)
    again = run("import-odrl", offer).stdout
    assert parse_policy(again) == read_policy(policy_file)
    run("export-odrl", policy_file, "--assignee", "heart-consortium", "--out", offer)
    assert json.loads(offer.read_text())["@type"] == "Agreement"
    answer = json.loads(run("import-odrl", offer, "--json").stdout)
    assert answer["digest"] == read_policy(policy_file).digest
    run("export-odrl", policy_file, "--assignee", "insurer-one", code=2)
    offer.write_text("{}")
    error = json.loads(run("import-odrl", offer, "--json", code=2).stdout)["error"]
    assert error["where"] == str(offer)
    run("import-odrl", tmp_path / "absent.json", code=2)


def test_library_policies_are_valid_and_each_opens_with_its_story():
    files = sorted(LIBRARY.glob("*.toml"))
    assert len(files) >= 12
    assert {path.stem.split("-")[0] for path in files} == {"hospital", "bank", "workshop"}
    answer = json.loads(run("check", LIBRARY, "--json").stdout)
    assert answer["valid"]
    assert len(answer["policies"]) == len(files)
    listed = run("library").stdout
    for path in files:
        story = path.read_text().splitlines()[0]
        assert story.startswith("# ")
        assert story.removeprefix("# ") in listed
        assert read_policy(path).policy_id == path.stem
    assert run("library", "workshop-ten-rounds").stdout == (LIBRARY / "workshop-ten-rounds.toml").read_text()
    run("library", "no-such-policy", code=2)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command):
    result = CliRunner().invoke(
        policy_app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    )
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_commands_are_those_documented():
    names = [command.name or command.callback.__name__ for command in policy_app.registered_commands]
    assert set(COMMANDS) <= set(names)


def test_importing_the_commands_loads_no_policy_code():
    code = "import sys, ringfence_policy.cli; print(sorted({'pydantic', 'cedarpy', 'joserfc'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
