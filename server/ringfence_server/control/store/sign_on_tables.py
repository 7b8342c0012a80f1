"""Tables of sign-on: sessions of browsers, one-time links, and sign-ins that were begun. Only digests of secrets.

Times are whole seconds since 1970.
"""

from sqlalchemy import BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from ringfence_server.control.store.tables import Base


class SessionRow(Base):
    """A browser's session."""

    __tablename__ = "sessions"
    __table_args__ = (Index("sessions_account", "account"),)

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(32))
    holder: Mapped[str | None] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(200))
    account: Mapped[str] = mapped_column(String(500))
    begun: Mapped[int] = mapped_column(BigInteger)
    used: Mapped[int] = mapped_column(BigInteger)


class LinkRow(Base):
    """A link that signs one browser in, once."""

    __tablename__ = "links"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(32))
    holder: Mapped[str | None] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(200))
    ends: Mapped[int] = mapped_column(BigInteger)


class SignInRow(Base):
    """A sign-in that a browser began and that the identity provider has not answered yet."""

    __tablename__ = "sign_ins"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    state: Mapped[str] = mapped_column(String(100))
    nonce: Mapped[str] = mapped_column(String(100))
    verifier: Mapped[str] = mapped_column(String(200))
    begun: Mapped[int] = mapped_column(BigInteger)
