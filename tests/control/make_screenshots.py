"""Pictures of every page, light and dark, wide and narrow: `make screenshots`. By hand; nothing is compared.

Those that the documentation shows are renewed in docs/pictures.
"""

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from playwright.sync_api import Page
from workshop_room import NARROW, WIDE, Room, ended, open_room, open_workshop, propose, start

IN_DOCS = Path(__file__).parents[2] / "docs" / "pictures"
# How far down, in pixels.
SHOWN = {"run-light": 985, "run-dark": 985, "preview-light": 1020, "my-data-light": 900, "audit-record-light": 860}
QUALITY = 70


def main(out: Path) -> None:
    """Walk through a workshop and keep a picture of every page."""
    out.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory() as place,
        open_workshop(Path(place) / "workshop") as workshop,
        open_room(workshop) as room,
    ):
        propose(room)
        run = start(room)
        run.locator(".working").first.wait_for()
        run.locator("tbody td.permitted").first.wait_for()
        picture(run, out, "run-live")
        ended(run)
        propose(room, rounds=6)
        ended(start(room), "finished|refused")
        propose(room)
        for role, path, name in (
            ("coordinator", "/", "start"),
            ("coordinator", run.url.removeprefix(workshop.address), "run"),
            ("coordinator", "/runs", "runs"),
            ("coordinator", "/preview", "preview"),
            ("long-beach", "/my-data", "my-data"),
            ("regulator", "/oversight", "oversight"),
            ("researcher", "/compare", "compare"),
            ("coordinator", "/audit", "audit"),
        ):
            picture(room.page(role, path), out, name)
        page = room.page("regulator", "/audit")
        page.get_by_role("link", name="coordinator").last.click()
        page.locator("h1", has_text="The log of").wait_for()
        picture(page, out, "audit-log")
        page.get_by_role("row", name=re.compile("deny train.*epsilon")).first.get_by_role("link").click()
        page.get_by_text("The proof holds").wait_for()
        picture(page, out, "audit-record")
        dialog(room, out)


def dialog(room: Room, out: Path) -> None:
    """The question behind the red button, and the form."""
    page = room.page("long-beach", "/my-data")
    page.get_by_text("Open the form").click()
    picture(page, out, "policy-form")
    page.get_by_role("button", name="Stop every use of my data").click()
    picture(page, out, "red-button")


def picture(page: Page, out: Path, name: str) -> None:
    """Four pictures of a page."""
    for width, size in (("wide", WIDE), ("narrow", NARROW)):
        page.set_viewport_size(size)
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            page.screenshot(path=out / f"{name}-{width}-{theme}.png", full_page=True, animations="disabled")
            shown = f"{name}-{theme}"
            if width == "wide" and shown in SHOWN:
                page.set_viewport_size({"width": WIDE["width"], "height": SHOWN[shown]})
                page.screenshot(path=IN_DOCS / f"{shown}.jpg", type="jpeg", quality=QUALITY, animations="disabled")
    page.set_viewport_size(WIDE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
