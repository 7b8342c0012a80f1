"""Patients with several records each, through the real command: real records of a heart study, given patients here."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from zygote import Zygote

from ringfence_client.cli import app as node_app
from ringfence_policy.database import Database
from ringfence_policy.ledger import PrivacyLedger
from ringfence_policy.verify import read_roots, verify_bundle
from ringfence_policy.vocabulary import Unit
from ringfence_server.cli import app
from ringfence_server.scenario import bundled_scenario, copy_scenario

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("subjects")]

HOLDERS = ("budapest", "cleveland", "long-beach", "zurich-basel")
MOST_VISITS = 5
SUBJECT = '\n[subject]\ncolumn = "patient_id"\nmax_records = 3\n\n[label]'


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as one:
        yield one


def visits(directory: Path, *, unit: str | None, schema: str = SUBJECT, policy: str = "") -> Path:
    """The bundled scenario, two rounds of it, whose records are those of patients with one to five visits."""
    copy_scenario(bundled_scenario("heart"), directory)
    for other in directory.glob("plan-*.toml"):
        other.unlink()
    changed(directory / "schema.toml", ("\n[label]", schema))
    write_unit(directory, unit)
    changed(
        directory / "plan.toml",
        ("rounds = 12", "rounds = 2"),
        ('mode = "exact"', 'mode = "private"'),
        ("every_round = true", "every_round = false"),
    )
    for holder_id in HOLDERS:
        home = directory / "holders" / holder_id
        header, *rows = (home / "data.csv").read_text().splitlines()
        patients = [f"{holder_id}-{number}" for number in range(len(rows)) for _ in range(1 + number % MOST_VISITS)]
        if schema:
            header, rows = f"{header},patient_id", [f"{row},{name}" for row, name in zip(rows, patients, strict=False)]
        (home / "data.csv").write_text("\n".join([header, *rows]) + "\n")
        changed(home / "policy.toml", ('unit = "record"', f'unit = "record"{policy}'))
    return directory


def changed(path: Path, *pairs: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in pairs:
        assert text.count(old) == 1, (path.name, old)
        text = text.replace(old, new)
    path.write_text(text)


def write_unit(directory: Path, unit: str | None) -> None:
    path = directory / "plan.toml"
    path.write_text(re.sub(r"(?m)^unit = .*\n", "", path.read_text()))
    if unit is not None:
        changed(path, ("[privacy]\n", f'[privacy]\nunit = "{unit}"\n'))


def carry_out(zygote: Zygote, directory: Path) -> dict[str, Any]:
    run = zygote.start(directory)
    code = zygote.work(run)
    last: dict[str, Any] = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    summary = run / "summary.json"
    return {"code": code, "error": last.get("error"), **(json.loads(summary.read_text()) if summary.exists() else {})}


def preview(directory: Path) -> list[dict[str, Any]]:
    outcome = CliRunner().invoke(app, ["policy", "preview", str(directory), "--json"])
    document: dict[str, Any] = json.loads(outcome.stdout)
    holders: list[dict[str, Any]] = document["holders"]
    return holders


def units_in(ledger: Path, dataset_id: str) -> set[tuple[str, Unit]]:
    with Database.open(ledger, must_exist=True) as database:
        return {(mechanism.kind, mechanism.unit) for mechanism, _ in PrivacyLedger(database).history(dataset_id)}


def test_patients_are_protected_whole_from_the_schema_to_the_report(tmp_path: Path) -> None:
    directory = visits(tmp_path / "visits", unit=None)
    done = subprocess.run(
        [sys.executable, "-m", "ringfence_server.cli", "run", str(directory), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)
    assert summary["privacy"]["unit"] == "subject"
    assert summary["evidence"]["verified"] is True
    (run,) = (directory / "runs").glob("2*")
    assert verify_bundle(run / "evidence.zip", read_roots(run / "roots.json")).passed
    report = (run / "report.html").read_text()
    assert "private per subject" in report
    assert "<dd>one subject</dd>" in report
    for holder_id in HOLDERS:
        ledger = directory / "holders" / holder_id / "state" / "ledger.db"
        trained = summary["holders"][holder_id]["rounds"] > 0
        assert trained
        kinds = {("dp-sgd", Unit.SUBJECT), ("score-histogram", Unit.SUBJECT)}
        assert units_in(ledger, f"{holder_id}-heart-study") == kinds
    left = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != "data.csv")
    assert b"cleveland-17" not in left

    outcome = CliRunner().invoke(node_app, ["schema", str(directory / "holders" / "cleveland")])
    assert "Beyond 3 records of one subject, and left out of training: 60" in outcome.stdout


def test_a_plan_that_protects_single_records_of_patients_is_refused_by_every_holder(
    zygote: Zygote, tmp_path: Path
) -> None:
    directory = visits(tmp_path / "visits", unit="record")
    for one in preview(directory):
        assert [failed["clause"] for failed in one["failed"]] == ["subject_records"]
        assert one["change"] == "Protect every person with all of their records."
    refused = carry_out(zygote, directory)
    assert refused["code"] == 3
    assert "subject_records" in json.dumps(refused["error"])
    assert units_in(directory / "holders" / "cleveland" / "state" / "ledger.db", "cleveland-heart-study") == set()


def test_where_every_policy_says_so_records_are_protected_one_by_one_and_subjects_never_afterwards(
    zygote: Zygote, tmp_path: Path
) -> None:
    directory = visits(tmp_path / "visits", unit="record", policy='\nsubject_records = "apart"')
    summary = carry_out(zygote, directory)
    assert (summary["code"], summary["privacy"]["unit"]) == (0, "record")
    assert summary["evidence"]["verified"] is True
    write_unit(directory, None)
    for one in preview(directory):
        assert [failed["clause"] for failed in one["failed"]] == ["unaccountable"]
    refused = carry_out(zygote, directory)
    assert refused["code"] == 3
    assert "unaccountable" in json.dumps(refused["error"])


def test_subjects_whom_no_column_names_cannot_be_planned_for(tmp_path: Path) -> None:
    directory = visits(tmp_path / "visits", unit="subject", schema="\n[label]")
    outcome = CliRunner().invoke(app, ["run", str(directory), "--json"])
    assert outcome.exit_code == 2
    error = json.loads(outcome.stdout)["error"]
    assert error["expected"] == "a table [subject] in the schema"
    assert "schema.toml" in error["next_step"]
