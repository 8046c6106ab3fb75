"""What it takes for every run to end: open jobs, failed parts, suspects."""

import sqlalchemy as sa
from alembic import op

from scoring.adapters.sql import texts

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table; the engine is at work on the runs that it was given."""
    instant, flag = sa.BigInteger(), sa.Boolean()
    job_is_open: sa.Column[bool] = sa.Column(
        "job_is_open", flag, nullable=False, server_default=sa.false()
    )
    losses = sa.Column("losses", sa.Integer(), nullable=False, server_default="0")
    op.add_column("runs", sa.Column("submitted_at", instant))
    op.add_column("runs", losses)
    op.add_column("runs", job_is_open)
    op.create_index("ix_runs_job_is_open", "runs", ["job_is_open", "state"])
    is_aside: sa.Column[bool] = sa.Column(
        "is_aside", flag, nullable=False, server_default=sa.false()
    )
    cause = sa.Column("cause", texts.prose(1000), nullable=False, server_default="")
    op.add_column("run_parts", is_aside)
    op.add_column("run_parts", cause)
    op.create_table(
        "suspects",
        sa.Column("device", texts.name(128), nullable=False),
        sa.Column("sensor", texts.name(128), nullable=False),
        sa.Column("fleet_version", texts.word(64), nullable=False),
        sa.Column("run_number", sa.Integer(), nullable=False),
        sa.Column("rows", instant, nullable=False),
        sa.Column("sensors", instant, nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("cause", texts.prose(400), nullable=False),
        sa.Column("set_aside_at", instant),
        sa.Column("newest_aside", instant),
        sa.PrimaryKeyConstraint("device", "sensor", name="pk_suspects", mssql_clustered=False),
        sqlite_with_rowid=False,
        comment="Sensors that may be why a part failed, and those that are set aside",
    )
    runs = sa.table("runs", sa.column("job_is_open", flag), sa.column("state", sa.String()))
    with_engine = (runs.c.state == "submitted") | (runs.c.state == "running")
    op.execute(runs.update().where(with_engine).values(job_is_open=sa.true()))


def downgrade() -> None:
    """Drop them."""
    op.drop_table("suspects")
    with op.batch_alter_table("run_parts") as table:
        table.drop_column("cause", mssql_drop_default=True)
        table.drop_column("is_aside", mssql_drop_default=True)
    op.drop_index("ix_runs_job_is_open", "runs")
    with op.batch_alter_table("runs") as table:
        for name in ("job_is_open", "losses", "submitted_at"):
            table.drop_column(name, mssql_drop_default=True)
