"""People who use a control plane all at once, and a book of what it acknowledged to them, to hold against what it says.

Each of them acts at random, from a seed. What was cut off is in doubt: it may have happened whole, or not at all.
"""

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import httpx
from killable_site import KillableSite

from ringfence_server.control.actor import Role

OFFICERS = ("birch", "elm")
ALWAYS = "alder"  # whose officer edits its policy when a run is begun, and never stops anything
OVER = ("finished", "refused")
_AT_A_TIME = 2
_ROUNDS = (10, 80)
# A run takes all that a policy lets it spend. So a policy lets more be spent for each run that is begun.
_EPSILON_A_RUN = 12


class Book:
    """What may be so: by key, every value that an acknowledged or a cut-off request can have left.

    Attributes:
        acknowledged: How many writes were, by kind.
        in_doubt: How many were cut off.
    """

    def __init__(self, so_far: Mapping[tuple[str, ...], Hashable]) -> None:
        self._may_be: dict[tuple[str, ...], list[Hashable]] = {key: [value] for key, value in so_far.items()}
        self.acknowledged: Counter[str] = Counter()
        self.in_doubt = 0

    def intend(self, becomes: Mapping[tuple[str, ...], Hashable]) -> None:
        """A request is about to be sent."""
        for key, value in becomes.items():
            self._may_be[key] = [*self._may_be.get(key, [None]), value]

    def acknowledge(self, becomes: Mapping[tuple[str, ...], Hashable]) -> None:
        """It was answered with success: nothing else may be so from now on."""
        for key, value in becomes.items():
            self._may_be[key] = [value]
            self.acknowledged[key[0]] += 1

    def withdraw(self, becomes: Mapping[tuple[str, ...], Hashable]) -> None:
        """It was not sent, or refused."""
        for key in becomes:
            self._may_be[key].pop()

    def lost(self, found: Mapping[tuple[str, ...], Hashable]) -> list[str]:
        """What does not agree with what was found. What was in doubt is settled by it."""
        wrong = []
        for key in {*self._may_be, *found}:
            value, may_be = found.get(key), self._may_be.get(key, [None])
            if value not in may_be:
                wrong.append(f"{key} is {value!r}, and may be {may_be!r}")
            elif key[0] != "signed":  # an edit that was cut off may still be signed later, when a run begins
                self._may_be[key] = [value]
        return wrong


class Person(threading.Thread):
    """Somebody who does one thing after the other while the gate is open.

    Args:
        site: Where.
        book: What is written down.
        gate: Open while all act; closed by whoever finds that something was killed.
        token: What this person shows.
        seed: Of its choices.
    """

    def __init__(self, site: KillableSite, book: Book, gate: threading.Event, token: str, seed: str) -> None:
        super().__init__(daemon=True)
        self.site = site
        self.client = site.client(token)
        self.book = book
        self.gate = gate
        self.chance = random.Random(seed)  # noqa: S311 -- repeatable on purpose
        self.number = 0
        self.turn = threading.Lock()
        self.is_over = False
        self.fault: Exception | None = None

    def run(self) -> None:
        """Act until the end."""
        while not self.is_over:
            self.gate.wait()
            with self.turn:
                if self.gate.is_set() and not self.is_over and self.fault is None:
                    try:
                        self.act()
                    except Exception as fault:  # noqa: BLE001 -- shown by `rest`
                        self.fault = fault
            time.sleep(self.chance.uniform(0, 0.1))  # the pace of a busy person; nothing is waited for

    def rest(self) -> None:
        """Wait until nothing of this person's is under way. The gate is closed."""
        with self.turn:
            if self.fault is not None:
                raise self.fault

    def act(self) -> None:
        """One thing, chosen at random."""
        raise AssertionError

    def words(self) -> str:
        """Words that nobody used before."""
        self.number += 1
        return f"{type(self).__name__}-{self.number}"

    def ask(
        self, method: str, path: str, becomes: Mapping[tuple[str, ...], Hashable] | None = None, **more: Any
    ) -> httpx.Response | None:
        """One request; None where it was cut off, or not sent.

        Args:
            method, path: Of what.
            becomes: What is so once it is acknowledged.
            more: Of the request.
        """
        becomes = becomes or {}
        self.book.intend(becomes)
        try:
            reply = self.client.request(method, f"/api/v1/{path}", **more)
        except httpx.ConnectError:
            self.book.withdraw(becomes)
            self.gate.clear()
            return None
        except httpx.TransportError:
            reply = None
        if reply is None or reply.status_code == 503:
            self.book.in_doubt += bool(becomes)
            self.gate.clear()
            return None
        if reply.is_success:
            self.book.acknowledge(becomes)
        else:
            assert reply.status_code == 409, (method, path, reply.text)
            self.book.withdraw(becomes)
        return reply


class Coordinator(Person):
    """Proposes, begins, suspends and resumes.

    Attributes:
        proposals: What was proposed, in order.
        resumed: How often each run may have been resumed.
        always: The officer whose policy is edited for each run.
    """

    def __init__(self, *arguments: Any, always: "Officer") -> None:
        super().__init__(*arguments)
        self.always = always
        self.proposals: list[str] = []
        self.resumed: Counter[str] = Counter()
        self._doubt: dict[str, Any] | None = None
        plans = self.client.get("/api/v1/plans").json()
        self._plan = next(plan["text"] for plan in plans if plan["name"] == "plan.toml")

    def act(self) -> None:
        """Keep two runs going, and something to be answered."""
        listed = self.ask("GET", "runs", params={"limit": 10})
        if listed is None:
            return
        going = [run for run in listed.json()["items"] if run["state"] not in OVER]
        if len(going) < _AT_A_TIME:
            self.begin()
        elif self.chance.random() < 0.5:
            self.propose()
        else:
            self.tend(self.chance.choice(going))

    def propose(self) -> None:
        """Propose a plan of some rounds."""
        text = self._plan.replace("rounds = 3", f"rounds = {self.chance.randint(*_ROUNDS)}")
        self._make({"url": "proposals", "json": {"text": text}, "headers": {"idempotency-key": self.words()}})

    def begin(self) -> None:
        """Begin a run of the last proposal, or propose one."""
        if not self.proposals:
            self.propose()
            return
        proposal = self.proposals[-1]
        if not self.always.edit():
            return
        self._make({"url": "runs", "json": {"proposal": proposal}, "headers": {"idempotency-key": self.words()}})
        if self._doubt is None:
            self.propose()

    def tend(self, run: Mapping[str, Any]) -> None:
        """Resume a run that stands still; suspend one that goes on, now and then."""
        path, key = f"runs/{run['run_id']}", ("reason", run["run_id"])
        if run["state"] in ("suspended", "interrupted"):
            reply = self.ask("POST", f"{path}/resume", {key: ""})
            self.resumed[run["run_id"]] += reply is None or reply.is_success
        elif self.chance.random() < 0.1:
            words = self.words()
            self.ask(
                "POST", f"{path}/suspend", {key: f"coordinator first coordinator: {words}"}, json={"reason": words}
            )

    def repeat(self) -> None:
        """Send again, with its key, what was cut off: it happens once. An edit that was cut off is made anew."""
        if self.client.get(f"/api/v1/holders/{ALWAYS}").json()["standing"] == "edited":
            assert self.always.edit()
        if self._doubt is not None:
            self._make(self._doubt)
            assert self._doubt is None

    def _make(self, request: dict[str, Any]) -> None:
        what = request["url"]
        reply = self.ask("POST", what, json=request["json"], headers=request["headers"])
        self._doubt = request if reply is None else None
        if reply is None or not reply.is_success:
            return
        made = reply.json()
        if what == "proposals":
            self.proposals.append(made["id"])
            self.book.acknowledge({("proposal", made["id"]): request["json"]["text"]})
        else:
            of = request["json"]["proposal"]
            self.book.acknowledge({("run", made["run_id"]): of, ("reason", made["run_id"]): ""})


class Officer(Person):
    """Answers, edits the policy, stops the use of the data and lets it go on."""

    def __init__(self, *arguments: Any, holder: str) -> None:
        super().__init__(*arguments)
        self.holder = holder

    def act(self) -> None:
        """One of the four."""
        self.chance.choice((self.answer, self.edit, self.stop, self.ask_first))()

    def answer(self) -> None:
        """Answer what waits."""
        waiting = self.ask("GET", f"holders/{self.holder}/pending")
        if waiting is None or not waiting.json():
            return
        proposal, approves, note = waiting.json()[-1], self.chance.random() < 0.5, self.words()
        becomes = {("answer", proposal, self.holder): ("approved" if approves else "declined", note)}
        path = f"proposals/{proposal}/answers/{self.holder}"
        self.ask("PUT", path, becomes, json={"approves": approves, "note": note})

    def edit(self) -> bool:
        """Change the policy so that one more run fits into it, and sign it; says whether that was acknowledged."""
        now = self.ask("GET", f"holders/{self.holder}/policy")
        if now is None:
            return False
        version = int(re.search(r"^version = (\d+)$", now.json()["text"], re.MULTILINE)[1]) + 1
        text = re.sub(r"^version = \d+$", f"version = {version}", now.json()["text"], flags=re.MULTILINE)
        epsilon = min(_EPSILON_A_RUN * version, 900)
        text = re.sub(r'^epsilon = "\d+"$', f'epsilon = "{epsilon}"', text, flags=re.MULTILINE)
        becomes = {("policy", self.holder): text, ("signed", self.holder): f"{self.holder}-terms@{version}"}
        headers = {"if-match": now.headers["etag"]}
        reply = self.ask("PUT", f"holders/{self.holder}/policy", becomes, json={"text": text}, headers=headers)
        return reply is not None and reply.is_success

    def stop(self) -> None:
        """Suspend every use, or lift that. Suspending twice would keep the first reason."""
        now = self.ask("GET", f"holders/{self.holder}")
        if now is None:
            return
        how, reason = ("resume", "") if now.json()["standing"] == "suspended" else ("suspend", self.words())
        becomes = {("stopped", self.holder): (how == "suspend", reason)}
        self.ask("POST", f"holders/{self.holder}/stops/{how}", becomes, json={"reason": reason})

    def ask_first(self) -> None:
        """Want to be asked, rather seldom: nothing begins before the answer."""
        wanted = self.chance.random() < 0.2
        self.ask("PUT", f"holders/{self.holder}/ask-first", {("asks", self.holder): wanted}, json={"wanted": wanted})


class Administrator(Person):
    """Makes tokens and ends them.

    Attributes:
        secrets: What was told of each token, by its name.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.secrets: dict[str, dict[str, Any]] = {}
        self.good: list[str] = []

    def act(self) -> None:
        """One of the two."""
        if self.good and self.chance.random() < 0.5:
            name = self.good.pop(self.chance.randrange(len(self.good)))
            self.ask("DELETE", f"tokens/{self.secrets[name]['id']}", {("token", name): "revoked"})
            return
        name = self.words()
        reply = self.ask("POST", "tokens", {("token", name): "good"}, json={"name": name, "role": "researcher"})
        if reply is not None:
            self.secrets[name] = reply.json()
            self.good.append(name)


class Regulator(Person):
    """Looks at things; every look is kept."""

    def act(self) -> None:
        """Look at something."""
        listed = self.ask("GET", "runs", {("look", "runs"): True})
        runs = [] if listed is None else listed.json()["items"]
        if runs:
            run = self.chance.choice(runs)["run_id"]
            self.ask("GET", f"runs/{run}", {("look", f"run {run}"): True})


class Crowd:
    """All of them, and the book that they share."""

    def __init__(self, site: KillableSite, seed: int) -> None:
        self.site = site
        self.gate = threading.Event()
        tokens = {role: site.token(role) for role in Role if role is not Role.HOLDER}
        officers = {holder: site.token(Role.HOLDER, holder) for holder in (*OFFICERS, ALWAYS)}
        site.start()
        site.wait_until_ready()
        self._clients = {role.value: site.client(token) for role, token in tokens.items()}
        self._clients |= {holder: site.client(token) for holder, token in officers.items()}
        self.book = Book(self.found())
        made = (site, self.book, self.gate)
        always = Officer(*made, officers[ALWAYS], f"{seed} {ALWAYS}", holder=ALWAYS)
        self.coordinator = Coordinator(*made, tokens[Role.COORDINATOR], f"{seed} coordinator", always=always)
        self.administrator = Administrator(*made, tokens[Role.ADMINISTRATOR], f"{seed} administrator")
        self.people: list[Person] = [
            self.coordinator,
            self.administrator,
            Regulator(*made, tokens[Role.REGULATOR], f"{seed} regulator"),
            *(Officer(*made, officers[holder], f"{seed} {holder}", holder=holder) for holder in OFFICERS),
        ]
        for person in self.people:
            person.start()

    def rest(self) -> None:
        """Let everybody finish what they do, and no more."""
        self.gate.clear()
        for person in self.people:
            person.rest()

    def compare(self) -> list[str]:
        """What was acknowledged and is not so, or is so and was never asked for. Everybody rests, and all is up."""
        self.coordinator.repeat()
        found = self.found()
        wrong = []
        for token in list(self.administrator.secrets.values())[-3:]:
            with self.site.client(token["secret"]) as client:
                answered = {200: "good", 401: "revoked"}[client.get("/api/v1/me").status_code]
            if found["token", token["name"]] != answered:
                wrong.append(f"token {token['name']} is {answered} for whoever shows it")
        return wrong + self.book.lost(found)

    def found(self) -> dict[tuple[str, ...], Hashable]:
        """What the API says now."""
        found: dict[tuple[str, ...], Hashable] = {}
        for one in self.listed("proposals"):
            found["proposal", one["id"]] = one["text"]
            found |= {
                ("answer", one["id"], answer["holder"]): (answer["answer"], answer["note"])
                for answer in one["answers"]
                if answer["answer"] in ("approved", "declined")
            }
        for one in self.listed("runs"):
            run = self.say(f"runs/{one['run_id']}")
            found |= {("run", run["run_id"]): run["proposal"], ("reason", run["run_id"]): run["reason"]}
        for one in self.say("tokens", "administrator"):
            found["token", one["name"]] = "good" if one["revoked_ms"] is None else "revoked"
        for holder in (*OFFICERS, ALWAYS):
            one = self.say(f"holders/{holder}", holder)
            found["asks", holder] = one["asks_first"]
            found["stopped", holder] = (one["standing"] == "suspended", one["reason"])
            found["signed", holder] = one["policy"]
            found["policy", holder] = self.say(f"holders/{holder}/policy", holder)["text"]
        return found | {("look", one["what"]): True for one in self.listed("reads", "administrator")}

    def say(self, path: str, who: str = "coordinator", **parameters: Any) -> Any:
        """One answer."""
        reply = self._clients[who].get(f"/api/v1/{path}", params=parameters)
        assert reply.is_success, reply.text
        return reply.json()

    def listed(self, path: str, who: str = "coordinator") -> Iterator[Any]:
        """Every item of a list."""
        cursor: dict[str, str] = {}
        while True:
            page = self.say(path, who, limit=200, **cursor)
            yield from page["items"]
            if page["next"] is None:
                return
            cursor = {"cursor": page["next"]}

    def events(self, run_id: str) -> Iterator[Any]:
        """Every event of a run."""
        after = 0
        while page := self.say(f"runs/{run_id}/events", after=after, limit=200):
            yield from page
            after = page[-1]["seq"]

    def close(self) -> None:
        """Send everybody home."""
        for person in self.people:
            person.is_over = True
        self.gate.set()
        for person in self.people:
            person.join()
        for person in (*self.people, self.coordinator.always):
            person.client.close()
        for client in self._clients.values():
            client.close()


def runs_of(crowd: Crowd) -> Iterable[dict[str, Any]]:
    """Every run, as the API shows it."""
    return [crowd.say(f"runs/{one['run_id']}") for one in crowd.listed("runs")]
