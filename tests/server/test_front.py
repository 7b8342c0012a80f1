"""The coordinator's one door: registered SuperNodes get their few requests through, and nobody gets anything else."""

import asyncio
import base64
import datetime as dt
import json
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from fastapi.routing import APIRoute, iter_route_contexts
from letters import Correspondent, pem, supernode_key

from ringfence_policy.errors import UsageError
from ringfence_policy.letters import Registration
from ringfence_server.deployment import CoordinatorFile, init_deployment, now_utc
from ringfence_server.front import FLEET_PATHS, Front
from ringfence_server.front_server import FrontServer
from ringfence_server.registry import Registry

KEY = supernode_key()
PULL = "/v1/fleet/pull-messages"


@dataclass
class Keys:
    """Who may connect."""

    registered: dict[str, str] = field(default_factory=lambda: {pem(KEY): "oak"})

    def holder_of(self, key):
        return self.registered.get(key)


def answer_of(status=200, content=b"said", **headers):
    """What a SuperLink answers, still to be read."""
    said = {"content-type": "application/protobuf", "content-length": str(len(content))}
    return httpx.Response(status, headers=said | headers, stream=httpx.ByteStream(content))


@dataclass
class FarSide:
    """A SuperLink that writes down what reaches it."""

    answer: httpx.Response | Exception = field(default_factory=answer_of)
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    async def __call__(self, request):
        self.seen.append((str(request.url), dict(request.headers), await request.aread()))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def signed(key=KEY, **changes):
    """The headers of a SuperNode's request, as Flower writes them."""
    moment = dt.datetime.now(dt.UTC).isoformat()
    headers = {
        "content-type": "application/protobuf",
        "accept": "application/protobuf",
        "flwr-public-key": base64.b64encode(pem(key).encode()).decode(),
        "flwr-timestamp": moment,
        "flwr-signature": base64.b64encode(key.sign(moment.encode(), ec.ECDSA(SHA256()))).decode(),
    }
    return {name: value for name, value in (headers | changes).items() if value is not None}


def ask(method="POST", path=PULL, *, headers=None, content=b"asked", far=None, keys=None, limit=1000):
    """One request to a front whose far side is not real."""
    far = FarSide() if far is None else far

    async def run():
        async with httpx.AsyncClient(transport=httpx.MockTransport(far)) as client:
            front = Front(superlink="127.0.0.1:1", client=client, registered=keys or Keys(), limit_bytes=limit)
            near = httpx.ASGITransport(front)
            async with httpx.AsyncClient(transport=near, base_url="https://forest.example") as node:
                node.headers = httpx.Headers()
                return await node.request(
                    method, path, headers=signed() if headers is None else headers, content=content
                )

    return asyncio.run(run()), far.seen


def test_a_registered_supernodes_request_reaches_the_superlink_and_its_answer_the_node():
    response, seen = ask()
    assert (response.status_code, response.content) == (200, b"said")
    ((url, _, body),) = seen
    assert (url, body) == (f"https://127.0.0.1:1{PULL}", b"asked")


def routes_of_the_superlink():
    from flwr.superlink.main import create_app  # noqa: PLC0415 -- builds the SuperLink's own application

    for context in iter_route_contexts(create_app().routes):
        route = context.route
        for method in sorted(getattr(route, "methods", None) or {"GET"}):
            yield method, context.path if isinstance(route, APIRoute) else getattr(route, "path", "/")


def test_of_everything_that_the_superlink_serves_the_front_forwards_the_fleet_interface_alone():
    """Each route of the SuperLink's own application, tried with a registered SuperNode's signature."""
    routes = set(routes_of_the_superlink())
    assert len(routes) > 60
    assert {path.split("/")[2] for _, path in routes if path.startswith("/v1/")} >= {"fleet", "control", "runtime"}
    passed = set()
    for method, path in sorted(routes):
        response, seen = ask(method, path)
        assert response.status_code == (200 if seen else 404), (method, path, response.text)
        if seen:
            passed.add((method, path))
    fleet = {(method, path) for method, path in routes if path.startswith("/v1/fleet/")}
    own = {("POST", "/v1/fleet/register-node"), ("POST", "/v1/fleet/unregister-node")}
    assert passed == {("POST", path) for path in FLEET_PATHS} == fleet - own


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"])
def test_only_post_is_spoken(method):
    response, seen = ask(method)
    assert (response.status_code, seen) == (404, [])


@pytest.mark.parametrize(
    "path",
    [
        f"{PULL}/",
        f"{PULL}?x=1",
        f"/{PULL}",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull%2Dmessages",
        "/v1/fleet/pull-messages%2f..%2f..%2fcontrol%2fstart-run",
        "/v1/Fleet/pull-messages",
        "/v1/fleet/",
        "/v1/fleet",
        "/v1/control/start-run",
        "/v1/runtime/push-messages",
        "/health",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
def test_a_path_that_is_not_exactly_one_of_the_fleets_is_not_found(path):
    response, seen = ask(path=path)
    assert (response.status_code, seen) == (404, [])


@pytest.mark.parametrize(
    "change",
    [
        {"flwr-public-key": None},
        {"flwr-signature": None},
        {"flwr-timestamp": None},
        {"flwr-timestamp": "2026-01-01T00:00:00+00:00"},
        {"flwr-public-key": "%%%"},
        {"flwr-signature": "%%%"},
        {"flwr-public-key": base64.b64encode(pem(supernode_key()).encode()).decode()},
        {"flwr-signature": base64.b64encode(b"no signature").decode()},
        {"flwr-signature": ""},
    ],
    ids=lambda change: "-".join(map(str, next(iter(change.items()))))[:40],
)
def test_a_request_that_no_registered_supernode_signed_does_not_reach_the_superlink(change):
    response, seen = ask(headers=signed(**change))
    assert (response.status_code, seen) == (401, [])
    assert response.headers["connection"] == "close"


def test_a_supernode_that_is_not_registered_gets_nothing_through_with_its_own_genuine_signature():
    response, seen = ask(headers=signed(supernode_key()))
    assert (response.status_code, seen) == (401, [])


def test_a_supernode_whose_registration_was_withdrawn_is_cut_off_at_once():
    keys = Keys()
    assert ask(keys=keys)[0].status_code == 200
    keys.registered.clear()
    assert ask(keys=keys)[0].status_code == 401


def test_registrations_that_cannot_be_read_let_nobody_through():
    class Broken(Keys):
        def holder_of(self, key):
            raise OSError(key)

    response, seen = ask(keys=Broken())
    assert (response.status_code, seen) == (503, [])


def test_only_headers_that_flower_needs_are_forwarded():
    more = {
        "cookie": "a=b",
        "authorization": "Bearer x",
        "x-forwarded-for": "1.2.3.4",
        "host": "127.0.0.1:1",
        "flwr-task-token": "forged",
        "flwr-superexec-signature": "forged",
        "flwr-package-version": "1.41.0",
        "connection": "keep-alive, flwr-signature",
        "upgrade": "h2c",
    }
    _, ((_, headers, _),) = ask(headers=signed(**more))
    ours = {"host", "content-length", "accept-encoding", "connection", "user-agent"}
    assert set(headers) - ours == {
        "content-type", "accept", "flwr-public-key", "flwr-signature", "flwr-timestamp", "flwr-package-version",
    }  # fmt: skip
    assert headers["connection"] == "keep-alive"


def test_only_headers_that_flower_reads_come_back():
    response, _ = ask(far=FarSide(answer_of(**{"set-cookie": "a=b", "server": "x"})))
    assert set(response.headers) == {"content-type", "content-length"}


@pytest.mark.parametrize("name", ["flwr-public-key", "flwr-signature", "content-type", "content-length"])
def test_a_header_that_stands_there_twice_is_refused(name):
    headers = [*signed(**{"content-length": "5"}).items()]
    response, seen = ask(headers=[*headers, (name, dict(headers)[name])])
    assert (response.status_code, seen) == (400, [])


@pytest.mark.parametrize(("length", "status"), [("1001", 413), ("9" * 40, 411), ("-1", 411), ("5 ", 411), ("0x5", 411)])
def test_a_body_that_is_too_large_or_of_no_said_length_is_refused_unread(length, status):
    response, seen = ask(headers=signed(**{"content-length": length}))
    assert (response.status_code, seen) == (status, [])


def test_a_body_of_the_largest_size_passes_and_one_byte_more_does_not():
    assert ask(content=b"x" * 1000)[0].status_code == 200
    response, seen = ask(content=b"x" * 1001)
    assert (response.status_code, seen) == (413, [])


def test_a_body_in_chunks_is_refused_because_it_says_no_length():
    async def pieces():
        yield b"asked"

    response, seen = ask(content=pieces())
    assert (response.status_code, seen) == (411, [])


@pytest.mark.parametrize("kind", ["application/json", "text/html", "application/x-www-form-urlencoded", None])
def test_another_kind_of_body_is_refused(kind):
    response, seen = ask(headers=signed(**{"content-type": kind}))
    assert (response.status_code, seen) == (415, [])


def test_an_overlong_header_is_refused():
    response, seen = ask(headers=signed(accept="x" * 5000))
    assert (response.status_code, seen) == (400, [])


@pytest.mark.parametrize("length", ["4", "6"])
def test_a_body_of_another_length_than_was_said_is_not_taken_for_whole(length):
    response, _ = ask(headers=signed(**{"content-length": length}))
    assert response.status_code == 400


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (httpx.ConnectError("down"), 503),
        (httpx.RemoteProtocolError("cut"), 503),
        (httpx.ReadTimeout("slow"), 504),
        (answer_of(content=b"x" * 1001), 502),
        (answer_of(**{"content-encoding": "identity"}), 502),
        (answer_of(401), 401),
        (answer_of(500), 500),
    ],
    ids=["down", "cut", "slow", "too large", "encoded", "refused", "failed"],
)
def test_what_the_superlink_cannot_say_well_the_front_says_so_that_a_supernode_tries_again(answer, status):
    assert ask(far=FarSide(answer))[0].status_code == status


# --- with a socket and TLS -------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A deployment with one registered holder, and its front serving; no SuperLink runs."""
    settings = CoordinatorFile(
        coordinator="tree-consortium",
        names=("127.0.0.1",),
        listen="127.0.0.1",
        port=free_port(),
        superlink_port=free_port(),
    )
    deployment = init_deployment(tmp_path_factory.mktemp("front") / "d", settings, source=None, now=now_utc())
    token = Correspondent.named("oak").write(KEY)
    coordinator = deployment.coordinator()
    Registry(deployment.holders).keep(Registration.open(token), token, coordinator)
    coordinator.close()
    server = FrontServer(deployment)
    server.start()
    yield deployment, server
    server.stop()
    assert not server.is_serving


def connect(place, *, latest=None):
    deployment, server = place
    context = ssl.create_default_context(cafile=str(deployment.authority_file))
    if latest is not None:
        context.maximum_version = latest
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    try:
        return context.wrap_socket(raw, server_hostname="127.0.0.1")
    except OSError:
        raw.close()
        raise


def converse(place, text):
    """Send bytes as they are, and read until the other side hangs up."""
    with connect(place) as connection:
        connection.sendall(text)
        said = b""
        while part := connection.recv(65536):
            said += part
    return said


def test_tls_below_1_3_is_not_spoken(place):
    with pytest.raises(OSError, match=r"(?i)version|alert|reset|EOF"):
        connect(place, latest=ssl.TLSVersion.TLSv1_2).close()


def test_a_node_waits_for_a_superlink_that_is_down(place):
    deployment, server = place
    with httpx.Client(verify=ssl.create_default_context(cafile=str(deployment.authority_file))) as node:
        response = node.post(f"https://127.0.0.1:{server.port}{PULL}", headers=signed(), content=b"asked")
    assert response.status_code == 503
    assert "server" not in response.headers


@pytest.mark.parametrize(
    "headers",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"transfer-encoding: chunked\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"content-length: 5, 5\r\nx:\x00\r\n",
    ],
)
def test_a_request_that_could_be_read_in_two_ways_is_read_in_none(place, headers):
    """Request smuggling: what follows the ambiguous request must not be taken for a second one."""
    auth = b"".join(f"{name}: {value}\r\n".encode() for name, value in signed().items())
    hidden = b"POST /v1/control/start-run HTTP/1.1\r\nhost: x\r\n\r\n"
    said = converse(place, b"POST %s HTTP/1.1\r\nhost: x\r\n%s%s\r\n%s" % (PULL.encode(), auth, headers, hidden))
    assert said.count(b"HTTP/1.1 ") == 1
    assert said.startswith((b"HTTP/1.1 400", b"HTTP/1.1 411"))


def test_a_stranger_is_answered_before_its_body_and_hung_up_on(place):
    request = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\ncontent-length: 900\r\n\r\n"
    assert converse(place, request % PULL.encode()).startswith(b"HTTP/1.1 401")


def test_who_connects_and_says_nothing_is_hung_up_on(place, monkeypatch):
    monkeypatch.setattr("ringfence_server.front_server._STRANGER_SECONDS", 0.3)
    for text in (b"", b"POST /v1/fleet/pull-messages HTT"):
        began = time.monotonic()
        assert converse(place, text) == b""
        assert time.monotonic() - began < 10


def test_strangers_who_only_connect_cannot_take_a_supernodes_place(place, monkeypatch):
    monkeypatch.setattr("ringfence_server.front_server._MOST_STRANGERS", 3)
    deployment, server = place
    strangers = [connect(place) for _ in range(6)]
    with httpx.Client(verify=ssl.create_default_context(cafile=str(deployment.authority_file))) as node:
        response = node.post(f"https://127.0.0.1:{server.port}{PULL}", headers=signed(), content=b"asked")
    assert response.text == "try again"  # the front's own word: the request got as far as the SuperLink, which is down
    strangers[0].settimeout(5)
    with suppress(ConnectionError):
        assert strangers[0].recv(1) == b""
    strangers[-1].settimeout(0.2)
    with pytest.raises(TimeoutError):
        strangers[-1].recv(1)
    for one in strangers:
        one.close()


def test_a_port_that_is_taken_is_said_before_anything_starts(place):
    deployment, _ = place
    with pytest.raises(UsageError, match="cannot listen"):
        FrontServer(deployment)


def test_the_invitation_leads_to_the_front(place):
    from ringfence_policy.letters import Invitation, read_letter  # noqa: PLC0415

    deployment, server = place
    letter = Invitation.open(read_letter(deployment.invitation_file.read_bytes()))
    assert letter.address == f"127.0.0.1:{server.port}"
    assert letter.authority == deployment.authority_file.read_text()
    assert letter.root.jwk == json.loads((deployment.state / "root.jwk").read_text())
