"""docs/workshop.md, walked from top to bottom in browsers: what it says to press is there, and what it says is seen."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect
from workshop_room import PATIENCE_MS, ended, installed_browser, open_room, open_workshop

PAGE = Path(__file__).parents[2] / "docs" / "workshop.md"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(installed_browser() is None, reason="no Chromium is installed to drive pages in"),
]


class Script:
    """The acts of the page: what is bold is pressed in its order, and what is quoted is seen."""

    def __init__(self):
        acts = PAGE.read_text().partition("## Act 1")[2].partition("## If something goes wrong")[0]
        self._acts = " ".join(acts.split())
        self._left = [" ".join(found.split()) for found in re.findall(r"\*\*(.+?)\*\*", acts, flags=re.DOTALL)]

    def bold(self, name):
        """The next thing that is to be pressed or filled in."""
        assert self._left, f"nothing is left on the page, and then comes {name!r}"
        assert self._left.pop(0) == name
        return name

    def quoted(self, text):
        """Words that the room is promised."""
        assert text in self._acts
        return text

    def is_over(self):
        """Whether everything was pressed."""
        return self._left == []


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    with open_workshop(tmp_path_factory.mktemp("script") / "workshop", pause=1) as workshop, open_room(workshop) as one:
        yield one


def visible(page, name):
    return page.get_by_role("button", name=name, exact=True).locator("visible=true")


def answer(page, script, *, opener, yes, reason=None):
    """Press a button that asks, give a reason, and say yes."""
    visible(page, script.bold(opener)).first.click()
    if reason is not None:
        page.get_by_role("dialog").get_by_label("Why?").locator("visible=true").fill(reason)
    page.get_by_role("dialog").get_by_role("button", name=script.bold(yes), exact=True).locator("visible=true").click()


def open_room_of(page, script, name):
    """Follow a link of the navigation."""
    page.get_by_role("navigation", name="Pages").get_by_role("link", name=script.bold(name), exact=True).click()
    page.locator("nav a[aria-current]", has_text=name).wait_for()
    return page


@pytest.mark.timeout(600)
def test_the_script_of_the_workshop_can_be_played_as_it_is_written(room, tmp_path):
    expect.set_options(timeout=PATIENCE_MS)
    script = Script()
    coordinator, cleveland, regulator = (room.page(one) for one in ("coordinator", "cleveland", "regulator"))
    rules_and_refusals(room, script, coordinator)
    a_rule_is_changed_and_a_question_answered(script, coordinator, cleveland)
    run = live(script, coordinator, cleveland, regulator)
    proved(room, script, regulator, run, tmp_path)
    what_it_cost(room, script, coordinator, cleveland)
    assert script.is_over()
    assert room.strangers == room.faults == []


def rules_and_refusals(room, script, coordinator):
    """Acts 1 and 2."""
    page = open_room_of(room.page("long-beach"), script, "My data")
    expect(page.get_by_text(script.quoted("0% is used, 100% is left.")).first).to_be_visible()
    page.close()
    open_room_of(coordinator, script, "Preview")
    expect(coordinator.get_by_text(script.quoted("3 of 4 permit all of it."))).to_be_visible()
    expect(coordinator.get_by_text(script.quoted("Use at most 8 rounds."))).to_be_visible()
    text = coordinator.get_by_label(script.bold("The plan plan.toml, as TOML"))
    before, after = script.quoted("rounds = 12"), script.quoted("rounds = 8")
    assert text.input_value().count(before) == 1
    text.fill(text.input_value().replace(before, after))
    visible(coordinator, script.bold("Ask every policy")).click()
    expect(coordinator.get_by_text(script.quoted("4 of 4 permit all of it."))).to_be_visible()
    chooser = coordinator.get_by_label(script.bold("Begin with the plan"))
    chooser.select_option(label=script.bold("The same training, for a commercial product"))
    refusal = script.quoted("This data may never be used for research for a commercial product.")
    expect(coordinator.get_by_text(refusal)).to_be_visible()


def a_rule_is_changed_and_a_question_answered(script, coordinator, cleveland):
    """Acts 3 and 4."""
    open_room_of(cleveland, script, "My data")
    cleveland.get_by_text(script.bold("Open the form")).click()
    cleveland.get_by_label(script.bold("Privacy budget (epsilon)")).fill("1.5")
    visible(cleveland, script.bold("Write these answers into the text below")).click()
    expect(cleveland.get_by_label("The policy as TOML")).to_have_value(re.compile(r'\nepsilon = "1.5"\n'))
    visible(cleveland, script.bold("Sign it as the next version")).click()
    expect(cleveland.get_by_text(script.quoted("Version 2 is signed."))).to_be_visible()
    open_room_of(coordinator, script, "Preview")
    coordinator.reload()
    expect(coordinator.get_by_text(script.quoted("2 of 4 permit all of it."))).to_be_visible()
    cleveland.get_by_label(script.bold("Ask me first")).check()
    expect(cleveland.get_by_text("You are asked before a run begins.")).to_be_visible()
    visible(coordinator, script.bold("Propose this plan")).click()
    coordinator.get_by_text("was proposed.").wait_for()
    open_room_of(coordinator, script, "Runs")
    start(coordinator, script)
    expect(coordinator.locator(".notice.bad")).to_contain_text(script.quoted("Refused"))
    cleveland.get_by_label(script.bold("A note to the coordinator")).fill(script.quoted("For research only"))
    visible(cleveland, script.bold("Approve")).click()
    expect(coordinator.get_by_text("For research only")).to_be_visible()


def start(coordinator, script):
    coordinator.get_by_role("button", name=re.compile(script.bold("Start a run"))).first.click()
    visible(coordinator, script.bold("Start the run")).click()


def live(script, coordinator, cleveland, regulator):
    """Act 5. Returns the run's id."""
    start(coordinator, script)
    coordinator.wait_for_url("**/runs/*")
    open_room_of(regulator, script, "Runs")
    regulator.get_by_role("link", name="Predicting coronary disease").first.click()
    regulator.wait_for_url("**/runs/*")
    assert regulator.url == coordinator.url
    squares = regulator.locator("table.grid tbody tr", has_text="Cleveland").locator("td")
    expect(squares.first).to_contain_text("trains")
    answer(
        cleveland,
        script,
        opener="Stop every use of my data",
        yes="Stop every use now",
        reason="A patients' association asks us to wait",
    )
    refused = regulator.locator("table.grid tbody tr", has_text="Cleveland").locator("td.refused")
    refused.first.wait_for()
    expect(regulator.locator(".stories")).to_contain_text("suspended")
    visible(cleveland, script.bold("Let my data be used again")).click()
    regulator.locator("table.grid tbody tr", has_text="Cleveland").locator("td.refused + td.permitted").wait_for()
    answer(regulator, script, opener="Suspend the run", yes="Suspend the run", reason="The board wants to look first")
    for page in (coordinator, regulator):
        expect(page.locator(".lead").first).to_contain_text("The board wants to look first")
        expect(page.locator(".lead .state")).to_have_text(script.quoted("suspended"))
    visible(coordinator, script.bold("Resume from the last committed round")).click()
    ended(coordinator)
    stories = coordinator.locator(".stories")
    expect(stories).to_contain_text("may spend at most epsilon 1.4")
    expect(stories).to_contain_text(script.quoted("At least 3 data holders must take part in a round together"))
    zurich = coordinator.locator("table.grid tbody tr", has_text="Zurich").locator("td")
    expect(zurich.nth(10)).to_contain_text("revoked")
    beach = coordinator.locator("table.grid tbody tr", has_text="Long Beach")
    expect(beach.locator("td.permitted")).to_have_count(8)
    return coordinator.url.rpartition("/")[2]


def proved(room, script, regulator, run, place):
    """Act 6."""
    open_room_of(regulator, script, "Oversight")
    expect(regulator.get_by_text("21 of 21 checks passed.")).to_be_visible()
    script.quoted("21 of 21 checks")
    with regulator.expect_download() as coming:
        regulator.get_by_role("button", name=script.bold("Download the evidence")).first.click()
    coming.value.save_as(place / "evidence.zip")
    roots = room.workshop.directory / "runs" / run / "roots.json"
    command = script.quoted("ringfence evidence verify evidence.zip --root roots.json").split()[1:]
    said = subprocess.run(
        [sys.executable, "-m", "ringfence_server.cli", *command[:-1], str(roots), "--json"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)
    open_room_of(regulator, script, "Audit")
    regulator.get_by_role("link", name=script.bold("The log of Cleveland Clinic Foundation")).first.click()
    regulator.get_by_role("row", name=re.compile("deny")).first.get_by_role("link").click()
    expect(regulator.get_by_text(script.quoted("The proof holds"))).to_be_visible()


def what_it_cost(room, script, coordinator, cleveland):
    """Act 7."""
    open_room_of(coordinator, script, "Preview")
    product = script.bold("The same training, for a commercial product")
    coordinator.get_by_label(script.bold("Begin with the plan")).select_option(label=product)
    coordinator.get_by_label("The plan plan-commercial.toml, as TOML").wait_for()
    visible(coordinator, script.bold("Propose this plan")).click()
    coordinator.get_by_text("was proposed.").wait_for()
    visible(cleveland, script.bold("Decline")).first.click()
    expect(cleveland.get_by_text("You declined")).to_be_visible()
    open_room_of(coordinator, script, "Runs")
    start(coordinator, script)
    coordinator.wait_for_url("**/runs/*")
    ended(coordinator, "finished|refused")
    assert coordinator.locator("td.permitted").count() == 0
    compare = open_room_of(room.page("researcher"), script, "Compare")
    expect(compare.get_by_role("img", name="Privacy and quality of the runs")).to_be_visible()
    with compare.expect_download():
        compare.get_by_role("button", name=script.bold("Download the figures (CSV)")).click()
    compare.close()
