"""What worker processes have in common."""

import multiprocessing
import os
from multiprocessing import connection
from threading import Thread


def exit_with_parent() -> None:
    """Have this worker process end when its parent does, however that ended.

    A parent that was killed tells nobody, and its workers would wait for work forever.
    """
    Thread(target=_wait_for_parent, name="exit-with-parent", daemon=True).start()


def _wait_for_parent() -> None:
    if parent := multiprocessing.parent_process():
        connection.wait([parent.sentinel])
        os._exit(1)
