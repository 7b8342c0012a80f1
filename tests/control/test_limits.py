"""What a request must keep to before anything looks at it, over a real server and raw sockets."""

import json
import re
import socket
import threading
from contextlib import contextmanager

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse

from ringfence_server.control import serve, starting
from ringfence_server.control.api.problems import MEDIA_TYPE, answer, of_status
from ringfence_server.control.limits import Limits
from ringfence_server.control.serve import ControlServer
from ringfence_server.control.settings import ControlSettings, local_origins


def _inner():
    app = FastAPI()

    @app.exception_handler(Exception)
    def failed(request: Request, _error: Exception):
        return answer(of_status(500), request_id=request.state.request_id)

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException):
        return answer(of_status(error.status_code), request_id=request.state.request_id)

    @app.post("/api/v1/echo")
    async def echo(request: Request):
        return {"bytes": len(await request.body())}

    @app.get("/api/v1/hello")
    def hello():
        return {}

    @app.get("/api/v1/broken")
    def broken():
        raise RuntimeError("secret-in-a-traceback")

    @app.get("/api/v1/cookies")
    def cookies(request: Request):
        return request.headers.getlist("cookie")

    @app.get("/health/live")
    def live():
        return {}

    @app.get("/page")
    def page():
        return PlainTextResponse("a page")

    @app.get("/away")
    def away(to: str):
        return RedirectResponse(to)

    return app


@contextmanager
def served(app, **limits):
    server = ControlServer()
    settings = ControlSettings(origins=local_origins(server.port, ["regulator"]))
    ready = threading.Event()
    thread = threading.Thread(
        target=server.serve, args=(Limits(app, settings=settings, **limits),), kwargs={"ready": ready.set}
    )
    thread.start()
    assert ready.wait(20)
    try:
        yield server.port
    finally:
        server.stop()
        thread.join(20)
        server.close()


@pytest.fixture(scope="module")
def port():
    with served(_inner(), limit_bytes=1000, body_seconds=1.0) as port:
        yield port


@pytest.fixture
def client(port):
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        yield client


def _raw(port, *pieces):
    """What a server says to bytes that are written as they are."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        for piece in pieces:
            line.sendall(piece)
        found = b""
        while piece := line.recv(65536):
            found += piece
        return found


def test_every_answer_says_what_a_browser_may_do_with_it(client):
    for path in ("/api/v1/hello", "/api/v1/none", "/page"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert re.fullmatch(r"[0-9a-f]{16}", headers["request-id"])
    assert client.get("/api/v1/hello").headers["cache-control"] == "no-store"
    assert "default-src 'none'" in client.get("/api/v1/hello").headers["content-security-policy"]


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "regulator.localhost", "", "127.0.0.1:{port}.evil.example"]
)
def test_a_request_for_another_host_is_refused_so_that_no_other_name_can_be_bound_to_this_one(port, client, host):
    reply = client.get("/api/v1/hello", headers={"host": host.format(port=port)})
    assert reply.status_code == 421
    assert reply.headers["content-type"] == MEDIA_TYPE
    assert reply.json()["code"] == "wrong-host"


def test_whoever_watches_its_health_may_ask_by_any_name(client):
    assert client.get("/health/live", headers={"host": "10.1.2.3:8080"}).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "regulator.localhost"])
def test_the_names_of_this_control_plane_are_served(port, client, host):
    assert client.get("/api/v1/hello", headers={"host": f"{host}:{port}"}).status_code == 200


def test_a_body_over_the_limit_is_refused_before_it_is_read(port):
    reply = _raw(port, f"POST /api/v1/echo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 1001\r\n\r\n".encode())
    assert b" 413 " in reply.split(b"\r\n")[0]
    assert b"too-large" in reply


def test_a_body_that_grows_over_the_limit_without_saying_so_is_cut(client):
    reply = client.post("/api/v1/echo", content=iter([b"x" * 600, b"x" * 600]))
    assert (reply.status_code, reply.json()["code"]) == (413, "too-large")
    assert client.post("/api/v1/echo", content=iter([b"x" * 500, b"x" * 500])).json() == {"bytes": 1000}


@pytest.mark.parametrize("length", ["-1", "1e9", "99999999999999999999999999"])
def test_a_length_that_is_none_is_refused(port, length):
    head = f"POST /api/v1/echo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {length}\r\n\r\n"
    assert re.match(rb"HTTP/1.1 4(00|13) ", _raw(port, head.encode()))


def test_a_body_that_does_not_come_is_not_waited_for(port):
    head = f"POST /api/v1/echo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 10\r\n\r\nab"
    reply = _raw(port, head.encode())
    assert b" 408 " in reply.split(b"\r\n")[0]
    assert b"too-slow" in reply


def test_headers_that_do_not_end_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(serve, "HEADER_SECONDS", 0.5)
    with served(_inner()) as port:
        head = f"GET /api/v1/hello HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode()
        assert _raw(port, head) == b""
        assert _raw(port) == b"", "a connection on which nothing is asked"
        # A second request on a connection that was served is no more patiently waited for.
        with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
            line.sendall(head + b"\r\n")
            found = line.recv(65536)
            while not found.endswith(b"{}"):
                found += line.recv(65536)
            line.sendall(b"GET /api/v1/hello HT")
            assert line.recv(65536) == b""
        assert found.count(b"HTTP/1.1 200") == 1


def test_many_slow_strangers_keep_nobody_from_being_served(port, client):
    lines = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(100)]
    try:
        for line in lines:
            line.sendall(b"GET /api/v1/he")
        assert client.get("/api/v1/hello").status_code == 200
    finally:
        for line in lines:
            line.close()


@pytest.mark.parametrize("quoted", ['x="' + "\\1" * 20_000 + '"', '"', 'x="a'], ids=["long", "mark", "open"])
def test_a_quoted_cookie_is_not_passed_on_because_it_takes_seconds_to_read(client, quoted):
    headers = [("cookie", f"ringfence=abc_-1; {quoted}; other=2"), ("cookie", quoted)]
    assert client.get("/api/v1/cookies", headers=headers).json() == ["ringfence=abc_-1; other=2", ""]


def test_a_fault_nobody_foresaw_is_a_problem_without_a_traceback(client):
    reply = client.get("/api/v1/broken")
    assert reply.status_code == 500
    assert reply.headers["content-type"] == MEDIA_TYPE
    assert reply.json()["code"] == "internal"
    assert reply.json()["instance"].endswith(reply.headers["request-id"])
    assert "secret-in-a-traceback" not in reply.text
    assert "Traceback" not in reply.text


@pytest.mark.parametrize("way", ["path", "query", "header"])
def test_a_line_break_in_a_request_makes_no_header_of_an_answer(port, way):
    host = f"Host: 127.0.0.1:{port}\r\nConnection: close\r\n"
    head = {
        "path": f"GET /api/v1/%0d%0aSet-Cookie:%20stolen=1 HTTP/1.1\r\n{host}\r\n",
        "query": f"GET /away?to=/x%0d%0aSet-Cookie:%20stolen=1 HTTP/1.1\r\n{host}\r\n",
        "header": f"GET /api/v1/hello HTTP/1.1\r\n{host}Last-Event-ID: 1\rSet-Cookie: stolen=1\r\n\r\n",
    }[way]
    reply = _raw(port, head.encode())
    assert reply.startswith(b"HTTP/1.1 ")
    assert b"\r\nset-cookie" not in reply.lower()


def test_problem_documents_are_json(client):
    assert json.loads(client.get("/api/v1/none").content)["status"] == 404


@pytest.mark.parametrize(
    ("listen", "first"), [("127.0.0.1", "http://127.0.0.1:8000"), ("::1", "http://[::1]:8000")], ids=["4", "6"]
)
def test_the_address_that_is_said_is_the_one_that_is_listened_on(listen, first):
    place = starting.Place(listen=listen, port=8000, origins=(), certificate=None, key=None)
    settings = ControlSettings(origins=starting._origins(place, 8000))
    assert settings.address == first
    assert first.removeprefix("http://") in settings.hosts
