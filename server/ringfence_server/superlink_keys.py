"""Keeps the SuperLink's list of SuperNodes equal to the registrations: no key that is missing, and none too many."""

from collections.abc import Mapping
from contextlib import suppress

from ringfence_policy.errors import DeploymentFault
from ringfence_server.flower_control import UNREGISTERED, FlowerControl, FlowerNode


def known_nodes(control: FlowerControl) -> dict[str, FlowerNode]:
    """The SuperNodes that may connect, by public key.

    Raises:
        DeploymentFault: The SuperLink does not answer.
    """
    return {node.public_key: node for node in control.nodes() if node.status != UNREGISTERED}


def reconcile(control: FlowerControl, keys: Mapping[str, str]) -> dict[str, FlowerNode]:
    """Register every key that the SuperLink lacks, and cut off every SuperNode whose key is not registered.

    Args:
        control: The SuperLink.
        keys: Which holder a SuperNode's key speaks for, by key.

    Returns:
        Each registered holder's SuperNode.

    Raises:
        DeploymentFault: The SuperLink does not answer, or a registered key is not on its list afterwards.
    """
    before = known_nodes(control)
    for key, node in before.items():
        if key not in keys:
            with suppress(DeploymentFault):  # another process may be about the same; what counts is looked at below
                control.unregister(node.node_id)
    for key, holder_id in keys.items():
        if key not in before:
            with suppress(DeploymentFault):
                control.register(key, name=holder_id)
    after = known_nodes(control)
    missing = sorted(holder_id for key, holder_id in keys.items() if key not in after)
    strange = [node for key, node in after.items() if key not in keys]
    if missing or strange:
        raise DeploymentFault(
            "the SuperLink's list of SuperNodes is not what is registered",
            expected="one SuperNode for each registered data holder, and no other",
            got=f"missing: {', '.join(missing) or 'none'}; not registered: {len(strange)}",
            where=control.address,
            next_step="end `ringfence coordinator start`, move the SuperLink's database away, and start again",
        )
    return {holder_id: after[key] for key, holder_id in keys.items()}
