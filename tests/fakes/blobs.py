"""Blobs in memory."""

from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

from scoring.errors import Conflict, NotFound
from scoring.ports import BlobInfo


def _nothing(_: str) -> None:
    """Do nothing."""


class MemoryBlobs:
    """Implements `ports.Blobs`; `touched` is told each operation before it is carried out."""

    def __init__(self, touched: Callable[[str], None] = _nothing) -> None:
        self.content: dict[str, bytes] = {}
        self._touched = touched

    def read(self, name: str) -> tuple[bytes, BlobInfo]:
        self._touched(f"read {name}")
        if name not in self.content:
            message = f"there is no blob {name!r}"
            raise NotFound(message)
        return self.content[name], self._info(name)

    def write(self, name: str, data: bytes | Path) -> BlobInfo:
        self._touched(f"write {name}")
        self.content[name] = data if isinstance(data, bytes) else data.read_bytes()
        return self._info(name)

    def create(self, name: str, data: bytes | Path) -> BlobInfo:
        self._touched(f"create {name}")
        content = data if isinstance(data, bytes) else data.read_bytes()
        if self.content.setdefault(name, content) != content:
            message = f"another blob {name!r} stands there"
            raise Conflict(message)
        return self._info(name)

    def replace(self, name: str, data: bytes | Path, etag: str) -> BlobInfo:
        self._touched(f"replace {name}")
        content = data if isinstance(data, bytes) else data.read_bytes()
        standing = self.content.get(name)
        if standing != content and (standing is None or self._info(name).etag != etag):
            message = f"blob {name!r} was changed"
            raise Conflict(message)
        self.content[name] = content
        return self._info(name)

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        self._touched(f"list {prefix}")
        return iter([self._info(name) for name in sorted(self.content) if name.startswith(prefix)])

    def delete(self, prefix: str) -> None:
        self._touched(f"delete {prefix}")
        for name in [name for name in self.content if name.startswith(prefix)]:
            del self.content[name]

    def fetch(self, prefix: str, folder: Path) -> None:
        for name in [name for name in self.content if name.startswith(prefix)]:
            path = folder / name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.content[name])

    def _info(self, name: str) -> BlobInfo:
        data = self.content[name]
        return BlobInfo(name, blake2b(data, digest_size=8).hexdigest(), len(data))
