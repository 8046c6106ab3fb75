"""What an engine says of a run: its own word for how it stands, and a page about it."""

import sqlalchemy as sa
from alembic import op

from scoring.adapters.sql import texts

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the two columns, empty."""
    for name, length in (("engine_status", 200), ("link", 1000)):
        op.add_column(
            "runs", sa.Column(name, texts.prose(length), nullable=False, server_default="")
        )


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("runs") as table:
        table.drop_column("link", mssql_drop_default=True)
        table.drop_column("engine_status", mssql_drop_default=True)
