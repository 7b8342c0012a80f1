"""Papers that came with updates, kept for the round that follows: its holders need not be asked for them."""

import time
from collections.abc import Callable, Mapping

from ringfence_policy.decision import Decision
from ringfence_policy.protocol import Introduction, UseReply
from ringfence_server.coordinator import HolderView

# How old they may be. What a holder signs after them it says itself, at its own gate, as it does after an offer.
FRESH_SECONDS = 120.0


class ShownPapers:
    """What holders showed with the updates of one round."""

    def __init__(self) -> None:
        self._views: dict[str, HolderView] = {}
        self._came = 0.0

    def keep(self, updates: Mapping[str, UseReply], meet: Callable[[str, Introduction], HolderView | Decision]) -> None:
        """Take in the papers beside updates, by holder.

        Args:
            updates: What holders said beside the updates that count.
            meet: Verifies papers. Those that do not hold are left out: they are asked for, and refused with a reason.
        """
        met = {holder: meet(holder, said.next) for holder, said in updates.items() if said.next is not None}
        self._views = {holder: view for holder, view in met.items() if isinstance(view, HolderView)}
        self._came = time.monotonic()

    def take(self) -> dict[str, HolderView]:
        """What was kept, if that was just now. Given once."""
        views, self._views = self._views, {}
        return views if time.monotonic() - self._came < FRESH_SECONDS else {}
