"""A run's events as they happen: who gets them, where a stream goes on, and that it ends with the sign-in."""

import json
import subprocess
import sys
import threading

import httpx
import pytest
from api_server import NOBODY, OWN, served_api
from control_plane import wait_until

from ringfence_server.control.actor import Role


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with served_api(tmp_path_factory.mktemp("streams")) as api:
        api.proposal, api.run = api.finished_run()
        yield api


@pytest.fixture(scope="module")
def going(api):
    """A run that goes on for as long as the tests need it. There is one: its noise takes what is left of the budget."""
    run = api.running_run()
    yield run
    api.ask(Role.COORDINATOR, "POST", f"/api/v1/runs/{run}/suspend", json={"reason": "the test is over"})


def _events(text):
    """The events of a stream: (event, id, data) each."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "event" in lines:
            found.append((lines["event"], lines.get("id"), json.loads(lines["data"])))
    return found


def _stream(api, run, *, token=None, role=Role.COORDINATOR, **headers):
    return api.ask(role, "GET", f"/api/v1/runs/{run}/stream", token=token, headers=headers)


def test_a_stream_gives_everything_that_happened_and_says_when_it_is_over(api):
    reply = _stream(api, api.run)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache"
    events = _events(reply.text)
    names = [name for name, _, _ in events]
    assert names[0] == "run-started"
    assert names.count("round-closed") == 3
    assert names[-2:] == ["run-finished", "end"]
    listed = api.ask(Role.COORDINATOR, "GET", f"/api/v1/runs/{api.run}/events").json()
    assert [data for name, _, data in events if name != "end"] == listed


def test_a_client_that_comes_back_gets_what_it_missed(api):
    events = _events(_stream(api, api.run).text)
    place = events[2][1]
    assert _events(_stream(api, api.run, **{"last-event-id": place}).text) == events[3:]


@pytest.mark.parametrize("place", ["x", "-1", "1.5", "99999999999999999999", "1 OR 1=1"])
def test_a_place_that_is_none_is_refused(api, place):
    reply = _stream(api, api.run, **{"last-event-id": place})
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid-request")


@pytest.mark.parametrize("role", list(Role))
def test_every_role_may_watch(api, role):
    assert _stream(api, api.run, role=role).status_code == 200


def test_nobody_gets_no_stream(api):
    assert _stream(api, api.run, role=NOBODY).status_code == 401
    assert _stream(api, api.run, token="rf_x_y").status_code == 401  # noqa: S106 -- it is none
    assert _stream(api, "20260101T000000-abcdef").status_code == 404


class _Reader:
    """A client that reads a stream in a thread of its own."""

    def __init__(self, api, run, token):
        self.lines = []
        self.heard = threading.Event()
        self.over = threading.Event()
        self._api, self._run, self._token = api, run, token
        threading.Thread(target=self._read, daemon=True).start()
        assert self.heard.wait(30)

    def _read(self):
        with httpx.stream(
            "GET",
            f"{self._api.base}/api/v1/runs/{self._run}/stream",
            headers={"authorization": f"Bearer {self._token}"},
            timeout=60,
            trust_env=False,
        ) as reply:
            for line in reply.iter_lines():
                self.lines.append(line)
                if line.startswith("event: round-closed"):
                    self.heard.set()
        self.over.set()


def test_a_revoked_token_gets_nothing_more_and_its_streams_end(api, going):
    token = api.issue(Role.REGULATOR)
    reader = _Reader(api, going, token.secret)
    assert api.ask(Role.ADMINISTRATOR, "DELETE", f"/api/v1/tokens/{token.id}").json()["revoked_ms"]
    assert api.ask(None, "GET", "/api/v1/me", token=token.secret).status_code == 401
    assert reader.over.wait(30), "the stream goes on"
    assert "event: end" not in reader.lines, "it would say that the run is over"
    assert api.plane.runs.run(_someone(api), going).state.value == "running"


def test_a_token_that_another_process_revokes_ends_its_streams_too(api, going):
    token = api.issue(Role.REGULATOR)
    reader = _Reader(api, going, token.secret)
    command = [sys.executable, "-m", "ringfence_server.cli", "control", "token"]
    site = str(api.plane.site.directory)
    done = subprocess.run([*command, "revoke", site, token.id], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert api.ask(None, "GET", "/api/v1/me", token=token.secret).status_code == 401
    assert reader.over.wait(30), "the stream goes on"
    listed = subprocess.run([*command, "list", site, "--json"], capture_output=True, text=True, timeout=60, check=True)
    assert {one["id"]: one["revoked_ms"] is not None for one in json.loads(listed.stdout)}[token.id]
    assert token.secret not in listed.stdout


def test_a_reader_that_does_not_read_holds_up_nobody(api, going):
    idle = httpx.Client(
        base_url=api.base, trust_env=False, headers={"authorization": f"Bearer {api.tokens[Role.HOLDER]}"}
    )
    with idle.stream("GET", f"/api/v1/runs/{going}/stream"):
        token = api.issue(Role.COORDINATOR)
        reader = _Reader(api, going, token.secret)
        before = len(reader.lines)
        wait_until(lambda: len(reader.lines) > before)
        assert api.ask(Role.HOLDER, "GET", f"/api/v1/holders/{OWN}").status_code == 200
    idle.close()
    api.ask(Role.ADMINISTRATOR, "DELETE", f"/api/v1/tokens/{token.id}")
    assert reader.over.wait(30)


def test_streams_that_were_left_are_not_counted(api, going):
    token = api.issue(Role.RESEARCHER)
    reader = _Reader(api, going, token.secret)
    assert _open_streams(api) >= 1
    with httpx.stream(
        "GET",
        f"{api.base}/api/v1/runs/{api.run}/stream",
        headers={"authorization": f"Bearer {api.tokens[Role.HOLDER]}"},
        trust_env=False,
    ) as reply:
        next(reply.iter_lines())
    api.ask(Role.ADMINISTRATOR, "DELETE", f"/api/v1/tokens/{token.id}")
    assert reader.over.wait(30)
    wait_until(lambda: _open_streams(api) == 0)


def _open_streams(api):
    text = api.ask(Role.ADMINISTRATOR, "GET", "/metrics").text
    return float(next(line for line in text.splitlines() if line.startswith("ringfence_event_streams ")).split()[1])


def _someone(api):
    return api.plane.access.by_token(api.tokens[Role.COORDINATOR])
