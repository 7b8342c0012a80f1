"""What a holder remembers about the coordinator, its peers and itself, so that nothing older is ever accepted again."""

import fcntl
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

    Raises:
        TrustRefused: The file is not what was written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saved: dict[str, Any] = _read(path) if path.exists() else {}
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
        """Write what was learnt, and learn what another process of this holder has written: marks only go forward."""
        if self._saved == self._saved | {name: store.memory() for name, store in self._stores.items()}:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._path.with_name(f".{self._path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            written = _read(self._path) if self._path.exists() else {}
            for name, store in self._stores.items():
                if name in written:
                    store.catch_up(written[name])
            memory = self._saved | written | {name: store.memory() for name, store in self._stores.items()}
            if memory != written:
                write_durably(self._path, json.dumps(memory, sort_keys=True).encode())
            self._saved = memory


def remembered(path: Path, *, is_new: bool, root: PublicKey) -> TrustMemory:
    """Open a holder's memory and pin the holder's own root key in it.

    Args:
        path: The file.
        is_new: Whether the holder has no history yet, so that there is nothing to remember.
        root: The holder's own root key.

    Raises:
        TrustRefused: The file is missing or unreadable though there is a history, or was pinned to another root.
    """
    if not is_new and not path.exists():
        raise TrustRefused(
            "what this holder remembers of signed documents is missing",
            where=str(path),
            next_step="restore it from a backup: without it old documents could be played again",
        )
    memory = TrustMemory(path)
    memory.store("self", root)
    memory.save()
    return memory


def _read(path: Path) -> dict[str, Any]:
    try:
        memory = {name: dict(entry) for name, entry in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        raise TrustRefused(
            "what this holder remembers of signed documents is unreadable",
            where=str(path),
            next_step="restore it from a backup: without it old documents could be played again",
        ) from None
    return memory
