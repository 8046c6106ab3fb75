"""Add trials of suspects, progress by events applied, and late readings of segments."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; what is known of progress begins anew."""
    op.add_column("suspects", sa.Column("tried_at", sa.BigInteger()))
    op.add_column("suspects", sa.Column("tried_in", sa.Integer()))
    op.add_column("hub_answers", sa.Column("applied", sa.BigInteger()))
    op.add_column("hub_answers", sa.Column("stuck_since", sa.BigInteger()))
    with op.batch_alter_table("hub_answers") as table:
        table.drop_column("high_water")
    late = sa.Column("late_enqueued", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("segments", late)


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("segments") as table:
        table.drop_column("late_enqueued", mssql_drop_default=True)
    op.add_column("hub_answers", sa.Column("high_water", sa.BigInteger()))
    with op.batch_alter_table("hub_answers") as table:
        table.drop_column("stuck_since")
        table.drop_column("applied")
    with op.batch_alter_table("suspects") as table:
        table.drop_column("tried_in")
        table.drop_column("tried_at")
