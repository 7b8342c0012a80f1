"""The generated code is what its .proto says, and nobody edited it."""

from pathlib import Path

import pytest
from grpc_tools import protoc

import ringfence_client

CLIENTS = Path(ringfence_client.__file__).parent.parent
GENERATED = ["holder_agent_pb2.py", "holder_agent_pb2.pyi", "holder_agent_pb2_grpc.py"]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """What `make protos` would write."""
    out = tmp_path_factory.mktemp("protos")
    options = [f"-I{CLIENTS}", f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
    assert protoc.main(["protoc", *options, str(CLIENTS / "ringfence_client/holder_agent.proto")]) == 0
    return out / "ringfence_client"


@pytest.mark.parametrize("name", GENERATED)
def test_generated_code_is_fresh(fresh, name):
    kept = (CLIENTS / "ringfence_client" / name).read_text()
    assert kept == (fresh / name).read_text(), "run `make protos`"
