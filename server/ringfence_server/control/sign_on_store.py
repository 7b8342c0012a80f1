"""What is kept about who is signed in: sessions, a workshop's links, and sign-ins that were begun."""

from collections.abc import Collection

from sqlalchemy import delete, select

from ringfence_server.control.actor import Actor, Role
from ringfence_server.control.oidc import Attempt
from ringfence_server.control.secrets_at_rest import digest, new_secret, now
from ringfence_server.control.settings import ControlSettings
from ringfence_server.control.signon import Caller
from ringfence_server.control.store.engine import Store
from ringfence_server.control.store.sign_on_tables import LinkRow, SessionRow, SignInRow
from ringfence_server.control.store.tables import TokenRow

ATTEMPT_SECONDS = 600
_LINK_SECONDS = 12 * 3600
# A session's last use is written no oftener than this: reading a page must not write.
_USED_SECONDS = 60
_NAMED_BY = 16


class SignOnStore:
    """Sessions, links and begun sign-ins, in the control plane's store.

    Args:
        store: The store.
        settings: How long sessions last.
    """

    def __init__(self, store: Store, settings: ControlSettings) -> None:
        self._store = store
        self._idle = int(settings.idle.total_seconds())
        self._longest = int(settings.longest.total_seconds())

    def open_session(self, actor: Actor, *, instead_of: str | None = None) -> str:
        """Begin a session, and end the one that the browser had.

        Returns:
            Its secret, for the browser's cookie alone.
        """
        secret, at = new_secret(), now()
        with self._store.write() as db:
            # What is over is swept here, where a row is added: the table stays as small as what is in use.
            db.execute(
                delete(SessionRow).where((SessionRow.begun < at - self._longest) | (SessionRow.used < at - self._idle))
            )
            if instead_of is not None:
                db.execute(delete(SessionRow).where(SessionRow.digest == digest(instead_of)))
            db.add(
                SessionRow(
                    digest=digest(secret),
                    role=actor.role.value,
                    holder=actor.holder,
                    name=actor.name,
                    account=actor.account,
                    begun=at,
                    used=at,
                )
            )
        return secret

    def by_session(self, secret: str) -> Caller | None:
        """Whose session this is, if it is still good."""
        at, key = now(), digest(secret)
        with self._store.read() as db:
            row = db.get(SessionRow, key)
            if row is None or at - row.begun >= self._longest or at - row.used >= self._idle:
                return None
            caller = _caller(row)
            stale = at - row.used >= _USED_SECONDS
        if stale:
            with self._store.write() as db:
                found = db.get(SessionRow, key)
                if found is None:
                    return None
                found.used = at
        return caller

    def end_session(self, secret: str | None) -> None:
        """End a session. One that is over already stays so."""
        if secret:
            with self._store.write() as db:
                db.execute(delete(SessionRow).where(SessionRow.digest == digest(secret)))

    def end_sessions_of(self, account: str) -> int:
        """End every session of an account; how many there were."""
        with self._store.write() as db:
            found = db.scalars(select(SessionRow).where(SessionRow.account == account)).all()
            for row in found:
                db.delete(row)
            return len(found)

    def good_sessions(self, names: Collection[str]) -> set[str]:
        """Which of these credentials, each named as in `Caller.credential`, are sessions that are still good."""
        at = now()
        with self._store.read() as db:
            rows = db.execute(
                select(SessionRow.digest).where(
                    SessionRow.begun > at - self._longest, SessionRow.used > at - self._idle
                )
            ).scalars()
            return {name for row in rows if (name := _name(row)) in names}

    def good_tokens(self, names: Collection[str]) -> set[str]:
        """Which of these credentials are tokens that are still good."""
        ids = {name.removeprefix("token:") for name in names if name.startswith("token:")}
        with self._store.read() as db:
            good = db.scalars(
                select(TokenRow.id).where(
                    TokenRow.id.in_(ids), TokenRow.revoked.is_(None), TokenRow.ends > now() * 1000
                )
            )
            return {f"token:{one}" for one in good}

    def make_link(self, *, role: Role, name: str, holder: str | None = None) -> str:
        """A secret that signs in one browser, once, for the length of a workshop."""
        secret = new_secret()
        with self._store.write() as db:
            db.add(
                LinkRow(digest=digest(secret), role=role.value, holder=holder, name=name, ends=now() + _LINK_SECONDS)
            )
        return secret

    def use_link(self, secret: str) -> Actor | None:
        """Who a link is for. It is used up."""
        with self._store.write() as db:
            row = db.scalars(delete(LinkRow).where(LinkRow.digest == digest(secret)).returning(LinkRow)).one_or_none()
            if row is None or row.ends <= now():
                return None
            return Actor(
                role=Role(row.role),
                name=row.name,
                holder=row.holder,
                via="session",
                account=f"workshop:{row.holder or row.role}",
            )

    def forget_links(self) -> None:
        """Make every link that was not used worthless: a workshop's end, and the start of the next one."""
        with self._store.write() as db:
            db.execute(delete(LinkRow))

    def keep_attempt(self, attempt: Attempt) -> str:
        """Keep a sign-in that was begun.

        Returns:
            A secret for the cookie of the browser that began it.
        """
        secret, at = new_secret(), now()
        with self._store.write() as db:
            db.execute(delete(SignInRow).where(SignInRow.begun < at - ATTEMPT_SECONDS))
            db.add(
                SignInRow(
                    digest=digest(secret), state=attempt.state, nonce=attempt.nonce, verifier=attempt.verifier, begun=at
                )
            )
        return secret

    def take_attempt(self, secret: str) -> Attempt | None:
        """The sign-in that this browser began, once."""
        with self._store.write() as db:
            row = db.scalars(
                delete(SignInRow).where(SignInRow.digest == digest(secret)).returning(SignInRow)
            ).one_or_none()
            if row is None or now() - row.begun > ATTEMPT_SECONDS:
                return None
            return Attempt(row.state, row.nonce, row.verifier)


def _caller(row: SessionRow) -> Caller:
    actor = Actor(role=Role(row.role), name=row.name, holder=row.holder, via="session", account=row.account)
    return Caller(actor=actor, credential=_name(row.digest))


def _name(key: str) -> str:
    return f"session:{key[:_NAMED_BY]}"
