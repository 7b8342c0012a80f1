"""A log line is JSON with what it is about, and never a secret."""

import json
import logging

import pytest
import structlog

from ringfence_server.control.logs import HIDDEN


def _lines(logged):
    return [json.loads(line) for line in logged.getvalue().splitlines()]


def test_a_line_says_what_it_is_about(logged):
    with structlog.contextvars.bound_contextvars(run="r-1", holder="oslo", round=3):
        structlog.get_logger("ringfence.control").info("round_closed", seconds=0.5)
    (line,) = _lines(logged)
    assert line["event"] == "round_closed"
    assert (line["run"], line["holder"], line["round"], line["seconds"]) == ("r-1", "oslo", 3, 0.5)
    assert line["level"] == "info"
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize(
    "name", ["authorization", "Cookie", "set-cookie", "api_token", "client_secret", "password", "code", "state"]
)
def test_fields_that_are_named_for_secrets_are_hidden(logged, name):
    structlog.get_logger().info("asked", **{name: "hunter2", "inner": {name: "hunter2"}})
    assert "hunter2" not in logged.getvalue()
    assert _lines(logged)[0][name] == HIDDEN


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
def test_what_looks_like_a_secret_is_hidden_wherever_it_stands(logged, text):
    log = structlog.get_logger()
    log.info(text, where=text, many=[text], deep={"a": [{"b": text}]})
    logging.getLogger("some.library").warning("it said %s", text)
    log.error("failed", exc_info=RuntimeError(text))
    assert "hunter2" not in logged.getvalue()
    assert len(_lines(logged)) == 3


def test_a_traceback_shows_no_values_of_variables(logged):
    def open_it(key):
        raise ValueError("no", len(key))

    try:
        open_it("hunter2")
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "ValueError" in logged.getvalue()
    assert "open_it(key)" not in logged.getvalue().replace("def ", "")
    (line,) = _lines(logged)
    assert 'len("hunter2")' not in line["exception"]
