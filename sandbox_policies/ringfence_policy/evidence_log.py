"""The append-only evidence log of one node: canonical records under a Merkle tree, in the ledger's own database.

A record joins the caller's transaction, so a use and the record of it are on disk together or not at all. The hash of
every complete subtree is stored once, when its last leaf arrives: appending costs about two small rows, a checkpoint
O(log n), however long the log is. Triggers keep SQL from changing or deleting a record; the peers' copies of our signed
checkpoints keep us from doing it.

What only the holder may see (counts of records, actual values) is stored beside a record and never exported; the record
carries the salted digest of it.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from ringfence_policy import canonical, merkle
from ringfence_policy.database import Database
from ringfence_policy.decision import Decision
from ringfence_policy.documents import Checkpoint
from ringfence_policy.errors import EvidenceRefused, LedgerFault
from ringfence_policy.evidence_records import parse_line
from ringfence_policy.identity import DocumentType, SigningKey, sign

_SCHEMA_VERSION = 1


def _guard(name: str, when: str) -> str:
    return f"CREATE TRIGGER {name} BEFORE {when} BEGIN SELECT RAISE(ABORT, 'the evidence log only grows'); END"


_STATEMENTS = (
    "CREATE TABLE evidence_origin (only INTEGER PRIMARY KEY CHECK (only = 1), origin TEXT NOT NULL) STRICT",
    "CREATE TABLE evidence_leaf (position INTEGER PRIMARY KEY CHECK (position >= 0), record BLOB NOT NULL) STRICT",
    """CREATE TABLE evidence_node (level INTEGER NOT NULL, position INTEGER NOT NULL,
       hash BLOB NOT NULL CHECK (length(hash) = 32), PRIMARY KEY (level, position)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE evidence_private (position INTEGER PRIMARY KEY REFERENCES evidence_leaf (position),
       details BLOB NOT NULL) STRICT""",
    *(
        _guard(f"{table}_no_{verb.lower()}", f"{verb} ON {table}")
        for table in ("evidence_origin", "evidence_leaf", "evidence_node")
        for verb in ("UPDATE", "DELETE")
    ),
    # SQLite's REPLACE deletes without firing a DELETE trigger, so a leaf must also be the next one.
    _guard(
        "evidence_leaf_in_order",
        "INSERT ON evidence_leaf WHEN NEW.position <> (SELECT coalesce(max(position) + 1, 0) FROM evidence_leaf)",
    ),
    _guard(
        "evidence_node_once",
        """INSERT ON evidence_node
           WHEN EXISTS (SELECT 1 FROM evidence_node WHERE level = NEW.level AND position = NEW.position)""",
    ),
)


@dataclass(frozen=True)
class PrivateDetails:
    """Details that stay at the holder, with the salted digest by which an exported record commits to them.

    The salt (256 random bits) keeps a reader of the digest from trying out every likely count.
    """

    sealed: bytes
    digest: str

    @classmethod
    def seal(cls, details: Mapping[str, Any]) -> "PrivateDetails":
        """Salt and encode details (canonical JSON values)."""
        sealed = canonical.encode({"details": dict(details), "salt": token_hex(32)})
        return cls(sealed=sealed, digest=canonical.digest_bytes(sealed))


def decision_record(decision: Decision, *, records: int | None, at_ms: int) -> tuple[dict[str, Any], PrivateDetails]:
    """A holder's decision as its log keeps it: for outsiders in the open, the holder's own figures sealed beside it.

    Args:
        decision: The decision, with every value the holder saw.
        records: How many records would have been used; None where nobody counted. Secret.
        at_ms: When it was taken.

    Returns:
        The record's own members, to which the caller adds those of the use, and what to keep beside it.
    """
    private = PrivateDetails.seal({"decision": decision.to_document(), "records": records})
    record = {
        "v": 1,
        "kind": "decision",
        "at_ms": at_ms,
        "decision": decision.for_outsiders().to_document(),
        "private_digest": private.digest,
    }
    return record, private


@dataclass
class _Edge:
    """How long the log is, and the hashes of the complete subtrees that make it up, largest first."""

    version: tuple[int, int, int]
    size: int
    hashes: list[bytes]


class EvidenceLog:
    """One node's log of records in the closed vocabulary of `evidence_records`."""

    def __init__(self, database: Database, *, origin: str) -> None:
        """Open the log in `database`, or start it.

        Args:
            database: The database, shared with the privacy ledger.
            origin: Whose log this is, for example "ringfence/holder/cleveland". No two logs may share an origin: peers
                would read them as one log with two histories.

        Raises:
            LedgerFault: The database holds a log of another origin, or cannot be used.
        """
        self._database = database
        self._known_edge: _Edge | None = None
        self.origin = origin
        with database.transaction() as connection:
            database.install("evidence-log", version=_SCHEMA_VERSION, statements=_STATEMENTS)
            found = connection.execute("SELECT origin FROM evidence_origin").fetchone()
            if found is None:
                connection.execute("INSERT INTO evidence_origin VALUES (1, ?)", (origin,))
            elif found[0] != origin:
                raise LedgerFault("this database keeps another log", expected=origin, got=found[0])

    def append(self, record: Mapping[str, Any], *, private: PrivateDetails | None = None) -> int:
        """Add one record, inside the caller's transaction where there is one.

        Args:
            record: A record that `parse_line` knows; the log adds nothing to it.
            private: Details to keep beside it. The record must carry their digest as `private_digest`.

        Returns:
            The record's position, from 0.

        Raises:
            LedgerFault: The record cannot be written, so what it records must not happen.
        """
        try:
            data = canonical.encode(dict(record))
            parse_line(record, data)
        except (TypeError, ValueError, EvidenceRefused) as error:
            raise LedgerFault("this may not stand in an evidence log", got=str(error)) from error
        if private is not None and record.get("private_digest") != private.digest:
            raise LedgerFault("an evidence record does not name its private details", expected=private.digest)
        with self._database.transaction() as connection:
            edge = self._edge()
            position = edge.size
            connection.execute("INSERT INTO evidence_leaf VALUES (?, ?)", (position, data))
            running = merkle.leaf_hash(data)
            rows = [(0, position, running)]
            for level, above in merkle.completed_by(position):
                running = merkle.node_hash(edge.hashes.pop(), running)
                rows.append((level, above, running))
            connection.executemany("INSERT INTO evidence_node VALUES (?, ?, ?)", rows)
            if private is not None:
                connection.execute("INSERT INTO evidence_private VALUES (?, ?)", (position, private.sealed))
            edge.hashes.append(running)
            edge.size += 1
        return position

    def _edge(self) -> _Edge:
        """The right edge of the tree, read again where somebody else appended or something was undone."""
        version, known = self._database.version, self._known_edge
        if known is not None and known.version == version:
            return known
        connection = self._database.connection
        size = _size(connection)
        if known is None or (known.version[:2], known.size) != (version[:2], size):
            hashes = [_node(connection, level, position) for level, position in merkle.subtrees(0, size)]
            known = self._known_edge = _Edge(version, size, hashes)
        known.version = version
        return known

    @property
    def size(self) -> int:
        """How many records the log holds."""
        return self._edge().size

    def root(self, size: int | None = None) -> bytes:
        """The Merkle root (32 bytes) over the first `size` records; over all of them by default.

        Raises:
            LedgerFault: The log is shorter, or its stored hashes are damaged.
        """
        edge = self._edge()
        if size in (None, edge.size):
            return merkle.fold(edge.hashes)
        return merkle.root(self._within(size), self._hash_of)

    def records(self, start: int = 0, end: int | None = None) -> list[dict[str, Any]]:
        """The records from `start` up to `end` (exclusive), each checked against its stored hash.

        Raises:
            LedgerFault: The log is shorter, or a record is not the one that was appended.
        """
        return [canonical.decode(data) for data in self.lines(start, end)]

    def lines(self, start: int = 0, end: int | None = None) -> list[bytes]:
        """As `records`, but as the canonical bytes that were hashed: the lines of an exported log."""
        stop = self._within(end)
        rows = self._database.rows(
            """SELECT leaf.position, leaf.record, node.hash FROM evidence_leaf AS leaf
               LEFT JOIN evidence_node AS node ON node.level = 0 AND node.position = leaf.position
               WHERE leaf.position >= ? AND leaf.position < ? ORDER BY leaf.position""",
            (start, stop),
        )
        for position, data, stored in rows:
            if merkle.leaf_hash(data) != stored:
                raise LedgerFault("an evidence record was changed on disk", where=f"{self.origin} record {position}")
        return [bytes(data) for _, data, _ in rows]

    def private_details(self, position: int) -> dict[str, Any] | None:
        """What was kept beside a record for the holder's own eyes, or None."""
        found = self._database.rows("SELECT details FROM evidence_private WHERE position = ?", (position,))
        if not found:
            return None
        details: dict[str, Any] = canonical.decode(bytes(found[0][0]))["details"]
        return details

    def consistency_proof(self, old_size: int, new_size: int | None = None) -> list[bytes]:
        """Prove that the first `old_size` records are a prefix of the first `new_size` (all, by default).

        Raises:
            LedgerFault: The log is shorter than asked for.
        """
        new = self._within(new_size)
        if not 0 <= old_size <= new:
            raise LedgerFault("no such prefix of the evidence log", expected=f"0 to {new}", got=f"{old_size}")
        return merkle.consistency_proof(old_size, new, self._hash_of)

    def inclusion_proof(self, position: int, size: int | None = None) -> list[bytes]:
        """Prove that a record is in the log of the given size."""
        stop = self._within(size)
        if not 0 <= position < stop:
            raise LedgerFault("no such record in the evidence log", expected=f"0 to {stop - 1}", got=f"{position}")
        return merkle.inclusion_proof(position, stop, self._hash_of)

    def checkpoint(self, *, key: SigningKey, now_ms: int) -> str:
        """Sign the log's size and root as they are now."""
        with self._database.turn:  # one state: nothing is appended between size and root
            edge = self._edge()
            root = "sha256:" + merkle.fold(edge.hashes).hex()
            document = Checkpoint(origin=self.origin, size=edge.size, root=root, at_ms=now_ms).to_document()
        return sign(document, type=DocumentType.CHECKPOINT, key=key)

    def _within(self, size: int | None) -> int:
        held = self.size
        if size is None:
            return held
        if not 0 <= size <= held:
            raise LedgerFault("the evidence log is shorter than asked for", expected=f"{size}", got=f"{held}")
        return size

    def _hash_of(self, level: int, position: int) -> bytes:
        return _node(self._database.connection, level, position)


def _size(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(position) + 1, 0) FROM evidence_leaf").fetchone()[0])


def _node(connection: sqlite3.Connection, level: int, position: int) -> bytes:
    found = connection.execute(
        "SELECT hash FROM evidence_node WHERE level = ? AND position = ?", (level, position)
    ).fetchone()
    if found is None:
        raise LedgerFault("a hash of the evidence log is missing", where=f"level {level}, position {position}")
    return bytes(found[0])
