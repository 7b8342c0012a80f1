"""What is shipped: everything a run needs, and nothing that a run left behind."""

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("server/ringfence_server", "clients/ringfence_client", "sandbox_policies/ringfence_policy")
KERNEL = "ringfence_client/compiled.native"
LEFT_BEHIND = ("state/keys/root.jwk", "state/ledger.db", "state/papers/status.jws", "__pycache__/x.cpython-311.pyc")


def copied(place):
    """The sources, as they are in a fresh checkout."""
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Makefile", "constraints.txt", ".gitignore"):
        shutil.copy(ROOT / name, place / name)
    for name in (*PACKAGES, "docs", "benchmarks"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", ".*", "*.native"))
    shutil.copy(ROOT / "clients/build_kernel.py", place / "clients")
    return place


def build(place, *targets, **environment):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", *(f"-t{target}" for target in targets), "-d", str(place / "dist")],
        cwd=place,
        check=True,
        capture_output=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    return place / "dist"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source distribution, built from a copy in which a scenario was run where it lies."""
    place = copied(tmp_path_factory.mktemp("source"))
    heart = place / "clients/ringfence_client/scenarios/heart"
    for name in (*(f"holders/cleveland/{left}" for left in LEFT_BEHIND), "coordinator/log.db", "runs/1/run.json"):
        (heart / name).parent.mkdir(parents=True, exist_ok=True)
        (heart / name).write_bytes(b"left behind")
    out = build(place, "wheel", "sdist")
    return zipfile.ZipFile(next(out.glob("*.whl"))), tarfile.open(next(out.glob("*.tar.gz")))


def shipped(package):
    """What a package consists of, by the path it has when installed."""
    top = ROOT / package
    files = (path for path in top.rglob("*") if path.is_file())
    names = {path.relative_to(top.parent).as_posix() for path in files} - {KERNEL}
    return {name for name in names if not any(part[0] == "." or part == "__pycache__" for part in name.split("/"))}


def test_the_wheel_holds_every_file_of_the_packages(built):
    wheel, _ = built
    expected = set().union(*map(shipped, PACKAGES))
    found = {name for name in wheel.namelist() if ".dist-info/" not in name} - {KERNEL}
    assert found == expected
    kinds = {Path(name).suffix for name in found}
    assert {".toml", ".csv", ".md", ".j2", ".css", ".typed"} <= kinds


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_wheel_carries_the_compiled_kernel_and_says_for_which_platform(built):
    wheel, source = built
    assert KERNEL in wheel.namelist()
    assert "-py3-none-" in wheel.filename
    assert not wheel.filename.endswith("-any.whl")
    assert not any(name.endswith(".native") for name in source.getnames())


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_working_compiler_the_wheel_is_pure_python(tmp_path, compiler):
    out = build(copied(tmp_path), "wheel", CC=compiler)
    (wheel,) = out.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl") or wheel.name.endswith("-py2.py3-none-any.whl")
    assert KERNEL not in zipfile.ZipFile(wheel).namelist()


def test_nothing_that_a_run_left_behind_is_shipped(built):
    wheel, source = built
    for name in (*wheel.namelist(), *source.getnames()):
        assert not name.endswith((".jwk", ".jws", ".db", ".pyc")), name
        assert not {"state", "runs", "coordinator", "__pycache__"} & set(name.split("/")), name


def test_the_source_distribution_can_make_demo(built):
    _, source = built
    names = {name.split("/", 1)[1] for name in source.getnames() if "/" in name}
    assert {
        "Makefile",
        "clients/build_kernel.py",
        "constraints.txt",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "docs/README.md",
    } <= names


def test_both_commands_and_the_scenario_are_announced(built):
    wheel, _ = built
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    points = configparser.ConfigParser()
    points.read_string(wheel.read(name).decode())
    assert dict(points["console_scripts"]) == {
        "ringfence": "ringfence_server.cli:main",
        "ringfence-node": "ringfence_client.cli:main",
    }
    assert dict(points["ringfence.scenarios"]) == {"heart": "ringfence_client.scenarios.heart"}
