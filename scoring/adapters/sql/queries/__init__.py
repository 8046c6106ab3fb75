"""Reads for people, and for training, in SQL."""

from scoring.adapters.sql.queries.incoming import IncomingQueries
from scoring.adapters.sql.queries.runs import RunQueries
from scoring.adapters.sql.queries.windows import WindowQueries

__all__ = ["SqlQueries"]


class SqlQueries(IncomingQueries, RunQueries, WindowQueries):
    """Implements `queries.Queries` on any database."""
