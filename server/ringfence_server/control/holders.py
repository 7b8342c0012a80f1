"""Use cases of data holders: what their rules and budgets are, who used their data, and everything a data officer does.

An officer sees the figures of its own data. Everybody else sees the signed rules, which are public, shares of budgets,
and nothing that counts records.
"""

import hashlib
from collections.abc import Collection
from threading import Lock
from typing import Any

from sqlalchemy import select

from ringfence_policy.accounting import PICO
from ringfence_policy.errors import Conflict, NotAllowed, NotKnown, Stale, UsageError
from ringfence_policy.mechanism import MICRO
from ringfence_server.control.access import AccessCases
from ringfence_server.control.actor import Actor, Role
from ringfence_server.control.permissions import Act, allow
from ringfence_server.control.site import Site
from ringfence_server.control.store.engine import Store
from ringfence_server.control.store.tables import AnswerRow, AskFirstRow, ProposalRow, RunRow
from ringfence_server.control.times import now_ms
from ringfence_server.control.views import (
    DecisionView,
    HolderSummary,
    HolderView,
    Meter,
    PolicyText,
    Reason,
    UseView,
)
from ringfence_server.control.words import check_words

_UNITS = {"epsilon": MICRO, "delta": PICO, "rounds": 1}
_MOST_REASON = 500
_MOST_POLICY = 64 * 1024
_MOST_SHOWN = 200


class HolderCases:
    """What is asked about data holders.

    Args:
        site: The holders, and the desks of their officers.
        store: What officers answered.
        access: Notes what a regulator reads.
    """

    def __init__(self, site: Site, store: Store, access: AccessCases) -> None:
        self._site = site
        self._store = store
        self._access = access
        # Between asking whether a text is still the one that was edited and replacing it, nobody else replaces it.
        self._editing = Lock()

    # --- for everybody -----------------------------------------------------------------------------------------------

    def holders(self, actor: Actor) -> tuple[HolderSummary, ...]:
        """The data holders; for a data officer, its own alone."""
        allow(actor, Act.SEE_HOLDERS)
        self._access.note_read(actor, "data holders")
        return tuple(
            HolderSummary(
                holder=holder,
                name=profile.name,
                region=profile.region,
                standing=self._site.look(holder).standing,
            )
            for holder, profile in sorted(self._site.holders.items())
            if actor.role is not Role.HOLDER or actor.holder == holder
        )

    def view(self, actor: Actor, holder: str) -> HolderView:
        """One data holder: its rules in sentences, and its budgets as the role may see them.

        Raises:
            NotKnown: There is none, or it is another officer's.
        """
        allow(actor, Act.SEE_HOLDERS, holder=holder)
        profile = self._site.holder(holder)
        found = self._site.look(holder)
        own = actor.role is Role.HOLDER
        self._access.note_read(actor, f"holder {holder}")
        with self._store.read() as db:
            asks = db.get(AskFirstRow, holder) is not None
        return HolderView(
            holder=holder,
            name=profile.name,
            region=profile.region,
            policy=found.policy,
            standing=found.standing,
            reason=found.reason,
            sentences=found.sentences,
            meters=tuple(_meter(one, own=own) for one in found.meters if own or one["quantity"] == "epsilon"),
            asks_first=asks,
            own=own,
            local=self._site.local,
        )

    # --- for a data holder's own officer -----------------------------------------------------------------------------

    def policy_text(self, actor: Actor, holder: str) -> PolicyText:
        """The policy as it is written.

        Raises:
            NotKnown: There is no such holder, or it is another officer's.
            AtTheHolder: In a deployment.
        """
        self._own(actor, Act.EDIT_POLICY, holder)
        return _text(self._site.desk(holder).policy_text())

    def edit_policy(self, actor: Actor, holder: str, text: str, *, etags: Collection[str]) -> PolicyText:
        """Write the policy anew and sign it. It holds from the next gate on; where it cannot be signed nothing changes.

        Args:
            actor: The officer.
            holder: Whose policy.
            text: TOML; its version has to be higher than the signed one's.
            etags: Name the texts that may be replaced, as `PolicyText.etag` does.

        Raises:
            NotKnown: There is no such holder, or it is another officer's.
            AtTheHolder: In a deployment.
            Stale: It was changed since it was read.
            DocumentInvalid: It is no policy of this holder's, or its version did not rise.
        """
        self._own(actor, Act.EDIT_POLICY, holder)
        if len(text.encode("utf-8", "surrogatepass")) > _MOST_POLICY:
            raise UsageError("a policy is not that long", expected=f"at most {_MOST_POLICY} bytes")
        with self._editing:
            desk = self._site.desk(holder)
            if _text(desk.policy_text()).etag not in etags:
                raise Stale(
                    "the policy was changed since it was read",
                    expected="an edit of the text as it is now",
                    got="an edit of another one",
                    next_step="read it again and make the change there",
                )
            desk.sign_text(text)
            return _text(desk.policy_text())  # as it is read from now on: line ends may have been another system's

    def stop(self, actor: Actor, holder: str, *, how: str, reason: str = "") -> HolderView:
        """Suspend every use, lift that, or revoke the policy for good. Holds from the next gate on, mid-round too.

        Args:
            actor: The officer.
            holder: Whose data.
            how: "suspend", "resume" or "revoke".
            reason: For everybody to read; needed but for "resume".

        Raises:
            NotKnown: There is no such holder, or it is another officer's.
            AtTheHolder: In a deployment.
            UsageError: There is no reason, it holds what nobody can see, or it is none of the three.
        """
        self._own(actor, Act.STOP_USE, holder)
        if how != "resume" and not 1 <= len(reason.strip()) <= _MOST_REASON:
            raise UsageError("stopping needs a reason", expected=f"1 to {_MOST_REASON} characters, for all to read")
        check_words(reason)
        self._site.desk(holder).stop(how, reason.strip())
        return self.view(actor, holder)

    def uses(self, actor: Actor, holder: str) -> tuple[UseView, ...]:
        """What each run took from this data, newest first.

        Raises:
            NotKnown: There is no such holder, or it is another officer's.
            AtTheHolder: In a deployment.
        """
        self._own(actor, Act.OWN_DATA, holder)
        found = self._site.desk(holder).uses()
        with self._store.read() as db:
            titles = dict(db.execute(select(RunRow.id, RunRow.title)).all())
        return tuple(
            UseView(
                run=one["run"],
                title=titles.get(one["run"], "started by a command"),
                rounds=one["rounds"],
                evaluations=one["evaluations"],
                reserved=one["reserved"],
                given_back=one["given_back"],
                epsilon=one["epsilon_micro"] / MICRO,
                delta=one["delta_pico"] / PICO,
            )
            for one in found
        )

    def decisions(self, actor: Actor, holder: str, *, limit: int = 50) -> tuple[DecisionView, ...]:
        """The holder's own decisions, newest first, with the values that nobody else is shown.

        Raises:
            NotKnown: There is no such holder, or it is another officer's.
            AtTheHolder: In a deployment.
        """
        self._own(actor, Act.OWN_DATA, holder)
        if not 1 <= limit <= _MOST_SHOWN:
            raise UsageError("a page cannot be that long", expected=f"1 to {_MOST_SHOWN}", got=str(limit))
        return tuple(_decision(one) for one in self._site.desk(holder).decisions()[:limit])

    def pending(self, actor: Actor, holder: str) -> tuple[str, ...]:
        """Ids of proposals that this officer has not answered and that no run was begun of, newest first.

        Raises:
            NotKnown: There is no such holder, or it is another officer's.
        """
        self._own(actor, Act.APPROVE, holder)
        with self._store.read() as db:
            answered = select(AnswerRow.proposal).where(AnswerRow.holder == holder)
            begun = select(RunRow.proposal).where(RunRow.proposal.is_not(None))
            query = select(ProposalRow.id).where(ProposalRow.id.not_in(answered), ProposalRow.id.not_in(begun))
            return tuple(db.scalars(query.order_by(ProposalRow.id.desc())))

    def answer(self, actor: Actor, holder: str, proposal_id: str, *, approves: bool, note: str = "") -> None:
        """Approve a proposal, or decline to take part in its runs. The policy decides every use besides.

        Raises:
            NotKnown: There is no such holder or proposal, or it is another officer's.
            Conflict: A run of it was begun.
            UsageError: The note is too long, or holds what nobody can see.
        """
        self._own(actor, Act.APPROVE, holder)
        if len(note) > _MOST_REASON:
            raise UsageError("a note is not that long", expected=f"at most {_MOST_REASON} characters")
        check_words(note)
        with self._store.write() as db:
            if db.get(ProposalRow, proposal_id) is None:
                raise NotKnown("there is no such proposal")
            if db.scalars(select(RunRow.id).where(RunRow.proposal == proposal_id)).first() is not None:
                raise Conflict(
                    "a run of this proposal was begun",
                    expected="an answer before that",
                    next_step="suspend use, or revoke the policy, to take the data out of it",
                )
            db.merge(
                AnswerRow(
                    proposal=proposal_id,
                    holder=holder,
                    answer="approved" if approves else "declined",
                    note=note.strip(),
                    by=actor.name,
                    at=now_ms(),
                )
            )

    def ask_first(self, actor: Actor, holder: str, *, wanted: bool) -> None:
        """Want to be asked before a run begins, or let the policy alone decide.

        Raises:
            NotKnown: There is no such holder, or it is another officer's.
        """
        self._own(actor, Act.APPROVE, holder)
        with self._store.write() as db:
            row = db.get(AskFirstRow, holder)
            if wanted and row is None:
                db.add(AskFirstRow(holder=holder, at=now_ms()))
            elif not wanted and row is not None:
                db.delete(row)

    def _own(self, actor: Actor, act: Act, holder: str) -> None:
        allow(actor, act, holder=holder)
        if actor.holder != holder:
            raise NotAllowed("that is for the data holder's own officer", where=act.value)
        self._site.holder(holder)


def _text(text: str) -> PolicyText:
    return PolicyText(text=text, etag=hashlib.sha256(text.encode()).hexdigest()[:32])


def _meter(found: dict[str, Any], *, own: bool) -> Meter:
    unit = _UNITS[found["quantity"]]
    cap, spent, reserved = (found[name] / unit for name in ("cap", "committed", "reserved"))
    used = 1.0 if cap <= 0 else min(1.0, (spent + reserved) / cap)
    whose = "of all uses of the dataset ever" if found["owner_kind"] == "dataset" else "under this policy"
    words = f"{used:.0%} of the {found['quantity']} {whose} is used"
    return Meter(
        owner=found["owner_kind"],
        name=found["owner_id"],
        quantity=found["quantity"],
        used=used,
        cap=cap if own else None,
        spent=spent if own else None,
        reserved=reserved if own else None,
        words=words,
    )


def _decision(found: dict[str, Any]) -> DecisionView:
    return DecisionView(
        at_ms=found["at_ms"],
        run=found["run"],
        round=found["round"],
        point=found["point"],
        action=found["action"],
        permitted=found["effect"] == "permit",
        policy=found["policy"] or "",
        reasons=tuple(
            Reason(clause=one["clause"], sentence=one["meaning"], limit=_limit(one)) for one in found["failed"]
        ),
    )


def _limit(failed: dict[str, Any]) -> str:
    actual = failed.get("actual")
    return failed["limit"] if not actual else f"{failed['limit']} (here: {actual})"
