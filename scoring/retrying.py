"""What is worth doing again is done again, a few times and soon."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import stamina

from scoring.errors import Transient

ATTEMPTS = 5
"""How often a unit of work is done at most."""

TIMEOUT = 10.0
"""Seconds from its beginning after which no other attempt is made."""

P = ParamSpec("P")
T = TypeVar("T")

# The pauses begin at 0.1 s and double, each with up to 0.3 s on top, so that two that met in a
# deadlock do not meet again: 1.5 to 2.7 s in all.
_retry = stamina.RetryingCaller(
    attempts=ATTEMPTS, timeout=TIMEOUT, wait_initial=0.1, wait_max=2.0, wait_jitter=0.3
)


def _pause(error: Exception) -> bool | float:
    """Return whether to retry after an error, or the seconds that the error asks to wait."""
    return isinstance(error, Transient) and (error.wait or True)


def retried(unit: Callable[P, T]) -> Callable[P, T]:
    """Do a unit of work again where it was `Transient`; then let that pass.

    Only for what can be repeated even if it was done and just its answer was lost: an event batch,
    which the ledger knows by then, or a transition, which finds itself made. One that waited longer
    than `TIMEOUT` for a lock is not done again. An error that names its pause, `Transient.wait`,
    gets that one. Each retry is logged as ``stamina.retry_scheduled`` with its cause, and without
    what the unit was given.
    """

    @wraps(unit)
    def attempt(*args: P.args, **kwargs: P.kwargs) -> T:
        return _retry(_pause, unit, *args, **kwargs)

    return attempt
