"""`ringfence-node supernode`: only the SuperNode of a holder, where the agent runs in another container.

It is given the coordinator's letter, its own key, a directory to write to and the agent's socket, and no file of the
holder's.
"""

from dataclasses import dataclass
from pathlib import Path

from ringfence_client.happenings import Events, stop_signal
from ringfence_client.supernode import SuperNode, SuperNodeSettings
from ringfence_policy.errors import UsageError
from ringfence_policy.letters import Invitation, read_letter


@dataclass(frozen=True, kw_only=True)
class SuperNodeOptions:
    """How a holder's SuperNode is started by itself.

    Attributes:
        key: Its private key.
        home: The directory it works in: its log, and below it the one directory that what it starts may write to.
        socket: Where the agent listens, now or later.
        confined: Whether it runs behind walls.
        as_json: Whether events are JSON.
    """

    key: Path
    home: Path
    socket: Path
    confined: bool
    as_json: bool


def start_supernode(letter: Path, options: SuperNodeOptions) -> None:
    """Run the SuperNode until SIGTERM or SIGINT.

    Who answers for the letter is the agent, which knows the coordinator's root key: over a letter of somebody else's
    the SuperNode would carry messages that no agent answers.

    Args:
        letter: The coordinator's invitation, as the holder keeps it in state/papers/coordinator.jws.
        options: How it is started.

    Raises:
        UsageError: A file is missing or cannot be read.
        TrustRefused: The letter is not what was signed.
    """
    invitation = Invitation.open(read_letter(_read(letter, "the coordinator's letter", "INVITATION")))
    _read(options.key, "the SuperNode's key", "--key")
    if not options.socket.parent.is_dir():
        raise UsageError(
            "the agent's socket has no place",
            expected="a directory that the agent shares",
            where=str(options.socket.parent),
            next_step="start the agent with --no-supernode and the same --socket first",
        )
    events = Events(as_json=options.as_json)
    stopped = stop_signal()
    supernode = SuperNode(
        SuperNodeSettings(
            superlink=invitation.address,
            authority=invitation.authority,
            key=options.key.resolve(),
            place=options.home.resolve(),
            home=options.home.resolve() / "home",
            agent=options.socket.resolve(),
            confined=options.confined,
        ),
        events,
    )
    try:
        events("relaying", {"superlink": invitation.address, "socket": str(options.socket)})
        stopped.wait()
        events("stopping", {})
    finally:
        supernode.close()
    events("stopped", {})


def _read(path: Path, what: str, where: str) -> bytes:
    """Read a file, so that what is missing is said now and not in Flower's log."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{what} cannot be read", expected="a file of this user", got=error.strerror, where=f"{where} {path}"
        ) from None
