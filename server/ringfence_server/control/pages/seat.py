"""Who looks at a page, and the one way in which a page asks for something."""

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import structlog

from ringfence_policy.errors import Fault, RingfenceError
from ringfence_server.control.actor import Actor
from ringfence_server.control.permissions import Act, may
from ringfence_server.control.plane import ControlPlane
from ringfence_server.control.signon import nobody

P = ParamSpec("P")
R = TypeVar("R")

# Which of these credentials, named as in `Caller.credential`, are still good.
Good = Callable[[Collection[str]], set[str]]

_log = structlog.get_logger("ringfence.control")


@contextmanager
def unforeseen_told_to_the_log_alone() -> Iterator[None]:
    """Let what nobody foresaw be a plain fault on the page: what it says itself may name files of the server.

    Raises:
        Fault: It happened.
    """
    try:
        yield
    except RingfenceError:
        raise
    except Exception:  # noqa: BLE001 -- whatever it is
        _log.exception("page_failed")
        raise Fault("the control plane failed", next_step="try again; its log says why, to whoever runs it") from None


@dataclass(frozen=True)
class Seat:
    """Somebody before a page.

    Attributes:
        plane: The use cases.
        actor: Who.
        credential: What they signed in with. It is looked at again for everything that is asked.
        good: Looks at it.
    """

    plane: ControlPlane
    actor: Actor
    credential: str
    good: Good

    def may(self, act: Act) -> bool:
        """Whether the role may do this, for what is shown. What is done is refused by the use case."""
        return may(self.actor, act)

    @property
    def holder(self) -> str:
        """For a data officer: whose data they speak for."""
        return self.actor.holder or ""

    async def ask(self, use_case: Callable[P, R], *args: P.args, **named: P.kwargs) -> R:
        """Call a use case, away from the event loop.

        Raises:
            NotSignedIn: The sign-in ended while the page was open.
            RingfenceError: What the use case says.
        """

        def call() -> R:
            if self.credential not in self.good([self.credential]):
                raise nobody()
            with unforeseen_told_to_the_log_alone():
                return use_case(*args, **named)

        return await asyncio.to_thread(call)
