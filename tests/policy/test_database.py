"""The database denies rather than forgets: durable or nothing, and every sqlite3 error is a LedgerFault."""

import contextvars
import errno
import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ringfence_policy.database import APPLICATION_ID, Database, synced_together
from ringfence_policy.errors import BudgetExhausted, LedgerFault

TABLE = ["CREATE TABLE note (text TEXT NOT NULL CHECK (text <> 'bad')) STRICT"]


@pytest.fixture
def database(tmp_path):
    with Database.open(tmp_path / "holder" / "ledger.db") as opened:
        opened.install("notes", version=1, statements=TABLE)
        yield opened


def write(connection, text):
    connection.execute("INSERT INTO note VALUES (?)", (text,))


def write_and_raise(database, texts, error=None):
    with database.transaction() as connection:
        for text in texts:
            write(connection, text)
        if error is not None:
            raise error


def notes(database):
    return [row[0] for row in database.rows("SELECT text FROM note ORDER BY rowid")]


@pytest.fixture
def disk(monkeypatch):
    """The disk, watched: one entry for each time somebody waits for it."""

    class Disk:
        def __init__(self):
            self.waits = []
            self.fails = False

        def take(self, descriptor):
            self.waits.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            if self.fails:
                raise OSError(errno.EIO, "Input/output error")

    watched = Disk()
    monkeypatch.setattr(os, "fdatasync", watched.take)
    return watched


def test_commits_are_in_a_write_ahead_log_and_foreign_keys_are_enforced(database):
    pragma = {name: database.rows(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous", "foreign_keys")}
    assert pragma == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1}


def test_each_outermost_commit_waits_for_the_disk_before_the_block_ends(database, disk):
    for number in (1, 2):
        with database.transaction() as connection:
            write(connection, "one")
            with database.transaction() as inner:
                write(inner, "two")
            assert len(disk.waits) == number - 1
        assert disk.waits == [f"{database.path}-wal"] * number


def test_what_the_disk_did_not_take_ends_the_connection(database, disk):
    disk.fails = True
    with pytest.raises(LedgerFault, match="did not take"):
        write_and_raise(database, ["one"])
    disk.fails = False
    with pytest.raises(LedgerFault, match="did not take"):
        notes(database)
    with pytest.raises(LedgerFault, match="did not take"):
        write_and_raise(database, ["two"])


def test_databases_that_are_synced_together_each_wait_once_at_the_end_of_the_block(tmp_path, disk):
    opened = [Database.open(tmp_path / f"{number}.db") for number in range(20)]
    for database in opened:
        database.install("notes", version=1, statements=TABLE)
    disk.waits.clear()
    with synced_together() as together:
        for database in opened[:-1]:
            write_and_raise(database, ["one"])
            write_and_raise(database, ["two"])
        assert disk.waits == []
    assert sorted(disk.waits) == sorted(f"{database.path}-wal" for database in opened[:-1])
    assert [together.fault_of(database) for database in opened] == [None] * 20
    write_and_raise(opened[0], ["three"])
    assert len(disk.waits) == 20


def test_what_a_task_of_the_block_commits_after_its_end_waits_for_the_disk_at_once(database, disk):
    with synced_together():
        task = contextvars.copy_context()
    task.run(write_and_raise, database, ["late"])
    assert disk.waits == [f"{database.path}-wal"]


def test_a_disk_that_failed_once_is_not_asked_again_whether_all_is_well(database, disk):
    disk.fails = True
    with synced_together() as together:
        write_and_raise(database, ["one"])
    disk.fails = False
    assert together.fault_of(database) is not None
    with pytest.raises(LedgerFault, match="did not take"):
        database.sync()


def test_one_disk_that_fails_among_many_is_that_holders_fault_alone(tmp_path, monkeypatch):
    opened = [Database.open(tmp_path / f"{number}.db") for number in range(3)]
    for database in opened:
        database.install("notes", version=1, statements=TABLE)
    broken = Path(f"{opened[1].path}-wal").stat().st_ino

    def take(descriptor):
        if os.fstat(descriptor).st_ino == broken:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", take)
    with synced_together() as together:
        for database in opened:
            write_and_raise(database, ["one"])
    assert [together.fault_of(database) is None for database in opened] == [True, False, True]
    assert notes(opened[0]) == notes(opened[2]) == ["one"]
    with pytest.raises(LedgerFault):
        notes(opened[1])


def test_a_block_that_fails_still_waits_for_what_was_committed_in_it(database, disk):
    def fail():
        write_and_raise(database, ["one"])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), synced_together():
        fail()
    assert disk.waits == [f"{database.path}-wal"]


def test_only_the_owner_may_read_the_file_and_its_side_files(database):
    with database.transaction() as connection:
        write(connection, "one")
    for file in database.path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_a_file_others_could_read_is_closed_to_them_on_opening(tmp_path):
    Database.open(tmp_path / "ledger.db").close()
    (tmp_path / "ledger.db").chmod(0o644)
    Database.open(tmp_path / "ledger.db").close()
    assert stat.S_IMODE((tmp_path / "ledger.db").stat().st_mode) == 0o600


def test_what_a_transaction_wrote_is_there_when_the_file_is_opened_again(database):
    with database.transaction() as connection:
        write(connection, "kept")
    with Database.open(database.path) as again:
        assert notes(again) == ["kept"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, BudgetExhausted])
def test_any_exception_undoes_the_whole_transaction(database, error):
    with pytest.raises(error):
        write_and_raise(database, ["never"], error("stop"))
    assert notes(database) == []
    assert not database.in_transaction


def test_an_inner_transaction_is_kept_only_when_the_outer_one_is(database):
    def outer():
        with database.transaction():
            write_and_raise(database, ["inner"])
            raise ValueError("outer")

    with pytest.raises(ValueError, match="outer"):
        outer()
    assert notes(database) == []


def test_a_refusal_inside_a_transaction_can_be_recorded_by_the_outer_one(database):
    with database.transaction() as connection:
        with pytest.raises(BudgetExhausted):
            write_and_raise(database, ["half a reservation"], BudgetExhausted("no budget left"))
        write(connection, "refused")
    assert notes(database) == ["refused"]


def test_another_connection_sees_nothing_before_the_outermost_commit(database):
    with Database.open(database.path) as other, database.transaction() as connection:
        with database.transaction():
            write(connection, "later")
        assert notes(other) == []
    assert notes(database) == ["later"]


def test_a_violated_constraint_is_a_ledger_fault_and_leaves_nothing(database):
    with pytest.raises(LedgerFault, match="CHECK constraint"):
        write_and_raise(database, ["good", "bad"])
    assert notes(database) == []


def test_a_locked_database_is_a_ledger_fault_and_not_a_wait_for_ever(database):
    with (
        Database.open(database.path, busy_timeout_seconds=0.05) as other,
        database.transaction(),
        pytest.raises(LedgerFault, match="locked"),
        other.transaction(),
    ):
        pytest.fail("two writers at once")


def test_a_full_disk_is_a_ledger_fault_and_keeps_what_was_there(database):
    with database.transaction() as connection:
        write(connection, "before")
    pages = database.rows("PRAGMA page_count")[0][0]
    database.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerFault, match="full"):
        write_and_raise(database, ["x" * 4000] * 1000)
    assert notes(database) == ["before"]


def test_a_transaction_that_sqlite_gave_up_by_itself_does_not_pass_for_a_commit(database):
    def given_up():
        with database.transaction() as connection:
            write(connection, "lost")
            connection.execute("ROLLBACK")  # as SQLite does by itself on some I/O errors

    with pytest.raises(LedgerFault, match="no transaction is active"):
        given_up()
    assert notes(database) == []


@pytest.mark.parametrize("damage", ["header", "page", "text"])
def test_a_corrupt_file_is_a_ledger_fault_on_opening(tmp_path, damage):
    path = tmp_path / "ledger.db"
    with Database.open(path) as database:
        database.install("notes", version=1, statements=TABLE)
        with database.transaction() as connection:
            for number in range(200):
                write(connection, f"{number}" * 50)
    content = bytearray(path.read_bytes())
    match damage:
        case "header":
            content[:16] = b"not a database!!"
        case "page":
            content[4096 * 2 : 4096 * 3] = os.urandom(4096)
        case "text":
            content = bytearray(b"epsilon = 0\n" * 1000)
    path.write_bytes(content)
    with pytest.raises(LedgerFault):
        Database.open(path)


def test_another_programs_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(LedgerFault, match="not a Ringfence ledger"):
        Database.open(path)


def test_a_missing_ledger_is_not_mistaken_for_an_untouched_budget(tmp_path):
    with pytest.raises(LedgerFault):
        Database.open(tmp_path / "ledger.db", must_exist=True)
    assert not (tmp_path / "ledger.db").exists()


def test_a_directory_in_place_of_the_file_is_a_ledger_fault(tmp_path):
    with pytest.raises(LedgerFault):
        Database.open(tmp_path)


def test_tables_of_another_version_are_refused(database):
    with pytest.raises(LedgerFault, match="another version"):
        database.install("notes", version=2, statements=TABLE)


def test_installing_twice_changes_nothing(database):
    with database.transaction() as connection:
        write(connection, "kept")
    database.install("notes", version=1, statements=TABLE)
    assert notes(database) == ["kept"]
    assert database.rows("PRAGMA application_id") == [(APPLICATION_ID,)]


def test_a_closed_database_is_a_ledger_fault(database):
    database.close()
    with pytest.raises(LedgerFault, match="closed"), database.transaction():
        pytest.fail("a transaction on a closed database")
    database.close()


def test_opening_a_second_connection_keeps_the_first_ones_locks(database):
    """POSIX drops all of a process's locks on a file when it closes any descriptor of it."""
    other = (
        "import pathlib, sys\n"
        "from ringfence_policy.database import Database\n"
        "database = Database.open(pathlib.Path(sys.argv[1]), busy_timeout_seconds=0.05)\n"
        "with database.transaction():\n"
        "    pass\n"
    )
    with database.transaction() as connection:
        write(connection, "first")
        locks = held_locks(database.path)
        Database.open(database.path).close()
        assert held_locks(database.path) == locks
        done = subprocess.run(
            [sys.executable, "-c", other, str(database.path)], check=False, timeout=60, capture_output=True, text=True
        )
        assert "database is locked" in done.stderr
    assert notes(database) == ["first"]


def held_locks(path):
    """How many POSIX locks this process holds on the file, as the kernel lists them."""
    inode = f":{path.stat().st_ino} "
    with open("/proc/locks", encoding="ascii") as locks:  # noqa: PTH123 - no file on a disk
        return sum(inode in line and f" {os.getpid()} " in line for line in locks)


def test_eight_processes_may_create_the_same_database_at_once(tmp_path):
    script = (
        "import pathlib, sys\n"
        "from ringfence_policy.database import Database\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "database = Database.open(pathlib.Path(sys.argv[1]))\n"
        "database.install('notes', version=1, statements=['CREATE TABLE note (text TEXT)'])\n"
        "with database.transaction() as connection:\n"
        "    connection.execute(\"INSERT INTO note VALUES ('one each')\")\n"
    )
    path = tmp_path / "holder" / "ledger.db"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0] * 8
    with Database.open(path) as database:
        assert notes(database) == ["one each"] * 8


def test_threads_of_one_process_take_turns(database):
    barrier = threading.Barrier(4)

    def count():
        barrier.wait()
        for _ in range(10):
            with database.transaction() as connection:
                (seen,) = connection.execute("SELECT count(*) FROM note").fetchone()
                write(connection, str(seen))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert notes(database) == [str(number) for number in range(40)]


def _use_after_fork(database, results):
    try:
        with database.transaction():
            results.put("used")
    except LedgerFault as error:
        results.put(error.summary)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_may_not_use_its_parents_connection(database):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_use_after_fork, args=(database, results))
    child.start()
    child.join(30)
    assert results.get() == "the database was opened before a fork"


def test_a_process_killed_inside_a_transaction_leaves_nothing_of_it(database):
    script = (
        "import os, pathlib, signal, sys\n"
        "from ringfence_policy.database import Database\n"
        "database = Database.open(pathlib.Path(sys.argv[1]))\n"
        "with database.transaction() as connection:\n"
        "    connection.execute(\"INSERT INTO note VALUES ('kept')\")\n"
        "with database.transaction() as connection:\n"
        "    connection.execute(\"INSERT INTO note VALUES ('lost')\")\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(database.path)], check=False, timeout=60)
    assert done.returncode == -9
    with database.transaction() as connection:
        write(connection, "after")
    assert notes(database) == ["kept", "after"]
