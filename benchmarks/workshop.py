"""How soon a workshop is there, and how soon after its end a round is on an open page.

Run from a checkout with `pip install -e '.[dev]'` and a Chromium that is installed:

    python benchmarks/workshop.py
    python benchmarks/workshop.py --repetitions 5 --json

Each repetition starts `ringfence workshop` on the bundled scenario in a fresh directory, as a person does. *Links* is
the time from the command until its links are printed, *live round* until a browser shows the first round of a run that
was proposed and started by clicks, without the pause that a workshop makes for its room. Of every round it is taken how
long after the time that stands in the run's event the page's number of closed rounds changed, by the same clock.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from workshop_room import ended, installed_browser, open_room, open_workshop, propose, start

from where_measured import environment

WANTED_SECONDS = {"live round": 15.0, "page": 1.0}
_WATCH = """() => {
  window.seen = {};
  const look = () => {
    const closed = document.querySelector('.figures dd')?.textContent;
    if (closed && !(closed in window.seen)) window.seen[closed] = Date.now() / 1000;
  };
  new MutationObserver(look).observe(document.body, {childList: true, subtree: true, characterData: true});
  look();
}"""


def measure(directory: Path) -> dict[str, Any]:
    """One workshop: seconds until its links, until a live round, and of each round until the page has it."""
    began = time.monotonic()
    with open_workshop(directory) as workshop, open_room(workshop) as room:
        links = time.monotonic() - began
        propose(room)
        page = start(room)
        page.evaluate(_WATCH)
        page.locator("td.working, td.permitted").first.wait_for()
        live = time.monotonic() - began
        ended(page)
        seen = {int(number): at for number, at in page.evaluate("window.seen").items()}
        events = directory / "runs" / page.url.rpartition("/")[2] / "events.jsonl"
        closed = [one for one in map(json.loads, events.read_text().splitlines()) if one["event"] == "round-closed"]
    # Where two rounds end between two looks, the page never shows the first one's number: the next one tells of it.
    delays = [min(at for number, at in seen.items() if number >= one["outcome"]["round"]) - one["at"] for one in closed]
    return {"links": links, "live round": live, "page": delays}


def main() -> int:
    """Measure, print, and fail where a promise is not kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    if installed_browser() is None:
        print("error: no Chromium is installed", file=sys.stderr)
        return 2
    taken = []
    for number in range(arguments.repetitions):
        with TemporaryDirectory() as place:
            taken.append(measure(Path(place) / "workshop"))
        print(f"{number + 1} of {arguments.repetitions} workshops", file=sys.stderr)
    found = {name: [one[name] for one in taken] for name in ("links", "live round")}
    found["page"] = [delay for one in taken for delay in one["page"]]
    result = {
        "seconds": {
            name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
            for name, values in found.items()
        },
        "environment": environment("nicegui", "playwright"),
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        for name, values in result["seconds"].items():
            wanted = f"  (aim: at most {WANTED_SECONDS[name]:g})" if name in WANTED_SECONDS else ""
            print(f"{name:12}{values['median']:6.2f} s [{values['least']:.2f} to {values['most']:.2f}]{wanted}")
        for key, value in result["environment"].items():
            print(f"{key}: {value}")
    return 0 if all(result["seconds"][name]["most"] <= wanted for name, wanted in WANTED_SECONDS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
