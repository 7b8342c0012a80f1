"""Proposals, answers, runs with their events, tokens, and what is remembered of requests and readers."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.String(64)
_NAME = sa.String(200)
_ACCOUNT = sa.String(500)


def upgrade() -> None:
    """Make the first tables."""
    _proposals()
    _runs()
    _access()


def _proposals() -> None:
    op.create_table(
        "proposals",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("plan_id", _NAME, nullable=False),
        sa.Column("title", _NAME, nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("by", _NAME, nullable=False),
        sa.Column("account", _ACCOUNT, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "answers",
        sa.Column("proposal", _ID, sa.ForeignKey("proposals.id"), primary_key=True),
        sa.Column("holder", _ID, primary_key=True),
        sa.Column("answer", sa.String(16), nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("by", _NAME, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "ask_first",
        sa.Column("holder", _ID, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
    )


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("proposal", _ID, sa.ForeignKey("proposals.id")),
        sa.Column("title", _NAME, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("wanted", sa.String(16), nullable=False),
        sa.Column("seed", sa.BigInteger),
        sa.Column("rounds", sa.Integer, nullable=False),
        sa.Column("by", _NAME, nullable=False),
        sa.Column("account", _ACCOUNT, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("begun", sa.BigInteger, nullable=False),
        sa.Column("changed", sa.BigInteger, nullable=False),
        sa.Column("read_to", sa.BigInteger, nullable=False),
    )
    op.create_index("runs_state", "runs", ["state"])
    op.create_table(
        "events",
        sa.Column("run", _ID, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True),
        sa.Column("name", _ID, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )


def _access() -> None:
    op.create_table(
        "once",
        sa.Column("account", _ACCOUNT, primary_key=True),
        sa.Column("key", _NAME, primary_key=True),
        sa.Column("request", _ID, nullable=False),
        sa.Column("result", _ID, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "tokens",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("digest", _ID, nullable=False, unique=True),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("holder", _ID),
        sa.Column("by", _NAME, nullable=False),
        sa.Column("made", sa.BigInteger, nullable=False),
        sa.Column("ends", sa.BigInteger, nullable=False),
        sa.Column("revoked", sa.BigInteger),
    )
    op.create_table(
        "reads",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("by", _NAME, nullable=False),
        sa.Column("account", _ACCOUNT, nullable=False),
        sa.Column("what", _NAME, nullable=False),
    )


def downgrade() -> None:
    """Take them away again."""
    for table in ("reads", "tokens", "once", "events", "runs", "ask_first", "answers", "proposals"):
        op.drop_table(table)
