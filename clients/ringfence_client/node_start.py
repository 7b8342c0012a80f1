"""`ringfence-node start`: one holder's agent and its SuperNode, from the first line to the last."""

import fcntl
import json
import os
import pwd
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from logging import FileHandler, basicConfig
from pathlib import Path

from ringfence_client.agent import HolderAgent, serving
from ringfence_client.agent_door import default_socket
from ringfence_client.datasource import DATA_FILES
from ringfence_client.happenings import Events, stop_signal
from ringfence_client.home import HolderHome
from ringfence_client.joining import joined
from ringfence_client.node import HolderNode
from ringfence_client.supernode import SuperNode, SuperNodeSettings
from ringfence_client.trainer_link import TrainerSettings
from ringfence_client.walled_workroom import WalledWorkroom
from ringfence_policy.errors import ScenarioInvalid, UsageError
from ringfence_policy.letters import Invitation
from ringfence_policy.shell_words import typed


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """How a holder's agent is started.

    Attributes:
        socket: Where relays find it; None for the usual place.
        serve: Names of users, beside this process's own, whose relays may ask.
        supernode: Whether to run the SuperNode too. Without, somebody else does: another user, or another container.
        confined: Whether the SuperNode runs behind walls.
        memory_mib: Memory of the trainer.
        threads: Threads of the trainer.
        as_json: Whether events are JSON.
    """

    socket: Path | None
    serve: Sequence[str]
    supernode: bool
    confined: bool
    memory_mib: int
    threads: int
    as_json: bool


def start(home: HolderHome, options: StartOptions) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        RingfenceError: The holder is not set up, not joined, served already, or cannot be opened.
    """
    invitation = accepted_invitation(home)
    directory = home.state / "agent"
    directory.mkdir(exist_ok=True, mode=0o700)
    with _the_only_one(home, directory / "agent.lock"):
        basicConfig(
            level="INFO",
            format="%(asctime)s %(name)s %(message)s",
            handlers=[FileHandler(directory / "agent.log")],
        )
        _serve(home, invitation, options)


def _serve(home: HolderHome, invitation: Invitation, options: StartOptions) -> None:
    socket = options.socket or default_socket(home.directory)
    users = frozenset({home.state.stat().st_uid, *map(_number_of, options.serve)})
    events = Events(as_json=options.as_json)
    stopped = stop_signal()
    with ExitStack() as opened:
        workroom = WalledWorkroom(_trainer_settings(home, options))
        node = HolderNode(home, coordinator_root=invitation.root, workroom=workroom)
        opened.callback(node.close)
        events("holder-opened", {"holder": node.holder_id, "coordinator": invitation.coordinator})
        walls = _walls(workroom)  # starts the trainer
        events("trainer-started", {"pid": workroom.pid, **walls})
        agent = HolderAgent(node, coordinator_root=json.dumps(invitation.root_jwk))
        opened.enter_context(serving(agent, socket=socket, users=users))
        events("serving", {"socket": str(socket)})
        if options.supernode:
            opened.callback(SuperNode(_supernode_settings(home, invitation, socket, options), events).close)
        events("ready", {"superlink": invitation.address if options.supernode else None})
        stopped.wait()
        events("stopping", {})
    events("stopped", {})


@contextmanager
def _the_only_one(home: HolderHome, path: Path) -> Iterator[None]:
    """Be this holder's one agent; the lock goes with the process, however that ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                "this holder's agent runs already",
                expected="one `ringfence-node start` for each holder's directory",
                where=str(home.directory),
                next_step="leave it running, or stop it first; its words are in state/agent/agent.log",
            ) from None
        yield
    finally:
        os.close(descriptor)


def accepted_invitation(home: HolderHome) -> Invitation:
    """The invitation that this holder accepted.

    Raises:
        ScenarioInvalid: The holder is not set up, or accepted none.
        TrustRefused: What was kept of it is no longer what was signed.
    """
    if not home.is_set_up:
        raise ScenarioInvalid(
            "this holder is not set up",
            expected="keys, a signed policy and a ledger",
            where=str(home.directory),
            next_step=f"ringfence-node init {typed(home.directory)}",
        )
    invitation = joined(home)
    if invitation is None:
        raise ScenarioInvalid(
            "this holder has joined no coordinator",
            expected="an invitation that was accepted",
            where=str(home.coordinator),
            next_step=f"ringfence-node join {typed(home.directory)} INVITATION.jws",
        )
    return invitation


def _walls(workroom: WalledWorkroom) -> dict[str, object]:
    breaches = workroom.breaches
    if not breaches:
        return {"walls": "all walls stand", "breaches": {}}
    words = "; ".join(f"{wall}: {how}" for wall, how in sorted(breaches.items()))
    return {"walls": f"walls that do NOT stand: {words}", "breaches": dict(breaches)}


def _trainer_settings(home: HolderHome, options: StartOptions) -> TrainerSettings:
    directory = home.directory.resolve()
    return TrainerSettings(
        directory=directory,
        files=[directory / name for name in DATA_FILES],
        forbidden=home.key_list.resolve(),
        salt=home.profile.dataset.dataset_id,
        log=home.state / "agent" / "trainer.log",
        memory_mib=options.memory_mib,
        threads=options.threads,
    )


def _supernode_settings(
    home: HolderHome, invitation: Invitation, socket: Path, options: StartOptions
) -> SuperNodeSettings:
    relay = home.state.resolve() / "relay"
    key = home.supernode_key.resolve()
    if not key.exists():
        raise ScenarioInvalid(
            "the SuperNode has no key",
            where=str(key),
            next_step=f"ringfence-node init {typed(home.directory)}, then register again with the coordinator",
        )
    return SuperNodeSettings(
        superlink=invitation.address,
        authority=invitation.authority,
        key=key,
        place=relay,
        home=relay / "home",
        agent=socket,
        confined=options.confined,
    )


def _number_of(name: str) -> int:
    try:
        return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise UsageError("no such user on this machine", got=name, where="--serve") from None
