"""Looks up who a cookie or a token belongs to: sessions where sign-on keeps them, tokens where they are issued."""

from collections.abc import Collection

from ringfence_server.control.access import AccessCases
from ringfence_server.control.sign_on_store import SignOnStore
from ringfence_server.control.signon import Caller


class StoredCredentials:
    """What is good at this moment, asked of the store each time.

    Args:
        access: Issues tokens.
        sign_on: Keeps sessions.
    """

    def __init__(self, access: AccessCases, sign_on: SignOnStore) -> None:
        self._access = access
        self._sign_on = sign_on

    def by_session(self, secret: str) -> Caller | None:
        """Whose session this is, if it is still good."""
        return self._sign_on.by_session(secret)

    def by_token(self, token: str) -> Caller | None:
        """Whose API token this is, if it is still good."""
        actor = self._access.by_token(token)
        return Caller(actor=actor, credential=actor.account) if actor is not None else None

    def good(self, names: Collection[str]) -> set[str]:
        """Which of these credentials, named as in `Caller.credential`, are still good."""
        return self._sign_on.good_sessions(names) | self._sign_on.good_tokens(names)
