"""Room for updates in the pages of the windows, on PostgreSQL."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Leave room in every page that is filled from now on."""
    _set("SET (fillfactor = 70)")


def downgrade() -> None:
    """Fill pages to the brim again."""
    _set("RESET (fillfactor)")


def _set(option: str) -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE window_partials {option}")
