"""A user's own directory: copied from a scenario and changed, or written anew; other data, models and strategies."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from safetensors.numpy import load_file
from tiny_scenario import TinyScenario, leaves, write_scenario
from typer.testing import CliRunner
from zygote import Zygote

from ringfence_client.models import code_digest
from ringfence_policy.verify import read_roots, verify_bundle
from ringfence_server.cli import app

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("own-directory")]

NAMES = ("alder", "birch")
RESULT_FILES = {"report.html", "model.safetensors", "evidence.zip", "summary.json", "roots.json"}
OWN_MODULE = """
from torch import Tensor, nn


class Leaf(nn.Module):
    def __init__(self, feature_count: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(feature_count, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, rows: Tensor) -> Tensor:
        return self.body(rows)
"""

# Every key that is promised, and of what type it is where nobody refused; "*" stands for each holder.
SUMMARY: dict[str, Any] = {
    "run_id": str,
    "status": str,
    "rehearsal": bool,
    "rounds": [{"round": int, "cohort": list, "refused": [{"holder": str, "clauses": list}]}],
    "holders": {"*": {"epsilon": float, "delta": float, "epsilon_cap": float, "rounds": int}},
    "metrics": {
        line: {"accuracy": float, "auc": float, "per_holder": {"*": {"accuracy": float, "auc": float}}}
        for line in ("federated_private", "federated", "local", "pooled")
    },
    "privacy": {"unit": str, "relation": str, "trusted": list, "not_covered": list},
    "timings": {"total": float, "training": float},
    "evidence": {"verified": bool, "checks": [{"name": str, "passed": bool, "detail": str}]},
}


@pytest.fixture(scope="module")
def own_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the import path with a user's own model in it."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "leaf_model.py").write_text(OWN_MODULE)
    return folder


@pytest.fixture(scope="module")
def zygote(own_code: Path) -> Iterator[Zygote]:
    with Zygote(import_path=own_code) as one:
        yield one


def carry_out(zygote: Zygote, scenario: TinyScenario, *, whole: bool = False) -> dict[str, Any]:
    run = zygote.start(scenario.directory)
    code = zygote.work(run, whole=whole)
    if code:
        last: dict[str, Any] = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
        return {"code": code, "error": last["error"], "run": run}
    assert {path.name for path in run.iterdir()} >= RESULT_FILES
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    if whole:
        assert_has(summary, SUMMARY)
    assert summary["evidence"]["verified"] is True
    return {"code": code, "run": run, **summary}


def assert_has(document: Any, schema: Any, *, where: str = "summary") -> None:
    if isinstance(schema, type):
        assert isinstance(document, schema), f"{where}: {document!r} is no {schema.__name__}"
    elif isinstance(schema, list):
        for position, item in enumerate(document):
            assert_has(item, schema[0], where=f"{where}[{position}]")
    else:
        for key, part in schema.items():
            for name in document if key == "*" else [key]:
                assert name in document, f"{where} has no {name}"
                assert_has(document[name], part, where=f"{where}.{name}")


def invoke(*arguments: str) -> tuple[int, dict[str, Any]]:
    outcome = CliRunner().invoke(app, [*arguments, "--json"])
    document: dict[str, Any] = json.loads(outcome.stdout)
    return outcome.exit_code, document


def test_a_copied_scenario_runs_as_it_is_and_its_evidence_can_be_handed_on(zygote: Zygote, tmp_path: Path) -> None:
    directory = tmp_path / "hearts"
    assert invoke("scenario", "new", str(directory))[0] == 0
    plan = directory / "plan.toml"
    plan.write_text(re.sub(r"(?m)^rounds = .*$", "rounds = 2", plan.read_text()))
    summary = carry_out(zygote, TinyScenario(directory, ()), whole=True)
    assert summary["code"] == 0
    assert len(summary["rounds"]) == 2
    assert set(summary["holders"]) == {"budapest", "cleveland", "long-beach", "zurich-basel"}

    bundle, roots = tmp_path / "given" / "proof.zip", tmp_path / "given" / "proof.roots.json"
    code, exported = invoke("evidence", "export", summary["run_id"], "--dir", str(directory), "--out", str(bundle))
    assert (code, exported["roots"]) == (0, str(roots))
    code, verified = invoke("evidence", "verify", str(bundle), "--root", str(roots))
    assert (code, verified["verified"]) == (0, True)
    _assert_no_byte_can_change(bundle, roots)


def _assert_no_byte_can_change(bundle: Path, roots: Path) -> None:
    original = bundle.read_bytes()
    offsets = random.Random(2).sample(range(len(original)), 48)  # noqa: S311 -- a sample, not a secret
    copy = bundle.with_name("changed.zip")
    keys = read_roots(roots)
    for number, offset in enumerate([0, len(original) - 1, *offsets]):
        changed = bytearray(original)
        changed[offset] ^= 1 << (number % 8)
        copy.write_bytes(changed)
        if number < 3:
            code, verified = invoke("evidence", "verify", str(copy), "--root", str(roots))
            assert (code, verified["verified"]) == (3, False), offset
        else:
            assert not verify_bundle(copy, keys).passed, offset


def test_records_may_be_in_parquet_and_the_model_a_perceptron(zygote: Zygote, tmp_path: Path) -> None:
    scenario = write_scenario(
        tmp_path / "trees", holders=NAMES, plan={"training.rounds": 2, "model.kind": "mlp", "model.hidden": [4]}
    )
    alder = scenario.holder("alder")
    table = pl.read_csv(alder / "data.csv")
    table.write_parquet(alder / "data.parquet")
    (alder / "data.csv").unlink()
    summary = carry_out(zygote, scenario)
    assert summary["code"] == 0
    assert {one["rounds"] for one in summary["holders"].values()} == {2}
    shapes = {array.shape for array in load_file(summary["run"] / "model.safetensors").values()}
    assert (4, 3) in shapes


def test_fedprox_runs(zygote: Zygote, tmp_path: Path) -> None:
    plan = {"training.rounds": 2, "training.steps": 3, "training.strategy": "FedProx", "training.proximal_mu": "0.1"}
    summary = carry_out(zygote, write_scenario(tmp_path / "trees", holders=NAMES, plan=plan))
    assert summary["plan"]["strategy"] == "FedProx"
    assert {one["steps"] for one in summary["holders"].values()} == {3}


def test_a_users_own_module_runs_where_the_policies_name_its_code(
    zygote: Zygote, own_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(own_code))
    digest = code_digest("leaf_model:Leaf")
    plan = {
        "training.rounds": 2,
        "model.kind": "module",
        "model.path": "leaf_model:Leaf",
        "model.code_digest": digest,
    }
    allowing = {name: {"projects.code": ["built-in", digest]} for name in NAMES}
    summary = carry_out(zygote, write_scenario(tmp_path / "named", holders=NAMES, plan=plan, policies=allowing))
    assert summary["code"] == 0
    assert summary["plan"]["model"] == "leaf_model:Leaf"

    # One holder's policy knows built-in models only: it refuses this clause, and the other goes on alone.
    one = {"alder": allowing["alder"]}
    summary = carry_out(zygote, write_scenario(tmp_path / "unnamed", holders=NAMES, plan=plan, policies=one))
    assert summary["rounds"][0]["cohort"] == ["alder"]
    assert [refusal["clauses"] for refusal in summary["rounds"][0]["refused"]] == [["code"]]

    # The plan names other code than is installed: nothing runs.
    other = "sha256:" + "0" * 64
    wrong = {name: {"projects.code": [other]} for name in NAMES}
    refused = carry_out(
        zygote,
        write_scenario(tmp_path / "wrong", holders=NAMES, plan={**plan, "model.code_digest": other}, policies=wrong),
    )
    assert refused["code"] == 3
    assert refused["error"]["expected"] == other


def test_a_record_outside_the_schema_stops_its_own_holder_only_and_shows_no_value(
    zygote: Zygote, tmp_path: Path
) -> None:
    scenario = write_scenario(tmp_path / "trees", holders=NAMES, plan={"training.rounds": 2})
    zygote.start(scenario.directory)  # sets the holders up, while every record fits
    (scenario.holder("birch") / "data.csv").write_text(leaves(60, seed=1) + "4.4,7,SECRETSOIL,1\n")
    summary = carry_out(zygote, scenario)
    assert summary["rounds"][0]["cohort"] == ["alder"]
    assert [one["holder"] for one in summary["rounds"][0]["refused"]] == ["birch"]
    for path in summary["run"].rglob("*"):
        assert not path.is_file() or b"SECRETSOIL" not in path.read_bytes(), path
