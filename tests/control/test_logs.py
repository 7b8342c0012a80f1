"""A log line is JSON with what it is about, and never a secret."""

import io
import json
import logging

import pytest
import structlog

from ringfence_server.control.logs import HIDDEN, set_up_logs


@pytest.fixture
def out():
    """Where this process's log goes, and afterwards goes no more."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    written = io.StringIO()
    set_up_logs(written)
    yield written
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def _lines(out):
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_says_what_it_is_about(out):
    with structlog.contextvars.bound_contextvars(run="r-1", holder="oslo", round=3):
        structlog.get_logger("ringfence.control").info("round_closed", seconds=0.5)
    (line,) = _lines(out)
    assert line["event"] == "round_closed"
    assert (line["run"], line["holder"], line["round"], line["seconds"]) == ("r-1", "oslo", 3, 0.5)
    assert line["level"] == "info"
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize(
    "name", ["authorization", "Cookie", "set-cookie", "api_token", "client_secret", "password", "code", "state"]
)
def test_fields_that_are_named_for_secrets_are_hidden(out, name):
    structlog.get_logger().info("asked", **{name: "hunter2", "inner": {name: "hunter2"}})
    assert "hunter2" not in out.getvalue()
    assert _lines(out)[0][name] == HIDDEN


@pytest.mark.parametrize(
    "text",
    [
        "rf_ab12_hunter2-hunter2_hunter2",
        "GET /enter/hunter2hunter2",
        "Authorization: Bearer hunter2.x",
        "basic hunter2==",
        "eyJhbGciOiJIUzI1NiJ9.hunter2.hunter2",
        "postgresql+psycopg://ringfence:hunter2@db/ringfence",
        "/signin/return?code=hunter2&state=hunter2",
        "Cookie: __Host-ringfence=hunter2; ringfence-signin=hunter2",
    ],
)
def test_what_looks_like_a_secret_is_hidden_wherever_it_stands(out, text):
    log = structlog.get_logger()
    log.info(text, where=text, many=[text], deep={"a": [{"b": text}]})
    logging.getLogger("some.library").warning("it said %s", text)
    log.error("failed", exc_info=RuntimeError(text))
    assert "hunter2" not in out.getvalue()
    assert len(_lines(out)) == 3


def test_a_traceback_shows_no_values_of_variables(out):
    def open_it(key):
        raise ValueError("no", len(key))

    try:
        open_it("hunter2")
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "ValueError" in out.getvalue()
    assert "open_it(key)" not in out.getvalue().replace("def ", "")
    (line,) = _lines(out)
    assert 'len("hunter2")' not in line["exception"]
