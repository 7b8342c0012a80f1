"""Who looks at a page, and the one way in which a page asks for something."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from ringfence_server.control.actor import Actor
from ringfence_server.control.permissions import Act, may
from ringfence_server.control.plane import ControlPlane
from ringfence_server.control.signon import nobody

P = ParamSpec("P")
R = TypeVar("R")

# Which of these credentials, named as in `Caller.credential`, are still good.
Good = Callable[[Collection[str]], set[str]]


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
            return use_case(*args, **named)

        return await asyncio.to_thread(call)
