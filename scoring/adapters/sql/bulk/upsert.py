"""What an upsert says, before an engine puts it in its own words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Table

Row = Sequence[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Upsert:
    """Insert rows; where a row of the same key stands, change it.

    Attributes
    ----------
    names
        The columns that rows give, in order; the primary key among them.
    change
        Gives the new values by column, from the collections of the old and the given columns.
    where
        Whether the old row is changed at all; None changes every one.
    """

    table: Table
    names: tuple[str, ...]
    change: Callable[[Any, Any], dict[str, Any]]
    where: Callable[[Any, Any], ColumnElement[bool]] | None = None

    @property
    def key(self) -> list[str]:
        """The columns of the primary key."""
        return [column.name for column in self.table.primary_key]

    def json(self, rows: Sequence[Row]) -> str:
        """Give rows as one JSON array of objects; floats keep every bit."""
        return as_json(self.names, rows)


def as_json(names: Sequence[str], rows: Sequence[Row]) -> str:
    """Return rows as one JSON array of objects; bytes become hexadecimal digits."""
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    for one in objects:
        one.update({name: value.hex() for name, value in one.items() if type(value) is bytes})
    return msgspec.json.encode(objects).decode()
