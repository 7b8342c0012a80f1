"""Every route of the API, asked by every role and by nobody: the table of permissions is what answers."""

import pytest
from api_server import NOBODY, OTHER, OWN, served_api

from ringfence_server.control.actor import Role
from ringfence_server.control.api.app import create_api
from ringfence_server.control.api.openapi import ACT, describe
from ringfence_server.control.permissions import ALLOWED, Act
from ringfence_server.control.signon import OPEN_PATHS

DOCUMENT = describe(create_api())
ROUTES = [
    (method, path, operation)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if path != "/api/v1/runs/{run_id}/stream"  # asked in test_streams.py, by every role as well
]
# Routes that are about whoever asks, and not about an act.
FOR_EVERYBODY = {"/api/v1/me", "/api/v1/openapi.json"}
BODIES = {
    "PlanText": {"text": "title = 'no plan'"},
    "Answer": {"approves": True},
    "Start": {"proposal": "none"},
    "Reasoned": {"reason": "a test"},
    "NewPolicy": {"text": "x = 1"},
    "Stop": {"reason": "a test"},
    "AskFirst": {"wanted": False},
    "NewToken": {"name": "test", "role": "regulator"},
}


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with served_api(tmp_path_factory.mktemp("roles")) as api:
        api.proposal, api.run = api.finished_run()
        yield api


def _ask(api, role, method, path, operation, *, holder=OWN, token=None):
    places = {
        "run_id": api.run,
        "proposal_id": api.proposal,
        "holder_id": holder,
        "owner": holder,
        "position": "0",
        "how": "resume",
        "token_id": api.issue(Role.REGULATOR).id,
    }
    more = {}
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        more["json"] = BODIES[schema.rpartition("/")[2]]
    if path == "/api/v1/comparison":
        more["params"] = {"run": api.run}
    return api.ask(role, method.upper(), path.format(**places), token=token, **more)


@pytest.mark.parametrize(("method", "path", "operation"), ROUTES, ids=lambda one: one if isinstance(one, str) else "")
@pytest.mark.parametrize("role", [*Role, NOBODY])
def test_a_route_answers_a_role_as_the_table_says(api, role, method, path, operation):
    reply = _ask(api, role, method, path, operation)
    assert str(reply.status_code) in operation["responses"], reply.text
    assert reply.status_code < 500, reply.text
    if path in OPEN_PATHS:
        assert reply.status_code == 200
    elif role == NOBODY:
        assert (reply.status_code, reply.json()["code"]) == (401, "not-signed-in")
    elif path in FOR_EVERYBODY:
        assert reply.status_code == 200
    elif role in ALLOWED[Act(operation[ACT])]:
        assert reply.status_code not in (401, 403), reply.text
    else:
        assert (reply.status_code, reply.json()["code"]) == (403, "not-allowed"), reply.text


OF_A_HOLDER = [one for one in ROUTES if "{holder_id}" in one[1] or "{owner}" in one[1]]


@pytest.mark.parametrize(
    ("method", "path", "operation"), OF_A_HOLDER, ids=lambda one: one if isinstance(one, str) else ""
)
def test_another_holders_data_does_not_exist_for_an_officer(api, method, path, operation):
    """The answer is the same, to the letter, as for a holder that is none."""
    others = _ask(api, Role.HOLDER, method, path, operation, holder=OTHER)
    nobodys = _ask(api, Role.HOLDER, method, path, operation, holder="there-is-none")
    assert others.status_code == nobodys.status_code == 404
    told = [{**reply.json(), "instance": ""} for reply in (others, nobodys)]
    assert told[0] == told[1]


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ADMINISTRATOR])
def test_who_issues_no_tokens_learns_of_no_holder_by_asking_for_one(api, role):
    for holder in (OTHER, "there-is-none"):
        body = {"name": "x", "role": "holder", "holder": holder}
        assert api.ask(role, "POST", "/api/v1/tokens", json=body).status_code == 403, holder


def test_an_officer_learns_of_no_other_holder_in_lists(api):
    assert [one["holder"] for one in api.ask(Role.HOLDER, "GET", "/api/v1/holders").json()] == [OWN]
    assert len(api.ask(Role.REGULATOR, "GET", "/api/v1/holders").json()) > 1


def test_every_act_of_the_table_has_a_route():
    found = {operation.get(ACT) for _, _, operation in ROUTES} | {Act.WATCH.value}
    assert {act.value for act in Act} <= found


def test_every_route_documents_its_refusals():
    for method, path, operation in ROUTES:
        if path in OPEN_PATHS:
            continue
        assert "401" in operation["responses"], (method, path)
        if ACT in operation and ALLOWED[Act(operation[ACT])] != frozenset(Role):
            assert "403" in operation["responses"], (method, path)
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert list(response["content"]) == ["application/problem+json"], (method, path, status)


def test_a_regulators_reads_are_kept(api):
    api.ask(Role.REGULATOR, "GET", f"/api/v1/runs/{api.run}")
    reads = api.ask(Role.ADMINISTRATOR, "GET", "/api/v1/reads", params={"limit": 200}).json()
    assert [one["what"] for one in reads["items"]].count(f"run {api.run}") == 1  # the same look is kept once
