"""The directory that a database belongs to."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make its table."""
    op.create_table("site", sa.Column("name", sa.String(64), primary_key=True))


def downgrade() -> None:
    """Take it away again."""
    op.drop_table("site")
