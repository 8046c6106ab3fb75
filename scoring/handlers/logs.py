"""Logs of runs that failed, kept in Blob beside what they were about."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from scoring.errors import BadInput, NotFound
from scoring.ports import Blobs, LogTail
from scoring.runs import log_prefix

_STRANGE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True)
class RunLogs:
    """What an engine had logged of a run that failed."""

    blobs: Blobs

    def keep(self, run_id: str, logs: Iterable[LogTail]) -> None:
        """Put logs beside the run; again is as once."""
        for log in logs:
            self.blobs.write(log_prefix(run_id) + _blob_name(log.name), log.text.encode())

    def names(self, run_id: str) -> list[str]:
        """Name the logs of a run, in order."""
        prefix = log_prefix(run_id)
        return [blob.name.removeprefix(prefix) for blob in self.blobs.list(prefix)]

    def read(self, run_id: str, name: str) -> str:
        """Give one log.

        Raises
        ------
        NotFound
            The run has no log of this name.
        """
        try:
            data, _ = self.blobs.read(log_prefix(run_id) + name)
        except (NotFound, BadInput) as error:
            message = f"run {run_id} has no log {name!r}"
            raise NotFound(message) from error
        return data.decode(errors="replace")


def _blob_name(name: str) -> str:
    """Make a log's name one that any blob may have: whoever named it knows nothing of blobs."""
    parts = (_STRANGE.sub("_", part) for part in name.split("/"))
    return "/".join(part if part.strip(".") else "_" for part in parts)
