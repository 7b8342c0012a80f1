"""A deployment is served as far as its coordinator knows it; what is a data holder's is done at the data holder."""

import pytest
from api_server import OWN, served_site
from control_command import ControlCommand
from control_plane import COORDINATOR
from made_up_deployment import make_deployment, register
from tiny_scenario import COORDINATOR as NAME
from workshop_room import Workshop, faults_of_look, installed_browser, open_room

from ringfence_policy.errors import ScenarioInvalid
from ringfence_server.control.actor import Role
from ringfence_server.control.plane import open_plane
from ringfence_server.deployment import CoordinatorFile, init_deployment, load_deployment, now_utc
from ringfence_server.registry import Registry

HOLDERS = (OWN, "birch")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A deployment with two registered data holders, whose SuperLink does not run."""
    return make_deployment(tmp_path_factory.mktemp("consortium"), HOLDERS).directory


@pytest.fixture(scope="module")
def api(site):
    with served_site(site) as served:
        yield served


def test_a_deployment_lists_its_registered_holders_and_says_that_the_rest_is_theirs(api):
    found = api.ask(Role.RESEARCHER, "GET", "/api/v1/holders").json()
    assert [(one["holder"], one["name"], one["standing"]) for one in found] == [
        ("alder", "Alder", "not connected"),
        ("birch", "Birch", "not connected"),
    ]
    view = api.ask(Role.HOLDER, "GET", f"/api/v1/holders/{OWN}").json()
    assert (view["local"], view["own"], view["sentences"], view["meters"]) == (False, True, [], [])
    register(load_deployment(api.plane.site.directory), "elm")
    assert len(api.ask(Role.RESEARCHER, "GET", "/api/v1/holders").json()) == 3
    Registry(load_deployment(api.plane.site.directory).holders).remove("elm")


def test_a_preview_guesses_at_no_policy_and_still_reads_the_plan(api):
    found = api.ask(Role.RESEARCHER, "POST", "/api/v1/previews", json={"text": api.plan()}).json()
    assert [one["permitted"] for one in found] == [None, None]
    assert {one["note"] for one in found} == {"decides on its own machine (not connected)"}
    for wrong, said in (
        (api.plan().replace(NAME, "somebody-else"), "the plan is for another coordinator"),
        (api.plan().replace("[privacy]", '[privacy]\nunit = "subject"'), "the plan protects subjects"),
    ):
        refused = api.ask(Role.RESEARCHER, "POST", "/api/v1/previews", json={"text": wrong})
        assert (refused.status_code, refused.json()["code"]) == (422, "document-invalid")
        assert refused.json()["detail"].startswith(said)


@pytest.mark.parametrize(
    ("method", "path", "body", "command"),
    [
        ("GET", "policy", None, "ringfence-node status DIR"),
        ("PUT", "policy", {"text": "x"}, "ringfence-node sign DIR"),
        ("POST", "stops/revoke", {"reason": "consent withdrawn"}, "ringfence-node revoke DIR --reason"),
        ("POST", "stops/suspend", {"reason": "an audit"}, "ringfence-node suspend DIR --reason"),
        ("POST", "stops/resume", {}, "ringfence-node resume DIR"),
        ("GET", "uses", None, "ringfence-node ledger DIR"),
        ("GET", "decisions", None, "ringfence-node decisions DIR"),
    ],
)
def test_what_is_the_holders_is_answered_with_the_command_that_does_it_there(api, method, path, body, command):
    told = api.ask(
        Role.HOLDER, method, f"/api/v1/holders/{OWN}/{path}", json=body, headers={"if-match": '"x"'} if body else None
    )
    assert (told.status_code, told.json()["code"]) == (409, "at-the-holder")
    assert command in told.json()["next_step"]


def test_an_officers_answer_is_kept_as_its_word(api):
    proposal = api.ask(Role.RESEARCHER, "POST", "/api/v1/proposals", json={"text": api.plan()}).json()
    assert api.ask(Role.HOLDER, "GET", f"/api/v1/holders/{OWN}/pending").json() == [proposal["id"]]
    path = f"/api/v1/proposals/{proposal['id']}/answers/{OWN}"
    told = api.ask(Role.HOLDER, "PUT", path, json={"approves": False, "note": "not this one"}).json()
    assert {one["holder"]: one["answer"] for one in told["answers"]} == {OWN: "declined", "birch": "policy decides"}


def test_nothing_is_begun_while_the_superlink_does_not_run(api):
    proposal = api.ask(Role.RESEARCHER, "POST", "/api/v1/proposals", json={"text": api.plan()}).json()
    told = api.ask(Role.COORDINATOR, "POST", "/api/v1/runs", json={"proposal": proposal["id"]})
    assert (told.status_code, told.json()["code"]) == (503, "deployment-fault")
    assert "ringfence coordinator start DIR" in told.json()["expected"]
    assert str(api.plane.site.directory) not in told.text
    assert not api.plane.runs.runs(COORDINATOR).items


def test_every_page_shows_what_is_the_holders_in_plain_words_and_is_no_error(tmp_path):
    site = make_deployment(tmp_path, HOLDERS).directory
    with ControlCommand(site, [OWN]) as control:
        control.ask(Role.RESEARCHER, "POST", "/api/v1/proposals", json={"text": (site / "plan.toml").read_text()})
        mine = control.page(OWN, "/my-data")
        for words in (
            "Your data and your rules stay with you",
            "ringfence-node revoke DIR --reason",
            "Your signed policy decides on your own machine",
            "Decline",
        ):
            assert words in mine
        assert "Revoke the policy for good" not in mine
        assert "It decides on its own machine (not connected)" in control.page(Role.COORDINATOR, "/preview")
        assert "not connected" in control.page(Role.REGULATOR, "/oversight")
        for who in (OWN, Role.COORDINATOR, Role.RESEARCHER, Role.REGULATOR, Role.ADMINISTRATOR):
            for path in ("/", "/runs"):
                control.page(who, path)


@pytest.mark.slow
@pytest.mark.skipif(installed_browser() is None, reason="no Chromium is installed to drive pages in")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_over_a_deployment_has_a_serious_finding_or_scrolls_sideways(tmp_path, theme):
    site = make_deployment(tmp_path, HOLDERS).directory
    with ControlCommand(site, [OWN]) as control:
        control.ask(Role.RESEARCHER, "POST", "/api/v1/proposals", json={"text": (site / "plan.toml").read_text()})
        with open_room(Workshop(site, control.address, cookies=control.sessions([OWN]))) as room:
            for role, path in (
                ("coordinator", "/runs"),
                ("coordinator", "/preview"),
                (OWN, "/"),
                (OWN, "/my-data"),
                ("regulator", "/oversight"),
            ):
                page = room.page(role, path)
                assert faults_of_look(page, theme=theme) == [], (role, path)
                page.close()
            assert room.strangers == []
            assert room.faults == []


def test_a_deployment_without_a_plan_is_refused_with_what_to_write(tmp_path):
    settings = CoordinatorFile(coordinator=NAME, names=("127.0.0.1",))
    init_deployment(tmp_path / "deployment", settings, source=None, now=now_utc())
    with pytest.raises(ScenarioInvalid, match="needs a plan and a schema"):
        open_plane(tmp_path / "deployment")
