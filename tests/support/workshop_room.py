"""A workshop of the real scenario, served by the real command, and browsers that sit in it as one role each."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

AXE = Path(__file__).parent.parent / "control" / "axe-core" / "axe.min.js"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Generous: the machine that tests is shared.
PATIENCE_MS = 60_000
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


def installed_browser() -> str | None:
    """A browser that pages can be driven in, if one is installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@dataclass
class Workshop:
    """A workshop that is open.

    Attributes:
        directory: Its site.
        address: Where it is served.
        links: One-time links by role, and by holder for data officers.
        cookies: Cookies of those who are signed in already, likewise.
    """

    directory: Path
    address: str
    links: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)


@contextmanager
def open_workshop(directory: Path, *, pause: float = 0) -> Iterator[Workshop]:
    """`ringfence workshop`, until the block ends; then it must end in good order."""
    options = ["--pause", str(pause), "--json"]
    command = [sys.executable, "-m", "ringfence_server.cli", "workshop", str(directory), *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            links = {one["holder"] or one["role"]: one["plain_url"] for one in said["links"]}
            yield Workshop(directory=directory, address=said["address"], links=links)
        finally:
            process.terminate()
            process.wait(60)


@dataclass
class Room:
    """Browsers in a workshop: one context, that is one person, for each role.

    Attributes:
        strangers: Every request that was asked of another host.
        faults: Every error that a page's script raised.
    """

    browser: Browser
    workshop: Workshop
    strangers: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    _contexts: dict[str, BrowserContext] = field(default_factory=dict)

    def page(self, role: str, path: str = "/", *, wait: bool = True) -> Page:
        """A tab of whoever has this role (or is this holder's officer)."""
        if role not in self._contexts:
            context = self.browser.new_context(viewport=WIDE)
            context.set_default_timeout(PATIENCE_MS)
            context.on("request", lambda request: self._note(request.url))
            if role in self.workshop.cookies:
                cookie = {"name": "ringfence", "value": self.workshop.cookies[role], "url": self.workshop.address}
                context.add_cookies([cookie])
            else:
                entering = context.new_page()
                entering.goto(self.workshop.links[role])
                entering.close()
            self._contexts[role] = context
        page = self._contexts[role].new_page()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("websocket", lambda socket: self._note(socket.url))
        page.goto(self.workshop.address + path)
        if wait:
            page.locator("h1").wait_for()
        return page

    def _note(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != urlsplit(self.workshop.address).netloc:
            self.strangers.append(url)


@contextmanager
def open_room(workshop: Workshop) -> Iterator[Room]:
    """A room with a browser."""
    with sync_playwright() as player:
        browser = player.chromium.launch(
            executable_path=installed_browser(), headless=True, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield Room(browser, workshop)
        finally:
            browser.close()


def faults_of_look(page: Page, *, theme: str) -> list[tuple[str, list[str]]]:
    """What axe calls serious or worse, rule and where, with everything unfolded; and widths that it does not fit."""
    page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    page.evaluate(AXE.read_text())
    found = [
        (one["id"], [node["html"][:200] for node in one["nodes"][:3]])
        for one in page.evaluate("axe.run()")["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    for size in (WIDE, NARROW):
        page.set_viewport_size(size)
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > size["width"]:
            found.append(("scrolls sideways", [f"{width} in {size['width']} pixels"]))
    return found


def propose(room: Room, *, plan: str = "plan.toml", rounds: int | None = None) -> None:
    """The coordinator proposes a plan of the site on the page Preview, with other rounds if they are given."""
    page = room.page("coordinator", "/preview")
    page.get_by_label("Begin with the plan").select_option(plan)
    text = page.get_by_label(f"The plan {plan}, as TOML")
    text.wait_for()
    if rounds is not None:
        text.fill(re.sub(r"(?m)^rounds = \d+$", f"rounds = {rounds}", text.input_value()))
    page.get_by_role("button", name="Propose this plan").click()
    page.get_by_text("was proposed.").wait_for()
    page.close()


def start(room: Room, *, rehearsal: bool = False) -> Page:
    """The coordinator starts the newest proposal, and is on its run's page then."""
    page = room.page("coordinator", "/runs")
    if rehearsal:
        page.get_by_label("Rehearsal: seeded noise, NOT PRIVATE").first.check()
    page.get_by_role("button", name="Start a run").first.click()
    page.get_by_role("button", name="Start the run", exact=True).locator("visible=true").click()
    page.wait_for_url("**/runs/*")
    return page


def ended(page: Page, word: str = "finished") -> None:
    """Wait until a run's page says how the run ended."""
    page.locator(f".lead .state:text-matches('^({word})$')").wait_for(timeout=4 * PATIENCE_MS)
