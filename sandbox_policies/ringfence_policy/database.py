"""The holder's one SQLite file, opened so that a use is on disk before data opens, or the use does not happen.

The privacy ledger and the evidence log live in the same file, so that one transaction covers both: a decision, its
reservation and its log record are written together or not at all. Nothing here knows what either of them stores.

Every sqlite3 error leaves this module as a `LedgerFault`: a database that is locked, full, corrupt, read-only or not
ours denies the use. It never passes silently.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self

from ringfence_policy.errors import LedgerFault

APPLICATION_ID = 0x52464C44  # "RFLD" in the SQLite header: another program's database is refused, not extended
BUSY_TIMEOUT_SECONDS = 30.0
_SYNCING_THREADS = 8
_CACHE_KIB = 128
_CACHED_STATEMENTS = 40  # a round of a run asks some 30 different ones; each takes some 5 KB
_TOGETHER: "ContextVar[SyncedTogether | None]" = ContextVar("ringfence_synced_together", default=None)
_OPENING = threading.Lock()  # one thread at a time creates the file; see _make_private
_PARTS_TABLE = "CREATE TABLE IF NOT EXISTS schema_part (part TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT"


class Database:
    """One connection to the holder's database, safe for several threads of one process and for several processes.

    Threads of one process take turns (a transaction holds a lock from begin to end); processes take turns through
    SQLite's write lock. A connection must not be carried over a fork: SQLite's locks do not survive it, so a forked
    child is refused and opens its own.

    Attributes:
        path: The database file.
        undone: How many transactions, or parts of one, were rolled back: whoever notes what it has written asks this.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Wrap an open connection; callers use `Database.open`."""
        self._connection = connection
        self._lock = threading.RLock()
        self._depth = 0
        self.undone = 0
        self._others = 0
        self._log_file = -1
        self._is_lost = False
        self._process = os.getpid()
        self.path = path
        self._file = _identity_of(path)

    @classmethod
    def open(
        cls, path: Path, *, must_exist: bool = False, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS
    ) -> "Database":
        """Open the database at `path` for reading and writing; create it (file mode 0600) if there is none.

        Args:
            path: The database file. Missing parent folders are created with mode 0700.
            must_exist: Refuse to create, and refuse an empty file. For a holder whose ledger has to be there: a ledger
                that is missing or was emptied must not be mistaken for a budget that is untouched.
            busy_timeout_seconds: How long a transaction waits for another process before it is refused.

        Raises:
            LedgerFault: The file is missing (`must_exist`), not writable, not a SQLite database, corrupt, another
                program's, or on a file system without the locks that write-ahead logging needs.
        """
        if must_exist and not path.exists():
            raise LedgerFault(
                "the ledger's database is gone",
                expected="the file that knows what was spent",
                where=str(path),
                next_step="nothing was used; a dataset whose ledger is lost is used up (docs/holder.md, Back up)",
            )
        with _OPENING, _faults(path):
            try:
                _make_private(path, must_exist=must_exist)
            except OSError as error:
                raise sqlite3.OperationalError(str(error)) from error
            connection = sqlite3.connect(
                path,
                timeout=busy_timeout_seconds,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=_CACHED_STATEMENTS,
            )
            try:
                _prepare_in_turn(connection, path, patience_seconds=busy_timeout_seconds, must_exist=must_exist)
            except BaseException:
                connection.close()
                raise
        return cls(connection, path)

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, for reading. Writes belong inside `transaction`.

        Raises:
            LedgerFault: This process is a fork of the one that opened the database.
        """
        self._check_not_lost()
        if os.getpid() != self._process:
            raise LedgerFault(
                "the database was opened before a fork",
                expected=f"process {self._process}",
                got=f"process {os.getpid()}",
                where=str(self.path),
                next_step="open the database again in the child process",
            )
        return self._connection

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction of this connection is open."""
        return self._depth > 0

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a block as one durable unit: all of it is on disk when the block ends, or none of it is.

        Inside `synced_together` the wait for the disk is put off to that block's end, and to nowhere else.

        The outermost block takes SQLite's write lock at once (`BEGIN IMMEDIATE`), so what it reads cannot change before
        it writes. A block inside another joins it: its writes become durable when the outermost block ends, and an
        exception that leaves the inner block undoes the inner block only, so that the outer one may record the refusal.

        Raises:
            LedgerFault: The lock, a statement or the commit failed, and nothing of the outermost block was kept; or the
                disk did not take it, and this connection is used for nothing any more.
        """
        with self._lock:
            connection = self.connection
            name = f"ringfence_{self._depth}"
            joined = self._depth > 0
            if not joined:
                self._check_still_there()
            try:
                connection.execute(f"SAVEPOINT {name}" if joined else "BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise _fault_of(error, self.path) from error
            if not joined:
                ((self._others,),) = self.rows("PRAGMA data_version")
            self._depth += 1
            try:
                yield connection
                # SQLite may have rolled back by itself (full disk, I/O error): then this fails, as it must.
                connection.execute(f"RELEASE {name}" if joined else "COMMIT")
            except BaseException as error:
                self.undone += 1
                _undo(connection, f"ROLLBACK TO {name}; RELEASE {name}" if joined else "ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise _fault_of(error, self.path) from error
                raise
            finally:
                self._depth -= 1
            if not joined:
                together = _TOGETHER.get()
                if together is None or not together.wait_for(self):
                    self.sync()

    def sync(self) -> None:
        """Wait until everything that was committed is on disk.

        Raises:
            LedgerFault: It may not be. What the disk holds is unknown from here on, so this connection ends.
        """
        with self._lock:
            self._check_not_lost()  # the system reports a write that failed once: asked again, it says all is well
            try:
                if self._log_file < 0:
                    self._log_file = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
                    _sync_directory(self.path.parent)
                os.fdatasync(self._log_file)
            except OSError as error:
                self._is_lost = True
                raise LedgerFault(
                    "the disk did not take what was recorded",
                    expected="a write-ahead log that reaches the disk",
                    got=error.strerror or type(error).__name__,
                    where=str(self.path),
                    next_step="nothing was used; mend the disk and start again",
                ) from error

    @property
    def version(self) -> tuple[int, int, int]:
        """Changes whenever what a query answers may have changed: by this connection, by another, or by an undoing."""
        with self._lock:
            if self._depth == 0:  # inside a transaction nobody else can write
                ((self._others,),) = self.rows("PRAGMA data_version")
            return self._others, self.undone, self._connection.total_changes

    @property
    def turn(self) -> contextlib.AbstractContextManager[object]:
        """Held as a context, keeps this process's other threads from reading and writing here meanwhile."""
        return self._lock

    def _check_not_lost(self) -> None:
        if self._is_lost:
            raise LedgerFault("the disk did not take what was recorded", where=str(self.path))

    def _check_still_there(self) -> None:
        # SQLite goes on writing to a file that was removed or exchanged under it, and what it writes there is lost.
        if _identity_of(self.path) != self._file:
            raise LedgerFault(
                "the ledger's database is no longer the file that was opened",
                expected="the same file in the same place",
                got="another file or none",
                where=str(self.path),
                next_step="nothing was used or recorded; put the file back and start again",
            )

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Read all rows of a query.

        Raises:
            LedgerFault: The query failed.
        """
        with self._lock:
            try:
                return self.connection.execute(sql, parameters).fetchall()
            except sqlite3.Error as error:
                raise _fault_of(error, self.path) from error

    def install(self, part: str, *, version: int, statements: Sequence[str]) -> None:
        """Create the tables of one part (ledger, evidence log) once, whoever comes first.

        Args:
            part: The part's name, for example "ledger".
            version: The version of its tables that this code reads and writes.
            statements: The SQL statements that create them, one statement each.

        Raises:
            LedgerFault: The file holds another version of the part, or the tables cannot be created.
        """
        with self.transaction() as connection:
            connection.execute(_PARTS_TABLE)
            found = connection.execute("SELECT version FROM schema_part WHERE part = ?", (part,)).fetchone()
            if found is None:
                for statement in statements:
                    connection.execute(statement)
                connection.execute("INSERT INTO schema_part VALUES (?, ?)", (part, version))
            elif found[0] != version:
                raise LedgerFault(
                    f"the {part} was written by another version of Ringfence",
                    expected=f"{part} tables of version {version}",
                    got=f"version {found[0]}",
                    where=str(self.path),
                    next_step="use the version that wrote this file; never delete it, it holds what was spent",
                )

    def close(self) -> None:
        """Close the connection. Safe to call twice."""
        with self._lock:
            if os.getpid() == self._process:
                self._connection.close()
                if self._log_file >= 0:
                    os.close(self._log_file)
                    self._log_file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SyncedTogether:
    """Databases that wait for the disk together: see `synced_together`."""

    def __init__(self) -> None:
        self._waiting: dict[int, Database] = {}
        self._faults: dict[int, LedgerFault] = {}
        self._lock = threading.Lock()
        self._is_over = False

    def wait_for(self, database: Database) -> bool:
        """Note a database with a commit that is not on disk yet.

        Returns:
            Whether it will be waited for. Not after the block: a thread or task begun in it may commit later than that.
        """
        with self._lock:
            if not self._is_over:
                self._waiting[id(database)] = database
            return not self._is_over

    def sync(self) -> None:
        """Wait for all of them at once: a disk takes many small writes together as fast as one."""
        with self._lock:
            self._is_over = True
        waiting = list(self._waiting.values())
        if len(waiting) == 1:
            self._sync(waiting)
            return
        with ThreadPoolExecutor(_SYNCING_THREADS, thread_name_prefix="sync") as pool:
            list(pool.map(self._sync, (waiting[start::_SYNCING_THREADS] for start in range(_SYNCING_THREADS))))

    def fault_of(self, database: Database) -> LedgerFault | None:
        """Why a database's commits may not be on disk; None where they are. Ask after the block, before acting."""
        return self._faults.get(id(database))

    def _sync(self, databases: Sequence[Database]) -> None:
        for database in databases:
            try:
                database.sync()
            except LedgerFault as fault:
                self._faults[id(database)] = fault


@contextlib.contextmanager
def synced_together() -> Iterator[SyncedTogether]:
    """Let the databases of many holders in this process wait for the disk once, at the end of the block.

    No holder's promise is weaker for it as long as nothing that follows from a commit happens inside the block: no data
    is opened, nothing leaves. Whoever acts afterwards first asks `fault_of` for that holder's database.
    """
    together = SyncedTogether()
    token = _TOGETHER.set(together)
    try:
        yield together
    finally:
        _TOGETHER.reset(token)
        together.sync()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_private(path: Path, *, must_exist: bool) -> None:
    # SQLite gives its -wal and -shm files the mode of the main file, so the main file's mode must be right first.
    # An existing file is never opened here: closing it would drop the locks that another connection of this process
    # holds on it (sqlite.org/howtocorrupt.html, section 2.2).
    if not must_exist:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)


def _identity_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _prepare_in_turn(connection: sqlite3.Connection, path: Path, *, patience_seconds: float, must_exist: bool) -> None:
    # While one process turns a new file to write-ahead logging, SQLite tells the others "busy" without waiting.
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return _prepare(connection, path, must_exist=must_exist)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            _undo(connection, "ROLLBACK")
        time.sleep(0.01)


def _prepare(connection: sqlite3.Connection, path: Path, *, must_exist: bool) -> None:
    connection.execute("BEGIN")  # one state for both: another process may be setting the file up right now
    empty = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
    found = connection.execute("PRAGMA application_id").fetchone()[0]
    connection.execute("COMMIT")
    is_new = found == 0 and empty and not must_exist
    if found != APPLICATION_ID and not is_new:
        raise LedgerFault(
            "this database is not a Ringfence ledger",
            expected=f"application id {APPLICATION_ID:#x}",
            got=f"{found:#x}",
            where=str(path),
        )
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise LedgerFault(
            "the file system cannot hold the ledger safely",
            expected="write-ahead logging",
            got=f"journal mode {mode}",
            where=str(path),
            next_step="keep the ledger on a local disk, not on a network share",
        )
    # Invariant: spend is on disk before data opens. `Database` itself makes each commit wait for the disk, as FULL
    # would: what FULL adds to NORMAL is one sync of the write-ahead log after every commit (sqlite.org/pragma.html).
    # SQLite's own copies of pages, beside those of the system: 2 MB each, a simulation's thousand would fill a laptop.
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    if found == 0:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _undo(connection: sqlite3.Connection, statements: str) -> None:
    # What is undone was never durable, so a failure here changes nothing: the original error is the one to see.
    with contextlib.suppress(sqlite3.Error):
        for statement in statements.split("; "):
            connection.execute(statement)


@contextlib.contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _fault_of(error, path) from error


def _fault_of(error: sqlite3.Error, path: Path) -> LedgerFault:
    return LedgerFault(
        f"the ledger's database cannot be used: {error}",
        expected="a readable, writable, intact database with free disk space",
        got=getattr(error, "sqlite_errorname", type(error).__name__),
        where=str(path),
        next_step="nothing was used or recorded; free the disk or the lock, and run again. Never put an older copy of "
        "a ledger back: it has forgotten what was spent since (docs/holder.md)",
    )
