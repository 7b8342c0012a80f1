"""`ringfence coordinator start`: a SuperLink that is started anew when it dies, behind the one door for nodes."""

import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ringfence_policy.durable import write_durably
from ringfence_policy.errors import DeploymentFault, ScenarioBusy
from ringfence_policy.shell_words import typed
from ringfence_server.deployment import Deployment, now_utc, prepare_transport
from ringfence_server.front_server import FrontServer
from ringfence_server.interruption import handled_by
from ringfence_server.occupation import is_locked
from ringfence_server.registry import Registry
from ringfence_server.superlink import SuperLink
from ringfence_server.superlink_keys import reconcile

Say = Callable[[str, Mapping[str, object]], None]

_STATUS = "status.json"
_LOCK = ".serving"
_SHORTEST_WAIT, _LONGEST_WAIT = 1.0, 30.0
_MOST_ATTEMPTS = 8
# A SuperLink that lived this long did start; when it dies, counting begins anew.
_SETTLED_SECONDS = 60.0
_LOOK_SECONDS = 0.2
_PATIENCE_SECONDS = 2.0
_CERTIFICATE_SECONDS = 6 * 3600.0


def serve(deployment: Deployment, *, say: Say) -> None:
    """Serve a deployment until this process is told to end (SIGTERM or SIGINT).

    Args:
        deployment: The deployment.
        say: Told what happens: `starting`, `ready`, `superlink-ended`, `certificate-renewed`, `stopped`.

    Raises:
        ScenarioBusy: Another process serves it.
        UsageError: The front cannot listen where it should.
        DeploymentFault: The SuperLink does not come up, again and again.
    """
    with _serving(deployment), _told_to_end() as end:
        prepare_transport(deployment, now=now_utc())
        front = FrontServer(deployment)
        try:
            front.start()
            _Service(deployment, front, say, end).run()
        finally:
            front.stop()
            _write_status(deployment, "stopped", {})
            say("stopped", {})


class _Service:
    """The loop of one serving process."""

    def __init__(self, deployment: Deployment, front: FrontServer, say: Say, end: threading.Event) -> None:
        self._deployment = deployment
        self._front = front
        self._say = say
        self._end = end
        self._looked_at_certificate = time.monotonic()
        self._certificate = self._certificate_state()

    def run(self) -> None:
        """Keep a SuperLink running."""
        attempts = 0
        while not self._end.is_set():
            self._tell("starting", {})
            began = time.monotonic()
            superlink = SuperLink(self._deployment)
            try:
                came_up = self._attend(superlink)
            finally:
                superlink.end()
            if self._end.is_set():
                return
            attempts = 1 if came_up and time.monotonic() - began > _SETTLED_SECONDS else attempts + 1
            self._tell("superlink-ended", {"how": superlink.how_it_ended, "attempt": attempts})
            if attempts >= _MOST_ATTEMPTS:
                raise DeploymentFault(
                    "the SuperLink does not stay up",
                    got=f"{attempts} attempts, the last ended with {superlink.how_it_ended}",
                    where=str(self._deployment.state / "superlink.log"),
                    next_step="its log says why; often another process has its port",
                )
            self._end.wait(min(_LONGEST_WAIT, _SHORTEST_WAIT * 2 ** (attempts - 1)))

    def _attend(self, superlink: SuperLink) -> bool:
        """Watch over one SuperLink until it ends or this process shall; says whether it ever answered."""
        if not superlink.wait_until_it_answers(self._end.is_set):
            return False
        with superlink.control() as control:
            reconcile(control, Registry(self._deployment.holders).keys())
        address = self._deployment.control_address
        self._tell(
            "ready",
            {
                "front": f"{self._deployment.settings.listen}:{self._front.port}",
                "address": self._deployment.address,
                "superlink": address,
                "superlink_process": superlink.process_id,
                "command": f"ringfence run {typed(self._deployment.directory)} --superlink {address}",
            },
        )
        while not self._end.wait(_LOOK_SECONDS) and not superlink.has_ended:
            self._look_after_front()
        return True

    def _look_after_front(self) -> None:
        if not self._front.is_serving:
            raise DeploymentFault("the front for nodes has ended", where=f"port {self._front.port}")
        if time.monotonic() - self._looked_at_certificate > _CERTIFICATE_SECONDS:
            self._looked_at_certificate = time.monotonic()
            prepare_transport(self._deployment, now=now_utc())
        state = self._certificate_state()
        if state != self._certificate:  # made anew here, or by `ringfence coordinator renew`
            self._certificate = state
            self._front.reload_certificate()
            self._say("certificate-renewed", {})

    def _certificate_state(self) -> tuple[int, int]:
        # Its key is written before it: what is new here has its key beside it.
        found = (self._deployment.transport / "front.crt").stat()
        return found.st_mtime_ns, found.st_ino

    def _tell(self, state: str, members: Mapping[str, object]) -> None:
        _write_status(self._deployment, state, members)
        self._say(state, members)


def is_serving(deployment: Deployment) -> bool:
    """Whether a process serves this deployment right now."""
    try:
        descriptor = os.open(deployment.transport / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not is_locked(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


@contextmanager
def _serving(deployment: Deployment) -> Iterator[None]:
    """Be the one process that serves a deployment; the lock goes with the process, however that ends."""
    path = deployment.transport / _LOCK
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + _PATIENCE_SECONDS
        while not is_locked(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > until:  # whoever only looks holds it for an instant
                raise ScenarioBusy(
                    "another process serves this deployment",
                    expected="one `ringfence coordinator start` at a time",
                    where=str(deployment.directory),
                )
            time.sleep(_LOOK_SECONDS)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    end = threading.Event()
    with handled_by(lambda *_: end.set(), signal.SIGTERM, signal.SIGINT):
        yield end


def _write_status(deployment: Deployment, state: str, members: Mapping[str, object]) -> None:
    document = {"state": state, "process": os.getpid(), "at": time.time(), **members}
    with suppress(OSError):  # for those who watch; a full disk must not end the coordinator
        write_durably(deployment.transport / _STATUS, json.dumps(document, indent=1).encode())


def status_file(deployment: Deployment) -> Path:
    """What the serving process last said of itself, as JSON."""
    return deployment.transport / _STATUS
