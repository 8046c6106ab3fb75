"""Instants as epoch microseconds (int64, UTC): from the texts of devices, and back."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MICROSECOND = timedelta(microseconds=1)
SECOND = 1_000_000
"""One second, in microseconds."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A year away from what a datetime holds: the window of a readable instant can be written too.
_EARLIEST = (datetime(2, 1, 1, tzinfo=UTC) - _EPOCH) // MICROSECOND
_LATEST = (datetime(9999, 1, 1, tzinfo=UTC) - _EPOCH) // MICROSECOND - 1
_DATE = len("2026-11-22")
_UTC = pa.timestamp("us", tz="UTC")


def of(moment: datetime) -> int:
    """Epoch microseconds of an aware datetime."""
    return (moment - _EPOCH) // MICROSECOND


def moment(instant: int) -> datetime:
    """Aware UTC datetime of epoch microseconds."""
    return _EPOCH + int(instant) * MICROSECOND


def text(instant: int) -> str:
    """ISO 8601 in UTC, for example ``2026-11-22T23:00:00Z``; a fraction only where there is one."""
    return moment(instant).isoformat().replace("+00:00", "Z")


def parse(
    stamps: Sequence[str | int],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Read event times as devices write them.

    Parameters
    ----------
    stamps
        ISO 8601 date and time with an offset, or without one (then UTC); or epoch milliseconds.
        Of the years 2 to 9998.

    Returns
    -------
    (instants, readable)
        Epoch microseconds, 0 where unreadable; and whether each could be read. What becomes of
        one never depends on its neighbours. Digits past the microsecond are cut off.
    """
    parsed: npt.NDArray[np.bool_] | np.bool_ = np.True_
    try:
        instants = _all_zoned(stamps)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        instants, parsed = _one_by_one(stamps)
    readable = parsed & (instants >= _EARLIEST) & (instants <= _LATEST)
    return instants if readable.all() else np.where(readable, instants, 0), readable


def read(text: str) -> int:
    """Return the instant that a person means by a time, or by a date alone: its first instant.

    Raises
    ------
    ValueError
        It is not of the forms that `parse` reads.
    """
    times, readable = parse([f"{text}T00:00" if len(text) == _DATE else text])
    if not readable[0]:
        message = "not a time such as 2026-11-22T23:00:00Z"
        raise ValueError(message)
    return int(times[0])


def _all_zoned(texts: Sequence[str | int]) -> npt.NDArray[np.int64]:
    parsed = pa.array(texts, pa.string()).cast(_UTC)
    result: npt.NDArray[np.int64] = parsed.view(pa.int64()).to_numpy()
    return result


def _one_by_one(
    stamps: Sequence[str | int],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    instants = np.zeros(len(stamps), dtype=np.int64)
    readable = np.zeros(len(stamps), dtype=bool)
    texts = [i for i, stamp in enumerate(stamps) if isinstance(stamp, str)]
    if texts:
        instants[texts], readable[texts] = _texts(_normalised([stamps[i] for i in texts]))
    for i, stamp in enumerate(stamps):
        if isinstance(stamp, int) and _EARLIEST <= stamp * 1000 <= _LATEST:
            instants[i], readable[i] = stamp * 1000, True
    return instants, readable


def _normalised(texts: Sequence[str | int]) -> pa.Array:
    """Give a Z to the texts that name no offset, and cut their digits to microseconds."""
    array = pc.utf8_upper(pa.array(texts, pa.string()))
    array = pc.replace_substring_regex(array, r"(\.\d{6})\d+", r"\1")
    zoned = pc.match_substring_regex(array, r"[T ].*(Z|[+-]\d\d(:?\d\d)?)$")
    return pc.if_else(zoned, array, pc.binary_join_element_wise(array, "Z", ""))


def _texts(array: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Cast what can be cast: halves an array that fails until the unreadable ones are alone."""
    try:
        return array.cast(_UTC).view(pa.int64()).to_numpy(), np.ones(len(array), dtype=bool)
    except pa.ArrowInvalid:
        if len(array) == 1:
            return np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool)
    middle = len(array) // 2
    left, right = _texts(array[:middle]), _texts(array[middle:])
    return np.concatenate([left[0], right[0]]), np.concatenate([left[1], right[1]])
