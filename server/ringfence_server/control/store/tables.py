"""Tables of the control plane. Times are whole milliseconds since 1970; documents are JSON text.

What a run or a holder wrote itself stays the truth. `runs` and `events` mirror it; the others have no other home.
"""

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_ID = String(64)
_NAME = String(200)
_ACCOUNT = String(500)


class Base(DeclarativeBase):
    """The tables' common base."""


class SiteRow(Base):
    """The one directory whose runs are kept here, by the name that it gave itself."""

    __tablename__ = "site"

    name: Mapped[str] = mapped_column(_ID, primary_key=True)


class ProposalRow(Base):
    """A plan that somebody proposed."""

    __tablename__ = "proposals"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    plan_id: Mapped[str] = mapped_column(_NAME)
    title: Mapped[str] = mapped_column(_NAME)
    plan: Mapped[str] = mapped_column(Text)
    by: Mapped[str] = mapped_column(_NAME)
    account: Mapped[str] = mapped_column(_ACCOUNT)
    at: Mapped[int] = mapped_column(BigInteger)


class AnswerRow(Base):
    """What a data officer said to a proposal."""

    __tablename__ = "answers"

    proposal: Mapped[str] = mapped_column(ForeignKey("proposals.id"), primary_key=True)
    holder: Mapped[str] = mapped_column(_ID, primary_key=True)
    answer: Mapped[str] = mapped_column(String(16))
    note: Mapped[str] = mapped_column(Text)
    by: Mapped[str] = mapped_column(_NAME)
    at: Mapped[int] = mapped_column(BigInteger)


class AskFirstRow(Base):
    """A data holder that wants to be asked before a run begins; without a row its policy alone decides."""

    __tablename__ = "ask_first"

    holder: Mapped[str] = mapped_column(_ID, primary_key=True)
    at: Mapped[int] = mapped_column(BigInteger)


class RunRow(Base):
    """A run as far as it was mirrored. `read_to` is how many bytes of its events were."""

    __tablename__ = "runs"
    __table_args__ = (Index("runs_state", "state"),)

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    proposal: Mapped[str | None] = mapped_column(ForeignKey("proposals.id"))
    title: Mapped[str] = mapped_column(_NAME)
    state: Mapped[str] = mapped_column(String(16))
    wanted: Mapped[str] = mapped_column(String(16))
    seed: Mapped[int | None] = mapped_column(BigInteger)
    rounds: Mapped[int]
    by: Mapped[str] = mapped_column(_NAME)
    account: Mapped[str] = mapped_column(_ACCOUNT)
    reason: Mapped[str] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    begun: Mapped[int] = mapped_column(BigInteger)
    changed: Mapped[int] = mapped_column(BigInteger)
    read_to: Mapped[int] = mapped_column(BigInteger)


class EventRow(Base):
    """One event of a run, named by the place of its end in the run's own file: mirroring twice changes nothing."""

    __tablename__ = "events"

    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    body: Mapped[str] = mapped_column(Text)


class OnceRow(Base):
    """A request with an idempotency key, and what came of it."""

    __tablename__ = "once"

    account: Mapped[str] = mapped_column(_ACCOUNT, primary_key=True)
    key: Mapped[str] = mapped_column(_NAME, primary_key=True)
    request: Mapped[str] = mapped_column(_ID)
    result: Mapped[str] = mapped_column(_ID)
    at: Mapped[int] = mapped_column(BigInteger)


class TokenRow(Base):
    """A token for scripts; only the digest of its secret."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    digest: Mapped[str] = mapped_column(_ID, unique=True)
    name: Mapped[str] = mapped_column(_NAME)
    role: Mapped[str] = mapped_column(String(32))
    holder: Mapped[str | None] = mapped_column(_ID)
    by: Mapped[str] = mapped_column(_NAME)
    made: Mapped[int] = mapped_column(BigInteger)
    ends: Mapped[int] = mapped_column(BigInteger)
    revoked: Mapped[int | None] = mapped_column(BigInteger)


class ReadRow(Base):
    """What a regulator looked at."""

    __tablename__ = "reads"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[int] = mapped_column(BigInteger)
    by: Mapped[str] = mapped_column(_NAME)
    account: Mapped[str] = mapped_column(_ACCOUNT)
    what: Mapped[str] = mapped_column(_NAME)
