"""Takes a port of this machine, or says why it cannot be had."""

import socket

from ringfence_policy.errors import UsageError


def listening_socket(address: str, port: int, *, who: str, next_step: str) -> socket.socket:
    """A socket bound to an address; port 0 takes a free one.

    Args:
        address: An address of this machine.
        port: The port.
        who: What is to listen there, for the refusal.
        next_step: What to do where it cannot.

    Raises:
        UsageError: The port is taken, or the address is not this machine's.
    """
    found = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((address, port))
    except OSError as error:
        found.close()
        raise UsageError(
            f"{who} cannot listen there",
            expected="a free port on an address of this machine",
            got=error.strerror or type(error).__name__,
            where=f"{address}:{port}",
            next_step=next_step,
        ) from None
    return found
