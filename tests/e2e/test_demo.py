"""`ringfence demo`, as a visitor runs it: one command, four hospitals, every story visible, evidence that verifies."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ringfence_policy.verify import read_roots, verify_bundle
from ringfence_server import cli_run
from ringfence_server.run_file import RunFile

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]

HOSPITALS = {"budapest", "cleveland", "long-beach", "zurich-basel"}


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo") / "here"
    finished = subprocess.run(
        [sys.executable, "-m", "ringfence_server.cli", "demo", "--out", str(out), "--json"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    summary: dict[str, Any] = json.loads(finished.stdout)
    return out, summary


def refusals(summary: dict[str, Any], number: int) -> dict[str, list[str]]:
    found = next(one for one in summary["rounds"] if one["round"] == number)
    return {one["holder"]: one["clauses"] for one in found["refused"]}


def test_the_demonstration_leaves_every_file_and_evidence_that_a_stranger_can_verify(
    demonstration: tuple[Path, dict[str, Any]],
) -> None:
    out, summary = demonstration
    for name in ("report.html", "model.safetensors", "evidence.zip", "summary.json", "roots.json"):
        assert (out / name).stat().st_size > 0
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["private"] is True
    assert summary["evidence"]["verified"] is True
    assert verify_bundle(out / "evidence.zip", read_roots(out / "roots.json")).passed
    report = (out / "report.html").read_text()
    for hospital in summary["holders"].values():
        assert hospital["name"].split(",")[0] in report


def test_the_demonstration_tells_its_four_stories(demonstration: tuple[Path, dict[str, Any]]) -> None:
    _, summary = demonstration
    assert set(summary["rounds"][0]["cohort"]) == HOSPITALS
    # One budget runs out before the end.
    assert refusals(summary, 8) == {}
    assert refusals(summary, 9) == {"long-beach": ["epsilon"]}
    # One data officer revokes; then the hospital that wants at least three in every round has too little company.
    assert refusals(summary, 11) == {
        "long-beach": ["epsilon"],
        "zurich-basel": ["revoked"],
        "budapest": ["min_holders"],
    }
    assert summary["rounds"][-1]["cohort"] == ["cleveland"]
    # One hospital forbids the commercial purpose: the preview of that plan says so before any training.
    commercial = next(one for one in summary["preview"] if "commercial product" in one["purpose"])
    cleveland = next(one for one in commercial["holders"] if one["holder"] == "cleveland")
    assert cleveland["permitted"] is False
    assert "not_purposes" in {failed["clause"] for failed in cleveland["failed"]}


def test_the_demonstrations_accuracy_is_worth_it_within_every_budget(
    demonstration: tuple[Path, dict[str, Any]],
) -> None:
    _, summary = demonstration
    # Real noise, drawn anew each time: eight runs gave 0.788 to 0.808. The promised 0.78 is a mean over twenty seeds,
    # which tests/client/test_heart_scenario.py holds.
    assert summary["metrics"]["federated_private"]["accuracy"] >= 0.76
    for line in ("federated", "local", "pooled"):
        assert 0.5 < summary["metrics"][line]["accuracy"] < 1
    for hospital in summary["holders"].values():
        assert 0 < hospital["epsilon"] <= hospital["epsilon_cap"]


def test_a_second_demonstration_keeps_the_first_one(
    demonstration: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, summary = demonstration
    started: list[RunFile] = []

    def follow(run: RunFile, *_: object, as_json: bool, start: int) -> int:
        assert start == 0
        started.append(run)
        return 0 if as_json else 1

    monkeypatch.setattr(cli_run, "_follow", follow)
    assert cli_run.demonstrate("heart", out=out, seed=None, as_json=True) == 0
    assert [run.run_id != summary["run_id"] for run in started] == [True]
    kept = out.with_name(f"{out.name}.1")
    assert json.loads((kept / "summary.json").read_text()) == summary
    assert not (out / "summary.json").exists()
    assert all(not (path / "state" / "outbox").exists() for path in (out / "heart" / "holders").iterdir())
