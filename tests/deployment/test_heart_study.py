"""`ringfence demo --processes`: the study of four hospitals as a deployment is the study in one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from deployment import environment
from ringfence_policy.database import Database
from ringfence_policy.ledger import PrivacyLedger
from ringfence_policy.verify import read_roots, verify_bundle

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
HOSPITALS = ("budapest", "cleveland", "long-beach", "zurich-basel")


def demonstrated(out: Path, *options: str) -> dict:
    command = [sys.executable, "-m", "ringfence_server.cli", "demo", "--seed", "7", "--out", str(out), "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def charged(out: Path) -> dict[str, list[tuple]]:
    found = {}
    for holder in HOSPITALS:
        ledger = out / "heart" / "holders" / holder / "state" / "ledger.db"
        with Database.open(ledger, must_exist=True) as database:
            meters = PrivacyLedger(database).meters()
            found[holder] = sorted((one.quantity, one.committed + one.reserved, one.cap) for one in meters)
    return found


def test_four_hospitals_in_processes_of_their_own_give_the_model_and_the_ledgers_of_one_process(tmp_path):
    together = demonstrated(tmp_path / "together")
    apart = demonstrated(tmp_path / "apart", "--processes")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("together", "apart"))
    assert set(one) == set(other)
    for name, array in one.items():
        assert array == pytest.approx(other[name], abs=1e-6)
    assert charged(tmp_path / "together") == charged(tmp_path / "apart")
    for ours, theirs in zip(together["rounds"], apart["rounds"], strict=True):
        assert (ours["cohort"], ours["committed"]) == (theirs["cohort"], theirs["committed"])
    assert apart["evidence"]["verified"]
    bundle, roots = (tmp_path / "apart" / name for name in ("evidence.zip", "roots.json"))
    assert verify_bundle(bundle, read_roots(roots)).passed
