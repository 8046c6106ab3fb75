"""The content of a file as lines of bytes: unpacked, counted, and its errors translated."""

import gzip
import hashlib
import io
import shutil
import sys
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO, NoReturn, cast

from scoring.errors import StorageUnusable, UnreadableSource

MAX_LINE = 1 << 20
"""Longest line, bytes, as long as the longest event of a hub. A longer one comes in pieces."""

_BLOCK = 1 << 20
_GZIP = b"\x1f\x8b"


@dataclass(slots=True)
class Progress:
    """How much of a file was read, in bytes of its unpacked content."""

    read: int = 0
    total: int = 0


class Source:
    """A file that can be read again and again; standard input by way of a temporary one.

    Raises
    ------
    UnreadableSource
        By every method: the file cannot be opened or read, or its gzip is damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.name = str(path)
        self._path = Path(path)
        self._copy: Path | None = None
        if self.name == "-":
            self._keep(sys.stdin.buffer)
        elif self._path.is_fifo():
            with self._translated(), self._path.open("rb") as pipe:
                self._keep(pipe)

    @property
    def suffix(self) -> str:
        """The ending of the name in lower case, that of packing left out."""
        return Path(self.name.lower().removesuffix(".gz")).suffix

    def modified(self) -> int:
        """When the file was last written, or standard input read; epoch microseconds UTC."""
        with self._translated():
            return self._path.stat().st_mtime_ns // 1000

    def head(self) -> bytes:
        """Give the first block of the content."""
        with self._content() as content:
            return content.read(_BLOCK)

    def digest(self, salt: bytes) -> tuple[str, int]:
        """Give the SHA-256 of salt and content, hexadecimal, and the content's size in bytes."""
        digest, size = hashlib.sha256(salt), 0
        with self._content() as content:
            while block := content.read(_BLOCK):
                digest.update(block)
                size += len(block)
        return digest.hexdigest(), size

    def digests(self, salts: Collection[bytes], sizes: Collection[int]) -> dict[str, bytes]:
        """Return the salt by the digest, for all beginnings of the content of some sizes in bytes.

        Sizes that the content does not reach are left out. The content is read once.
        """
        found: dict[str, bytes] = {}
        digests, done = {salt: hashlib.sha256(salt) for salt in salts}, 0
        with self._content() as content:
            for size in sorted(sizes):
                while done < size and (block := content.read(min(_BLOCK, size - done))):
                    for digest in digests.values():
                        digest.update(block)
                    done += len(block)
                if done == size:
                    found |= {digest.hexdigest(): salt for salt, digest in digests.items()}
        return found

    def ends_line_at(self, size: int) -> bool:
        """Whether no line is cut in two by taking the content's first `size` bytes."""
        with self._content() as content:
            left = size - 1
            while left > 0 and (block := content.read(min(_BLOCK, left))):
                left -= len(block)
            last, following = content.read(1), content.read(1)
        return last == b"\n" or following in {b"", b"\n"}

    def lines(self, size: int, progress: Progress) -> Iterator[bytes]:
        """Give the lines, without their line feeds, of the content's first `size` bytes.

        What was added to the file since its digest was taken is not of that digest, and is left.
        """
        rest = b""
        with self._content() as content:
            while size:
                if not (block := content.read(min(_BLOCK, size))):
                    self.refuse("was cut off while it was read")
                size -= len(block)
                progress.read += len(block)
                *lines, rest = (rest + block).split(b"\n")
                yield from lines
                if len(rest) > MAX_LINE:
                    yield rest
                    rest = b""
        if rest:
            yield rest

    def close(self) -> None:
        """Remove the copy of standard input."""
        if self._copy:
            self._copy.unlink(missing_ok=True)

    def refuse(self, reason: str, cause: Exception | None = None) -> NoReturn:
        """Raise the error that says what is wrong with this file."""
        message = f"{self.name}: {reason}"
        raise UnreadableSource(message) from cause

    def _keep(self, stream: BinaryIO) -> None:
        """Copy what can be read only once."""
        try:
            with NamedTemporaryFile(prefix="readings-", delete=False) as file:
                self._copy = self._path = Path(file.name)
                shutil.copyfileobj(stream, file)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                message = f"{self.name} cannot be copied to the folder for temporary files: {error}"
                raise StorageUnusable(message) from error
            raise

    @contextmanager
    def _content(self) -> Iterator[BinaryIO]:
        with self._translated(), self._path.open("rb") as raw:
            if raw.peek(2)[:2] != _GZIP:
                yield raw
            else:
                with gzip.open(raw) as unpacked:
                    # Reads of GzipFile may be short; those of BufferedReader are not.
                    yield io.BufferedReader(cast("io.RawIOBase", unpacked))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            self.refuse("there is no such file", error)
        except IsADirectoryError as error:
            self.refuse("is a folder, not a file of readings", error)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            self.refuse(f"its gzip is damaged or cut off ({error})", error)
        except OSError as error:
            self.refuse(error.strerror or str(error), error)
