"""Sessions, one-time links, and sign-ins that were begun."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_DIGEST = sa.String(64)
_NAME = sa.String(200)


def upgrade() -> None:
    """Make the tables of sign-on."""
    op.create_table(
        "sessions",
        sa.Column("digest", _DIGEST, primary_key=True),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("holder", sa.String(64)),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("account", sa.String(500), nullable=False),
        sa.Column("begun", sa.BigInteger, nullable=False),
        sa.Column("used", sa.BigInteger, nullable=False),
    )
    op.create_index("sessions_account", "sessions", ["account"])
    op.create_table(
        "links",
        sa.Column("digest", _DIGEST, primary_key=True),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("holder", sa.String(64)),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("ends", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "sign_ins",
        sa.Column("digest", _DIGEST, primary_key=True),
        sa.Column("state", sa.String(100), nullable=False),
        sa.Column("nonce", sa.String(100), nullable=False),
        sa.Column("verifier", _NAME, nullable=False),
        sa.Column("begun", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Take them away."""
    op.drop_table("sign_ins")
    op.drop_table("links")
    op.drop_index("sessions_account", "sessions")
    op.drop_table("sessions")
