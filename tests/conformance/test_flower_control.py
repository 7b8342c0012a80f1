"""What a deployment takes from Flower 1.41 beyond its published interface, pinned as in test_flower_contract.py."""

import inspect
import io
import tomllib
import zipfile
from importlib import metadata

import pytest
from flwr.common.constant import TIMESTAMP_HEADER, ErrorCode, Status, SubStatus
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.retry import http_retry
from flwr.superlink.grid import HttpGrid
from flwr.superlink.routers.fleet.router import router
from letters import pem, supernode_key

from ringfence_policy.transport_keys import public_pem, signed_by_node
from ringfence_server import flower_control, front
from ringfence_server.deployment_grid import NODE_UNAVAILABLE, DeploymentGrid
from ringfence_server.run_file import ATTEMPT, RELAY_APP, RUN_DIRECTORY, SERVER_APP
from ringfence_server.superlink_child import COMMAND


def test_flowers_fleet_interface_has_the_paths_that_the_front_forwards_and_two_more():
    found = {route.path for route in router.routes}
    assert found == front.FLEET_PATHS | {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}


def test_a_supernode_signs_with_the_headers_the_form_and_the_hash_that_the_front_checks():
    assert [one.decode() for one in (front._PUBLIC_KEY, front._SIGNATURE, front._TIMESTAMP)] == [
        FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER,
    ]  # fmt: skip
    assert front._MEDIA_TYPE.decode() == PROTOBUF_MEDIA_TYPE
    key = supernode_key()
    assert public_key_to_bytes(key.public_key()).decode() == public_pem(pem(key)) == pem(key)
    assert signed_by_node(pem(key), b"now", sign_message(key, b"now"))


def test_a_supernode_tries_again_where_the_front_says_503_or_504_and_gives_up_where_it_says_401():
    assert {503, 504} <= http_retry._RETRYABLE_STATUS_CODES
    assert 401 not in http_retry._RETRYABLE_STATUS_CODES


def test_flowers_command_is_there_with_the_options_that_it_is_given():
    from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink  # noqa: PLC0415 -- slow to load

    (command,) = metadata.entry_points(group="console_scripts", name=COMMAND)
    assert callable(command.load())
    given = _parse_args_run_superlink().parse_args(
        [
            *("--host", "127.0.0.1", "--port", "9093"),
            *("--ssl-ca-certfile", "a", "--ssl-certfile", "b", "--ssl-keyfile", "c"),
            "--enable-supernode-auth",
            *("--database", "d"),
            "--disable-runtime-dependency-installation",
        ]
    )
    assert given.enable_supernode_auth
    assert not given.runtime_dependency_install
    assert given.health_server_address is None
    assert given.isolation == "subprocess"


@pytest.mark.parametrize(
    "name", ["ListNodes", "RegisterNode", "UnregisterNode", "StartRun", "ListRuns", "StopRun", "StreamLogs"]
)
def test_the_control_client_has_the_calls_that_are_used(name):
    assert list(inspect.signature(getattr(ControlHttpClient, name)).parameters) == ["self", "request"]


def test_states_are_called_what_they_are_called_here():
    assert (NodeStatus.ONLINE, NodeStatus.UNREGISTERED) == (flower_control.ONLINE, flower_control.UNREGISTERED)
    assert (Status.FINISHED, SubStatus.COMPLETED) == (flower_control._FINISHED, flower_control._COMPLETED)
    assert ErrorCode.NODE_UNAVAILABLE == NODE_UNAVAILABLE


def test_a_node_tells_its_public_key_to_the_serverapp():
    assert NodeInfo(node_id=2**64 - 1, public_key=pem(supernode_key()).encode()).public_key.startswith(b"-----BEGIN")


def test_the_grid_of_a_deployment_is_all_of_flowers_and_takes_what_flower_gives():
    assert not getattr(DeploymentGrid, "__abstractmethods__", None)
    for name in ("get_nodes", "push_messages", "pull_messages", "set_run"):
        assert callable(getattr(HttpGrid, name))


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's, of a pattern that it uses
def test_the_bundle_names_installed_code_and_holds_none():
    bundle = flower_control.build_fab()
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".py", ".so", ".pyc"))]
        project = tomllib.loads(archive.read("pyproject.toml").decode())
    app = project["tool"]["flwr"]["app"]
    assert app["components"] == {"serverapp": SERVER_APP, "clientapp": RELAY_APP}
    assert set(app["config"]) == {RUN_DIRECTORY, ATTEMPT}
    assert project["project"]["dependencies"] == []
    assert flower_control.build_fab() == bundle
