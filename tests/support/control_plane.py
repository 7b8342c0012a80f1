"""Actors, and waiting, for tests of the control plane."""

import time

from ringfence_server.control.actor import Actor, Role


def actor_of(role, holder=None):
    return Actor(role=role, name=f"the {role.value}", holder=holder, via="cli", account=f"test:{holder or role.value}")


COORDINATOR = actor_of(Role.COORDINATOR)
RESEARCHER = actor_of(Role.RESEARCHER)
REGULATOR = actor_of(Role.REGULATOR)
ADMINISTRATOR = actor_of(Role.ADMINISTRATOR)


def officer_of(holder):
    return actor_of(Role.HOLDER, holder)


def wait_until(holds, *, seconds=60.0):
    """What `holds` gives as soon as it is true."""
    ends = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.05)
    return found
