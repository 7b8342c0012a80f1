"""What `ringfence coordinator start` keeps up: a SuperLink that dies, its list of nodes, the front's certificate."""

import threading

import httpx
import pytest

from ringfence_policy.errors import DeploymentFault
from ringfence_server import coordinator_service
from ringfence_server.coordinator_service import _Service, status_file
from ringfence_server.deployment import CoordinatorFile, init_deployment, load_deployment, now_utc, prepare_transport
from ringfence_server.flower_control import FlowerControl, FlowerNode
from ringfence_server.superlink import _environment
from ringfence_server.superlink_keys import reconcile


class Control:
    """A SuperLink's list of SuperNodes."""

    address = "127.0.0.1:1"

    def __init__(self, **keys):
        self.list = {key: FlowerNode(number, key, state) for number, (key, state) in enumerate(keys.items(), 10)}
        self.refuses = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def nodes(self):
        return list(self.list.values())

    def register(self, public_key, *, name):
        del name
        if self.refuses or public_key in self.list:
            raise DeploymentFault("refused")
        self.list[public_key] = FlowerNode(100 + len(self.list), public_key, "registered")

    def unregister(self, node_id):
        if self.refuses:
            raise DeploymentFault("refused")
        (key,) = [key for key, node in self.list.items() if node.node_id == node_id]
        self.list[key] = FlowerNode(node_id, key, "unregistered")


def test_the_superlinks_list_becomes_what_is_registered():
    control = Control(a="online", b="offline", c="unregistered")
    nodes = reconcile(control, {"a": "oak", "d": "elm"})
    assert {holder: node.public_key for holder, node in nodes.items()} == {"oak": "a", "elm": "d"}
    assert control.list["b"].status == "unregistered"


def test_a_list_that_does_not_become_what_is_registered_is_a_fault():
    control = Control(b="online")
    control.refuses = True
    with pytest.raises(DeploymentFault, match="not what is registered") as caught:
        reconcile(control, {"a": "oak"})
    assert "missing: oak; not registered: 1" in caught.value.got


def test_a_key_that_the_superlink_forgot_for_good_is_a_fault_and_no_silence():
    with pytest.raises(DeploymentFault, match="not what is registered"):
        reconcile(Control(a="unregistered"), {"a": "oak"})


def test_whatever_goes_wrong_between_us_and_the_superlink_is_one_kind_of_fault():
    class Broken:
        def __init__(self, error):
            self.error = error

        def __getattr__(self, _):
            def call(_):
                raise self.error

            return call

    request = httpx.Request("POST", "https://127.0.0.1:1")
    refused = httpx.HTTPStatusError("no", request=request, response=httpx.Response(409, text="taken", request=request))
    for error in (httpx.ConnectError("down"), httpx.ReadTimeout("slow"), ValueError("no protobuf"), refused):
        control = FlowerControl.__new__(FlowerControl)
        control.address, control._client = "127.0.0.1:1", Broken(error)
        for call in (
            control.nodes,
            lambda control=control: control.register("key", name="oak"),
            lambda control=control: control.unregister(1),
            lambda control=control: control.run_state(1),
            lambda control=control: control.stop_run(1),
            lambda control=control: control.log_of(1),
        ):
            with pytest.raises(DeploymentFault):
                call()


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.fixture
def deployment(tmp_path):
    settings = CoordinatorFile(coordinator="tree-consortium", names=("127.0.0.1",))
    return init_deployment(tmp_path / "d", settings, source=None, now=now_utc())


class Front:
    """The front, as the loop sees it."""

    is_serving, port = True, 9092

    def __init__(self):
        self.reloads = 0

    def reload_certificate(self):
        self.reloads += 1


class DyingSuperLink:
    """A SuperLink that ends at once, or after it answered."""

    process_id, how_it_ended = 1, "exit code 1"
    answers = False
    ended = 0

    def __init__(self, _):
        pass

    def wait_until_it_answers(self, _):
        return self.answers

    @property
    def has_ended(self):
        return True

    def control(self):
        return Control()

    def end(self):
        type(self).ended += 1


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(coordinator_service, "_SHORTEST_WAIT", 0.001)
    monkeypatch.setattr(coordinator_service, "_LOOK_SECONDS", 0.01)


@pytest.mark.parametrize("answers", [False, True])
def test_a_superlink_that_dies_again_and_again_is_given_up_and_each_one_cleared_away(
    deployment, monkeypatch, quick, answers
):
    del quick
    superlink = type("Dying", (DyingSuperLink,), {"answers": answers, "ended": 0})
    monkeypatch.setattr(coordinator_service, "SuperLink", superlink)
    said = []
    service = _Service(deployment, Front(), lambda event, _: said.append(event), threading.Event())
    with pytest.raises(DeploymentFault, match="does not stay up"):
        service.run()
    assert superlink.ended == said.count("superlink-ended") == said.count("starting") == 8
    assert said.count("ready") == (8 if answers else 0)
    assert '"superlink-ended"' in status_file(deployment).read_text()


def test_a_new_certificate_is_shown_without_a_restart(deployment, quick):
    del quick
    front, said = Front(), []
    service = _Service(deployment, front, lambda event, _: said.append(event), threading.Event())
    service._look_after_front()
    assert front.reloads == 0
    prepare_transport(load_deployment(deployment.directory), now=now_utc(), renew=True)
    service._look_after_front()
    service._look_after_front()
    assert (front.reloads, said) == (1, ["certificate-renewed"])


def test_the_superlink_inherits_no_setting_of_flowers_and_no_proxy(monkeypatch, tmp_path):
    """FLWR_INTERNAL_GRPC_CONTROL_API=1 alone would open the Control interface on every address."""
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("https_proxy", "http://proxy.example")
    found = _environment(tmp_path)
    flower = {name: value for name, value in found.items() if name.startswith("FLWR_")}
    assert flower == {
        "FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
    }  # fmt: skip
    assert not [name for name in found if name.lower().endswith("_proxy") and name.lower() != "no_proxy"]
