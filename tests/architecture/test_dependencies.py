"""Who may import whom, and that what is imported is declared where it is needed."""

import ast
import contextlib
import importlib
import json
import re
import subprocess
import sys
import tomllib

import pytest

from ringfence_client.compiled import load_library

# What an import name is called in pyproject.toml, where that differs; and what comes inside another distribution.
DISTRIBUTIONS = {
    "pydantic_core": "pydantic",
    "markupsafe": "jinja2",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "prometheus_client": "prometheus-client",
    "starlette": "fastapi",
    "h11": "uvicorn",
}
EXTRA_OF = {"ringfence_policy": None, "ringfence_client": "client", "ringfence_server": "server"}


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())


def _declared(requirements):
    return {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in requirements}


def _run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_the_import_contracts_of_pyproject_hold(root):
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, (
        f"{result.stdout}\nMove what both sides need into ringfence_policy; what only one needs stays with it."
    )
    assert " 0 broken" in result.stdout


def test_the_contracts_name_all_three_packages_and_what_the_floor_must_not_carry(project):
    contracts = {contract["type"]: contract for contract in project["tool"]["importlinter"]["contracts"]}
    assert contracts["layers"]["layers"] == ["ringfence_server | ringfence_client", "ringfence_policy"]
    assert {"flwr", "fastapi", "torch"} <= set(contracts["forbidden"]["forbidden_modules"])


def test_every_third_party_import_is_declared_for_its_package(sources, project):
    declared = _declared(project["project"]["dependencies"])
    extras = {name: _declared(lines) for name, lines in project["project"]["optional-dependencies"].items()}
    offences = []
    for source in sources:
        extra = EXTRA_OF[source.package]
        known = declared | extras.get(extra, set())
        if source.name.startswith("ringfence_server.control"):
            extra = "control"  # which brings the server's along
            known |= extras[extra]
        for name, line in source.imports:
            top = name.split(".")[0]
            if not top or top in sys.stdlib_module_names or top in EXTRA_OF:
                continue
            if DISTRIBUTIONS.get(top, top) not in known:
                where = f"the extra '{extra}'" if extra else "the base dependencies"
                offences.append(f"{source.at(line)} imports {top}: declare it in {where} of pyproject.toml, or drop it")
    assert not offences, "\n".join(offences)


def test_every_declared_dependency_is_imported_by_something(sources, project):
    imported = {
        DISTRIBUTIONS.get(top, top) for source in sources for top in {n.split(".")[0] for n, _ in source.imports}
    }
    declared = _declared(project["project"]["dependencies"])
    for extra in ("client", "server"):
        declared |= _declared(project["project"]["optional-dependencies"][extra])
    # Generated code imports it, and is not among the sources.
    assert declared - imported == {"protobuf"}, "a dependency nobody imports is one more thing to audit: take it out"


# Imports every module of a package while some distributions cannot be had, and says what was loaded.
IMPORT_ALL = """
import importlib, json, pkgutil, sys
forbidden = {forbidden!r}
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in forbidden:
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)
sys.meta_path.insert(0, Wall())
import {package}
for found in pkgutil.walk_packages({package}.__path__, "{package}."):
    importlib.import_module(found.name)
"""


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        (
            "ringfence_policy",
            ("ringfence_client", "ringfence_server", "flwr", "fastapi", "torch", "opacus", "polars", "jinja2"),
        ),
        ("ringfence_client", ("ringfence_server", "matplotlib")),
        ("ringfence_server", ("ringfence_client", "torch", "opacus", "polars")),
    ],
)
def test_a_package_imports_whole_without_what_only_the_others_need(package, forbidden):
    result = _run(IMPORT_ALL.format(package=package, forbidden=forbidden))
    assert result.returncode == 0, f"{package} must do without {', '.join(forbidden)}:\n{result.stderr[-2000:]}"


def test_an_auditor_verifies_evidence_with_the_base_dependencies_alone(tmp_path):
    """`pip install ringfence` without an extra: no Flower, no torch, and still every check runs."""
    (tmp_path / "roots.json").write_text('{"coordinator": {"id": "nobody", "jwk": {}}, "holders": {}}')
    (tmp_path / "evidence.zip").write_bytes(b"not a bundle")
    forbidden = ("flwr", "torch", "opacus", "polars", "safetensors", "jinja2", "matplotlib", "ringfence_client")
    wall = IMPORT_ALL.split("import {package}", maxsplit=1)[0].format(forbidden=forbidden)
    arguments = [
        "ringfence",
        "evidence",
        "verify",
        str(tmp_path / "evidence.zip"),
        "--root",
        str(tmp_path / "roots.json"),
    ]
    result = _run(f"{wall}\nsys.argv = {[*arguments, '--json']!r}\nfrom ringfence_server.cli import main\nmain()")
    assert "ModuleNotFoundError" not in result.stderr, result.stderr[-1500:]
    assert json.loads(result.stdout)
    assert result.returncode in (2, 3)


BUILT_IN_ALONE = """
import numpy as np
from ringfence_client.datasource import HolderData
from ringfence_client.evaluation import score_counts
from ringfence_client.models import initial_arrays
from ringfence_client.noise import SecureNoise
from ringfence_client.noise_check import check_trainer
from ringfence_client.references import train_without_privacy
from ringfence_client.trainer import TrainingJob
from ringfence_client.trainers import choose_trainer, trainer_named
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Relation, Unit

rng = np.random.default_rng(1)
data = HolderData.from_arrays(rng.uniform(-1, 1, (40, 3)), rng.integers(0, 2, 40))
mechanism = DpMechanism(kind="dp-sgd", clipping_norm=1.0, noise_multiplier=1.0, sampling_rate=0.5, steps=2,
                        unit=Unit.RECORD, relation=Relation.ADD_OR_REMOVE)
for model in ({"kind": "logistic-regression"}, {"kind": "mlp", "hidden": [4], "seed": 1}):
    arrays = initial_arrays(model, 3)
    trainer = trainer_named(choose_trainer(model, 3, wanted="auto"))
    check_trainer(trainer, run_id="run", model=model, feature_count=3, mechanism=mechanism, rehearsal_seed=None)
    job = TrainingJob(holder_id="elm", model=model, arrays=arrays, data=data, mechanism=mechanism, learning_rate=0.1,
                      expected_batch=20.0, noise=SecureNoise())
    (update,) = trainer.train([job])
    assert score_counts(model, update.arrays, data, bins=10).sum() == 40
    train_without_privacy(model, arrays, data, steps=2)
"""


@pytest.mark.skipif(load_library() is None, reason="nothing was compiled here, so torch computes")
def test_a_built_in_model_is_trained_and_measured_without_torch():
    """It takes a second and 200 MB, which the first run on a laptop and every holder's own process go without."""
    wall = IMPORT_ALL.split("import {package}", maxsplit=1)[0].format(forbidden=("torch", "opacus"))
    result = _run(f"{wall}\n{BUILT_IN_ALONE}")
    assert result.returncode == 0, result.stderr[-1500:]


def test_the_coordinator_makes_a_built_in_model_without_torch():
    """docs/deployment.md asks for the client's code beside the coordinator's, and for none of what trains."""
    wall = IMPORT_ALL.split("import {package}", maxsplit=1)[0].format(forbidden=("torch", "opacus", "polars"))
    result = _run(
        f"{wall}\nfrom ringfence_server.run_file import INITIAL_MODEL, reach\n"
        "for spec in ({'kind': 'logistic-regression'}, {'kind': 'mlp', 'hidden': [4], 'seed': 1}):\n"
        "    print(sorted(array.shape for array in reach(INITIAL_MODEL)(spec, 3).values()))"
    )
    assert result.returncode == 0, result.stderr[-1500:]
    assert result.stdout.splitlines() == ["[(1,), (1, 3)]", "[(1,), (1, 4), (4,), (4, 3)]"]


def test_benchmarks_import_nothing_that_has_moved(root):
    """They are run by hand, so nothing else would tell."""
    missing = [
        f"{path.name}: {node.module}.{name.name}"
        for path in sorted((root / "benchmarks").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in EXTRA_OF
        for name in node.names
        if not _has(node.module, name.name)
    ]
    assert not missing


def _has(module, name):
    with contextlib.suppress(ModuleNotFoundError):
        if hasattr(importlib.import_module(module), name):
            return True
        importlib.import_module(f"{module}.{name}")
        return True
    return False


def test_a_command_whose_extra_is_missing_says_what_to_install(tmp_path):
    wall = IMPORT_ALL.split("import {package}", maxsplit=1)[0].format(forbidden=("polars", "torch", "flwr"))
    arguments = ["ringfence", "demo", "--out", str(tmp_path / "demo")]
    result = _run(f"{wall}\nsys.argv = {arguments!r}\nfrom ringfence_server.cli import main\nmain()")
    assert result.returncode == 1
    assert "ringfence[all]" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("program", ["ringfence_server.cli", "ringfence_client.cli"])
def test_help_loads_no_engine_no_flower_no_torch_no_pydantic(program):
    """A person who asks what a command does gets the answer at once, also on a slow laptop."""
    forbidden = ("flwr", "torch", "opacus", "pydantic", "cedarpy", "polars", "numpy", "dp_accounting", "matplotlib")
    wall = IMPORT_ALL.split("import {package}", maxsplit=1)[0].format(forbidden=forbidden)
    result = _run(f"{wall}\nsys.argv = ['program', '--help']\nfrom {program} import main\nmain()")
    assert result.returncode == 0, (
        f"{result.stderr[-1500:]}\nImport inside the command that needs it; the module docstring of cli.py says why."
    )
    assert "Usage" in result.stdout


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("program", ["ringfence_server.cli", "ringfence_client.cli"])
def test_a_crash_shows_no_variables(program):
    """Typer's traceback prints what is in scope by default: at a data holder that may be keys or records."""
    app = importlib.import_module(program).app
    assert app.pretty_exceptions_show_locals is False, f"set pretty_exceptions_show_locals=False on app in {program}"
