"""Each role's story in a browser, over the real command with the real scenario."""

import csv
import re

import pytest
from playwright.sync_api import expect
from workshop_room import (
    PATIENCE_MS,
    ended,
    faults_of_look,
    installed_browser,
    open_room,
    open_workshop,
    propose,
    start,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(installed_browser() is None, reason="no Chromium is installed to drive pages in"),
]
PATHS = ("/", "/runs", "/my-data", "/preview", "/oversight", "/compare", "/audit")
# What each role finds in its navigation, besides the start page.
ROOMS = {
    "coordinator": {"Runs", "Preview", "Compare", "Audit"},
    "researcher": {"Runs", "Preview", "Compare"},
    "regulator": {"Runs", "Preview", "Oversight", "Compare", "Audit"},
    "administrator": {"Runs", "Oversight"},
    "cleveland": {"My data", "Runs", "Preview", "Audit"},
}
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    with open_workshop(tmp_path_factory.mktemp("pages") / "workshop") as opened:
        yield opened


@pytest.fixture(scope="module")
def room(workshop):
    with open_room(workshop) as opened:
        yield opened


@pytest.fixture(autouse=True)
def quiet(room):
    """No page asks another host for anything, and no script of a page fails."""
    yield
    assert room.strangers == []
    assert room.faults == []


@pytest.fixture(scope="module")
def watched(room):
    """A run of the plan from begin to end, as a coordinator and a regulator see it at once."""
    propose(room)
    coordinator = start(room)
    regulator = room.page("regulator", coordinator.url.removeprefix(room.workshop.address))
    for page in (coordinator, regulator):
        page.locator(".working").first.wait_for()
    yield coordinator, regulator
    coordinator.close()
    regulator.close()


@pytest.fixture(scope="module")
def finished(watched):
    """The id of a run that is finished."""
    ended(watched[0])
    return watched[0].url.rpartition("/")[2]


def test_without_signing_in_every_page_is_refused(room):
    context = room.browser.new_context()
    page = context.new_page()
    # Neither a page that is not there nor the line that keeps pages fresh is anything to a stranger: both cost memory.
    line = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    for path in (*PATHS, "/runs/x", "/audit/x/coordinator/0", "/nowhere", line):
        assert page.goto(room.workshop.address + path).status == 401, path
    context.close()


@pytest.mark.parametrize("role", ROOMS)
def test_a_role_is_shown_the_rooms_that_it_may_use_and_refused_the_others(room, role):
    page = room.page(role)
    shown = page.get_by_role("navigation", name="Pages").get_by_role("link")
    assert set(shown.all_inner_texts()) == ROOMS[role]
    open_to_it = {link.get_attribute("href") for link in shown.all()} | {"/"}
    for path in PATHS:
        status = page.goto(room.workshop.address + path).status
        assert status == (200 if path in open_to_it else 403), path
    page.close()


def test_a_coordinator_sees_who_would_refuse_and_what_change_would_pass(room):
    page = room.page("coordinator", "/preview")
    expect(page.get_by_text("refuses after 8 of 12 rounds")).to_be_visible()
    expect(page.get_by_text("Use at most 8 rounds.")).to_be_visible()
    text = page.get_by_label("The plan plan.toml, as TOML")
    text.fill(text.input_value().replace("rounds = 12", "rounds = 8"))
    page.get_by_role("button", name="Ask every policy").click()
    expect(page.get_by_text("4 of 4 permit all of it.")).to_be_visible()
    page.get_by_label("Begin with the plan").select_option("plan-commercial.toml")
    expect(page.get_by_text("This data may never be used for research for a commercial product.").first).to_be_visible()
    page.close()


def test_what_is_no_plan_is_refused_in_words(room):
    page = room.page("researcher", "/preview")
    page.get_by_label("The plan plan.toml, as TOML").fill('plan_id = "<script>alert(1)</script>"')
    page.get_by_role("button", name="Propose this plan").click()
    expect(page.locator(".notice.bad")).to_contain_text("Refused")
    page.close()


def test_two_browsers_see_the_same_round_and_a_budget_that_runs_dry(watched):
    for page in watched:
        ended(page)
        # Long Beach has the small budget: it trains at first and refuses at the end, for a reason that is shown.
        row = page.locator("table.grid tbody tr", has_text="Long Beach")
        expect(row.locator("td").first).to_contain_text("trains")
        expect(row.locator("td").last).to_contain_text("may spend at most epsilon 1.4")
        expect(page.locator(".stories")).to_contain_text("may spend at most epsilon 1.4")
    first, second = watched
    assert first.locator("table.grid").inner_text() == second.locator("table.grid").inner_text()
    expect(first.get_by_role("button", name="Suspend the run")).to_have_count(0)


def test_an_officer_sees_who_used_the_data_and_what_is_left(room, finished):
    page = room.page("long-beach", "/my-data")
    expect(page.get_by_role("region", name="My budget")).to_contain_text(re.compile(r"9\d% is used"))
    mine = page.get_by_role("region", name="Who used my data", exact=True)
    expect(mine).to_contain_text("Predicting coronary disease")
    expect(page.get_by_role("region", name="What my gate decided", exact=True)).to_contain_text("✓ permitted")
    page.goto(f"{room.workshop.address}/runs/{finished}")
    expect(page.get_by_role("button", name="Suspend the run")).to_have_count(0)
    assert page.goto(f"{room.workshop.address}/audit/{finished}/budapest").status == 404
    page.close()


@pytest.mark.usefixtures("finished")
def test_an_officer_is_asked_first_and_declines(room):
    page = room.page("cleveland", "/my-data")
    page.get_by_label("Ask me first").check()
    expect(page.locator(".notice")).to_contain_text("You are asked before a run begins.")
    propose(room, rounds=3)
    refused = room.page("coordinator", "/runs")
    refused.get_by_role("button", name="Start a run").first.click()
    refused.get_by_role("button", name="Start the run", exact=True).locator("visible=true").click()
    expect(refused.locator(".notice.bad")).to_contain_text("data officer has not answered")
    page.get_by_label("A note to the coordinator").fill("<img src=x onerror=alert(1)> not now")
    page.get_by_role("button", name="Decline").click()
    expect(page.locator(".notice")).to_contain_text("You declined")
    expect(refused.get_by_text("<img src=x onerror=alert(1)> not now")).to_be_visible()
    page.get_by_label("Ask me first").uncheck()
    expect(page.locator(".notice")).to_contain_text("Your policy alone decides.")
    page.close()
    refused.close()


@pytest.mark.usefixtures("finished")
def test_an_officer_changes_a_rule_in_the_form_and_signs_it(room):
    page = room.page("zurich-basel", "/my-data")
    page.get_by_text("Open the form").click()
    page.get_by_label("Fewest data holders in a round").fill("2")
    page.get_by_role("button", name="Write these answers into the text below").click()
    text = page.get_by_label("The policy as TOML")
    expect(text).to_have_value(re.compile(r"\nmin_holders = 2\n"))
    page.get_by_role("button", name="Sign it as the next version").click()
    expect(page.locator(".notice")).to_contain_text("Version 2 is signed.")
    expect(page.get_by_role("region", name="My rules", exact=True)).to_contain_text("2 data holders")
    assert "min_holders = 2" in (room.workshop.directory / "holders" / "zurich-basel" / "policy.toml").read_text()
    page.close()


@pytest.mark.usefixtures("finished")
def test_a_policy_that_cannot_be_signed_changes_nothing(room):
    page = room.page("budapest", "/my-data")
    before = (room.workshop.directory / "holders" / "budapest" / "policy.toml").read_bytes()
    page.get_by_text("Open the form").click()
    page.get_by_label("Privacy budget (epsilon)").fill("much")
    page.get_by_role("button", name="Write these answers into the text below").click()
    expect(page.get_by_label("The policy as TOML")).to_have_value(re.compile('"much"'))
    page.get_by_role("button", name="Sign it as the next version").click()
    expect(page.locator(".notice.bad")).to_contain_text("Refused")
    assert (room.workshop.directory / "holders" / "budapest" / "policy.toml").read_bytes() == before
    page.close()


@pytest.mark.usefixtures("finished")
def test_the_red_button_asks_stops_every_use_and_can_be_lifted(room):
    page = room.page("budapest", "/my-data")
    red = page.get_by_role("button", name="Stop every use of my data")
    expect(red).to_have_count(1)
    red.focus()
    page.keyboard.press("Enter")
    question = page.get_by_role("dialog")
    expect(question).to_contain_text("Stop every use of this data now?")
    question.get_by_role("button", name="Stop every use now").click()
    expect(page.locator(".notice.bad")).to_contain_text("stopping needs a reason", ignore_case=True)
    red.click()
    question.get_by_label("Why?").fill("An inquiry is under way")
    question.get_by_role("button", name="Stop every use now").click()
    expect(page.locator(".lead")).to_contain_text("An inquiry is under way")
    oversight = room.page("regulator", "/oversight")
    expect(oversight.get_by_role("region", name="Open cases")).to_contain_text("suspended")
    oversight.close()
    page.get_by_role("button", name="Let my data be used again").click()
    expect(page.locator(".lead .state")).to_have_text("in force")
    page.close()


# A browser that is busy for longer than NiceGUI waits for what a script answers.
_BUSY = """() => {
    const close = HTMLDialogElement.prototype.close;
    HTMLDialogElement.prototype.close = function () {
        for (const until = Date.now() + 2500; Date.now() < until; );
        close.call(this);
    };
}"""


@pytest.mark.usefixtures("finished")
def test_the_red_button_waits_for_no_answer_of_a_browser_that_is_busy(room):
    page = room.page("cleveland", "/my-data")
    page.evaluate(_BUSY)
    page.get_by_role("button", name="Stop every use of my data").click()
    question = page.get_by_role("dialog")
    question.get_by_label("Why?").fill("The laptop is slow")
    question.get_by_role("button", name="Stop every use now").click()
    expect(page.locator(".lead")).to_contain_text("The laptop is slow")
    page.get_by_role("button", name="Let my data be used again").click()
    expect(page.locator(".lead .state")).to_have_text("in force")
    page.close()


def test_a_regulator_sees_the_evidence_takes_it_away_and_what_it_read_is_written_down(room, finished, tmp_path):
    page = room.page("regulator", "/oversight")
    evidence = page.get_by_role("region", name="Evidence", exact=True)
    expect(evidence).to_contain_text("verified")
    with page.expect_download() as coming:
        evidence.get_by_role("button", name=f"Download the evidence of run {finished}").click()
    coming.value.save_as(tmp_path / "evidence.zip")
    kept = room.workshop.directory / "runs" / finished / "evidence.zip"
    assert (tmp_path / "evidence.zip").read_bytes() == kept.read_bytes()
    page.reload()
    expect(page.get_by_role("region", name="What regulators looked at", exact=True)).to_contain_text(
        f"bundle of run {finished}"
    )
    page.close()


def test_an_auditor_finds_a_refusal_and_its_proof(room, finished):
    page = room.page("regulator", f"/audit?run={finished}")
    page.get_by_role("link", name="coordinator").click()
    page.get_by_role("row", name=re.compile(r"deny train.*epsilon")).last.get_by_role("link").click()
    expect(page.get_by_text("The proof holds")).to_be_visible()
    expect(page.get_by_role("region", name="What was decided")).to_contain_text("may spend at most epsilon 1.4")
    expect(page.get_by_role("region", name="Its proof")).to_contain_text("Root")
    assert page.goto(page.url + "9999").status == 404
    page.close()


def test_a_researcher_compares_runs_and_takes_the_figures(room, finished, tmp_path):
    page = room.page("researcher", "/compare")
    expect(page.get_by_role("img", name="Privacy and quality of the runs")).to_be_visible()
    with page.expect_download() as coming:
        page.get_by_role("button", name="Download the figures (CSV)").click()
    coming.value.save_as(tmp_path / "runs.csv")
    rows = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    assert [row["round"] for row in rows if row["run"] == finished] == [str(number) for number in range(1, 13)]
    spent = [float(row["epsilon long-beach"]) for row in rows if row["run"] == finished and row["epsilon long-beach"]]
    assert 0 < spent[-1] <= 1.4
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_has_a_serious_finding_or_scrolls_sideways(room, finished, theme):
    for role, path in (
        ("coordinator", "/"),
        ("coordinator", "/runs"),
        ("coordinator", f"/runs/{finished}"),
        ("coordinator", "/preview"),
        ("long-beach", "/my-data"),
        ("regulator", "/oversight"),
        ("researcher", "/compare"),
        ("regulator", "/audit"),
        ("regulator", f"/audit/{finished}/long-beach"),
        ("regulator", f"/audit/{finished}/long-beach/3"),
        ("administrator", "/my-data"),
    ):
        page = room.page(role, path)
        assert faults_of_look(page, theme=theme) == [], (role, path)
        page.close()


def test_an_open_page_ends_with_its_sign_in(room):
    page, other = room.page("administrator", "/runs"), room.page("administrator", "/")
    other.get_by_role("button", name="Sign out").click()
    expect(page.locator(".notice.bad")).to_contain_text("nobody is signed in", ignore_case=True)
    assert page.goto(room.workshop.address + "/runs").status == 401
