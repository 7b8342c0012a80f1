"""Every command that README.md shows is run, in its order, as a reader would type it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ringfence_policy.clauses import explain
from ringfence_policy.errors import UsageError
from ringfence_policy.policy import read_policy
from ringfence_server import cli_run
from ringfence_server.scenario import bundled_scenario

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = {"ringfence": "ringfence_server.cli", "ringfence-node": "ringfence_client.cli"}

# Nothing crashed here, so there is nothing to go on with; tests/e2e/test_crashes.py resumes runs that did.
EXPECTED = {"ringfence run mine --resume": 2}
# What serves until it is stopped, or needs somebody who does, and which tests run it.
ELSEWHERE = {
    "ringfence demo --processes": "tests/deployment/test_heart_study.py",
    "ringfence-node init hospital": "tests/e2e/test_holder_page.py",
    "ringfence-node doctor": "tests/client/test_node_doctor.py",
    "ringfence-node start hospital": "tests/e2e/test_node_process.py",
    "ringfence coordinator start study": "tests/deployment/test_real_processes.py",
    "ringfence run study --superlink 127.0.0.1:9093": "tests/deployment/test_real_processes.py",
    "ringfence control start study": "tests/control/test_deployment_site.py",
    "ringfence workshop": "tests/e2e/test_workshop.py",
}


def commands():
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def call(directory, command):
    program, *arguments = shlex.split(command)
    return subprocess.run(
        [sys.executable, "-m", PROGRAMS[program], *arguments],
        cwd=directory,
        env=os.environ | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def shorten(scenario):
    plan = scenario / "plan.toml"
    plan.write_text(re.sub(r"^rounds = \d+", "rounds = 2", plan.read_text(), flags=re.MULTILINE))


def test_the_two_first_commands_are_targets_of_the_makefile():
    first = [command for command in commands() if command.startswith("make ")]
    assert first == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert "ringfence demo --scenario heart --out $(OUT)" in makefile
    assert "OUT ?= build/demo" in makefile
    assert "-m pytest" in makefile


def test_every_command_in_the_readme_works_in_its_order_and_leaves_what_it_promises(tmp_path):
    # As after `make demo`, from a run of two rounds instead of twelve.
    demo = tmp_path / "build" / "demo"
    assert call(tmp_path, f"ringfence scenario new {demo / 'heart'}").returncode == 0
    shorten(demo / "heart")
    done = call(tmp_path, f"ringfence run {demo / 'heart'} --out {demo} --json")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("report.html", "summary.json", "model.safetensors", "evidence.zip", "roots.json"):
        assert (demo / name).stat().st_size > 0, name
    shown = [command for command in commands() if not command.startswith("make ")]
    assert len(shown) >= 15
    assert {command.split()[0] for command in shown} == set(PROGRAMS)
    assert set(ELSEWHERE) <= set(shown)
    assert all((ROOT / path).is_file() for path in ELSEWHERE.values())
    for command in shown:
        if command in ELSEWHERE:
            continue
        done = call(tmp_path, command)
        assert done.returncode == EXPECTED.get(command, 0), f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        assert "Traceback" not in done.stderr, command
        if command == "ringfence scenario new mine":
            shorten(tmp_path / "mine")


def test_the_sentences_shown_are_those_the_policy_says():
    policy = bundled_scenario("heart") / "holders" / "cleveland" / "policy.toml"
    spoken = "".join(f"  - {sentence}\n" for sentence in explain(read_policy(policy)))
    sentences = re.findall(r"^  - (.+)$", README.split("policy explain` says")[1].split("```sh")[0], flags=re.MULTILINE)
    assert len(sentences) >= 4
    for sentence in sentences:
        assert f"  - {sentence}\n" in spoken
    written = policy.read_text()
    for line in re.search(r"^```toml\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)[1].splitlines():
        assert line in written, f"README shows {line!r}, which the bundled policy does not have"


def test_what_would_happen_for_a_commercial_product_is_what_the_readme_shows(tmp_path):
    assert call(tmp_path, "ringfence scenario new fresh").returncode == 0
    answer = call(tmp_path, "ringfence policy preview fresh --plan fresh/plan-commercial.toml --json")
    cleveland = next(one for one in json.loads(answer.stdout)["holders"] if one["holder"] == "cleveland")
    assert not cleveland["permitted"]
    assert cleveland["change"] in README
    assert all(failed["meaning"] in README for failed in cleveland["failed"])


def test_the_numbers_of_the_benchmark_are_those_that_the_decision_record_measured():
    record = (ROOT / "docs/decisions/0007-few-large-private-steps.md").read_text()
    private = re.search(r"5 rounds, clip 1, step 8 \| (\.\d+) \+- \.\d+ \| \.\d+ \| (\.\d+) \|", record)
    published = re.search(r"FLamby's best federated result, no privacy \| (\.\d+) \| - \| (\.\d+) \|", record)
    paragraph = " ".join(README.split("Accuracy on FLamby's protocol")[1].split("\n\n")[0].split())
    assert f"{private[1]} pooled and {private[2]} as the mean of the hospitals" in paragraph
    assert f"{published[1]} and {published[2]}" in paragraph


def test_an_earlier_demonstration_is_kept(tmp_path, monkeypatch):
    """Its budgets are spent: a new demonstration in its place must not make them look unspent."""
    monkeypatch.setattr(cli_run, "run_directory", lambda *_, **__: 0)
    out = tmp_path / "shown"
    for _ in range(3):
        assert cli_run.demonstrate("heart", out=out, seed=None, as_json=True) == 0
        (out / "heart" / "spent").touch()
    assert sorted(path.name for path in tmp_path.glob("shown*")) == ["shown", "shown.1", "shown.2"]
    assert all((path / "heart" / "spent").exists() for path in tmp_path.glob("shown*"))


def test_a_demonstration_overwrites_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_run, "run_directory", lambda *_, **__: 0)
    mine = tmp_path / "precious"
    mine.mkdir()
    (mine / "letter.txt").write_text("keep me")
    with pytest.raises(UsageError, match="in use for something else"):
        cli_run.demonstrate("heart", out=mine, seed=None, as_json=True)
    assert [path.name for path in mine.iterdir()] == ["letter.txt"]
