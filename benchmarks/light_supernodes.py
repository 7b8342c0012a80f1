"""Many SuperNodes in one process: each speaks Flower's Fleet interface with a key of its own, and answers at once.

Started by `deployment.py` as `python light_supernodes.py SPECIFICATION`, a JSON file with address, authority and keys.
It writes one line of JSON for each node that is connected and a last one with what went wrong, and ends when its
standard input does. A real SuperNode starts a process for each message; these only do what the SuperLink sees of it.
"""

import json
import logging
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supernode.fleet_http_connection import http_request_response

POLL_SECONDS = 3.0  # as Flower's own SuperNode waits
_LONGEST_TROUBLE_SECONDS = 300.0
_WRITING = threading.Lock()


class Tally(logging.Handler):
    """What all nodes did, and what went wrong with how many."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def add(self, what: str, times: int = 1) -> None:
        """Count so many."""
        with self._lock:
            self.counts[what] += times

    def emit(self, record: logging.LogRecord) -> None:
        """Count what Flower says of connections that were tried again."""
        text = record.getMessage()
        if text.startswith("Connection attempt failed"):
            reason = record.args[0] if isinstance(record.args, tuple) and record.args else None
            self.add(f"tried again: {type(reason).__name__}: {str(reason)[:60]}")
        elif record.levelno >= logging.WARNING:
            self.add(f"said: {text[:80]}")


def say(members: dict[str, object]) -> None:
    """Write one line."""
    with _WRITING:
        print(json.dumps({"at": time.time(), **members}), flush=True)


class LightNode(threading.Thread):
    """One SuperNode.

    Args:
        number: Its number, by which its answers differ from others'.
        key: Its private key.
        address: The front's address.
        authority: The certificate that the front's leads to, PEM.
        ended: Set when all shall end.
        tally: Where to count.
    """

    def __init__(
        self,
        number: int,
        key: ec.EllipticCurvePrivateKey,
        *,
        address: str,
        authority: bytes,
        ended: threading.Event,
        tally: Tally,
    ) -> None:
        super().__init__(daemon=True)
        self._number, self._key, self._address, self._authority = number, key, address, authority
        self._ended, self._tally = ended, tally

    def run(self) -> None:
        """Connect, and answer until told to end."""
        try:
            with http_request_response(
                self._address,
                insecure=False,
                root_certificates=self._authority,
                authentication_keys=(self._key, self._key.public_key()),
                max_wait_time=_LONGEST_TROUBLE_SECONDS,
            ) as connection:
                say({"connected": self._number})
                self._serve(connection)
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- whatever ends a node is what is to be counted
            self._tally.add(f"ended by {type(error).__name__}: {str(error)[:80]}")

    def _serve(self, connection: tuple) -> None:  # type: ignore[type-arg]
        _, receive, send, get_run, get_fab, pull, push, confirm = connection
        runs: set[int] = set()
        while not self._ended.is_set():
            try:
                received = receive()
                if received is None:
                    self._ended.wait(POLL_SECONDS)
                    continue
                message, tree = received
                run = message.metadata.run_id
                if run not in runs:  # as a SuperNode does with the first message of a run
                    get_fab(get_run(run).fab_hash, run)
                    runs.add(run)
                wanted = list({one.object_id for one in iterate_object_tree(tree)})
                contents = pull_objects(wanted, pull_object_fn=lambda object_id, run=run: pull(run, object_id))
                confirm(run, message.metadata.message_id)
                content = inflate_object_from_contents(message.metadata.message_id, contents).content
                reply = Message(self._answer(content), reply_to=message)
                pushed = self._send(reply, run, send, push)
                self._tally.add("answered")
                # The message, its objects, that they are there; the answer, and its objects.
                self._tally.add("requests", 1 + len(wanted) + 1 + 1 + pushed)
            except Exception as error:  # noqa: BLE001 -- the same
                self._tally.add(f"{type(error).__name__}: {str(error)[:80]}")

    def _answer(self, content: RecordDict) -> RecordDict:
        own = self._number / 1e6
        arrays = ArrayRecord({name: Array(array.numpy() + own) for name, array in content["arrays"].items()})
        return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})

    def _send(self, reply: Message, run: int, send, push) -> int:  # noqa: ANN001 -- Flower's own callables
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
            wanted, session = send(reply, tree, 0.0)
            for object_id in dict.fromkeys(one.object_id for one in iterate_object_tree(tree)):
                if object_id in wanted:
                    push(run, session, object_id, objects[object_id].deflate())
            return len(wanted)


def main() -> int:
    """Start all nodes at once, and wait until standard input ends."""
    specification = json.loads(Path(sys.argv[1]).read_text())
    flower = logging.getLogger("flwr")
    tally, ended = Tally(), threading.Event()
    flower.handlers[:] = [tally]
    flower.setLevel(logging.DEBUG)
    say({"starting": len(specification["keys"])})
    nodes = []
    for number, path in enumerate(specification["keys"]):
        key = load_pem_private_key(Path(path).read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        nodes.append(
            LightNode(
                number,
                key,
                address=specification["address"],
                authority=Path(specification["authority"]).read_bytes(),
                ended=ended,
                tally=tally,
            )
        )
    for node in nodes:
        node.start()
    sys.stdin.read()
    ended.set()
    until = time.monotonic() + 30
    for node in nodes:
        node.join(max(0.0, until - time.monotonic()))
    say({"ended": sum(not node.is_alive() for node in nodes), "counts": dict(tally.counts)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
