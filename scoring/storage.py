"""Files put in place whole, and what the operating system says of them in this project's words."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scoring.errors import BadInput, StorageUnusable

DRAFT = ".writing-"
"""How the names of drafts begin: of files and folders that are not whole yet."""

ABANDONED = 24 * 60 * 60
"""Seconds after which a draft was left behind by a process that was killed."""


MAX_BLOB_NAME = 1024
"""Characters of a blob's name, as in Azure."""


def is_blob_name(name: str) -> bool:
    """Return whether a text may name a blob: a relative path that leads nowhere but below.

    A container can hold blobs of other names, put there by others. As a file's path, or in a URL,
    such a name would lead out of the folder or the container that it is looked for in.
    """
    parts = name.split("/")
    return len(name) <= MAX_BLOB_NAME and _is_clean(name) and {"", ".", ".."}.isdisjoint(parts)


def check_blob_name(name: str) -> None:
    """Raise `BadInput` unless a text may name a blob."""
    if not is_blob_name(name):
        message = f"{name[:200]!r} is not a blob's name"
        raise BadInput(message)


def check_blob_prefix(prefix: str) -> None:
    """Raise `BadInput` unless names of blobs may begin with a text."""
    folders = prefix.split("/")[:-1]
    if not (_is_clean(prefix) and {"", ".", ".."}.isdisjoint(folders)):
        message = f"{prefix[:200]!r} is not the beginning of a blob's name"
        raise BadInput(message)


def _is_clean(name: str) -> bool:
    # A backslash is a separator to Azure's own tools, and on Windows.
    return "\\" not in name and not any(character < " " for character in name)


@contextmanager
def storage_errors(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn what the operating system says of a file or folder into `StorageUnusable`.

    Raises
    ------
    StorageUnusable
        Naming the path and the cause: disk full, read-only, not allowed, and the like.
    """
    try:
        yield
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno else str(error)
        message = f"cannot {doing} {path}: {cause.lower()}"
        raise StorageUnusable(message) from error


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Give an empty file beside `path`; it is gone at the end unless it was moved into place.

    So a reader, or a crash, never meets half of a file under its final name.
    """
    descriptor, name = tempfile.mkstemp(prefix=DRAFT, dir=path.parent)
    os.close(descriptor)
    draft = Path(name)
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def remove_abandoned(draft: Path) -> None:
    """Remove a draft, a file or a folder, if it is so old that nobody can be writing it.

    What goes meanwhile, or must not be removed, is left: this is nobody's main business.
    """
    try:
        if time.time() - draft.stat().st_mtime < ABANDONED:
            return
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink()
    except OSError:
        return


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    _sync(path)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Some file systems cannot sync a folder.
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
