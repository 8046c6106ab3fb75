"""What text is to each engine: the same texts are equal everywhere, and in the same order.

Two texts are equal if they have the same characters, and their order is that of code points: in
SQLite of itself, in PostgreSQL by the collation "C", in SQL Server by a binary one, of NVARCHAR:
in a database's own collation `A1` may be `a1`, and what a code page lacks becomes a question mark.

SQL Server's order differs in two things that nothing here relies on, because every order and every
comparison with it are the database's own: it goes by UTF-16, which puts characters beyond U+FFFF
before U+E000, and a text is compared as if spaces followed it (see `guarded`).
"""

from typing import Any

from sqlalchemy import Column, Dialect, LargeBinary, String, Text
from sqlalchemy.dialects import mssql
from sqlalchemy.types import TypeDecorator, TypeEngine

BINARY = "Latin1_General_BIN2"
"""The collation of every text in SQL Server; each one since 2005 has it."""

MARK = "\x7f"
"""Ends a name in SQL Server that would end in a space."""


def guarded(name: str) -> str:
    """Give a name as SQL Server stores it.

    To SQL Server texts are equal that differ by spaces at their ends, in any collation. So a name
    that ends in one gets a mark behind it, and so does one that ends in a mark.
    """
    return name + MARK if name.endswith((" ", MARK)) else name


def bare(name: str) -> str:
    """Give the name that SQL Server stores in this way."""
    return name.removesuffix(MARK)


class _Guarded(TypeDecorator[str]):
    """A name in SQL Server."""

    impl = mssql.NVARCHAR
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else guarded(value)

    def process_literal_param(self, value: str | None, dialect: Dialect) -> str:
        return "" if value is None else guarded(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> str | None:
        return None if value is None else bare(value)


def name(length: int) -> TypeEngine[str]:
    """Make the type of names that devices choose, of any characters.

    SQL Server counts a character beyond U+FFFF twice. A mark needs no more room: the space before
    it is one that counts once.
    """
    return _text(length, _Guarded(2 * length, collation=BINARY))


def word(length: int) -> TypeEngine[str]:
    """Make the type of words that the program or the cloud makes, of ASCII characters."""
    return _text(length, mssql.NVARCHAR(length, collation=BINARY))


def clean(text: str, length: int) -> str:
    """Return a foreign text as every database stores it.

    PostgreSQL has no NUL, no server stores half of a surrogate pair, and a text that is longer
    than its column is an error: whatever an engine, a library or a device says must not keep what
    it is about from being stored.

    Parameters
    ----------
    length
        The most characters that are kept.
    """
    return text[:length].replace("\0", "\ufffd").encode(errors="replace").decode()


class _Prose(TypeDecorator[str]):
    """A text for people: cleaned and cut on its way in."""

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        type_ = _text(self.length, mssql.NVARCHAR(2 * self.length, collation=BINARY))
        return dialect.type_descriptor(type_)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else clean(value, self.length)

    def process_literal_param(self, value: str | None, dialect: Dialect) -> str:
        return "" if value is None else clean(value, self.length)


def prose(length: int) -> TypeEngine[str]:
    """Make the type of text for people, of any characters: what comes in is cleaned and cut."""
    return _Prose(length)


def prose_length(column: Column[Any]) -> int:
    """Return the most characters of a column of `prose`; 0 for any other column."""
    return column.type.length if isinstance(column.type, _Prose) else 0


def long_prose() -> TypeEngine[str]:
    """Make the type of text of any length."""
    return Text().with_variant(mssql.NVARCHAR(None, collation=BINARY), "mssql")


def octets() -> TypeEngine[bytes]:
    """Make the type of bytes; IMAGE, which SQLAlchemy would take in SQL Server, is going away."""
    return LargeBinary().with_variant(mssql.VARBINARY("max"), "mssql")  # type: ignore[no-untyped-call]


def _text(length: int, variant: TypeEngine[str]) -> TypeEngine[str]:
    plain = String(length).with_variant(String(length, collation="C"), "postgresql")
    return plain.with_variant(variant, "mssql")
