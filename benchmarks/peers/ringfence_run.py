"""A whole Ringfence run: policies, ledgers, evidence, messages, aggregation, release, report.

    python ringfence_run.py TASK.json              # in Ringfence's own environment; peers.py starts it

Runs `ringfence run` on the directory that `synthetic.py` built, and notes afterwards what its events file says happened
when. Making keys and papers came before and is reported apart.
"""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from ringfence_server.events import follow


def main() -> int:
    """Run the scenario that the task names."""
    task_path = Path(sys.argv[1])
    task = json.loads(task_path.read_text())
    scenario = Path(task["scenario"])
    command = Path(sys.executable).with_name("ringfence")
    arguments = [command, "run", scenario, "--workers", str(task["workers"])]
    code = subprocess.run(arguments, check=False).returncode  # noqa: S603 -- our own command
    if code != 0:
        return code
    (events,) = (scenario / "runs").glob("*/events.jsonl")
    marks = [
        {"event": "environment", "versions": {name: version(name) for name in ("ringfence", "flwr", "torch", "numpy")}}
    ]
    for event in follow(events, is_over=lambda: True):
        if event["event"] == "round-closed":
            outcome = event["outcome"]
            trained = len(outcome["cohort"]) if outcome["committed"] else 0
            assert trained == task["holders"], f"{trained} holders trained in round {outcome['round']}"
            marks.append({"event": "round", "at": event["at"], "round": outcome["round"]})
    summary = json.loads((events.parent / "summary.json").read_text())
    marks.append({"event": "parts", "seconds": summary["timings"]})
    (task_path.parent / "marks.jsonl").write_text("".join(json.dumps(mark) + "\n" for mark in marks))
    model = load_file(events.parent / "model.safetensors")
    np.savez(task_path.parent / "model.npz", *model.values())
    return 0


if __name__ == "__main__":
    sys.exit(main())
