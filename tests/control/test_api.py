"""What the API promises beyond its routes: problems, pages, keys, versions, downloads, and what it keeps to itself."""

import io
import json
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from api_server import NOBODY, OTHER, OWN, served_api
from control_plane import ADMINISTRATOR

from ringfence_server.control.actor import Role

PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def api(tmp_path_factory, logged_by_module):
    with served_api(tmp_path_factory.mktemp("api")) as api:
        api.log = logged_by_module
        api.proposal, api.run = api.finished_run()
        yield api


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/api/v1/nowhere", None, 404, "no-such-route"),
        ("GET", "/api/", None, 404, "no-such-route"),
        ("PATCH", "/api/v1/runs", None, 405, "method-not-allowed"),
        ("POST", "/api/v1/runs", b"{", 422, "invalid-request"),
        ("POST", "/api/v1/runs", b"\xff\xfe", 422, "invalid-request"),
        ("POST", "/api/v1/runs", b"[" * 100_000, 400, "bad-request"),
        ("POST", "/api/v1/runs", b"x" * (1 << 20 | 1), 413, "too-large"),
        ("GET", "/api/v1/runs?limit=0", None, 422, "invalid-request"),
        ("GET", "/api/v1/runs?cursor=%27%20OR%201", None, 422, "invalid-request"),
        ("GET", "/api/v1/runs/20260101T000000-abcdef", None, 404, "not-known"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_every_error_is_a_problem_document(api, method, path, body, status, code):  # noqa: PLR0917 -- as parametrized
    reply = api.ask(Role.COORDINATOR, method, path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == PROBLEM
    problem = reply.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:ringfence:problem:{code}"
    assert problem["instance"] == f"urn:ringfence:request:{reply.headers['request-id']}"


def test_a_file_that_is_no_plan_hides_none_that_is_and_is_there_to_be_mended(api):
    site = api.plane.site.directory
    (site / "plan-broken.toml").write_bytes(b"rounds = \xff")
    (site / "plan-gone.toml").symlink_to("nowhere")
    try:
        found = {one["name"]: one for one in api.ask(Role.RESEARCHER, "GET", "/api/v1/plans").json()}
    finally:
        for name in ("plan-broken.toml", "plan-gone.toml"):
            (site / name).unlink()
    assert found["plan.toml"]["plan_id"] == "tree-study"
    assert found["plan-broken.toml"]["title"] == "plan-broken.toml: no valid plan"
    assert found["plan-broken.toml"]["text"].startswith("rounds = ")
    assert (found["plan-gone.toml"]["plan_id"], found["plan-gone.toml"]["text"]) == ("", "")


def test_what_no_provider_sends_is_refused_with_a_page_that_repeats_nothing_of_it(api):
    reply = api.ask(NOBODY, "GET", "/signin/return", params={"state": "hunter2" * 1000, "code": "x"})
    assert reply.status_code == 403
    assert reply.headers["content-type"].startswith("text/html")
    assert "hunter2" not in reply.text


def test_a_method_that_is_not_allowed_is_told_which_are(api):
    assert api.ask(Role.COORDINATOR, "PATCH", "/api/v1/runs").headers["allow"] == "GET, HEAD, POST"


def test_a_problem_repeats_nothing_of_what_was_sent(api):
    body = {"name": {"hunter2": 1}, "role": "hunter2", "days": "hunter2", "text": "hunter2"}
    reply = api.ask(Role.ADMINISTRATOR, "POST", "/api/v1/tokens", json=body)
    assert reply.status_code == 422
    assert "hunter2" not in reply.text
    assert {one["where"] for one in reply.json()["errors"]} >= {"body.name", "body.role", "body.days"}


def test_no_answer_names_a_directory_of_the_server(api):
    site = str(api.plane.site.directory)
    for role in Role:
        for path in ("/runs", f"/runs/{api.run}", f"/runs/{api.run}/evidence", "/plans", "/holders", f"/holders/{OWN}"):
            assert site not in api.ask(role, "GET", f"/api/v1{path}").text
    reply = api.ask(Role.COORDINATOR, "POST", "/api/v1/proposals", json={"text": "title = 'no plan'"})
    assert (reply.status_code, reply.json()["code"]) == (422, "document-invalid")
    assert not re.search(r"/tmp/|/home/|/root/", reply.text)  # noqa: S108 -- what must not be told


def test_a_list_goes_on_where_its_page_ended(api):
    for _ in range(3):
        api.plane.runs.propose(ADMINISTRATOR.__class__(Role.RESEARCHER, "r", None, "cli", "r"), api.plan())
    seen, cursor = [], None
    while True:
        more = {"cursor": cursor} if cursor else {}
        page = api.ask(Role.RESEARCHER, "GET", "/api/v1/proposals", params={"limit": 2, **more}).json()
        seen += [one["id"] for one in page["items"]]
        assert len(page["items"]) <= 2
        if (cursor := page["next"]) is None:
            break
    assert len(seen) == len(set(seen)) >= 4
    assert seen == sorted(seen, reverse=True)


def test_a_request_that_is_sent_again_is_carried_out_once(api):
    asked = {"json": {"text": api.plan()}, "headers": {"idempotency-key": "once"}}
    first, again = (api.ask(Role.RESEARCHER, "POST", "/api/v1/proposals", **asked) for _ in range(2))
    assert (first.status_code, first.json()) == (again.status_code, again.json())
    assert first.headers["location"] == f"/api/v1/proposals/{first.json()['id']}"
    other = api.ask(
        Role.RESEARCHER, "POST", "/api/v1/proposals", json={"text": api.plan() + "\n"}, headers=asked["headers"]
    )
    assert (other.status_code, other.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize("key", ["", "x" * 201, "a b", "\x7f"])
def test_a_key_that_is_none_is_refused(api, key):
    reply = api.ask(Role.RESEARCHER, "POST", "/api/v1/proposals", json={"text": "x"}, headers={"idempotency-key": key})
    assert reply.status_code == 422


def test_a_policy_is_edited_as_it_was_read_or_not_at_all(api):
    path = f"/api/v1/holders/{OWN}/policy"
    read = api.ask(Role.HOLDER, "GET", path)
    text, tag = read.json()["text"], read.headers["etag"]
    newer = text.replace("version = 1", "version = 2")
    for names_none in ({}, {"if-match": "*"}):
        reply = api.ask(Role.HOLDER, "PUT", path, json={"text": newer}, headers=names_none)
        assert (reply.status_code, reply.json()["code"]) == (428, "precondition-required")
    for other in ('"older"', '"0a"', f"W/{tag}", tag.strip('"'), f'"x{tag}', "", '"'):
        reply = api.ask(Role.HOLDER, "PUT", path, json={"text": newer}, headers={"if-match": other})
        assert (reply.status_code, reply.json()["code"]) == (412, "stale"), other
    assert api.ask(Role.HOLDER, "GET", path).headers["etag"] == tag
    edited = api.ask(Role.HOLDER, "PUT", path, json={"text": newer}, headers={"if-match": f'"0a", {tag}'})
    assert edited.status_code == 200, edited.text
    assert edited.headers["etag"] != tag
    assert api.ask(Role.HOLDER, "PUT", path, json={"text": newer}, headers={"if-match": tag}).status_code == 412
    assert api.ask(Role.HOLDER, "GET", path).json()["text"] == newer


def test_the_bundle_that_is_taken_away_is_the_one_that_verifies(api):
    reply = api.ask(Role.REGULATOR, "GET", f"/api/v1/runs/{api.run}/evidence/bundle")
    assert reply.headers["content-type"] == "application/zip"
    assert reply.headers["content-disposition"] == f'attachment; filename="{api.run}.zip"'
    assert zipfile.ZipFile(io.BytesIO(reply.content)).testzip() is None
    assert api.ask(Role.REGULATOR, "GET", f"/api/v1/runs/{api.run}/evidence").json()["state"] == "verified"


def test_a_decision_is_shown_with_what_proves_it(api):
    entries = api.ask(Role.HOLDER, "GET", f"/api/v1/runs/{api.run}/logs/{OWN}").json()
    place = next(one["position"] for one in entries if one["kind"] == "decision")
    proof = api.ask(Role.HOLDER, "GET", f"/api/v1/runs/{api.run}/logs/{OWN}/{place}").json()
    assert proof["holds"] is True
    assert proof["record"]["decision"]["effect"] == "permit"


@pytest.mark.parametrize(
    "run",
    [
        "..",
        "../..",
        "..%2f..%2fcontrol.db",
        "%2e%2e",
        "%2e%2e%2f%2e%2e%2fplan.toml",
        "/etc/passwd",
        "%00",
        "a%0d%0ab",
        ".",
    ],
)
@pytest.mark.parametrize("rest", ["evidence/bundle", "evidence", "events", "logs/..%2f..%2fholders/0", ""])
def test_no_name_in_a_path_leads_out_of_the_runs(api, run, rest):
    reply = api.ask(Role.COORDINATOR, "GET", f"/api/v1/runs/{run}/{rest}")
    assert reply.status_code in (307, 400, 404, 405, 422)
    assert b"SQLite format" not in reply.content
    assert b"root:" not in reply.content
    assert "set-cookie" not in reply.headers


def test_metrics_tell_of_holders_no_more_than_what_share_is_left(api):
    api.ask(Role.REGULATOR, "GET", f"/api/v1/runs/{api.run}")
    text = api.ask(Role.ADMINISTRATOR, "GET", "/metrics").text
    assert 'ringfence_runs{state="finished"} 1.0' in text
    assert "ringfence_rounds_total 3.0" in text
    assert 'ringfence_requests_total{method="GET",route="/api/v1/runs/{run_id}"' in text
    about = [line for line in text.splitlines() if OWN in line and not line.startswith("#")]
    assert len(about) == 1
    assert about[0].startswith("ringfence_epsilon_left_ratio{")
    assert 0 <= float(about[0].split()[1]) <= 1


def test_no_secret_of_all_these_requests_is_in_the_log(api):
    token = api.issue(Role.ADMINISTRATOR).secret
    link = api.sign_on.make_link(role=Role.REGULATOR, name="regulator")
    api.ask(None, "GET", "/api/v1/me", token=token)
    entered = api.ask(None, "GET", f"/enter/{link}")
    cookie = entered.headers["set-cookie"].split("=", 1)[1].split(";")[0]
    api.ask(None, "GET", "/api/v1/me", headers={"cookie": f"ringfence={cookie}"})
    made = api.ask(Role.ADMINISTRATOR, "POST", "/api/v1/tokens", json={"name": "t", "role": "regulator"}).json()[
        "secret"
    ]
    api.ask(None, "GET", f"/api/v1/{token}/{link}?token={made}")
    api.ask(None, "GET", "/health/ready")
    api.ask(Role.REGULATOR, "GET", f"/api/v1/runs/{api.run}")
    written = api.log.getvalue()
    for secret in (token, link, cookie, made, *api.tokens.values()):
        assert secret not in written
        assert secret.removeprefix("rf_").partition("_")[2] not in written or not secret.startswith("rf_")
    lines = [json.loads(line) for line in written.splitlines()]
    assert any(line.get("run") == api.run and line.get("role") == "regulator" for line in lines)


def test_of_many_edits_of_one_text_one_holds_and_the_text_is_the_signed_one(api):
    """A lost update: the file must never show one text while another is signed."""
    path = f"/api/v1/holders/{OTHER}/policy"
    token = api.token(Role.HOLDER, OTHER)
    read = api.ask(None, "GET", path, token=token)
    version = read.json()["text"].replace("version = 1", "version = 2")

    def edit(number):
        text = version.replace("max_rounds = 100000", f"max_rounds = {1000 + number}")
        return api.ask(None, "PUT", path, token=token, json={"text": text}, headers={"if-match": read.headers["etag"]})

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(edit, range(8)))
    assert sorted(reply.status_code for reply in replies) == [200, *[412] * 7]
    (held,) = (reply.json() for reply in replies if reply.status_code == 200)
    now = api.ask(None, "GET", path, token=token)
    assert (now.json()["text"], now.headers["etag"]) == (held["text"], f'"{held["etag"]}"')
    rounds = re.search(r"max_rounds = (\d+)", held["text"])[1]
    view = api.ask(None, "GET", f"/api/v1/holders/{OTHER}", token=token).json()
    assert any(f"{rounds} rounds" in sentence.replace(",", "") for sentence in view["sentences"])
