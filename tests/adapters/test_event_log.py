"""The embedded system's hub: what was appended can be read again, once, by sequence number."""

import os
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.adapters.event_log import FolderEventLog
from scoring.errors import StorageUnusable
from scoring.readings import EventBatch, Partition
from tests.fakes.event_log import oldest

PARTITION = Partition("simulation", "3")
EVERYTHING = (0, 10**12)


def batch(first: int, last: int, partition: Partition = PARTITION) -> EventBatch:
    numbers = np.arange(first, last + 1, dtype=np.int64)
    bodies = [b"" if n % 7 == 0 else b'{"n":%d}\xff' % n for n in numbers.tolist()]
    return EventBatch(partition, numbers, 1_700_000_000_000_000 + numbers * 250, bodies)


def events(batches: Iterable[EventBatch]) -> list[tuple[int, int, bytes]]:
    return [
        event
        for one in batches
        for event in zip(
            one.sequence_numbers.tolist(), one.enqueued_times.tolist(), one.bodies, strict=True
        )
    ]


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_what_was_appended_is_read_again_byte_by_byte(tmp_path: Path) -> None:
    log = FolderEventLog(tmp_path)
    log.append(batch(0, 99))
    log.append(batch(100, 149))

    again = list(FolderEventLog(tmp_path).read(PARTITION, *EVERYTHING))

    assert events(again) == events([batch(0, 149)])
    assert {one.partition for one in again} == {PARTITION}
    assert all(one.sequence_numbers.dtype == np.int64 for one in again)
    assert all(one.enqueued_times.dtype == np.int64 for one in again)
    assert all(one.connection_device_ids is None for one in again)


def test_names_of_sending_devices_are_kept_where_there_are_any(tmp_path: Path) -> None:
    log = FolderEventLog(tmp_path)
    plain = batch(0, 2)
    named = EventBatch(
        PARTITION, plain.sequence_numbers, plain.enqueued_times, plain.bodies, ["a", None, "b"]
    )
    log.append(named)

    (again,) = log.read(PARTITION, *EVERYTHING)

    assert again.connection_device_ids == ["a", None, "b"]


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 199), max_size=12),
    wanted=st.tuples(st.integers(-5, 205), st.integers(-5, 205)),
    size=st.integers(1, 60),
)
def test_a_range_gives_exactly_its_events_however_they_were_cut(
    cuts: list[int], wanted: tuple[int, int], size: int
) -> None:
    first, last = wanted
    bounds = sorted({0, 200, *cuts})
    with TemporaryDirectory() as root:
        log = FolderEventLog(Path(root))
        for start, end in pairwise(bounds):
            log.append(batch(start, end - 1))
        found = list(log.read(PARTITION, first, last, batch_size=size))

    assert events(found) == [e for e in events([batch(0, 199)]) if first <= e[0] <= last]
    assert all(1 <= len(one) <= size for one in found)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 40)), min_size=1, max_size=10))
def test_appending_events_that_are_there_already_changes_nothing(
    again: list[tuple[int, int]],
) -> None:
    with TemporaryDirectory() as root:
        log = FolderEventLog(Path(root))
        log.append(batch(0, 60))
        before = [(path.name, path.read_bytes()) for path in files(Path(root))]
        for start, length in again:
            log.append(batch(start, min(60, start + length)))

        assert [(path.name, path.read_bytes()) for path in files(Path(root))] == before


def test_a_producer_that_starts_anew_with_other_cuts_appends_only_what_is_new(
    tmp_path: Path,
) -> None:
    log = FolderEventLog(tmp_path)
    log.append(batch(0, 59))
    for first, last in ((0, 39), (40, 79), (80, 99)):
        log.append(batch(first, last))

    assert events(log.read(PARTITION, *EVERYTHING)) == events([batch(0, 99)])


def test_segments_of_two_producers_that_overlap_give_nothing_twice(tmp_path: Path) -> None:
    one, other = FolderEventLog(tmp_path / "1"), FolderEventLog(tmp_path / "2")
    one.append(batch(0, 49))
    other.append(batch(0, 29))
    other.append(batch(30, 79))
    for path in files(tmp_path / "2"):
        path.replace(tmp_path / "1" / PARTITION.hub / PARTITION.id / path.name)

    assert events(one.read(PARTITION, *EVERYTHING)) == events([batch(0, 79)])


def test_events_that_are_not_kept_any_more_are_absent(tmp_path: Path) -> None:
    log = FolderEventLog(tmp_path)
    for first in (0, 10, 20):
        log.append(batch(first, first + 9))
    files(tmp_path)[0].unlink()

    assert oldest(log, PARTITION) == 10
    assert events(log.read(PARTITION, 5, 14)) == events([batch(10, 14)])
    assert events(log.read(PARTITION, 0, 9)) == []


def test_a_hole_in_the_numbers_stays_a_hole(tmp_path: Path) -> None:
    log = FolderEventLog(tmp_path)
    log.append(batch(5, 9))
    log.append(batch(20, 24))

    assert oldest(log, PARTITION) == 5
    assert events(log.read(PARTITION, 0, 22)) == events([batch(5, 9), batch(20, 22)])


def test_a_partition_that_never_spoke_is_empty(tmp_path: Path) -> None:
    log = FolderEventLog(tmp_path / "not made yet")

    assert oldest(log, PARTITION) is None
    assert list(log.read(PARTITION, *EVERYTHING)) == []


def test_an_empty_event_batch_leaves_no_file(tmp_path: Path) -> None:
    FolderEventLog(tmp_path).append(batch(0, -1))

    assert files(tmp_path) == []


def test_partitions_and_hubs_do_not_see_each_other(tmp_path: Path) -> None:
    log = FolderEventLog(tmp_path)
    places = [Partition("a", "0"), Partition("a", "1"), Partition("b", "0")]
    for number, place in enumerate(places):
        log.append(batch(number, number + 5, place))

    assert [oldest(log, place) for place in places] == [0, 1, 2]


@pytest.mark.parametrize("name", ["..", ".", "../../out", "a/b", "grün", "a b", "c:\\d", "%2E"])
def test_no_name_leads_out_of_the_folder_or_to_another_hub(tmp_path: Path, name: str) -> None:
    root = tmp_path / "deep" / "log"
    log = FolderEventLog(root)
    log.append(batch(0, 5, Partition(name, name)))
    log.append(batch(7, 8, Partition("a", "b")))

    assert events(log.read(Partition(name, name), *EVERYTHING)) == events([batch(0, 5)])
    assert all(path.is_relative_to(root) and len(path.relative_to(root).parts) == 3
               for path in files(tmp_path))  # fmt: skip


def test_files_that_are_no_segments_are_left_alone(tmp_path: Path) -> None:
    log = FolderEventLog(tmp_path)
    log.append(batch(0, 5))
    folder = tmp_path / PARTITION.hub / PARTITION.id
    (folder / "tmp1234.part").write_bytes(b"half a segment of a process that was killed")
    (folder / "notes.arrow").write_bytes(b"not ours")

    assert events(log.read(PARTITION, *EVERYTHING)) == events([batch(0, 5)])


def test_what_a_killed_process_was_writing_is_removed_a_day_later(tmp_path: Path) -> None:
    log = FolderEventLog(tmp_path)
    log.append(batch(0, 5))
    folder = tmp_path / PARTITION.hub / PARTITION.id
    for name in ("old", "new"):
        (folder / f".writing-{name}").write_bytes(b"half")
    os.utime(folder / ".writing-old", (0, 0))

    assert oldest(log, PARTITION) == 0
    assert [path.name for path in folder.glob(".writing-*")] == [".writing-new"]


@pytest.mark.parametrize("size", [0, 10, 300])
def test_a_damaged_segment_is_reported_by_its_name(tmp_path: Path, size: int) -> None:
    log = FolderEventLog(tmp_path)
    log.append(batch(0, 50))
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:size])

    with pytest.raises(StorageUnusable, match=path.name):
        list(log.read(PARTITION, *EVERYTHING))


def test_a_folder_that_cannot_be_written_is_reported_and_nothing_stays_behind(
    tmp_path: Path,
) -> None:
    (tmp_path / PARTITION.hub).write_text("a file where the folder should be")
    log = FolderEventLog(tmp_path)

    with pytest.raises(StorageUnusable, match=PARTITION.hub):
        log.append(batch(0, 5))
    assert [path.name for path in files(tmp_path)] == [PARTITION.hub]


def test_a_write_that_fails_half_way_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    log = FolderEventLog(tmp_path)

    with pytest.raises(StorageUnusable, match="no space left"):
        log.append(batch(0, 5))
    assert files(tmp_path) == []
    assert oldest(log, PARTITION) is None
