"""Cursors: where a page ended, as one opaque word.

A cursor is checked, and not signed: what it holds is only ever compared with a key, as a bound
value, and anybody may ask for any place in a list.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TypeVar

from scoring.api.problems import BadCursor

Key = Sequence[str | int]
Row = TypeVar("Row")

_INT64 = 2**63


def encode(listing: str, filters: object, key: Key) -> str:
    """Make the cursor of the page that follows `key` in a list.

    Parameters
    ----------
    listing, filters
        Which list, and what it was asked for: a cursor is good for the same again only.
    """
    text = json.dumps([_tag(listing, filters), *key], separators=(",", ":"))
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(
    cursor: str | None, listing: str, filters: object, types: tuple[type, ...]
) -> tuple[str | int, ...] | None:
    """Give the key that a cursor stands for; None for none.

    Raises
    ------
    BadCursor
        It is not one of this list and these filters.
    """
    if cursor is None:
        return None
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        tag, *key = json.loads(urlsafe_b64decode(padded))
    except (ValueError, TypeError, RecursionError) as error:
        raise _refused() from error
    if tag != _tag(listing, filters) or not _fits(key, types):
        raise _refused()
    return tuple(key)


def page(
    rows: list[Row], limit: int, listing: str, filters: object, key: Callable[[Row], Key]
) -> tuple[list[Row], str | None]:
    """Cut a list that was asked for one row more than `limit`; gives it with the next cursor."""
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], encode(listing, filters, key(rows[limit - 1]))


def _fits(key: list[object], types: tuple[type, ...]) -> bool:
    return len(key) == len(types) and all(map(_is_one, key, types))


def _is_one(value: object, kind: type) -> bool:
    if type(value) is not kind:
        return False
    if isinstance(value, int):
        return -_INT64 <= value < _INT64
    # No database takes a NUL, nor half of a surrogate pair.
    text = str(value)
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _tag(listing: str, filters: object) -> str:
    return blake2b(
        repr((listing, filters)).encode(errors="surrogatepass"), digest_size=6
    ).hexdigest()


def _refused() -> BadCursor:
    return BadCursor("the cursor is not one of this list with these parameters")
