"""What a page is told when something happens that nobody foresaw."""

import asyncio

import pytest
from control_plane import RESEARCHER
from structlog.testing import capture_logs

from ringfence_policy.errors import Fault, NotKnown
from ringfence_server.control.pages.seat import Seat, unforeseen_told_to_the_log_alone


def test_what_nobody_foresaw_is_said_without_a_word_of_it(plane):
    seat = Seat(plane, RESEARCHER, "session:1", set)

    def fail():
        raise FileNotFoundError("/srv/site/holders/elm")

    with capture_logs() as log, pytest.raises(Fault) as told:
        asyncio.run(seat.ask(fail))
    assert told.value.summary == "the control plane failed"
    assert "/srv/site" not in str(told.value)
    assert [one["event"] for one in log] == ["page_failed"]


def test_a_refusal_is_told_as_it_is():
    with pytest.raises(NotKnown), unforeseen_told_to_the_log_alone():
        raise NotKnown("there is no such run")
