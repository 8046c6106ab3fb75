"""Blobs in a folder: one file a blob, put in place at once and durably."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scoring.errors import BadInput, NotFound, StorageUnusable
from scoring.ports import BlobInfo

_TEMPORARY = ".writing-"


class FolderBlobs:
    """Implements `ports.Blobs` below one folder.

    The ETag is made of the file's modification time in nanoseconds, its size, and its number in
    the file system: two writes within one tick of the clock differ in the last.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, name: str) -> tuple[bytes, BlobInfo]:
        """Give a blob's whole content; raise `NotFound` where there is none."""
        path = self._path(name)
        try:
            with path.open("rb") as file:
                return file.read(), _info(name, os.fstat(file.fileno()))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            message = f"there is no blob {name!r}"
            raise NotFound(message) from error
        except OSError as error:
            raise _unusable(path, error, "read") from error

    def write(self, name: str, data: bytes) -> BlobInfo:
        """Put a blob in place at once and durably, over what stood there."""
        path = self._path(name)
        with storage_errors(path):
            _make_folder(path.parent)
            descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    info = _info(name, os.fstat(file.fileno()))
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)
        return info

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Give the blobs whose names begin with `prefix`, in the order of their names."""
        _check(prefix, prefix.split("/")[:-1])
        folder = self._root / prefix.rpartition("/")[0]
        names = sorted(
            path.relative_to(self._root).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(_TEMPORARY)
        )
        for name in names:
            with suppress(FileNotFoundError):
                if name.startswith(prefix):
                    yield _info(name, (self._root / name).stat())

    def delete(self, prefix: str) -> None:
        """Remove the blobs whose names begin with `prefix`; none is no error."""
        for blob in list(self.list(prefix)):
            with storage_errors(self._root / blob.name):
                (self._root / blob.name).unlink(missing_ok=True)

    def fetch(self, prefix: str, folder: Path) -> None:
        """Place the blobs below `prefix` as files into `folder`; hard links where possible."""
        for blob in self.list(prefix):
            source, target = self._root / blob.name, folder / blob.name.removeprefix(prefix)
            with storage_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                _place(source, target)

    def _path(self, name: str) -> Path:
        _check(name, name.split("/"))
        return self._root / name


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a folder into `StorageUnusable`.

    Raises
    ------
    StorageUnusable
        Naming the path and the cause: disk full, read-only, not allowed, and the like.
    """
    try:
        yield
    except OSError as error:
        raise _unusable(path, error, "write") from error


def _unusable(path: Path, error: OSError, doing: str) -> StorageUnusable:
    cause = os.strerror(error.errno) if error.errno else str(error)
    return StorageUnusable(f"cannot {doing} {path}: {cause.lower()}")


def _check(name: str, parts: list[str]) -> None:
    """Refuse what would lead out of the root, or name one file in two ways."""
    if "\0" in name or not {"", ".", ".."}.isdisjoint(parts):
        message = f"{name!r} is not a blob's name"
        raise BadInput(message)


def _info(name: str, status: os.stat_result) -> BlobInfo:
    etag = f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"
    return BlobInfo(name, etag, status.st_size)


def _place(source: Path, target: Path) -> None:
    """Link or copy a file into place at once: two that fetch the same never meet half of one."""
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=target.parent) as folder:
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
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Some file systems cannot sync a folder.
            raise
    finally:
        os.close(descriptor)
