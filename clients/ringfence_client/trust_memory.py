"""What a holder remembers about the coordinator, its peers and itself, so that nothing older is ever accepted again."""

import json
from pathlib import Path
from typing import Any

from ringfence_policy.durable import write_durably
from ringfence_policy.errors import TrustRefused
from ringfence_policy.identity import PublicKey
from ringfence_policy.trust_store import TrustStore


class TrustMemory:
    """Trust stores by name, with their high-water marks in one file that is written before anything accepted is used.

    Args:
        path: The file; made when first needed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saved: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self._stores: dict[str, TrustStore] = {}

    def store(self, name: str, root: PublicKey) -> TrustStore:
        """The store for `name`, pinned to `root` from the first meeting on.

        Raises:
            TrustRefused: `name` was met before under another root key.
        """
        found = self._stores.get(name)
        if found is None:
            try:
                found = TrustStore(root, self._saved.get(name))
            except TrustRefused:
                raise TrustRefused(
                    f"{name} was known under another root key",
                    expected="the root key pinned at the first meeting",
                    got=root.thumbprint,
                    where=str(self._path),
                    next_step="find out by telephone which key is right before you remove the old one",
                ) from None
            self._stores[name] = found
        elif found.root.thumbprint != root.thumbprint:
            raise TrustRefused(f"{name} was known under another root key", got=root.thumbprint)
        return found

    def save(self) -> None:
        """Write what was learnt, if anything was."""
        memory = self._saved | {name: store.memory() for name, store in self._stores.items()}
        if memory != self._saved:
            write_durably(self._path, json.dumps(memory, sort_keys=True).encode())
            self._saved = memory
