"""A control plane over a small site, served by a real server, with a token for every role."""

import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
from control_plane import ADMINISTRATOR, COORDINATOR, wait_until
from tiny_scenario import HOLDERS, write_scenario

from ringfence_server.control.actor import Role
from ringfence_server.control.api.app import create_app
from ringfence_server.control.plane import open_plane
from ringfence_server.control.serve import ControlServer
from ringfence_server.control.settings import ControlSettings, local_origins
from ringfence_server.control.sign_on_store import SignOnStore
from ringfence_server.control.views import RunState

OWN, OTHER = "alder", "birch"
NOBODY = "nobody"


class Api:
    """What tests ask, and how.

    Attributes:
        plane: The use cases behind it.
        sign_on: Sessions and links.
        base: Its origin.
        tokens: A token by role; the role holder's is the officer of `OWN`.
    """

    def __init__(self, plane, sign_on, base):
        self.plane = plane
        self.sign_on = sign_on
        self.base = base
        self.tokens = {role: self.token(role, OWN if role is Role.HOLDER else None) for role in Role}

    def token(self, role, holder=None):
        return self.issue(role, holder).secret

    def issue(self, role, holder=None):
        return self.plane.access.issue_token(ADMINISTRATOR, name="test", role=role, holder=holder, days=1)

    def ask(self, role, method, path, *, token=None, headers=None, **more):
        """One request. `role` may be NOBODY."""
        shown = token or self.tokens.get(role)
        sent = {**({"authorization": f"Bearer {shown}"} if shown else {}), **(headers or {})}
        with httpx.Client(base_url=self.base, trust_env=False, timeout=30) as client:
            return client.request(method, path, headers=sent, **more)

    def plan(self):
        return self.plane.runs.plans(COORDINATOR)[0].text

    def finished_run(self):
        """The id of a proposal and of a run of it that is over."""
        proposal = self.plane.runs.propose(COORDINATOR, self.plan())
        run = self.plane.runs.start(COORDINATOR, proposal.id, seed=1)
        wait_until(lambda: self.plane.runs.run(COORDINATOR, run.run_id).state is RunState.FINISHED)
        return proposal.id, run.run_id

    def running_run(self, rounds=4000):
        """The id of a run that goes on for a while."""
        proposal = self.plane.runs.propose(COORDINATOR, self.plan().replace("rounds = 3", f"rounds = {rounds}"))
        run = self.plane.runs.start(COORDINATOR, proposal.id, seed=1)
        wait_until(lambda: self.plane.runs.run(COORDINATOR, run.run_id).rounds)
        assert self.plane.runs.run(COORDINATOR, run.run_id).state is RunState.RUNNING
        return run.run_id


@contextmanager
def served_api(place: Path):
    """Serve a small site from `place` until the block ends."""
    rich = {"projects.max_rounds": 100_000, "privacy.epsilon": "900"}  # many runs of many rounds fit into it
    site = write_scenario(
        place / "site",
        policies=dict.fromkeys(HOLDERS, rich),
        profiles={holder: {"dataset.epsilon": "900"} for holder in HOLDERS},
    ).directory
    with served_site(site) as api:
        yield api


@contextmanager
def served_site(site: Path):
    """Serve a site that is there until the block ends."""
    server = ControlServer()
    settings = ControlSettings(origins=local_origins(server.port), workshop=True)
    plane = open_plane(site)
    plane.start()
    sign_on = SignOnStore(plane.store, settings)
    ready = threading.Event()
    app = create_app(plane, settings, sign_on=sign_on)
    thread = threading.Thread(target=server.serve, args=(app,), kwargs={"ready": ready.set})
    thread.start()
    try:
        assert ready.wait(30)
        yield Api(plane, sign_on, f"http://127.0.0.1:{server.port}")
    finally:
        server.stop()
        thread.join(30)
        server.close()
        plane.close(end_runs=True)
