"""`ringfence control start` as a process, and what is asked of it by HTTP as each role."""

import html
import json
import sys

import httpx
from control_plane import ADMINISTRATOR, wait_until

from deployment import Part, environment
from ringfence_server.control.actor import Actor, Role
from ringfence_server.control.plane import open_plane
from ringfence_server.control.settings import ControlSettings
from ringfence_server.control.sign_on_store import SignOnStore


class ControlCommand:
    """The control plane of a site, with a token for every role and for every data officer.

    Attributes:
        address: Where it is served.
        part: Its process: may be killed, and started again.
    """

    def __init__(self, site, holders):
        self.part = Part(
            [sys.executable, "-m", "ringfence_server.cli", "control", "start", str(site), "--port", "0", "--json"],
            log=site.parent / "control.log",
            env=environment(),
        )
        self._site = site
        plane = open_plane(site)
        self.tokens = {role: self._token(plane, role) for role in Role if role is not Role.HOLDER}
        self.tokens |= {holder: self._token(plane, Role.HOLDER, holder) for holder in holders}
        plane.close()
        self.address = ""

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        if self.part.is_alive:
            self.part.end()

    def start(self):
        """Start it, or start it again, and wait until it answers."""
        before = self._said()
        self.part.start()
        said = wait_until(lambda: self._said()[len(before) :] or not self.part.is_alive)
        assert self.part.is_alive, self.part.log.read_text()
        self.address = said[-1]["address"]

    def sessions(self, holders):
        """A signed-in browser's cookie by role, and by holder for data officers, as if a provider had vouched."""
        plane = open_plane(self._site)
        store = SignOnStore(plane.store, ControlSettings(origins=(self.address,)))
        seats = {role.value: (role, None) for role in Role if role is not Role.HOLDER}
        seats |= {holder: (Role.HOLDER, holder) for holder in holders}
        found = {
            name: store.open_session(Actor(role=role, name=name, holder=holder, via="session", account=name))
            for name, (role, holder) in seats.items()
        }
        plane.close()
        return found

    def ask(self, who, method, path, *, status=(200, 201, 202), **more):
        """One request, and its answer. `who` is a role or a holder's id."""
        found = httpx.request(method, self.address + path, **self._shown(who), **more)
        assert found.status_code in status, found.text
        return found.json()

    def download(self, who, path):
        """The bytes of a file that is handed out."""
        return httpx.get(self.address + path, **self._shown(who)).raise_for_status().content

    def page(self, who, path):
        """A page as a browser gets it first."""
        return html.unescape(httpx.get(self.address + path, **self._shown(who)).raise_for_status().text)

    def stream(self, who, run_id):
        """The events of a run as they come, until it ends or the control plane does: name and data."""
        path = f"{self.address}/api/v1/runs/{run_id}/stream"
        with httpx.stream("GET", path, **(self._shown(who) | {"timeout": 300})) as reply:
            name = ""
            for line in reply.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, json.loads(line.removeprefix("data: "))

    def run(self, run_id):
        """A run as a researcher sees it."""
        return self.ask(Role.RESEARCHER, "GET", f"/api/v1/runs/{run_id}")

    def wait_for(self, run_id, holds, *, seconds=300.0):
        """The run as soon as something holds of it."""

        def look():
            run = self.run(run_id)
            assert run["state"] != "failed", run["error"]
            return run if holds(run) else None

        return wait_until(look, seconds=seconds)

    def _shown(self, who):
        return {"headers": {"authorization": f"Bearer {self.tokens[who]}"}, "timeout": 60, "trust_env": False}

    def _said(self):
        lines = self.part.log.read_text().splitlines() if self.part.log.exists() else []
        return [json.loads(line) for line in lines if line.startswith('{"address"')]

    @staticmethod
    def _token(plane, role, holder=None):
        return plane.access.issue_token(ADMINISTRATOR, name="test", role=role, holder=holder, days=1).secret
