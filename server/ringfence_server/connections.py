"""Who of a deployment's registered data holders is connected right now, as its SuperLink says."""

from ringfence_policy.errors import DeploymentFault
from ringfence_server.coordinator_service import is_serving
from ringfence_server.deployment import Deployment
from ringfence_server.flower_control import FlowerControl
from ringfence_server.superlink_keys import known_nodes

_WORDS = {"registered": "never connected", "online": "connected", "offline": "not connected"}


def connections(deployment: Deployment) -> dict[str, str] | None:
    """The state of each SuperNode by its key: "connected", "not connected" or "never connected".

    Returns:
        None where no SuperLink runs, or it does not answer.
    """
    if not is_serving(deployment):
        return None
    try:
        with FlowerControl(deployment.control_address, authority=deployment.authority_file.read_bytes()) as control:
            return {key: _WORDS.get(node.status, node.status) for key, node in known_nodes(control).items()}
    except DeploymentFault:
        return None
