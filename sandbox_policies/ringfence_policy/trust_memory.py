"""What a holder or the coordinator remembers about every signer, so that nothing older is ever accepted again.

The high-water marks lie in the database of the ledger and the log: what was learnt is on disk together with the use or
the record that it led to, and costs no file of its own.
"""

import json
from typing import Any

from ringfence_policy.database import Database
from ringfence_policy.errors import TrustRefused
from ringfence_policy.identity import PublicKey
from ringfence_policy.trust_store import TrustStore

_SCHEMA_VERSION = 1
_STATEMENTS = (
    "CREATE TABLE trust (name TEXT PRIMARY KEY, memory TEXT NOT NULL) STRICT",
    """CREATE TRIGGER trust_no_delete BEFORE DELETE ON trust
       BEGIN SELECT RAISE(ABORT, 'what was learnt about a signer is never forgotten'); END""",
)


class TrustMemory:
    """Trust stores by name, with their high-water marks in a database.

    Args:
        database: Where they are kept.

    Raises:
        LedgerFault: The database cannot be used.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        database.install("trust memory", version=_SCHEMA_VERSION, statements=_STATEMENTS)
        self._stores: dict[str, TrustStore] = {}
        self._saved: dict[str, int] = {}
        self._written: dict[str, str] = {}
        self._seen = (-1, -1)
        self._learnt = -1

    @property
    def is_empty(self) -> bool:
        """Whether nobody was ever met."""
        return not self._database.rows("SELECT 1 FROM trust LIMIT 1")

    def store(self, name: str, root: PublicKey, *, owner: str | None = None) -> TrustStore:
        """The store for `name`, pinned to `root` from the first meeting on, with all that any process has learnt.

        Args:
            name: What the signer is called here.
            root: Its root public key.
            owner: The holder or coordinator that the root belongs to, where it is known beforehand.

        Raises:
            TrustRefused: `name` was met before under another root key, what is remembered is unreadable, or another
                process accepted another document under the same number.
        """
        self._learn()
        found = self._stores.get(name)
        if found is None:
            kept = self._database.rows("SELECT memory FROM trust WHERE name = ?", (name,))
            memory = self._read(name, kept[0][0]) if kept else None
            if memory is not None and memory.get("root") != root.thumbprint:
                raise self._other_root(name, root)
            found = self._stores[name] = TrustStore(root, memory, owner=owner)
            self._saved[name] = found.revision if kept else -1
        elif found.root.raw != root.raw:
            raise self._other_root(name, root)
        return found

    def save(self) -> None:
        """Write what was learnt, and learn what another process has written: marks only go forward.

        Joins the caller's transaction where there is one; then it is durable when that ends.

        Raises:
            LedgerFault: It cannot be written, so nothing that was accepted may be used.
            TrustRefused: Another process accepted another document under the same number.
        """
        # Another connection wrote since, or what was written here was rolled back: look at every store again.
        state = self._database.version[:2]
        is_behind = state != self._seen
        changed = [name for name, store in self._stores.items() if is_behind or store.revision != self._saved[name]]
        if not changed:
            return
        with self._database.transaction() as connection:
            for name in changed:
                store = self._stores[name]
                kept = connection.execute("SELECT memory FROM trust WHERE name = ?", (name,)).fetchone()
                if kept is not None and kept[0] != self._written.get(name):
                    store.catch_up(self._read(name, kept[0]))
                written = self._written[name] = store.to_json()
                if kept is None or kept[0] != written:
                    connection.execute(
                        "INSERT INTO trust VALUES (?, ?) ON CONFLICT DO UPDATE SET memory = excluded.memory",
                        (name, written),
                    )
                self._saved[name] = store.revision
        self._seen = state

    def _learn(self) -> None:
        """Learn what another process has written before anything is judged here: what it knows as old is old."""
        others = self._database.version[0]
        if others == self._learnt:
            return
        for name, store in self._stores.items():
            kept = self._database.rows("SELECT memory FROM trust WHERE name = ?", (name,))
            if kept and kept[0][0] != self._written.get(name):
                store.catch_up(self._read(name, kept[0][0]))
        self._learnt = others

    def _other_root(self, name: str, root: PublicKey) -> TrustRefused:
        return TrustRefused(
            f"{name} was known under another root key",
            expected="the root key pinned at the first meeting",
            got=root.thumbprint,
            where=str(self._database.path),
            next_step="find out by telephone which key is right before anything of it is accepted",
        )

    def _read(self, name: str, text: str) -> dict[str, Any]:
        try:
            memory: dict[str, Any] = dict(json.loads(text))
        except (ValueError, TypeError):
            raise TrustRefused(
                f"what is remembered of {name} is unreadable",
                where=str(self._database.path),
                next_step="restore it from a backup: without it old documents could be played again",
            ) from None
        return memory


def remembered(database: Database, *, is_new: bool, root: PublicKey) -> TrustMemory:
    """Open a holder's memory and pin the holder's own root key in it.

    Args:
        database: The holder's database.
        is_new: Whether the holder has no history yet, so that there is nothing to remember.
        root: The holder's own root key.

    Raises:
        TrustRefused: The memory is empty or unreadable though there is a history, or was pinned to another root.
    """
    memory = TrustMemory(database)
    if memory.is_empty and not is_new:
        raise TrustRefused(
            "what this holder remembers of signed documents is missing",
            where=str(database.path),
            next_step="restore it from a backup: without it old documents could be played again",
        )
    memory.store("self", root)
    memory.save()
    return memory
