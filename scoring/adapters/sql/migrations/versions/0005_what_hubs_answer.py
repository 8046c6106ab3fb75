"""Add answers of hubs, late readings, and rebuilds of windows in steps."""

import sqlalchemy as sa
from alembic import op

from scoring.adapters.sql import texts

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table."""
    instant = sa.BigInteger()
    op.add_column("epochs", sa.Column("created", instant))
    op.add_column(
        "window_partials",
        sa.Column("late_enqueued", instant, nullable=False, server_default="0"),
    )
    op.add_column("runs", sa.Column("enqueued_until", instant))
    op.add_column(
        "segments", sa.Column("rebuild", sa.Integer(), nullable=False, server_default="0")
    )
    op.create_index(
        "ix_segments_rebuild", "segments", ["rebuild", "partition", "epoch", "first_sequence"]
    )
    # What runs that had ended kept in versions before 0004.
    op.execute(
        "UPDATE window_partials SET claimed_by = NULL WHERE claimed_by IN"
        " (SELECT number FROM runs WHERE state IN ('failed', 'canceled'))"
    )
    op.create_table(
        "hub_answers",
        sa.Column("partition", texts.word(300), nullable=False),
        sa.Column("created", instant),
        sa.Column("beginning", instant),
        sa.Column("last", instant),
        sa.Column("last_enqueued", instant),
        sa.Column("is_empty", sa.Boolean()),
        sa.Column("is_absent", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("asked_at", instant),
        sa.Column("epoch", sa.Integer()),
        sa.Column("high_water", instant),
        sa.Column("moved_at", instant),
        sa.Column("behind_since", instant),
        sa.PrimaryKeyConstraint("partition", name="pk_hub_answers"),
        comment="What each hub last said of its partitions, and since when the ledger stands",
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("hub_answers")
    op.drop_index("ix_segments_rebuild", "segments")
    for table, column in (
        ("segments", "rebuild"),
        ("runs", "enqueued_until"),
        ("window_partials", "late_enqueued"),
        ("epochs", "created"),
    ):
        with op.batch_alter_table(table) as altered:
            altered.drop_column(column, mssql_drop_default=True)
