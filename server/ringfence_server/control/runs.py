"""Use cases of plans and runs: propose, preview, start, watch, suspend, resume, compare."""

import hashlib
import json
from collections.abc import AsyncIterator, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ringfence_policy.errors import Conflict, DocumentInvalid, NotKnown, UsageError
from ringfence_policy.vocabulary import PURPOSES
from ringfence_server.control.access import AccessCases
from ringfence_server.control.actor import Actor
from ringfence_server.control.mirror import Mirror
from ringfence_server.control.pages_of import checked, name_in, page_of
from ringfence_server.control.permissions import Act, allow
from ringfence_server.control.run_views import run_view
from ringfence_server.control.runner import GO, STOP, Runner
from ringfence_server.control.site import Site
from ringfence_server.control.store.engine import Store
from ringfence_server.control.store.tables import AnswerRow, AskFirstRow, EventRow, OnceRow, ProposalRow, RunRow
from ringfence_server.control.times import now_ms
from ringfence_server.control.views import (
    AnswerView,
    Comparison,
    EventView,
    HolderForecast,
    Page,
    PlanView,
    ProposalView,
    RunState,
    RunSummary,
    RunView,
)
from ringfence_server.control.words import check_words
from ringfence_server.run_file import new_run_id

WAITS, APPROVED, DECLINED, POLICY_DECIDES = "waits", "approved", "declined", "policy decides"
_SUSPENDABLE = frozenset({RunState.QUEUED, RunState.STARTING, RunState.RUNNING})
_RESUMABLE = frozenset({RunState.SUSPENDED, RunState.INTERRUPTED, RunState.FAILED})
_MOST_COMPARED = 8
_MOST_VIEWS = 32
_MOST_REASON = 500


class RunCases:
    """What is asked about plans and runs.

    Args:
        site: Plans and holders.
        store: What was proposed and begun.
        mirror: What runs wrote.
        runner: Carries runs out.
        access: Notes what a regulator reads.
    """

    def __init__(self, site: Site, store: Store, mirror: Mirror, runner: Runner, access: AccessCases) -> None:
        self._site = site
        self._store = store
        self._mirror = mirror
        self._runner = runner
        self._access = access
        # What was read last of a run that everybody looks at; it is read anew when anything of it changed.
        self._views: dict[str, tuple[object, RunView]] = {}

    # --- plans -------------------------------------------------------------------------------------------------------

    def plans(self, actor: Actor) -> tuple[PlanView, ...]:
        """Plans that lie in the site."""
        allow(actor, Act.SEE_PLANS)
        self._access.note_read(actor, "plans")
        return tuple(self._plan(name) for name in self._site.plans())

    def _plan(self, name: str) -> PlanView:
        text = self._site.plan_text(name)
        try:
            plan = self._site.read_plan(text)
        except DocumentInvalid:  # checking its text says what is wrong; the other plans are none the worse
            return PlanView(name=name, plan_id="", title=f"{name}: no valid plan", purpose="", rounds=0, text=text)
        return PlanView(
            name=name,
            plan_id=plan.plan_id,
            title=plan.title,
            purpose=PURPOSES[plan.purpose].label,
            rounds=plan.training.rounds,
            text=text,
        )

    def preview(self, actor: Actor, text: str) -> tuple[HolderForecast, ...]:
        """Who would refuse a plan, why, and what change would make it pass. Uses no data and records nothing.

        Raises:
            DocumentInvalid: It is no plan, or does not fit this site.
        """
        allow(actor, Act.PREVIEW)
        self._access.note_read(actor, "a preview")
        return self._site.forecast(self._site.read_plan(text))

    def propose(self, actor: Actor, text: str, *, once: str | None = None) -> ProposalView:
        """Put a plan before the data officers.

        Args:
            actor: Who proposes.
            text: The plan as TOML.
            once: The same key with the same plan proposes once, however often it is sent.

        Raises:
            DocumentInvalid: It is no plan, or does not fit this site.
            Conflict: The key was used for something else.
        """
        allow(actor, Act.PROPOSE)
        plan = self._site.read_plan(text)
        row = ProposalRow(
            id=new_run_id(),
            plan_id=plan.plan_id[:200],
            title=plan.title[:200],
            plan=text,
            by=actor.name,
            account=actor.account,
            at=now_ms(),
        )
        with self._store.write() as db:
            known = _once(db, actor, once, ("propose", text), row.id)
            if known is None:
                db.add(row)
            return self._proposal(db, row if known is None else db.get_one(ProposalRow, known))

    def proposals(self, actor: Actor, *, cursor: str | None = None, limit: int = 50) -> Page[ProposalView]:
        """What was proposed, newest first."""
        allow(actor, Act.SEE_PLANS)
        self._access.note_read(actor, "proposals")
        query = select(ProposalRow).order_by(ProposalRow.id.desc()).limit(checked(limit) + 1)
        if cursor is not None:
            query = query.where(ProposalRow.id < name_in(cursor))
        with self._store.read() as db:
            rows = list(db.scalars(query))
            return page_of(rows, limit, place=lambda row: row.id, view=lambda row: self._proposal(db, row))

    def proposal(self, actor: Actor, proposal_id: str) -> ProposalView:
        """One of them.

        Raises:
            NotKnown: There is none of that id.
        """
        allow(actor, Act.SEE_PLANS)
        self._access.note_read(actor, f"proposal {proposal_id}")
        with self._store.read() as db:
            return self._proposal(db, _proposal_row(db, proposal_id))

    # --- runs --------------------------------------------------------------------------------------------------------

    def start(self, actor: Actor, proposal_id: str, *, seed: int | None = None, once: str | None = None) -> RunView:
        """Begin a run of a proposal. It is begun when this returns, whatever happens to this process.

        Args:
            actor: Who begins it.
            proposal_id: Of what.
            seed: Makes the run a rehearsal with seeded noise: NOT PRIVATE.
            once: The same key begins one run, however often it is sent.

        Raises:
            NotKnown: There is no such proposal.
            Conflict: A data officer who wants to be asked first has not answered, or approved another run; all
                declined; or the key was used for something else.
            DeploymentFault: No data holder can be reached.
        """
        allow(actor, Act.START)
        with self._store.write() as db:
            proposal = _proposal_row(db, proposal_id)
            run_id = new_run_id()
            known = _once(db, actor, once, ("start", proposal_id, str(seed)), run_id)
            if known is None:
                _refuse_unanswered(self._proposal(db, proposal), asks=self._asks(db))
                self._site.refuse_unready()
                now = now_ms()
                db.add(
                    RunRow(
                        id=run_id,
                        proposal=proposal.id,
                        title=proposal.title,
                        state=RunState.QUEUED.value,
                        wanted=GO,
                        seed=seed,
                        rounds=self._site.read_plan(proposal.plan).training.rounds,
                        by=actor.name,
                        account=actor.account,
                        reason="",
                        error=None,
                        begun=now,
                        changed=now,
                        read_to=0,
                    )
                )
        self._runner.look_now()
        return self.run(actor, known or run_id)

    def runs(self, actor: Actor, *, cursor: str | None = None, limit: int = 50) -> Page[RunSummary]:
        """Runs, newest first."""
        allow(actor, Act.WATCH)
        self._access.note_read(actor, "runs")
        query = select(RunRow).order_by(RunRow.id.desc()).limit(checked(limit) + 1)
        if cursor is not None:
            query = query.where(RunRow.id < name_in(cursor))
        with self._store.read() as db:
            rows = list(db.scalars(query))
            counted = dict(
                db.execute(
                    select(EventRow.run, func.count())
                    .where(EventRow.run.in_([row.id for row in rows]), EventRow.name == "round-closed")
                    .group_by(EventRow.run)
                ).all()
            )
        return page_of(
            rows,
            limit,
            place=lambda row: row.id,
            view=lambda row: RunSummary(
                run_id=row.id,
                title=row.title,
                state=RunState(row.state),
                rehearsal=row.seed is not None,
                rounds_planned=row.rounds,
                rounds_closed=counted.get(row.id, 0),
                by=row.by,
                begun_ms=row.begun,
            ),
        )

    def run(self, actor: Actor, run_id: str) -> RunView:
        """One run, round by round.

        Raises:
            NotKnown: There is none of that id.
        """
        allow(actor, Act.WATCH)
        self._access.note_read(actor, f"run {run_id}")
        return self._view(run_id)

    def events(self, actor: Actor, run_id: str, *, after: int = 0, limit: int = 200) -> tuple[EventView, ...]:
        """What happened in a run after `after`, in order.

        Raises:
            NotKnown: There is no such run.
        """
        allow(actor, Act.WATCH)
        self._access.note_read(actor, f"run {run_id}")
        self._known(run_id)
        return tuple(self._mirror.events(run_id, after=after, limit=checked(limit)))

    def follow(self, actor: Actor, run_id: str, *, after: int = 0) -> AsyncIterator[EventView]:
        """What happens in a run after `after`, as it comes, until the run has ended.

        Raises:
            NotKnown: There is no such run.
        """
        allow(actor, Act.WATCH)
        self._access.note_read(actor, f"run {run_id}")
        self._known(run_id)
        return self._mirror.follow(run_id, after=after)

    def suspend(self, actor: Actor, run_id: str, reason: str) -> RunView:
        """End a run's process; what was committed is kept, and `resume` goes on from there.

        Raises:
            NotKnown: There is no such run.
            Conflict: It does not go on.
            UsageError: There is no reason, or it holds what nobody can see.
        """
        allow(actor, Act.SUSPEND)
        if not reason.strip() or len(reason) > _MOST_REASON:
            raise UsageError("a suspension needs a reason", expected=f"1 to {_MOST_REASON} characters")
        check_words(reason)
        with self._store.write() as db:
            row = _run_row(db, run_id)
            _refuse_unless(row, _SUSPENDABLE, "suspend")
            row.wanted, row.reason, row.changed = STOP, f"{actor.role.value} {actor.name}: {reason.strip()}", now_ms()
            if row.state == RunState.QUEUED.value:
                row.state = RunState.SUSPENDED.value
        self._runner.look_now()
        self._mirror.wake(run_id)
        return self._view(run_id)

    def resume(self, actor: Actor, run_id: str) -> RunView:
        """Take a run up again from its last committed round.

        Raises:
            NotKnown: There is no such run.
            Conflict: It goes on already, or has ended for good.
            DeploymentFault: No data holder can be reached.
        """
        allow(actor, Act.RESUME)
        with self._store.write() as db:
            row = _run_row(db, run_id)
            _refuse_unless(row, _RESUMABLE, "resume")
            self._site.refuse_unready()
            row.wanted, row.state, row.reason, row.error = GO, RunState.QUEUED.value, "", None
            row.changed = now_ms()
        self._runner.look_now()
        self._mirror.wake(run_id)
        return self._view(run_id)

    def compare(self, actor: Actor, run_ids: Sequence[str]) -> Comparison:
        """Runs side by side.

        Raises:
            NotKnown: There is no such run.
            UsageError: None, or too many.
        """
        allow(actor, Act.COMPARE)
        if not 1 <= len(run_ids) <= _MOST_COMPARED:
            raise UsageError(
                "so many runs cannot be compared", expected=f"1 to {_MOST_COMPARED}", got=str(len(run_ids))
            )
        for run_id in run_ids:
            self._access.note_read(actor, f"run {run_id}")
        return Comparison(runs=tuple(self._view(run_id) for run_id in dict.fromkeys(run_ids)))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _view(self, run_id: str) -> RunView:
        with self._store.read() as db:
            row = _run_row(db, run_id)
            now = (row.read_to, row.state, row.reason, row.changed)
            known = self._views.get(run_id)
            if known is not None and known[0] == now:
                return known[1]
            bodies = db.execute(
                select(EventRow.name, EventRow.body).where(EventRow.run == run_id).order_by(EventRow.seq)
            ).all()
        view = run_view(
            row,
            [(name, json.loads(body)) for name, body in bodies],
            names={one: profile.name for one, profile in self._site.holders.items()},
            directory=self._site.directory / "runs" / run_id,
        )
        if len(self._views) >= _MOST_VIEWS:
            self._views.clear()
        self._views[run_id] = (now, view)
        return view

    def _known(self, run_id: str) -> None:
        with self._store.read() as db:
            _run_row(db, run_id)

    def _proposal(self, db: Session, row: ProposalRow) -> ProposalView:
        plan = self._site.read_plan(row.plan)
        answers = {one.holder: one for one in db.scalars(select(AnswerRow).where(AnswerRow.proposal == row.id))}
        asks = self._asks(db)
        return ProposalView(
            id=row.id,
            plan_id=row.plan_id,
            title=row.title,
            purpose=PURPOSES[plan.purpose].label,
            rounds=plan.training.rounds,
            text=row.plan,
            by=row.by,
            at_ms=row.at,
            answers=tuple(_answer(holder, answers.get(holder), asks) for holder in sorted(self._site.holders)),
            runs=tuple(db.scalars(select(RunRow.id).where(RunRow.proposal == row.id).order_by(RunRow.id))),
        )

    @staticmethod
    def _asks(db: Session) -> set[str]:
        """The holders that want to be asked before a run begins."""
        return set(db.scalars(select(AskFirstRow.holder)))


def _refuse_unanswered(proposal: ProposalView, *, asks: set[str]) -> None:
    waiting = [one.holder for one in proposal.answers if one.answer == WAITS]
    if waiting:
        raise Conflict(
            "a data officer has not answered",
            expected="an answer of everybody who wants to be asked first",
            got=f"none of {', '.join(waiting)}",
            next_step="propose the plan again and wait for their answers: a run of this proposal was begun"
            if proposal.runs
            else "wait for their answers",
        )
    approved = [one.holder for one in proposal.answers if one.answer == APPROVED and one.holder in asks]
    if approved and proposal.runs:
        raise Conflict(
            "a data officer's approval is for one run, and it was begun",
            expected="a proposal for each run, while somebody wants to be asked first",
            got=f"the approval of {', '.join(approved)} for run {proposal.runs[0]}",
            next_step="propose the plan again and wait for their answers",
        )
    if all(one.answer == DECLINED for one in proposal.answers):
        raise Conflict("every data holder declined", expected="at least one that takes part")


def _answer(holder: str, row: AnswerRow | None, asks: set[str]) -> AnswerView:
    if row is not None:
        return AnswerView(holder=holder, answer=row.answer, note=row.note, by=row.by, at_ms=row.at)
    return AnswerView(holder=holder, answer=WAITS if holder in asks else POLICY_DECIDES)


def _once(db: Session, actor: Actor, key: str | None, request: tuple[str, ...], result: str) -> str | None:
    """What a request with this key gave before; where it is new, remember that it gives `result`."""
    if key is None:
        return None
    digest = hashlib.sha256(json.dumps(request).encode()).hexdigest()
    row = db.get(OnceRow, (actor.account, key[:200]))
    if row is None:
        db.add(OnceRow(account=actor.account, key=key[:200], request=digest, result=result, at=now_ms()))
        return None
    if row.request != digest:
        raise Conflict(
            "this idempotency key was used for another request",
            expected="a key of its own for each thing that is begun",
            next_step="send the request again with a new key",
        )
    return row.result


def _run_row(db: Session, run_id: str) -> RunRow:
    row = db.get(RunRow, run_id)
    if row is None:
        raise NotKnown("there is no such run")
    return row


def _proposal_row(db: Session, proposal_id: str) -> ProposalRow:
    row = db.get(ProposalRow, proposal_id)
    if row is None:
        raise NotKnown("there is no such proposal")
    return row


def _refuse_unless(row: RunRow, states: frozenset[RunState], act: str) -> None:
    if RunState(row.state) not in states or (act == "suspend" and row.wanted == STOP):
        raise Conflict(
            f"a run in this state cannot be {act}{'ed' if act == 'suspend' else 'd'}",
            expected=", ".join(sorted(states)),
            got=row.state,
        )
