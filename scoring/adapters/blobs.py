"""Blobs in a folder: one file a blob, put in place at once and durably."""

import fcntl
import filecmp
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scoring.errors import Conflict, NotFound
from scoring.ports import BlobInfo
from scoring.storage import (
    DRAFT,
    check_blob_name,
    check_blob_prefix,
    draft_of,
    is_blob_name,
    remove_abandoned,
    storage_errors,
    sync_file,
    sync_folder,
)

_Condition = Callable[[BlobInfo | None], bool]
"""Whether a blob may be put where this one stands, or none."""


class FolderBlobs:
    """Implements `ports.Blobs` below one folder.

    The ETag is made of the file's modification time in nanoseconds, its size, and its number in
    the file system: two writes within one tick of the clock differ in the last. Drafts that a
    killed process left are removed when their folder is listed, a day later.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, name: str) -> tuple[bytes, BlobInfo]:
        """Give a blob's whole content; raise `NotFound` where there is none."""
        path = self._path(name)
        with storage_errors(path, "read"):
            try:
                with path.open("rb") as file:
                    return file.read(), _info(name, os.fstat(file.fileno()))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                message = f"there is no blob {name!r}"
                raise NotFound(message) from error

    def write(self, name: str, data: bytes | Path) -> BlobInfo:
        """Put a blob in place at once and durably, over what stood there."""
        return self._put(name, data, lambda _: True)

    def create(self, name: str, data: bytes | Path) -> BlobInfo:
        """Put a blob where none stands; raise `Conflict` where another one does."""
        return self._put(name, data, lambda standing: standing is None)

    def replace(self, name: str, data: bytes | Path, etag: str) -> BlobInfo:
        """Put a blob over the one with this tag; raise `Conflict` where another one stands."""
        return self._put(
            name, data, lambda standing: standing is not None and standing.etag == etag
        )

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Give the blobs whose names begin with `prefix`, in the order of their names."""
        check_blob_prefix(prefix)
        folder = self._root / prefix.rpartition("/")[0]
        for name in sorted(path.relative_to(self._root).as_posix() for path in _files(folder)):
            with suppress(FileNotFoundError):
                if name.startswith(prefix) and is_blob_name(name):
                    yield _info(name, (self._root / name).stat())

    def delete(self, prefix: str) -> None:
        """Remove the blobs whose names begin with `prefix`; none is no error."""
        for blob in list(self.list(prefix)):
            path = self._root / blob.name
            with storage_errors(path), _locked(path.parent):
                path.unlink(missing_ok=True)

    def fetch(self, prefix: str, folder: Path) -> None:
        """Place the blobs below `prefix` as files into `folder`; hard links where possible."""
        for draft in folder.glob(f"{DRAFT}*"):
            remove_abandoned(draft)
        for blob in self.list(prefix):
            source, target = self._root / blob.name, folder / blob.name.removeprefix(prefix)
            with storage_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                _place(source, target)

    def _path(self, name: str) -> Path:
        check_blob_name(name)
        return self._root / name

    def _put(self, name: str, data: bytes | Path, may: _Condition) -> BlobInfo:
        path = self._path(name)
        with storage_errors(path):
            _make_folder(path.parent)
            with draft_of(path) as draft:
                _fill(draft, data)
                with _locked(path.parent):
                    info = _settle(name, draft, path, may)
            # Of what another process has just put there, too: it may not have come so far.
            sync_folder(path.parent)
        return info


def _settle(name: str, draft: Path, path: Path, may: _Condition) -> BlobInfo:
    """Put a draft in place, or find what stands there the same."""
    info, standing = _info(name, draft.stat()), None
    if path.is_file():
        standing = _info(name, path.stat())
    if may(standing):
        draft.replace(path)
        return info
    if standing is None or not filecmp.cmp(draft, path, shallow=False):
        message = f"blob {name!r} was changed by another writer"
        raise Conflict(message)
    return standing


def _files(folder: Path) -> Iterator[Path]:
    """Give the files that are whole."""
    with storage_errors(folder, "read"):
        for path in folder.rglob("*"):
            if path.name.startswith(DRAFT):
                remove_abandoned(path)
            elif path.is_file():
                yield path


def _fill(draft: Path, data: bytes | Path) -> None:
    if isinstance(data, Path):
        with storage_errors(data, "read"):
            shutil.copyfile(data, draft)
    else:
        draft.write_bytes(data)
    sync_file(draft)


def _info(name: str, status: os.stat_result) -> BlobInfo:
    etag = f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"
    return BlobInfo(name, etag, status.st_size)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other writers, of other processes too, from putting a blob into the same folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _place(source: Path, target: Path) -> None:
    """Link or copy a file into place at once: two that fetch the same never meet half of one."""
    with tempfile.TemporaryDirectory(prefix=DRAFT, dir=target.parent) as folder:
        copy = Path(folder) / target.name
        try:
            copy.hardlink_to(source)
        except OSError:  # Another file system, or one without links.
            shutil.copyfile(source, copy)
        copy.replace(target)


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, and their names durable."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
