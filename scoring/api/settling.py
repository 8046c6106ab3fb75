"""Keeps the garbage collector's longest pauses out of the answers.

A full collection looks at every object of the process. What the imports leave, some 130,000 of
them, takes it 45 ms, several times what the largest page takes, and none of it is ever garbage.
"""

import gc
from itertools import count

SETTLED = 100
"""Answers after which a process has loaded what it needs."""

_answers = count(1)


def settle() -> None:
    """Count an answer of this process; once it has settled, leave out what is there by then."""
    if next(_answers) == SETTLED:
        gc.collect()
        gc.freeze()
