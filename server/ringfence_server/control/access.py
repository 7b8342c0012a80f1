"""Use cases of access: tokens for scripts, and the record of what regulators looked at."""

import secrets

from sqlalchemy import select

from ringfence_policy.errors import NotKnown, UsageError
from ringfence_server.control.actor import Actor, Role
from ringfence_server.control.pages_of import checked, number_in, page_of
from ringfence_server.control.permissions import Act, allow
from ringfence_server.control.secrets_at_rest import digest, new_secret
from ringfence_server.control.store.engine import Store
from ringfence_server.control.store.tables import ReadRow, TokenRow
from ringfence_server.control.times import now_ms
from ringfence_server.control.views import Page, ReadView, TokenView

_DAY_MS = 24 * 60 * 60 * 1000
_LONGEST_DAYS = 366
_SAME_LOOK_MS = 10 * 60 * 1000
_MARK = "rf"


class AccessCases:
    """What is asked about access.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def issue_token(self, actor: Actor, *, name: str, role: Role, holder: str | None, days: int) -> TokenView:
        """Make a token with which a script speaks for a role. Its secret is in the answer and nowhere else.

        Raises:
            NotAllowed: The role may not do this.
            UsageError: It would last for no time or too long, or a role and a holder do not fit.
        """
        allow(actor, Act.ISSUE_TOKENS)
        if not 1 <= days <= _LONGEST_DAYS or (role is Role.HOLDER) != (holder is not None) or not name.strip():
            raise UsageError(
                "a token cannot be made like this",
                expected=f"a name, 1 to {_LONGEST_DAYS} days, and a holder exactly for the role holder",
                got=f"{days} days, role {role.value}, {'a' if holder else 'no'} holder",
            )
        made, number, secret = now_ms(), secrets.token_hex(6), new_secret()
        row = TokenRow(
            id=number,
            digest=digest(f"{_MARK}_{number}_{secret}"),
            name=name.strip()[:200],
            role=role.value,
            holder=holder,
            by=actor.name,
            made=made,
            ends=made + days * _DAY_MS,
            revoked=None,
        )
        with self._store.write() as db:
            db.add(row)
        return _token(row).model_copy(update={"secret": f"{_MARK}_{number}_{secret}"})

    def tokens(self, actor: Actor) -> tuple[TokenView, ...]:
        """Every token, newest first, without its secret."""
        allow(actor, Act.ISSUE_TOKENS)
        with self._store.read() as db:
            return tuple(
                _token(row) for row in db.scalars(select(TokenRow).order_by(TokenRow.made.desc(), TokenRow.id))
            )

    def revoke_token(self, actor: Actor, token_id: str) -> TokenView:
        """End a token at once. Ending it twice changes nothing.

        Raises:
            NotKnown: There is no such token.
        """
        allow(actor, Act.ISSUE_TOKENS)
        with self._store.write() as db:
            row = db.get(TokenRow, token_id)
            if row is None:
                raise NotKnown("there is no such token")
            row.revoked = row.revoked or now_ms()
            return _token(row)

    def by_token(self, secret: str) -> Actor | None:
        """Whom a token speaks for, if it is good at this moment. For sign-on alone."""
        with self._store.read() as db:
            row = db.scalars(select(TokenRow).where(TokenRow.digest == digest(secret))).one_or_none()
        if row is None or row.revoked is not None or now_ms() >= row.ends:
            return None
        return Actor(role=Role(row.role), name=row.name, holder=row.holder, via="token", account=f"token:{row.id}")

    def note_read(self, actor: Actor, what: str) -> None:
        """Keep that a regulator looked at something; called by the use cases themselves.

        Pages look again and again: the same look by the same account is kept once in ten minutes.
        """
        if actor.role is not Role.REGULATOR:
            return
        now, what = now_ms(), what[:200]
        again = select(ReadRow.id).where(
            ReadRow.account == actor.account, ReadRow.what == what, ReadRow.at > now - _SAME_LOOK_MS
        )
        with self._store.read() as db:
            is_kept = db.scalars(again.limit(1)).first() is not None
        if not is_kept:
            with self._store.write() as db:
                db.add(ReadRow(at=now, by=actor.name, account=actor.account, what=what))

    def reads(self, actor: Actor, *, cursor: str | None = None, limit: int = 50) -> Page[ReadView]:
        """What regulators looked at, newest first."""
        allow(actor, Act.SEE_READS)
        query = select(ReadRow).order_by(ReadRow.id.desc()).limit(checked(limit) + 1)
        if cursor is not None:
            query = query.where(ReadRow.id < number_in(cursor))
        with self._store.read() as db:
            rows = list(db.scalars(query))
        return page_of(
            rows, limit, place=lambda row: row.id, view=lambda row: ReadView(at_ms=row.at, by=row.by, what=row.what)
        )


def _token(row: TokenRow) -> TokenView:
    return TokenView(
        id=row.id,
        name=row.name,
        role=row.role,
        holder=row.holder,
        by=row.by,
        made_ms=row.made,
        ends_ms=row.ends,
        revoked_ms=row.revoked,
    )
