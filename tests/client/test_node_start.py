"""Starting a holder's agent: one for each holder."""

from logging import NullHandler

import pytest

from ringfence_client import node_start
from ringfence_client.home import HolderHome
from ringfence_policy.errors import UsageError


@pytest.fixture
def home(tmp_path):
    (tmp_path / "state").mkdir()
    return HolderHome(tmp_path)


def test_a_second_agent_of_a_holder_is_not_started_and_takes_nothing_from_the_first(home, monkeypatch):
    """It would put its socket in the place of the first one's, and take it away when it ends."""
    served = []

    def serve(home, invitation, options):
        served.append(invitation)
        with pytest.raises(UsageError, match="runs already"):
            node_start.start(home, options)

    monkeypatch.setattr(node_start, "accepted_invitation", lambda _: "the invitation")
    monkeypatch.setattr(node_start, "_serve", serve)
    monkeypatch.setattr(node_start, "FileHandler", lambda _: NullHandler())
    for _ in range(2):  # and once the first one has ended, the next one is
        node_start.start(home, None)
    assert served == ["the invitation"] * 2
