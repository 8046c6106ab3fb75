"""What every blob store promises; only a folder for now."""

import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoring.adapters.blobs import FolderBlobs
from scoring.errors import BadInput, Conflict, NotFound, StorageUnusable
from scoring.ports import BlobInfo, Blobs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def blobs(root: Path) -> Blobs:
    return FolderBlobs(root)


def names(blobs: Blobs, prefix: str = "") -> list[str]:
    return [blob.name for blob in blobs.list(prefix)]


def failing(code: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


class TestReadingAndWriting:
    @pytest.mark.parametrize("data", [b"", b"\x00\xff", b"x" * 3_000_000])
    def test_what_was_written_is_read(self, blobs: Blobs, data: bytes) -> None:
        written = blobs.write("a/b/c.bin", data)

        assert blobs.read("a/b/c.bin") == (data, written)
        assert (written.name, written.size) == ("a/b/c.bin", len(data))

    def test_a_blob_that_is_not_there_is_not_found(self, blobs: Blobs) -> None:
        with pytest.raises(NotFound, match="no blob 'a/b'"):
            blobs.read("a/b")

    @pytest.mark.parametrize("name", ["a", "a/b/c/d"])
    def test_a_folder_and_what_is_below_a_blob_are_not_found(self, blobs: Blobs, name: str) -> None:
        blobs.write("a/b/c", b"1")

        with pytest.raises(NotFound):
            blobs.read(name)

    def test_a_blob_is_written_over_what_stood_there(self, blobs: Blobs) -> None:
        blobs.write("a", b"long before")
        blobs.write("a", b"now")

        assert blobs.read("a")[0] == b"now"
        assert names(blobs) == ["a"]

    def test_a_name_may_hold_what_a_file_name_may(self, blobs: Blobs) -> None:
        strange = ["ü €/🦆", "a b", "..a", "a..", "-", "*", "C:"]
        for name in strange:
            blobs.write(name, name.encode())

        assert names(blobs) == sorted(strange)
        assert [blobs.read(name)[0].decode() for name in strange] == strange


class TestTags:
    def test_a_blob_has_the_same_tag_wherever_it_is_asked_for(self, blobs: Blobs) -> None:
        written = blobs.write("a", b"1")

        assert blobs.read("a")[1] == written
        assert list(blobs.list("")) == [written]
        assert list(blobs.list("")) == [written]

    def test_a_tag_changes_with_the_content_however_quickly(self, blobs: Blobs) -> None:
        tags = [blobs.write("a", bytes([number])).etag for number in range(50)]

        assert all(before != after for before, after in pairwise(tags))

    def test_a_tag_changes_even_if_the_clock_stands_still(self, blobs: Blobs, root: Path) -> None:
        first = blobs.write("a", b"1")
        at = (root / "a").stat().st_mtime_ns
        blobs.write("a", b"2")
        os.utime(root / "a", ns=(at, at))

        assert blobs.read("a")[1].etag != first.etag


class TestAtomicity:
    @pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
    def test_a_write_that_fails_leaves_what_stood_there_and_nothing_else(
        self, blobs: Blobs, root: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        before = blobs.write("a/b", b"before")
        monkeypatch.setattr(step, failing(errno.ENOSPC))

        with pytest.raises(StorageUnusable, match="no space left"):
            blobs.write("a/b", b"after")

        monkeypatch.undo()
        assert blobs.read("a/b") == (b"before", before)
        assert [path.name for path in root.rglob("*")] == ["a", "b"]

    def test_an_interrupted_write_leaves_what_stood_there(
        self, blobs: Blobs, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        blobs.write("a", b"before")

        def interrupt(_: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            blobs.write("a", b"after")

        assert blobs.read("a")[0] == b"before"
        assert [path.name for path in root.iterdir()] == ["a"]

    def test_a_blob_is_whole_and_durable_before_it_has_its_name(
        self, blobs: Blobs, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps = []
        sync, replace = os.fsync, Path.replace

        def note_sync(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            steps.append("folder" if path.is_dir() else f"file of {path.stat().st_size}")
            sync(descriptor)

        def note_name(self: Path, target: Path) -> Path:
            steps.append(f"name {target.name}")
            return replace(self, target)

        (root / "a").mkdir(parents=True)
        monkeypatch.setattr(os, "fsync", note_sync)
        monkeypatch.setattr(Path, "replace", note_name)
        blobs.write("a/b", b"12345")

        assert steps == ["file of 5", "name b", "folder"]

    def test_folders_made_for_a_blob_are_durable_too(
        self, blobs: Blobs, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced = []
        sync = os.fsync

        def note(descriptor: int) -> None:
            synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", note)
        blobs.write("a/b/c", b"1")

        assert {root.parent, root, root / "a", root / "a" / "b"} <= set(synced)

    def test_what_is_being_written_is_not_listed(self, blobs: Blobs, root: Path) -> None:
        blobs.write("a/b", b"1")
        (root / "a" / ".writing-left-by-a-kill").write_bytes(b"half")

        assert names(blobs) == ["a/b"]

    def test_what_a_killed_process_was_writing_is_removed_a_day_later(
        self, blobs: Blobs, root: Path
    ) -> None:
        blobs.write("a/b", b"1")
        old, new = root / "a" / ".writing-old", root / "a" / ".writing-new"
        for draft in (old, new):
            draft.write_bytes(b"half")
        os.utime(old, (0, 0))
        os.utime(root / "a" / "b", (0, 0))

        assert names(blobs, "a/") == ["a/b"]
        assert sorted(path.name for path in (root / "a").iterdir()) == [".writing-new", "b"]

    def test_of_a_create_that_fails_nothing_stays(self, blobs: Blobs, root: Path) -> None:
        before = blobs.write("a/b", b"theirs")

        with pytest.raises(Conflict):
            blobs.create("a/b", b"ours")
        with pytest.raises(Conflict):
            blobs.replace("a/b", b"ours", "another tag")

        assert blobs.read("a/b") == (b"theirs", before)
        assert [path.name for path in (root / "a").iterdir()] == ["b"]

    def test_what_another_process_has_just_put_in_place_is_made_durable_too(
        self, blobs: Blobs, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        blobs.create("a/b", b"1")
        synced, sync = [], os.fsync

        def note(descriptor: int) -> None:
            synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", note)
        blobs.create("a/b", b"1")

        assert root / "a" in synced


class TestListing:
    @pytest.fixture(autouse=True)
    def write_some(self, blobs: Blobs) -> None:
        for name in ("runs/r1/a", "runs/r1/b", "runs/r10/a", "runs/r2/a", "runs.txt", "z"):
            blobs.write(name, b"1")

    @pytest.mark.parametrize(
        ("prefix", "expected"),
        [
            ("", ["runs.txt", "runs/r1/a", "runs/r1/b", "runs/r10/a", "runs/r2/a", "z"]),
            ("runs", ["runs.txt", "runs/r1/a", "runs/r1/b", "runs/r10/a", "runs/r2/a"]),
            ("runs/r1", ["runs/r1/a", "runs/r1/b", "runs/r10/a"]),
            ("runs/r1/", ["runs/r1/a", "runs/r1/b"]),
            ("runs/r1/b", ["runs/r1/b"]),
            ("runs/r1/b/", []),
            ("nothing/", []),
            ("nothing/at/all", []),
        ],
    )
    def test_a_prefix_is_one_of_names_and_not_of_folders(
        self, blobs: Blobs, prefix: str, expected: list[str]
    ) -> None:
        assert names(blobs, prefix) == expected

    def test_a_blob_that_goes_while_they_are_listed_is_left_out(self, blobs: Blobs) -> None:
        listing = blobs.list("runs/r1/")
        first = next(listing)
        blobs.delete("runs/r1/b")

        assert [first.name, *(blob.name for blob in listing)] == ["runs/r1/a"]

    def test_deleting_takes_what_begins_with_the_prefix(self, blobs: Blobs) -> None:
        blobs.delete("runs/r1")

        assert names(blobs) == ["runs.txt", "runs/r2/a", "z"]

    def test_deleting_nothing_is_no_error(self, blobs: Blobs) -> None:
        blobs.delete("nothing/at/all/")

        assert len(names(blobs)) == 6

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        written=st.sets(st.text("ab/", min_size=1, max_size=6)), prefix=st.text("ab/", max_size=4)
    )
    def test_the_listing_is_what_the_names_say(
        self, tmp_path_factory: pytest.TempPathFactory, written: set[str], prefix: str
    ) -> None:
        blobs = FolderBlobs(tmp_path_factory.mktemp("any"))
        kept: set[str] = set()
        for name in written:
            try:
                blobs.write(name, b"")
                kept.add(name)
            except (BadInput, StorageUnusable):
                # Not a name; or a folder stands there, or a blob where it needs a folder.
                continue

        try:
            assert names(blobs, prefix) == sorted(n for n in kept if n.startswith(prefix))
        except BadInput:
            assert not any(name.startswith(prefix) for name in kept)


class TestFetching:
    def test_blobs_become_files_named_after_the_prefix(self, blobs: Blobs, tmp_path: Path) -> None:
        for name in ("runs/r1/a", "runs/r1/deep/b", "runs/r2/a"):
            blobs.write(name, name.encode())

        blobs.fetch("runs/r1/", tmp_path / "here")

        found = {p.relative_to(tmp_path / "here").as_posix(): p.read_text()
                 for p in (tmp_path / "here").rglob("*") if p.is_file()}  # fmt: skip
        assert found == {"a": "runs/r1/a", "deep/b": "runs/r1/deep/b"}

    def test_what_is_fetched_again_replaces_what_was_there(
        self, blobs: Blobs, tmp_path: Path
    ) -> None:
        for data in (b"before", b"now"):
            blobs.write("r/a", data)
            blobs.fetch("r/", tmp_path / "here")

        assert [p.name for p in (tmp_path / "here").iterdir()] == ["a"]
        assert (tmp_path / "here" / "a").read_bytes() == b"now"

    def test_a_blob_written_later_does_not_change_what_was_fetched(
        self, blobs: Blobs, tmp_path: Path
    ) -> None:
        blobs.write("r/a", b"before")
        blobs.fetch("r/", tmp_path / "here")

        blobs.write("r/a", b"after")

        assert (tmp_path / "here" / "a").read_bytes() == b"before"

    def test_a_fetched_file_shares_the_blobs_bytes_where_it_can(
        self, blobs: Blobs, root: Path, tmp_path: Path
    ) -> None:
        blobs.write("r/a", b"1")
        blobs.fetch("r/", tmp_path / "here")

        assert (tmp_path / "here" / "a").samefile(root / "r" / "a")

    def test_it_is_copied_where_there_are_no_links(
        self, blobs: Blobs, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Path, "hardlink_to", failing(errno.EXDEV))
        blobs.write("r/a", b"1")
        blobs.fetch("r/", tmp_path / "here")

        assert (tmp_path / "here" / "a").read_bytes() == b"1"
        assert not (tmp_path / "here" / "a").samefile(root / "r" / "a")

    def test_what_a_killed_process_had_half_fetched_is_removed_a_day_later(
        self, blobs: Blobs, tmp_path: Path
    ) -> None:
        here = tmp_path / "here"
        for name in ("old", "new"):
            (here / f".writing-{name}").mkdir(parents=True)
            (here / f".writing-{name}" / "half").write_bytes(b"half")
        os.utime(here / ".writing-old", (0, 0))

        blobs.fetch("nothing/", here)

        assert [path.name for path in here.iterdir()] == [".writing-new"]

    def test_nothing_to_fetch_makes_nothing(self, blobs: Blobs, tmp_path: Path) -> None:
        blobs.fetch("nothing/", tmp_path / "here")

        assert not (tmp_path / "here").exists()

    @pytest.mark.parametrize("links", [True, False])
    def test_two_that_fetch_the_same_at_once_get_whole_files(
        self, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, links: bool
    ) -> None:
        if not links:
            monkeypatch.setattr(Path, "hardlink_to", failing(errno.EPERM))
        data = {f"r/{number:02}": bytes([number]) * 100_000 for number in range(20)}
        for name, content in data.items():
            blobs.write(name, content)
        together = Barrier(4)

        def fetch(_: int) -> None:
            together.wait()
            for _ in range(3):
                blobs.fetch("r/", tmp_path / "here")
                for name, content in data.items():
                    assert (tmp_path / "here" / name.removeprefix("r/")).read_bytes() == content

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(fetch, range(4)))
        assert len(list((tmp_path / "here").iterdir())) == len(data)

    def test_a_copy_that_fails_leaves_nothing_half_written(
        self, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def half(_: Path, target: Path) -> None:
            target.write_bytes(b"hal")
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(Path, "hardlink_to", failing(errno.EXDEV))
        monkeypatch.setattr(shutil, "copyfile", half)
        blobs.write("r/a", b"whole")

        with pytest.raises(StorageUnusable, match="no space left"):
            blobs.fetch("r/", tmp_path / "here")

        assert list((tmp_path / "here").iterdir()) == []


ESCAPES = [
    *("../a", "a/../../b", "..", "a/..", "/etc/passwd", "/", "//a", "a//b", "a\0b", "./a"),
    # No file's name here would be wrong, but Windows and Azure's tools take it for two.
    *("a\\..\\b", "a\nb"),
]


class TestNames:
    @pytest.mark.parametrize("name", [*ESCAPES, "", ".", "a/", "a/.", "a" * 1025])
    def test_a_name_that_would_lead_out_or_name_a_file_in_two_ways_is_refused(
        self, blobs: Blobs, tmp_path: Path, name: str
    ) -> None:
        with pytest.raises(BadInput, match="is not a blob's name"):
            blobs.write(name, b"1")
        with pytest.raises(BadInput, match="is not a blob's name"):
            blobs.read(name)

        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("prefix", ["../", "/", "/etc/", "a/../../", "a//", "../secret", "a\0"])
    def test_a_prefix_that_would_lead_out_is_refused(
        self, blobs: Blobs, tmp_path: Path, prefix: str
    ) -> None:
        (tmp_path / "secret").write_text("not a blob")

        with pytest.raises(BadInput):
            names(blobs, prefix)
        with pytest.raises(BadInput):
            blobs.delete(prefix)
        with pytest.raises(BadInput):
            blobs.fetch(prefix, tmp_path / "here")

        assert [path.name for path in tmp_path.iterdir()] == ["secret"]


class TestErrors:
    def test_a_root_below_a_file_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")

        with pytest.raises(StorageUnusable, match=r"cannot write .*file/blobs/a"):
            FolderBlobs(tmp_path / "file" / "blobs").write("a", b"1")

    def test_a_blob_where_a_folder_stands_cannot_be_written(self, blobs: Blobs) -> None:
        blobs.write("a/b", b"1")

        with pytest.raises(StorageUnusable, match="is a directory"):
            blobs.write("a", b"1")

    @pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
    def test_what_the_system_refuses_to_write_says_so(
        self, blobs: Blobs, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        monkeypatch.setattr("tempfile.mkstemp", failing(code))

        with pytest.raises(StorageUnusable, match=os.strerror(code).lower()) as caught:
            blobs.write("a", b"1")

        assert isinstance(caught.value.__cause__, OSError)

    @pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
    def test_what_the_system_refuses_to_read_says_so(
        self, blobs: Blobs, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        blobs.write("a", b"1")
        monkeypatch.setattr(Path, "open", failing(code))

        with pytest.raises(StorageUnusable, match=f"cannot read .*{os.strerror(code).lower()}"):
            blobs.read("a")

    def test_a_name_too_long_for_a_file_says_so(self, blobs: Blobs) -> None:
        with pytest.raises(StorageUnusable, match="name too long"):
            blobs.write("x" * 300, b"1")
        with pytest.raises(StorageUnusable, match="name too long"):
            blobs.read("x" * 300)


def test_what_is_known_of_a_blob_is_its_name_tag_and_size(blobs: Blobs) -> None:
    blob = blobs.write("a", b"123")

    assert isinstance(blob, BlobInfo)
    assert (blob.name, blob.size) == ("a", 3)
    assert blob.etag
