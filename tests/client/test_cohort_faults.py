"""What goes wrong at one holder of a process, and what the others notice of it."""

import pytest

from ringfence_client.node import HolderNode
from ringfence_client.run_terms import RunTerms
from ringfence_policy.database import Database
from ringfence_policy.protocol import FAULT_CODE


@pytest.mark.parametrize("spoil", [lambda root: root.unlink(), lambda root: root.write_text("{")])
def test_a_holder_whose_node_cannot_be_opened_fails_alone(tiny_run, spoil):
    run = tiny_run()
    run.restart_nodes()
    root = run.home("elm").papers / "root.jwk"
    before = root.read_bytes()
    spoil(root)
    run.propose()
    root.write_bytes(before)
    assert {"alder", "birch"} <= run.governor.views.keys()
    assert run.governor.absent.keys() == {"elm"}
    assert [reply.error.code for reply in run.replies if reply.has_error()] == [FAULT_CODE]


def test_that_a_plan_was_shown_is_on_disk_before_the_plan_itself_is_kept(tiny_run, monkeypatch):
    run = tiny_run()
    happened = []

    def note(owner, name, event):
        plain = getattr(owner, name)

        def noted(*given, **named):
            happened.append(event(*given, **named))
            return plain(*given, **named)

        monkeypatch.setattr(owner, name, noted)

    note(HolderNode, "append", lambda node, kind, **_: (kind, node.home.directory))
    note(Database, "sync", lambda database: ("on disk", database.path.parent.parent))
    note(RunTerms, "save", lambda _terms, home: ("kept", home.directory))
    run.propose()
    for holder in run.node_ids:
        own = [event for event, directory in happened if directory == run.home(holder).directory]
        shown, kept = own.index("plan-shown"), own.index("kept")
        assert "on disk" in own[shown:kept]
