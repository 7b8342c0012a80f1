"""The deployment with every process real that the tests use, for benchmarks: one way to bring one up, not two."""

import sys
from importlib import import_module
from pathlib import Path

# First, because the benchmark that a person starts has the same plain name as the tests' module.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

LiveDeployment = import_module("deployment").LiveDeployment
wait_until = import_module("deployment").wait_until
environment = import_module("deployment").environment
write_scenario = import_module("tiny_scenario").write_scenario
letters = import_module("letters")
