"""What whoever starts a control plane decides about it: the names it is reached by, and who vouches for people."""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import timedelta

from ringfence_policy.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """Settings of one control plane.

    Attributes:
        origins: Everything a browser may call it, e.g. `https://control.example.org`. The first is the one shown.
        idle: A session that was not used for so long is over.
        longest: A session is over after so long, used or not.
        workshop: Whether one-time links sign people in, which only a laptop on its own should allow.
    """

    origins: tuple[str, ...]
    idle: timedelta = timedelta(hours=8)
    longest: timedelta = timedelta(hours=24)
    workshop: bool = False
    hosts: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hosts", frozenset(_host_of(origin) for origin in self.origins))

    @property
    def address(self) -> str:
        """The origin that is shown to people and to the identity provider."""
        return self.origins[0]

    @property
    def secure(self) -> bool:
        """Whether browsers reach it by https alone, so that cookies may ask for that."""
        return all(origin.startswith("https://") for origin in self.origins)


def _host_of(origin: str) -> str:
    scheme, _, host = origin.partition("://")
    if scheme not in ("http", "https") or not host or any(mark in host for mark in "/?#@ "):
        raise UsageError(
            "that is no origin",
            expected="a scheme and a host, such as https://control.example.org",
            got=origin[:80],
            next_step="leave out the path and any user name",
        )
    return host.lower()


def local_origins(port: int, seats: Collection[str] = ()) -> tuple[str, ...]:
    """What a control plane on this machine is called, with a name of its own for each seat of a workshop.

    Browsers keep cookies apart by host name and not by port: with `coordinator.localhost` and `regulator.localhost`,
    four roles can be four tabs of one browser. Names under localhost need no name server in Chromium, Firefox and curl.
    """
    names = ["127.0.0.1", "localhost", *(f"{seat}.localhost" for seat in seats)]
    return tuple(f"http://{name}:{port}" for name in names)
