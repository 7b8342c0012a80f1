"""Signing in, staying signed in and being signed out, through the layers that stand before every route and page."""

import re
from datetime import timedelta

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from oidc_issuer import CLIENT_SECRET
from starlette.websockets import WebSocket, WebSocketDisconnect

from ringfence_policy.errors import RingfenceError
from ringfence_server.control import sign_on_store
from ringfence_server.control.actor import Actor, Role
from ringfence_server.control.limits import Limits
from ringfence_server.control.oidc import IdentityProvider
from ringfence_server.control.pages.mount import SignedInOnly
from ringfence_server.control.settings import ControlSettings
from ringfence_server.control.sign_on_pages import sign_on_pages, told
from ringfence_server.control.sign_on_store import SignOnStore
from ringfence_server.control.signon import Caller, SignOn, actor_of
from ringfence_server.control.store.engine import StoreFault, open_store
from ringfence_server.control.store.sign_on_tables import Base

ORIGIN = "http://127.0.0.1:8000"
REGULATOR = "http://regulator.localhost:8000"
TOKEN = "rf_1_good"  # noqa: S105 -- means nothing outside of this test
ADA = Actor(role=Role.COORDINATOR, name="Ada", holder=None, via="session", account="test:ada")


class _Credentials:
    """Sessions from the store, and one token."""

    def __init__(self, store):
        self.by_session = store.by_session

    def by_token(self, token):
        robot = Actor(role=Role.RESEARCHER, name="robot", holder=None, via="token", account="token:1")
        return Caller(robot, "token:1") if token == TOKEN else None


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 1_800_000_000

    monkeypatch.setattr(sign_on_store, "now", lambda: Clock.now)
    return Clock


@pytest.fixture(scope="module")
def on_postgresql(server):
    found = open_store(server.fresh_database())
    yield found
    found.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    """An empty store; on PostgreSQL the same one for every test."""
    if request.param == "sqlite":
        found = open_store(f"sqlite:///{tmp_path / 'control.db'}")
        yield found
        found.close()
        return
    found = request.getfixturevalue("on_postgresql")
    yield found
    with found.write() as db:
        for table in reversed(Base.metadata.sorted_tables):
            db.execute(table.delete())


@pytest.fixture
def sign_on(store):
    settings = ControlSettings(origins=(ORIGIN,), idle=timedelta(hours=8), longest=timedelta(hours=24))
    return SignOnStore(store, settings)


def _app(sign_on, *, origins=(ORIGIN, REGULATOR), workshop=True, provider=None):
    settings = ControlSettings(origins=origins, workshop=workshop)
    app = FastAPI()
    app.include_router(sign_on_pages(sign_on, settings, provider))
    app.add_exception_handler(RingfenceError, told)

    @app.get("/api/v1/me")
    @app.get("/")
    def me(request: Request):
        actor = actor_of(request)
        return {"role": actor.role if actor else None, "holder": actor.holder if actor else None}

    @app.post("/api/v1/change")
    @app.post("/change")
    def change():
        return {"changed": True}

    @app.get("/health/live")
    def live():
        return {}

    @app.websocket("/_nicegui_ws/socket.io/")
    async def pages(socket: WebSocket):
        await socket.accept()
        await socket.send_text(actor_of(socket).role)

    app.add_middleware(SignOn, settings=settings, credentials=_Credentials(sign_on))
    app.add_middleware(Limits, settings=settings)
    return app


@pytest.fixture
def browser(sign_on):
    return TestClient(_app(sign_on), base_url=ORIGIN, follow_redirects=False)


def _enter(browser, sign_on, role=Role.COORDINATOR, holder=None, **headers):
    link = sign_on.make_link(role=role, name=role.value, holder=holder)
    return browser.get(f"/enter/{link}", headers=headers)


def _session(reply):
    return re.search(r"ringfence=([^;]+)", reply.headers["set-cookie"])[1]


def test_a_link_signs_a_browser_in(browser, sign_on):
    reply = _enter(browser, sign_on, Role.HOLDER, "oslo")
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    assert browser.get("/api/v1/me").json() == {"role": "holder", "holder": "oslo"}


def test_a_session_is_in_a_cookie_that_no_script_and_no_other_site_gets(browser, sign_on):
    cookie = _enter(browser, sign_on).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Path=/" in cookie
    assert "Domain" not in cookie


def test_by_https_the_cookie_is_bound_to_it(sign_on):
    secure = TestClient(
        _app(sign_on, origins=("https://control.example.org",)),
        base_url="https://control.example.org",
        follow_redirects=False,
    )
    reply = _enter(secure, sign_on)
    assert reply.headers["set-cookie"].startswith("__Host-ringfence=")
    assert "Secure" in reply.headers["set-cookie"]
    assert reply.headers["strict-transport-security"]
    assert secure.get("/api/v1/me").status_code == 200


def test_the_store_holds_no_secret_that_signs_anybody_in(browser, sign_on, store, tmp_path):
    link = sign_on.make_link(role=Role.REGULATOR, name="regulator")
    secret = _session(browser.get(f"/enter/{link}"))
    another = sign_on.make_link(role=Role.REGULATOR, name="regulator")
    with store.read() as db:
        rows = [tuple(row) for table in Base.metadata.sorted_tables for row in db.execute(table.select())]
    assert len(rows) == 2  # the session, and the link that was not used
    found = repr(rows).encode() + b"".join(path.read_bytes() for path in tmp_path.glob("control.db*"))
    for one in (link, secret, another):
        assert one.encode() not in found


def test_a_link_works_once(browser, sign_on):
    link = sign_on.make_link(role=Role.REGULATOR, name="regulator")
    assert browser.get(f"/enter/{link}").status_code == 303
    again = browser.get(f"/enter/{link}")
    assert again.status_code == 403
    assert "each works once" in again.text
    assert "set-cookie" not in again.headers


def test_a_browser_that_loads_ahead_does_not_use_a_link_up(browser, sign_on):
    link = sign_on.make_link(role=Role.REGULATOR, name="regulator")
    assert browser.get(f"/enter/{link}", headers={"sec-purpose": "prefetch;prerender"}).status_code == 403
    assert browser.get(f"/enter/{link}").status_code == 303


def test_a_link_ends_with_the_day_and_with_the_workshop(browser, sign_on, clock):
    old, forgotten = (sign_on.make_link(role=Role.REGULATOR, name="regulator") for _ in range(2))
    clock.now += 12 * 3600
    assert browser.get(f"/enter/{old}").status_code == 403
    clock.now -= 12 * 3600
    sign_on.forget_links()
    assert browser.get(f"/enter/{forgotten}").status_code == 403


def test_links_sign_nobody_in_outside_of_a_workshop(sign_on):
    browser = TestClient(_app(sign_on, workshop=False), base_url=ORIGIN, follow_redirects=False)
    assert _enter(browser, sign_on).status_code == 403


@pytest.mark.parametrize("secret", ["", "x", "../../etc/passwd", "%00", "a" * 5000])
def test_what_is_no_link_signs_nobody_in(browser, secret):
    reply = browser.get(f"/enter/{secret}")
    assert reply.status_code in (403, 404)
    assert "set-cookie" not in reply.headers


def test_a_session_that_somebody_planted_is_not_taken_over(browser, sign_on):
    """Session fixation: what a browser had before signing in, whoever put it there, is worth nothing after."""
    browser.cookies.set("ringfence", "planted", domain="127.0.0.1")
    mine = _session(_enter(browser, sign_on))
    assert mine != "planted"
    other = TestClient(browser.app, base_url=ORIGIN, cookies={"ringfence": "planted"})
    assert other.get("/api/v1/me").status_code == 401


def test_a_sign_in_ends_the_session_before(browser, sign_on):
    first = _session(_enter(browser, sign_on, Role.RESEARCHER))
    _enter(browser, sign_on, Role.ADMINISTRATOR)
    other = TestClient(browser.app, base_url=ORIGIN, cookies={"ringfence": first})
    assert other.get("/api/v1/me").status_code == 401
    assert browser.get("/api/v1/me").json()["role"] == "administrator"


def test_signing_out_ends_a_session_at_once_wherever_its_cookie_is(browser, sign_on):
    secret = _session(_enter(browser, sign_on))
    assert browser.post("/signout", headers={"origin": ORIGIN}).status_code == 303
    other = TestClient(browser.app, base_url=ORIGIN, cookies={"ringfence": secret})
    assert other.get("/api/v1/me").status_code == 401


def test_a_session_ends_without_use_and_after_a_day_in_any_case(browser, sign_on, clock):
    _enter(browser, sign_on)
    for _ in range(3):
        clock.now += 7 * 3600
        assert browser.get("/api/v1/me").status_code == 200
    clock.now += 3 * 3600 - 1
    assert browser.get("/api/v1/me").status_code == 200
    clock.now += 1
    assert browser.get("/api/v1/me").status_code == 401
    _enter(browser, sign_on)
    clock.now += 8 * 3600
    assert browser.get("/api/v1/me").status_code == 401


def test_every_session_of_an_account_can_be_ended(browser, sign_on):
    browser.cookies.set("ringfence", sign_on.open_session(ADA), domain="127.0.0.1")
    assert browser.get("/api/v1/me").status_code == 200
    assert sign_on.end_sessions_of("test:ada") == 1
    assert browser.get("/api/v1/me").status_code == 401


@pytest.mark.parametrize(
    "shown", ["Bearer wrong", "Bearer ", "Basic cmY6cmY=", "bearer\t", "Bearer " + TOKEN + "x", "x"]
)
def test_a_token_that_is_not_good_outweighs_a_session_that_is(browser, sign_on, shown):
    _enter(browser, sign_on)
    reply = browser.get("/api/v1/me", headers={"authorization": shown})
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.json()["code"] == "not-signed-in"


def test_nobody_gets_no_further_than_health(browser):
    assert browser.get("/health/live").status_code == 200
    assert browser.post("/api/v1/change", content=b"{ not even json").status_code == 401
    assert browser.get("/").json()["role"] is None


FOREIGN = [
    {},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:8001"},
    {"origin": "https://127.0.0.1:8000"},
    {"origin": REGULATOR},  # a page of another role's tab
    {"origin": ORIGIN + ".evil.example"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "https://evil.example", "sec-fetch-site": "same-origin"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("path", ["/api/v1/change", "/change", "/signout"])
def test_no_other_site_changes_anything_with_a_browsers_session(browser, sign_on, path, headers):
    _enter(browser, sign_on)
    reply = browser.post(path, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (403, "cross-site")
    assert browser.get("/api/v1/me").status_code == 200


@pytest.mark.parametrize("headers", [{"origin": ORIGIN}, {"sec-fetch-site": "same-origin"}], ids=str)
def test_pages_of_this_host_change_things(browser, sign_on, headers):
    _enter(browser, sign_on)
    assert browser.post("/api/v1/change", headers=headers).json() == {"changed": True}


@pytest.mark.parametrize("path", ["/api/v1/me", "/", "/api/v1/change"])
def test_nobody_is_known_while_the_store_is_away_and_that_is_what_is_said(browser, sign_on, monkeypatch, path):
    _enter(browser, sign_on)

    def away(_secret):
        raise StoreFault("the store is away")

    monkeypatch.setattr(sign_on, "by_session", away)
    browser = TestClient(_app(sign_on), base_url=ORIGIN, cookies=browser.cookies)
    reply = browser.post(path) if path.endswith("change") else browser.get(path)
    assert (reply.status_code, reply.json()["code"]) == (503, "store-fault")
    with (
        pytest.raises(WebSocketDisconnect),
        browser.websocket_connect("ws://127.0.0.1:8000/_nicegui_ws/socket.io/", headers={"origin": ORIGIN}),
    ):
        pass


def test_a_script_needs_no_origin(browser):
    assert browser.post("/api/v1/change", headers={"authorization": f"Bearer {TOKEN}"}).json() == {"changed": True}


def test_a_websocket_of_another_site_is_closed(browser, sign_on):
    _enter(browser, sign_on)
    with browser.websocket_connect("ws://127.0.0.1:8000/_nicegui_ws/socket.io/", headers={"origin": ORIGIN}) as socket:
        assert socket.receive_text() == "coordinator"
    for origin in ({"origin": "https://evil.example"}, {"origin": "null"}, {}):
        with (
            pytest.raises(WebSocketDisconnect),
            browser.websocket_connect("ws://127.0.0.1:8000/_nicegui_ws/socket.io/", headers=origin),
        ):
            pass


def test_a_websocket_of_nobody_is_closed(browser):
    with (
        pytest.raises(WebSocketDisconnect),
        browser.websocket_connect("ws://127.0.0.1:8000/_nicegui_ws/socket.io/", headers={"origin": ORIGIN}),
    ):
        pass


@pytest.fixture
def single_sign_on(sign_on, issuer, tmp_path):
    """A browser, and an application whose people an identity provider vouches for."""
    (tmp_path / "secret").write_text(CLIENT_SECRET)
    roles = [{"value": "fl-coordinators", "role": "coordinator"}]
    (tmp_path / "oidc.toml").write_text(issuer.toml(roles, secret_file="secret"))  # noqa: S106 -- a file's name
    provider = IdentityProvider.from_file(tmp_path / "oidc.toml", address=ORIGIN)
    app = _app(sign_on, origins=(ORIGIN,), workshop=False, provider=provider)
    yield TestClient(app, base_url=ORIGIN, follow_redirects=False)
    provider.close()


def _at_the_provider(address):
    """Where the provider sends a browser back to."""
    import httpx  # noqa: PLC0415 -- the test client is httpx as well, but answers for this host alone

    return httpx.get(address, trust_env=False).headers["location"].removeprefix(ORIGIN)


def test_the_provider_signs_a_browser_in(single_sign_on):
    begun = single_sign_on.get("/signin")
    assert begun.status_code == 303
    reply = single_sign_on.get(_at_the_provider(begun.headers["location"]))
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    assert single_sign_on.get("/api/v1/me").json()["role"] == "coordinator"


def test_a_sign_in_that_another_browser_began_signs_nobody_in(single_sign_on):
    """Login CSRF: a link that leads a victim's browser into the attacker's account."""
    back = _at_the_provider(single_sign_on.get("/signin").headers["location"])
    victim = TestClient(single_sign_on.app, base_url=ORIGIN, follow_redirects=False)
    assert victim.get(back).status_code == 403
    assert victim.get("/api/v1/me").status_code == 401


def test_an_answer_of_the_provider_works_once(single_sign_on):
    back = _at_the_provider(single_sign_on.get("/signin").headers["location"])
    assert single_sign_on.get(back).status_code == 303
    assert single_sign_on.get(back).status_code == 403


def test_a_sign_in_that_took_too_long_is_begun_anew(single_sign_on, clock):
    back = _at_the_provider(single_sign_on.get("/signin").headers["location"])
    clock.now += sign_on_store.ATTEMPT_SECONDS + 1
    assert single_sign_on.get(back).status_code == 403


def test_a_person_without_a_role_is_told_so_and_not_signed_in(single_sign_on, issuer):
    issuer.person["groups"] = []
    reply = single_sign_on.get(_at_the_provider(single_sign_on.get("/signin").headers["location"]))
    assert reply.status_code == 403
    assert "no role here" in reply.text
    assert single_sign_on.get("/api/v1/me").status_code == 401


def test_a_refusal_shows_no_text_of_the_request_as_html(single_sign_on):
    reply = single_sign_on.get("/signin/return?error=<script>alert(1)</script>&state=<b>")
    assert reply.status_code == 403
    assert "<script>" not in reply.text
    assert "<b>" not in reply.text


@pytest.mark.parametrize("has_provider", [True, False])
def test_a_stranger_is_shown_the_way_in_that_there_is(has_provider):
    async def never(*_):
        pytest.fail("a stranger was let in")

    reply = TestClient(SignedInOnly(never, has_provider=has_provider)).get("/runs")
    assert reply.status_code == 401
    assert ('href="/signin"' in reply.text) == has_provider
    assert ("Open the link" in reply.text) != has_provider
