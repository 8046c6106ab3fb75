"""Add when a sensor that is set aside was last tried."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("suspects", sa.Column("tried_at", sa.BigInteger()))


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("suspects") as table:
        table.drop_column("tried_at")
