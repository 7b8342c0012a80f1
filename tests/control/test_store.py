"""The store on SQLite and on PostgreSQL: what was written is there, whoever writes and whatever fails."""

import threading

import pytest
from control_plane import COORDINATOR
from sqlalchemy import inspect, select

from ringfence_policy.errors import RingfenceError, UsageError
from ringfence_server.control.plane import open_plane
from ringfence_server.control.store import sign_on_tables
from ringfence_server.control.store.engine import StoreFault, open_store
from ringfence_server.control.store.tables import ProposalRow


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'control.db'}"
    return request.getfixturevalue("server").fresh_database()


@pytest.fixture
def store(url):
    opened = open_store(url)
    yield opened
    opened.close()


def test_no_other_account_of_the_machine_reads_the_database(tmp_path):
    path = tmp_path / "control.db"
    path.touch(mode=0o644)
    opened = open_store(f"sqlite:///{path}")
    with opened.write() as db:
        db.add(proposal("one"))
    assert {one.stat().st_mode & 0o777 for one in tmp_path.glob("control.db*")} == {0o600}
    opened.close()


def proposal(name):
    return ProposalRow(id=name, plan_id="p", title="t", plan="x", by="b", account="a", at=1)


def names(store):
    with store.read() as db:
        return set(db.scalars(select(ProposalRow.id)))


def test_the_migrations_make_the_tables_that_the_code_has_and_take_them_away_again(store):
    def found():
        inspector = inspect(store.engine)
        return {
            table: {column["name"]: bool(column["nullable"]) for column in inspector.get_columns(table)}
            for table in inspector.get_table_names()
            if table != "alembic_version"
        }

    expected = {
        table.name: {column.name: bool(column.nullable) for column in table.columns}
        for table in sign_on_tables.Base.metadata.sorted_tables
    }
    assert found() == expected
    store.roll_back()
    assert found() == {}
    store.migrate()
    assert found() == expected


def test_what_fails_in_the_middle_leaves_nothing(store):
    def half():
        with store.write() as db:
            db.add(proposal("one"))
            db.flush()
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        half()
    assert names(store) == set()


@pytest.mark.parametrize("way", ["read", "write"])
def test_a_result_that_an_exception_left_unread_holds_nobody_up(store, url, way):
    """The exception keeps the result, and that the state of the database that it reads, on a connection of the pool."""

    def leave_unread():
        with getattr(store, way)() as db:
            result = db.execute(select(ProposalRow.id))
            raise ValueError(f"before {result} was read")

    with store.write() as db:
        db.add_all(proposal(f"{number}") for number in range(5))
    with pytest.raises(ValueError, match="was read") as told:
        leave_unread()
    another = open_store(url)
    with another.write() as db:
        db.add(proposal("from elsewhere"))
    another.close()
    assert "from elsewhere" in names(store)
    with store.write() as db:
        db.add(proposal("from here"))
    assert {"from elsewhere", "from here"} <= names(store)
    assert told.value.__traceback__ is not None


def test_many_writers_at_once_lose_nothing(store):
    faults = []

    def write(number):
        try:
            for step in range(10):
                with store.write() as db:
                    db.add(proposal(f"{number}-{step}"))
        except StoreFault as fault:
            faults.append(fault)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert names(store) == {f"{number}-{step}" for number in range(8) for step in range(10)}


def test_the_same_key_sent_by_many_at_once_begins_one_run(site, url):
    plane = open_plane(site, database=url)
    begun, faults = [], []
    try:
        proposal = plane.runs.propose(COORDINATOR, plane.runs.plans(COORDINATOR)[0].text)

        def begin():
            try:
                begun.append(plane.runs.start(COORDINATOR, proposal.id, once="the-same").run_id)
            except RingfenceError as fault:
                faults.append(fault)

        threads = [threading.Thread(target=begin) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        assert len(set(begun)) == len(plane.runs.runs(COORDINATOR).items) == 1
    finally:
        plane.close()


def test_a_database_that_keeps_the_runs_of_one_directory_is_refused_to_another(tiny_scenario, url):
    """Each would find the other's runs without a process, and call them interrupted."""
    first, second = (open_plane(tiny_scenario(name).directory, database=url) for name in ("one", "two"))
    try:
        first.start()
        with pytest.raises(UsageError, match="another directory"):
            second.start()
        first.close()
        again = open_plane(first.site.directory, database=url)
        again.start()
        again.close()
    finally:
        second.close()
        first.close()


def test_text_that_the_database_cannot_hold_is_the_senders_fault(site, server):
    """SQLite keeps the character NUL and PostgreSQL does not: it is no reason to say that the database is away."""
    plane = open_plane(site, database=server.fresh_database())
    try:
        with pytest.raises(UsageError):
            plane.runs.proposal(COORDINATOR, "a\0b")
    finally:
        plane.close()


def test_a_database_without_an_encoding_keeps_every_name(server):
    store = open_store(server.fresh_database(encoding="SQL_ASCII"))
    with store.write() as db:
        db.add(proposal("Zürich · 東京"))
    assert names(store) == {"Zürich · 東京"}
    store.close()


def test_a_url_of_no_database_that_is_known_is_refused():
    for wrong in ("mysql://host/name", "no url at all", "sqlite+aiosqlite:///x"):
        with pytest.raises(UsageError):
            open_store(wrong)


def test_a_database_that_is_away_is_a_fault_and_says_no_password(tmp_path):
    with pytest.raises(StoreFault) as told:
        open_store("postgresql+psycopg://user:hunter2@127.0.0.1:1/name")
    assert "hunter2" not in str(told.value)
    with pytest.raises(StoreFault):
        open_store(f"sqlite:///{tmp_path / 'no' / 'such' / 'directory.db'}")
