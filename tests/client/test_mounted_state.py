"""A holder is set up inside an empty directory that stands in the place of its state, as a mounted volume does."""

from pathlib import Path

import pytest

from ringfence_client.home import HolderHome
from ringfence_client.officer import set_up
from ringfence_policy.errors import ScenarioInvalid

NOW_MS = 1_800_000_000_000


@pytest.fixture
def home(tiny_scenario):
    scenario = tiny_scenario()
    found = HolderHome(scenario.holder(scenario.holders[0]))
    found.state.mkdir(mode=0o700)
    return found


def test_the_directory_that_is_there_is_kept_and_filled(home):
    before = home.state.stat().st_ino
    set_up(home, now_ms=NOW_MS)
    assert home.state.stat().st_ino == before, "a mount point cannot be replaced"
    assert home.is_set_up
    assert home.database.exists()
    assert not [one for one in [*home.state.iterdir(), *home.directory.iterdir()] if one.name.startswith(".state.")]


def test_what_an_interrupted_set_up_left_is_no_obstacle(home):
    (home.state / ".state.99.new" / "keys").mkdir(parents=True)
    (home.state / "lost+found").mkdir()
    set_up(home, now_ms=NOW_MS)
    assert home.is_set_up


def test_a_set_up_that_ended_before_its_papers_came_is_no_holder_and_is_not_begun_anew(home, monkeypatch):
    rename = Path.rename

    def fail(part, target):
        if part.name == "papers":
            raise OSError(28, "No space left on device")
        return rename(part, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="No space"):
        set_up(home, now_ms=NOW_MS)
    monkeypatch.undo()
    assert home.database.exists(), "all but the papers came"
    assert not home.is_set_up
    with pytest.raises(ScenarioInvalid, match="incomplete"):
        set_up(home, now_ms=NOW_MS + 1)


def test_a_state_that_lacks_its_papers_is_still_refused(home):
    (home.state / "ledger.db").write_bytes(b"")
    with pytest.raises(ScenarioInvalid, match="incomplete"):
        set_up(home, now_ms=NOW_MS)
