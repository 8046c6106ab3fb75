"""Blobs that are written only if nobody else was first: what every blob store promises."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from scoring.adapters.azure_blobs import AzureBlobs
from scoring.adapters.blobs import FolderBlobs
from scoring.errors import Conflict, StorageUnusable, Transient
from scoring.ports import Blobs


@pytest.fixture(params=["folder", "azure"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return FolderBlobs(tmp_path / "blobs")
    return AzureBlobs.connect(request.getfixturevalue("account"), f"c{uuid.uuid4().hex}")


class TestCreate:
    def test_a_blob_is_put_where_none_stands(self, blobs: Blobs) -> None:
        created = blobs.create("a/b", b"1")

        assert blobs.read("a/b") == (b"1", created)

    def test_another_blob_is_never_written_over(self, blobs: Blobs) -> None:
        before = blobs.write("a/b", b"theirs")

        with pytest.raises(Conflict, match="'a/b' was changed by another writer"):
            blobs.create("a/b", b"ours")

        assert blobs.read("a/b") == (b"theirs", before)
        assert list(blobs.list("")) == [before]

    @pytest.mark.parametrize("data", [b"", b"ours", b"x" * 9_000_000])
    def test_what_was_written_before_is_no_conflict_and_is_not_written_again(
        self, blobs: Blobs, data: bytes
    ) -> None:
        before = blobs.create("a", data)

        assert blobs.create("a", data) == before
        assert blobs.read("a") == (data, before)

    def test_content_that_differs_in_its_last_byte_is_a_conflict(self, blobs: Blobs) -> None:
        blobs.create("a", b"x" * 9_000_000)

        with pytest.raises(Conflict):
            blobs.create("a", b"x" * 8_999_999 + b"y")

    def test_of_many_that_create_one_blob_one_succeeds(self, blobs: Blobs) -> None:
        together = Barrier(8)

        def create(number: int) -> bool:
            together.wait()
            try:
                blobs.create("a/b", bytes([number]))
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            succeeded = list(pool.map(create, range(8)))

        assert succeeded.count(True) == 1
        assert blobs.read("a/b")[0] == bytes([succeeded.index(True)])


class TestReplace:
    def test_a_blob_that_is_as_it_was_is_replaced(self, blobs: Blobs) -> None:
        before = blobs.write("a", b"before")

        after = blobs.replace("a", b"after", before.etag)

        assert blobs.read("a") == (b"after", after)
        assert after.etag != before.etag

    def test_a_tag_is_the_one_that_reading_and_listing_give(self, blobs: Blobs) -> None:
        blobs.write("a", b"1")
        blobs.replace("a", b"2", blobs.read("a")[1].etag)
        (listed,) = blobs.list("")
        blobs.replace("a", b"3", listed.etag)

        assert blobs.read("a")[0] == b"3"

    def test_a_blob_that_was_written_meanwhile_stays(self, blobs: Blobs) -> None:
        seen = blobs.write("a", b"seen")
        theirs = blobs.write("a", b"theirs")

        with pytest.raises(Conflict, match="changed by another writer"):
            blobs.replace("a", b"ours", seen.etag)

        assert blobs.read("a") == (b"theirs", theirs)

    def test_a_blob_that_was_removed_meanwhile_stays_away(self, blobs: Blobs) -> None:
        seen = blobs.write("a", b"seen")
        blobs.delete("a")

        with pytest.raises(Conflict):
            blobs.replace("a", b"ours", seen.etag)

        assert list(blobs.list("")) == []

    def test_what_was_replaced_by_the_same_before_is_no_conflict(self, blobs: Blobs) -> None:
        seen = blobs.write("a", b"seen")
        ours = blobs.replace("a", b"ours", seen.etag)

        assert blobs.replace("a", b"ours", seen.etag) == ours

    def test_of_many_updates_at_once_none_is_lost(self, blobs: Blobs) -> None:
        blobs.create("a", b"")
        together = Barrier(4)

        def append(number: int) -> None:
            together.wait()
            while True:
                try:
                    data, blob = blobs.read("a")
                    blobs.replace("a", data + bytes([number]), blob.etag)
                except (Conflict, Transient):
                    continue
                return

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(append, range(4)))

        assert sorted(blobs.read("a")[0]) == [0, 1, 2, 3]


class TestFiles:
    @pytest.mark.parametrize("size", [0, 1, 9_000_000])
    def test_a_file_is_written_as_its_bytes_are(
        self, blobs: Blobs, tmp_path: Path, size: int
    ) -> None:
        file = tmp_path / "file"
        file.write_bytes(b"x" * size)

        first = blobs.create("a", file)
        same = blobs.create("a", file)
        second = blobs.replace("a", b"y", first.etag)
        third = blobs.write("a", file)

        assert (first.size, same, second.size) == (size, first, 1)
        assert blobs.read("a") == (b"x" * size, third)

    def test_a_file_that_changes_later_changes_no_blob(self, blobs: Blobs, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.write_bytes(b"before")
        blobs.write("a", file)

        with file.open("r+b") as same:
            same.write(b"after!")

        assert blobs.read("a")[0] == b"before"

    def test_a_file_that_is_not_there_is_named(self, blobs: Blobs, tmp_path: Path) -> None:
        with pytest.raises(StorageUnusable, match=f"cannot read {tmp_path}/missing"):
            blobs.write("a", tmp_path / "missing")

        assert list(blobs.list("")) == []
