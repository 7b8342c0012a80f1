"""Opens the control plane's database, brings its tables up to date, and hands out short transactions."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, SQLAlchemyError
from sqlalchemy.orm import Session

from ringfence_policy.errors import Fault, UsageError

_WRITES = {"ringfence_writes": True}
_RESULTS = "ringfence_results"
_TURN = 0x52464350  # any number that nothing else in the database locks
_MIGRATIONS = Path(__file__).with_name("migrations")


class StoreFault(Fault):
    """The control plane's database cannot be used, so nothing is acknowledged."""

    code = "store-fault"
    http_status = 503


class Store:
    """A database with the control plane's tables.

    Args:
        engine: Connections to it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writing = engine.execution_options(**_WRITES)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that reads one state of the database.

        Raises:
            StoreFault: The database cannot be used.
        """
        with _told(), Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is durable when the block ends, or never was. Writers take turns.

        Raises:
            StoreFault: The database cannot be used. Nothing was written, unless it went away while it wrote: then the
                whole transaction may have been.
        """
        with _told(), Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Bring the tables up to date."""
        self._move(command.upgrade, "head")

    def roll_back(self, revision: str = "base") -> None:
        """Bring the tables back to an earlier revision; `base` takes them all away, with what is in them."""
        self._move(command.downgrade, revision)

    def _move(self, move: Callable[[Config, str], None], revision: str) -> None:
        configuration = Config()
        configuration.set_main_option("script_location", str(_MIGRATIONS))
        with _told(), self._writing.begin() as connection:
            configuration.attributes["connection"] = connection
            move(configuration, revision)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def open_store(url: str) -> Store:
    """Open a database and bring its tables up to date.

    Args:
        url: `sqlite:///FILE` or `postgresql+psycopg://USER:PASSWORD@HOST/NAME`.

    Raises:
        UsageError: It is no such URL.
        StoreFault: The database cannot be used.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.drivername not in ("sqlite", "postgresql", "postgresql+psycopg"):
        raise UsageError(
            "that is no database the control plane knows",
            expected="sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME",
            got="something else" if parsed is None else parsed.drivername,
            next_step="leave --database out to keep a SQLite file beside the runs",
        )
    if parsed.drivername == "sqlite":
        _make_private(parsed.database)
        engine = create_engine(parsed, connect_args={"timeout": 30}, pool_size=20)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        event.listen(engine, "after_cursor_execute", _note_result)
        event.listen(engine, "reset", _close_results)
    else:
        # A database that was made without a locale has no encoding of its own, and would answer in bytes.
        engine = create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            connect_args={"client_encoding": "utf8"},
            pool_pre_ping=True,
            pool_size=20,
        )
        event.listen(engine, "begin", _begin_postgresql)
    store = Store(engine)
    store.migrate()
    return store


def _make_private(path: str | None) -> None:
    """Let no other account of this machine read what lies there; SQLite gives its other files the same mode."""
    if not path or path == ":memory:":
        return
    try:
        # One that is there is not opened: closing it would drop the locks that this process holds on it.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        Path(path).chmod(0o600)
    except OSError as error:
        raise StoreFault("the control plane's database cannot be used", got=error.strerror) from None


def _set_up_sqlite(connection: Any, _: object) -> None:
    # Transactions are begun by `_begin_sqlite`: the driver's own would begin one only when it sees a write.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("ringfence_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _note_result(connection: Connection, cursor: Any, *_: object) -> None:
    connection.info.setdefault(_RESULTS, WeakSet()).add(cursor)


def _close_results(dbapi_connection: object, record: Any, reset_state: object) -> None:  # noqa: ARG001 -- SQLAlchemy's
    # SQLite keeps the state that a half-read result reads, past any rollback. Where an exception left one and is itself
    # kept, the next transaction on this connection would read that old state, and could not write (BUSY_SNAPSHOT).
    for cursor in record.info.pop(_RESULTS, ()):
        cursor.close()


def _begin_postgresql(connection: Connection) -> None:
    # Writers take turns here as well, so that what a use case looked at still holds when it writes.
    if connection.get_execution_options().get("ringfence_writes"):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_TURN})")


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise UsageError(
            "the database cannot hold what was sent",
            expected="text of an ordinary length, without the character NUL",
            next_step="look at the names and reasons that were sent",
        ) from error
    except SQLAlchemyError as error:
        raise StoreFault(
            "the control plane's database did not do what it was asked",
            got=type(error).__name__,
            next_step="look whether it runs, has room and lets this account in; what was acknowledged is kept",
        ) from error
