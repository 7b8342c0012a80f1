"""The network of two machines in one kernel: two namespaces and a cable between them, to be cut or throttled.

Nothing in them listens where the rest of this machine could reach it.
"""

import os
import shutil
import subprocess
from types import TracebackType
from typing import Self

_BURST = "8kb"


def why_not() -> str | None:
    """Why no such network can be made here; None where it can."""
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} of iproute2 are not installed"
    made = subprocess.run(["ip", "netns", "add", _name("probe")], capture_output=True, check=False)
    if made.returncode != 0:
        return f"the kernel gives no network namespace: {made.stderr.decode().strip()}"
    _run("ip", "netns", "delete", _name("probe"))
    return None


class Cable:
    """Two namespaces, one for the coordinator and one for a holder, and the cable between them.

    Attributes:
        address: The coordinator's, as the holder reaches it.
    """

    address = "10.213.77.1"
    _other = "10.213.77.2"

    def __init__(self) -> None:
        self._near, self._far = _name("near"), _name("far")
        self._ends = f"rf{os.getpid()}n", f"rf{os.getpid()}f"

    def __enter__(self) -> Self:
        near_end, far_end = self._ends
        try:
            for namespace in (self._near, self._far):
                _run("ip", "netns", "add", namespace)
                _run("ip", "-n", namespace, "link", "set", "lo", "up")
            _run(
                "ip", "link", "add", near_end, "netns", self._near, "type", "veth", "peer", far_end, "netns", self._far
            )
            for namespace, end, address in zip(
                (self._near, self._far), self._ends, (self.address, self._other), strict=True
            ):
                _run("ip", "-n", namespace, "address", "add", f"{address}/30", "dev", end)
                _run("ip", "-n", namespace, "link", "set", end, "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    @property
    def near(self) -> tuple[str, ...]:
        """What stands before a command that runs at the coordinator's end."""
        return "ip", "netns", "exec", self._near

    @property
    def far(self) -> tuple[str, ...]:
        """What stands before a command that runs at the holder's end."""
        return "ip", "netns", "exec", self._far

    def cut(self) -> None:
        """Cut the cable: what either end sends from now on is lost."""
        _run("ip", "-n", self._near, "link", "set", self._ends[0], "down")

    def mend(self) -> None:
        """Mend it."""
        _run("ip", "-n", self._near, "link", "set", self._ends[0], "up")

    def throttle(self, kilobits: int) -> None:
        """Let so many thousand bits a second through, each way."""
        for namespace, end in zip((self._near, self._far), self._ends, strict=True):
            _run(
                *("tc", "-n", namespace, "qdisc", "add", "dev", end, "root", "tbf"),
                *("rate", f"{kilobits}kbit", "burst", _BURST, "latency", "400ms"),
            )

    def _remove(self) -> None:
        for namespace in (self._near, self._far):  # the cable goes with them
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


def _name(part: str) -> str:
    return f"ringfence-{os.getpid()}-{part}"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
