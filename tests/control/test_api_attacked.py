"""What an enemy sends: requests that two readers take differently, keys and versions raced for, links in downloads."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from api_server import NOBODY, served_api

from ringfence_server.control.actor import Role

DOWN = "\u202e"  # turns the direction of what follows


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with served_api(tmp_path_factory.mktemp("attacked")) as api:
        api.proposal, api.run = api.finished_run()
        yield api


def _raw(api, head, *, token=None):
    """Everything that is answered to a request as it stands, until the server closes the line."""
    host = api.base.removeprefix("http://")
    shown = f"Authorization: Bearer {token or api.tokens[Role.COORDINATOR]}\r\n"
    name, _, port = host.partition(":")
    first, _, rest = head.partition("\r\n")
    with socket.create_connection((name, int(port)), timeout=30) as line:
        line.sendall(f"{first}\r\nHost: {host}\r\n{shown}{rest}".encode("latin-1"))
        found = b""
        while piece := line.recv(65536):
            found += piece
        return found


POST = "POST /api/v1/previews HTTP/1.1\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "rest",
    [
        # Where does the body end? What follows it would be the next request, with somebody else's rights.
        "Content-Length: 44\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /api/v1/me HTTP/1.1\r\nX: y\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 44\r\n\r\n0\r\n\r\nGET /api/v1/me HTTP/1.1\r\nX: y\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\nGET /api/v1/me HTTP/1.1\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /api/v1/me HTTP/1.1\r\n\r\n",
        "Content-Length: 2\r\nContent-Length: 0\r\n\r\n{}GET /api/v1/me HTTP/1.1\r\n\r\n",
        "Content-Length: +2\r\n\r\n{}GET /api/v1/me HTTP/1.1\r\n\r\n",
        "Content-Length : 2\r\n\r\n{}",
        "Host: evil.example\r\nContent-Length: 2\r\n\r\n{}",
        "X: a\0b\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_a_request_that_two_readers_take_differently_is_refused_and_nothing_after_it_is_read(api, rest):
    reply = _raw(api, POST + rest)
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert reply.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in reply.lower()


def test_of_two_tokens_none_counts(api):
    second = f"Authorization: Bearer {api.tokens[Role.ADMINISTRATOR]}\r\nConnection: close\r\n\r\n"
    for shown in (None, "rf_x_y"):
        reply = _raw(api, f"GET /api/v1/me HTTP/1.1\r\n{second}", token=shown)
        assert reply.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "header",
    [
        {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https", "x-forwarded-for": "10.0.0.1"},
        {"forwarded": "host=evil.example;proto=https"},
        {"x-original-url": "/metrics", "x-rewrite-url": "/metrics"},
        {"x-http-method-override": "DELETE", "x-method-override": "POST"},
    ],
    ids=str,
)
def test_headers_that_speak_for_others_change_nothing(api, header):
    plain = api.ask(Role.COORDINATOR, "GET", "/api/v1/me")
    reply = api.ask(Role.COORDINATOR, "GET", "/api/v1/me", headers=header)
    assert (reply.status_code, reply.json()) == (plain.status_code, plain.json())
    assert api.ask(NOBODY, "GET", "/api/v1/me", headers=header).status_code == 401
    assert "evil.example" not in str(reply.headers)


@pytest.mark.parametrize(
    "path",
    [
        "//api/v1/runs",
        "/api//v1/runs",
        "/API/v1/runs",
        "/api/v1/runs/",
        "/api/v1/./runs",
        "/health/../api/v1/runs",
        "/health/live/../../api/v1/runs",
        "/%61pi/v1/runs",
        "/api%2fv1%2fruns",
        "/metrics/../api/v1/runs",
        "http://evil.example/api/v1/runs",
    ],
)
def test_no_spelling_of_a_path_leads_around_the_sign_on(api, path):
    reply = _raw(api, f"GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n", token="rf_x_y")  # noqa: S106 -- it is none
    assert reply.split(b" ")[1] in (b"401", b"404")
    assert b"run_id" not in reply


def test_no_other_site_may_read_an_answer(api):
    for method in ("GET", "OPTIONS"):
        asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        reply = api.ask(Role.COORDINATOR, method, "/api/v1/runs", headers=asked)
        assert not [name for name in reply.headers if name.startswith("access-control-")]
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/health/live", "/api/v1/runs", "/api/v1/runs/none", "/metrics"])
def test_head_answers_as_get_does_without_the_body(api, path):
    got, head = (api.ask(Role.ADMINISTRATOR, method, path) for method in ("GET", "HEAD"))
    assert head.status_code == got.status_code
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    assert api.ask(NOBODY, "HEAD", "/api/v1/runs").status_code == 401


def test_methods_that_are_not_known_are_refused_with_those_that_are(api):
    for method in ("OPTIONS", "TRACE", "PROPFIND"):
        reply = api.ask(Role.COORDINATOR, method, "/api/v1/runs")
        assert (reply.status_code, reply.headers["allow"]) == (405, "GET, HEAD, POST")
    stream = f"/api/v1/runs/{api.run}/stream"
    for method in ("HEAD", "POST"):
        reply = api.ask(Role.COORDINATOR, method, stream)
        assert (reply.status_code, reply.headers["allow"]) == (405, "GET")


def test_a_key_that_is_raced_for_begins_one_thing(api):
    def start(number):
        body = {"proposal": api.proposal, "seed": number}
        return api.ask(Role.COORDINATOR, "POST", "/api/v1/runs", json=body, headers={"idempotency-key": "raced"})

    before = len(api.plane.runs.proposal(api.plane.access.by_token(api.tokens[Role.COORDINATOR]), api.proposal).runs)
    with ThreadPoolExecutor(8) as pool:
        same = list(pool.map(start, [7] * 8))
        other = list(pool.map(start, range(100, 104)))
    assert {reply.status_code for reply in same} == {202}
    assert len({reply.json()["run_id"] for reply in same}) == 1
    assert {(reply.status_code, reply.json()["code"]) for reply in other} == {(409, "conflict")}
    shown = api.ask(Role.COORDINATOR, "GET", f"/api/v1/proposals/{api.proposal}").json()
    assert len(shown["runs"]) == before + 1
    api.ask(Role.COORDINATOR, "POST", f"/api/v1/runs/{same[0].json()['run_id']}/suspend", json={"reason": "a test"})


def test_a_key_is_good_for_one_kind_of_request_and_one_account(api):
    key = {"idempotency-key": "mine"}
    body = {"text": api.plan()}
    mine = api.ask(Role.COORDINATOR, "POST", "/api/v1/proposals", json=body, headers=key)
    theirs = api.ask(Role.RESEARCHER, "POST", "/api/v1/proposals", json=body, headers=key)
    assert (mine.status_code, theirs.status_code) == (201, 201)
    assert mine.json()["id"] != theirs.json()["id"]
    start = api.ask(Role.COORDINATOR, "POST", "/api/v1/runs", json={"proposal": api.proposal}, headers=key)
    assert (start.status_code, start.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize("cursor", ["", "'", "\0", "\u0661", "a\nb", "9" * 65, "-1 OR 1=1", "../x"])
@pytest.mark.parametrize("where", ["runs", "proposals", "reads"])
def test_a_cursor_that_no_page_gave_is_refused_or_leads_nowhere_else(api, where, cursor):
    role = Role.ADMINISTRATOR
    reply = api.ask(role, "GET", f"/api/v1/{where}", params={"cursor": cursor})
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid-request")


@pytest.mark.parametrize("number", ["9" * 30, "9" * 5000, "-1", "1e400", "\u0661"])
@pytest.mark.parametrize("where", ["runs?limit=", "runs/{run}/events?after=", "runs/{run}/logs/coordinator/"])
def test_a_number_that_is_too_large_or_none_is_refused(api, where, number):
    reply = api.ask(Role.COORDINATOR, "GET", f"/api/v1/{where.format(run=api.run)}{number}")
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid-request")


@pytest.mark.parametrize("words", ["a\0", "\x1b[2Ja", f"a{DOWN}b", "a\x85", "\x7f"])
def test_words_for_people_hold_nothing_that_they_cannot_see(api, words):
    for role, path, body in (
        (Role.COORDINATOR, f"runs/{api.run}/suspend", {"reason": words}),
        (Role.HOLDER, "holders/alder/stops/suspend", {"reason": words}),
        (Role.ADMINISTRATOR, "tokens", {"name": words, "role": "regulator"}),
        (Role.ADMINISTRATOR, "tokens", {"name": f"a\r\n{words}", "role": "regulator"}),
    ):
        reply = api.ask(role, "POST", f"/api/v1/{path}", json=body)
        assert (reply.status_code, reply.json()["code"]) == (422, "invalid-request")


def test_whole_numbers_are_whole_however_they_are_written(api):
    for days, status in ((3.0, 201), (3, 201), (3.5, 422), ("3", 422), (True, 422), (0, 422)):
        body = {"name": "test", "role": "regulator", "days": days}
        assert api.ask(Role.ADMINISTRATOR, "POST", "/api/v1/tokens", json=body).status_code == status, days


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "one", "name": "two", "role": "regulator"}',
        '{"name": "a", "role": "regulator", "x": {"y": 1, "y": 1}}',
    ],
)
def test_a_body_that_gives_a_member_twice_is_refused(api, body):
    said = {"content-type": "application/json"}
    reply = api.ask(Role.ADMINISTRATOR, "POST", "/api/v1/tokens", content=body, headers=said)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid-request")
    assert "more than once" in reply.json()["errors"][0]["message"]


@pytest.mark.parametrize("said", ["text/plain", "application/x-www-form-urlencoded", "application/merge+json", None])
def test_a_body_that_does_not_say_that_it_is_json_is_refused(api, said):
    body = b'{"name": "one", "role": "regulator"}'
    headers = {} if said is None else {"content-type": said}
    reply = api.ask(Role.ADMINISTRATOR, "POST", "/api/v1/tokens", content=body, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (415, "wrong-media-type")
    words = {"content-type": "application/json; charset=utf-8"}
    assert api.ask(Role.ADMINISTRATOR, "POST", "/api/v1/tokens", content=body, headers=words).status_code == 201


@pytest.mark.parametrize("what", ["bundle", "directory"])
def test_a_link_in_the_place_of_a_bundle_hands_out_no_other_file(api, tmp_path, what):
    directory = api.plane.site.directory / "runs" / api.run
    place = directory / "evidence.zip" if what == "bundle" else directory
    kept = tmp_path / "kept"
    place.replace(kept)
    try:
        place.symlink_to(kept)
        for rest in ("/bundle", "/roots"):
            reply = api.ask(Role.COORDINATOR, "GET", f"/api/v1/runs/{api.run}/evidence{rest}")
            assert (reply.status_code, reply.json()["code"]) == (409, "conflict")
        reply = api.ask(Role.COORDINATOR, "GET", f"/api/v1/runs/{api.run}/evidence")
        assert reply.json()["state"] == "not there yet"
    finally:
        place.unlink()
        kept.replace(place)
    assert api.ask(Role.COORDINATOR, "GET", f"/api/v1/runs/{api.run}/evidence/bundle").status_code == 200
