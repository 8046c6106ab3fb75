"""Files of readings as event batches: what a body holds, who it is, and what is refused."""

import gzip
import io
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory, gettempdir
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.adapters.files import FileFormat, ReadingsFile
from scoring.errors import BadInput, UnreadableSource
from scoring.readings import EventBatch, FieldNames, Plausible, ReadingDecoder, Reason

HEADER = b"TS,Device,Sensor,Value\n"
NOW = 1_900_000_000_000_000


def rows(count: int, devices: int = 5) -> bytes:
    return b"".join(
        b"2018-08-28 23:%02d:%02d.000,%d,s,%d.5\n" % (n // 60 % 60, n % 60, n % devices, n)
        for n in range(count)
    )


def written(folder: Path, content: bytes, name: str = "readings.csv") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def opened(folder: Path, content: bytes, name: str = "readings.csv") -> ReadingsFile:
    return ReadingsFile.open(written(folder, content, name), arrived_at=NOW)


def bodies(batches: Iterable[EventBatch]) -> list[bytes]:
    return [body for batch in batches for body in batch.bodies]


def events(batches: Iterable[EventBatch]) -> dict[tuple[str, str, int], bytes]:
    found: dict[tuple[str, str, int], bytes] = {}
    for batch in batches:
        for number, body in zip(batch.sequence_numbers.tolist(), batch.bodies, strict=True):
            key = (batch.partition.hub, batch.partition.id, number)
            assert key not in found
            found[key] = body
    return found


def body_of(folder: Path, row: bytes) -> bytes:
    """Give the one body that a row of ``ts,device,sensor,value`` becomes."""
    (body,) = bodies(opened(folder, b"ts,device,sensor,value\n" + row).batches())
    return body


def verdicts(file: ReadingsFile) -> list[Reason]:
    decoder = ReadingDecoder(file.field_names, Plausible(earliest=0))
    return [reject.reason for batch in file.batches() for reject in decoder.decode(batch)[1]]


def test_a_row_becomes_a_body_with_canonical_names(tmp_path: Path) -> None:
    body = body_of(tmp_path, b"2018-08-28 23:00:05.000,1,4,84.53\n")

    assert body == b'{"device":"1","sensor":"4","ts":"2018-08-28 23:00:05.000","value":84.53}'


@pytest.mark.parametrize(
    ("cell", "in_body"),
    [
        ("84.53", "84.53"),
        ("-0", "-0"),
        ("1e-7", "1e-7"),
        ("12345678901234567890.123456789", "12345678901234567890.123456789"),
        (" 7 ", "7"),
        ("NaN", "NaN"),
        ("nan", "NaN"),
        ("inf", "Infinity"),
        ("-Inf", "-Infinity"),
        ("-Infinity", "-Infinity"),
        ("", '""'),
        ("+5", '"+5"'),
        (".5", '".5"'),
        ("5.", '"5."'),
        ("007", '"007"'),
        ("1_000", '"1_000"'),
        ("\u0664", '"\u0664"'),
        ("true", '"true"'),
        ("null", '"null"'),
        ("warm\\", '"warm\\\\"'),
    ],
)
def test_a_value_is_copied_as_a_number_where_json_knows_it_as_one(
    tmp_path: Path, cell: str, in_body: str
) -> None:
    body = body_of(tmp_path, f"0,d,s,{cell}\n".encode())

    assert body.decode().endswith(f',"value":{in_body}}}')


@pytest.mark.parametrize(
    ("cell", "in_body"),
    [
        ("1535497205000", "1535497205000"),
        ("-5", "-5"),
        ("2018-08-28T23:00:05Z", '"2018-08-28T23:00:05Z"'),
        ("1535497205.5", '"1535497205.5"'),
        ("0123", '"0123"'),
    ],
)
def test_an_integer_time_stays_a_number_of_milliseconds(
    tmp_path: Path, cell: str, in_body: str
) -> None:
    assert f'"ts":{in_body},' in body_of(tmp_path, f"{cell},d,s,1\n".encode()).decode()


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=30))
def test_any_name_comes_through_a_quoted_cell_as_it_is(name: str) -> None:
    cell = '"' + name.replace('"', '""') + '"'
    with TemporaryDirectory() as folder:
        body = body_of(Path(folder), f"0,{cell},s,1\n".encode())

    assert json.loads(body)["device"] == name.strip()


@pytest.mark.parametrize(
    "bad",
    [
        b"0,d",
        b"0,d,s,1,extra",
        b'0,"never closed,s,1',
        b'0,"a"b,s,1',
        b"0,\xff\xfe,s,1",
        b"\x00\x01",
        b"," * 5000,
        b"x" * 200_000,
    ],
)
def test_a_row_that_is_none_is_kept_as_it_is_and_leaves_its_neighbours_alone(
    tmp_path: Path, bad: bytes
) -> None:
    good = b"0,d,s,1"
    content = b"ts,device,sensor,value\n" + b"\n".join([good, bad, good])
    file = opened(tmp_path, content)

    found = bodies(file.batches())

    expected = b'{"device":"d","sensor":"s","ts":0,"value":1}'
    assert found.count(expected) == 2
    assert found.count(bad) == 1
    assert len(found) == 3
    assert len(verdicts(file)) == 1


def test_rows_may_end_in_crlf_be_blank_and_lack_the_last_line_feed(tmp_path: Path) -> None:
    content = b'ts,device,sensor,value\r\n0,d,s,1\r\n\r\n  \r\n0,d,s,"2"\r\n0,d\r\n0,d,s,3'

    found = bodies(opened(tmp_path, content).batches(batch_size=1))
    plain = b'{"device":"d","sensor":"s","ts":0,"value":%d}'
    assert sorted(found) == sorted([plain % 1, plain % 2, b"0,d", plain % 3])


def test_columns_are_found_in_any_case_and_order_beside_others(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfSite, "VALUE",sensor , TS,Device\nhome,5,s,0,d\n'

    assert bodies(opened(tmp_path, content).batches()) == [
        b'{"device":"d","sensor":"s","ts":0,"value":5}'
    ]


def test_the_exact_name_of_a_column_wins_over_another_case(tmp_path: Path) -> None:
    content = b"VALUE,value,sensor,ts,device\n1,2,s,0,d\n"

    (body,) = bodies(opened(tmp_path, content).batches())
    assert json.loads(body)["value"] == 2


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = written(tmp_path, b"when,who,what,how much\n0,d,s,5\n")
    file = ReadingsFile.open(path, FieldNames("who", "what", "when", "how much"))

    assert bodies(file.batches()) == [b'{"device":"d","sensor":"s","ts":0,"value":5}']
    assert file.field_names == FieldNames()


LINES = [
    b'{"device":"a","sensor":"s","ts":0,"value":1}',
    b'{"value":2, "ts":0, "sensor":"s", "device" : 17}',
    b"not JSON at all",
    b'{"sensor":"s","ts":0,"value":NaN}',
    b"\xff\xfe",
]


def test_lines_of_json_become_bodies_verbatim(tmp_path: Path) -> None:
    file = opened(tmp_path, b"\n\n".join(LINES) + b"\r\n", "readings.ndjson")

    assert sorted(bodies(file.batches())) == sorted(LINES)
    assert file.field_names == FieldNames()


def test_fields_of_json_keep_their_names_for_the_decoder(tmp_path: Path) -> None:
    names = FieldNames("who", "what", "when", "how much")
    path = written(tmp_path, b'{"who":"d","what":"s","when":0,"how much":5}\n', "r.jsonl")
    file = ReadingsFile.open(path, names)

    assert file.field_names == names
    assert verdicts(file) == []


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson", "a.txt"])
def test_a_device_has_one_partition_in_any_file(tmp_path: Path, name: str) -> None:
    if name == "a.csv":
        content = HEADER + rows(200)
    else:
        content = b"".join(b'{"device":"%d","n":%d}\n' % (n % 5, n) for n in range(200))

    homes: dict[str, set[str]] = {}
    for batch in opened(tmp_path, content, name).batches():
        for body in batch.bodies:
            homes.setdefault(json.loads(body)["device"], set()).add(batch.partition.id)
    # The CRC-32 of the name: files of other formats and other releases agree on it.
    assert homes == {"0": {"1"}, "1": {"3"}, "2": {"1"}, "3": {"3"}, "4": {"0"}}


def test_a_number_and_a_text_name_the_same_device(tmp_path: Path) -> None:
    file = opened(tmp_path, b'{"device":17}\n{"device":"17"}\n', "a.ndjson")

    assert len({batch.partition for batch in file.batches()}) == 1


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 300),
    partitions=st.integers(1, 6),
    order=st.randoms(use_true_random=False),
)
def test_neither_the_size_nor_the_order_of_event_batches_changes_an_event(
    size: int, partitions: int, order: Random
) -> None:
    with TemporaryDirectory() as folder:
        path = written(Path(folder), HEADER + rows(500))
        file = ReadingsFile.open(path, partitions=partitions)
        ids = list(file.partitions)
        order.shuffle(ids)
        expected = events(file.batches())

        mixed = list(file.batches(batch_size=size))
        ordered = list(file.batches(batch_size=size, order=ids))

    assert events(mixed) == expected
    assert events(ordered) == expected
    assert len(expected) == 500
    assert all(len(batch) <= size for batch in mixed + ordered)
    met = list(dict.fromkeys(batch.partition.id for batch in ordered))
    assert met == [one for one in ids if one in set(met)]


def test_sequence_numbers_count_each_partition_from_0_in_the_order_of_the_file(
    tmp_path: Path,
) -> None:
    file = opened(tmp_path, HEADER + rows(500))
    numbers: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    for batch in file.batches(batch_size=37):
        numbers.setdefault(batch.partition.id, []).extend(batch.sequence_numbers.tolist())
        values.setdefault(batch.partition.id, []).extend(
            json.loads(body)["value"] for body in batch.bodies
        )

    assert all(found == list(range(len(found))) for found in numbers.values())
    assert all(found == sorted(found) for found in values.values())


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from("0123"), st.integers(-1, 300)),
    st.sampled_from([None, ["2", "1"], ["3"]]),
)
def test_reading_can_start_after_what_is_there_already(
    after: dict[str, int], order: list[str] | None
) -> None:
    with TemporaryDirectory() as folder:
        file = opened(Path(folder), HEADER + rows(500))
        everything = events(file.batches())
        rest = events(file.batches(batch_size=23, order=order, start_after=after))

    assert rest == {
        (hub, partition, number): body
        for (hub, partition, number), body in everything.items()
        if number > after.get(partition, -1) and (order is None or partition in order)
    }


def test_a_partition_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    file = opened(tmp_path, HEADER + rows(5))

    with pytest.raises(BadInput, match="no partition 4"):
        file.batches(order=["0", "4"])


def test_the_same_content_has_the_same_name_wherever_and_however_packed(tmp_path: Path) -> None:
    content = HEADER + rows(50)
    plain = opened(tmp_path, content, "one.csv")
    moved = opened(tmp_path, content, "two.csv")
    packed = opened(tmp_path, gzip.compress(content), "three.csv.gz")
    disguised = opened(tmp_path, gzip.compress(content, 1), "four.csv")

    assert plain.hub.startswith("file-")
    assert len(plain.hub) == len("file-") + 12
    assert plain.hub == moved.hub == packed.hub == disguised.hub
    assert events(plain.batches()) == events(packed.batches()) == events(disguised.batches())


def test_content_and_partitions_alone_make_another_hub(tmp_path: Path) -> None:
    path = written(tmp_path, b"ts,device,sensor,value,other\n0,d,s,1,2\n", "a.txt")
    longer = written(tmp_path, path.read_bytes() + b"0,d,s,1,2\n", "b.txt")

    hub = ReadingsFile.open(path).hub

    assert ReadingsFile.open(path, FieldNames(value="other")).hub == hub
    assert ReadingsFile.open(path, file_format=FileFormat.NDJSON).hub == hub
    assert ReadingsFile.open(path, arrived_at=NOW).hub == hub
    assert ReadingsFile.open(longer).hub != hub
    assert ReadingsFile.open(path, partitions=5).hub != hub


def test_all_events_are_enqueued_when_the_file_was_last_written(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + rows(20))
    os.utime(path, ns=(0, 1_600_000_000_123_456_789))

    times = np.concatenate([batch.enqueued_times for batch in ReadingsFile.open(path).batches()])
    assert set(times.tolist()) == {1_600_000_000_123_456}


def test_the_enqueued_time_can_be_given(tmp_path: Path) -> None:
    batches = opened(tmp_path, HEADER + rows(20)).batches()

    assert {int(time) for batch in batches for time in batch.enqueued_times} == {NOW}


def test_progress_ends_at_the_total_of_all_passes(tmp_path: Path) -> None:
    content = HEADER + rows(200)
    file = opened(tmp_path, gzip.compress(content), "a.csv.gz")

    assert (file.progress.read, file.progress.total) == (0, len(content))
    list(file.batches(order=["0", "3"]))
    assert (file.progress.read, file.progress.total) == (2 * len(content), 2 * len(content))
    list(file.batches())
    assert (file.progress.read, file.progress.total) == (len(content), len(content))


def test_event_batches_come_while_most_of_a_large_file_is_unread(tmp_path: Path) -> None:
    file = opened(tmp_path, HEADER + rows(200_000))

    next(batches := file.batches())
    assert 0 < file.progress.read < file.progress.total / 2
    batches.close()  # type: ignore[attr-defined]


def test_what_is_added_to_a_file_after_it_was_opened_is_left(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + rows(20))
    file = ReadingsFile.open(path)
    with path.open("ab") as more:
        more.write(rows(5))

    assert len(bodies(file.batches())) == 20


def test_a_file_that_is_cut_off_after_it_was_opened_is_reported(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + rows(20))
    file = ReadingsFile.open(path)
    path.write_bytes(HEADER + rows(10))

    with pytest.raises(UnreadableSource, match="cut off"):
        list(file.batches())


def test_a_line_longer_than_any_event_comes_in_pieces(tmp_path: Path) -> None:
    content = LINES[0] + b"\n" + b"x" * 5_000_000 + b"\n" + LINES[1]
    file = opened(tmp_path, content, "a.ndjson")

    found = bodies(file.batches())
    assert max(map(len, found)) < 3_000_000
    assert found.count(LINES[0]) == found.count(LINES[1]) == 1
    assert sum(map(len, found)) == len(content) - 2


def standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def copies() -> set[str]:
    return {path.name for path in Path(gettempdir()).glob("readings-*")}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_standard_input_is_the_same_as_a_file_of_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    content = HEADER + rows(300)
    expected = events(opened(tmp_path, content).batches())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    standard_input(monkeypatch, pack(content))

    with ReadingsFile.open("-") as file:
        assert len(copies()) == 1
        assert events(file.batches()) == expected
        assert events(file.batches(order=["3", "0", "1", "2"])) == expected
    assert copies() == set()


def test_a_pipe_is_the_same_as_a_file_of_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    content = HEADER + rows(300)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=pipe.write_bytes, args=(content,), daemon=True)
    writer.start()

    with ReadingsFile.open(pipe) as file:
        assert events(file.batches()) == events(opened(tmp_path, content).batches())
    writer.join()
    assert copies() == set()


def test_standard_input_that_is_refused_leaves_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    standard_input(monkeypatch, b"")

    with pytest.raises(UnreadableSource, match="-: is empty"):
        ReadingsFile.open("-")
    assert copies() == set()


@pytest.mark.parametrize(
    ("content", "name", "complaint"),
    [
        (b"", "a.csv", "is empty"),
        (b"", "a.ndjson", "is empty"),
        (b" \n\n", "a.txt", "is empty"),
        (b"\xef\xbb\xbf", "a.csv", "is empty"),
        (b"ts,unit,device\n0,C,d\n", "a.csv", "no column sensor, value; it has: ts, unit, device"),
        (b"ts;device;sensor;value\n", "a.csv", "it has: ts;device;sensor;value"),
        (b'ts,"device\n', "a.csv", "header is not CSV"),
        (b"ts,\xe9,\n", "a.csv", "header is not CSV in UTF-8"),
        (b"PAR1\x15\x04\x15\x00\x00", "a.parquet", "is binary"),
        ("ts,device,sensor,value\n".encode("utf-16"), "a.csv", "is binary or UTF-16"),
        (b'[\n  {"device": 1}\n]', "a.json", "over several lines"),
        (b'{\n  "device": 1\n}', "a.txt", "over several lines"),
        (b'[{"device": 1}' + b', {"device": 1}' * 100_000 + b"]", "a.json", "one long JSON array"),
        (gzip.compress(HEADER, mtime=0)[:20], "a.csv.gz", "gzip is damaged"),
        (b"\x1f\x8bnot gzip", "a.csv.gz", "gzip is damaged"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_whole_is_refused_by_name_and_reason(
    tmp_path: Path, content: bytes, name: str, complaint: str
) -> None:
    path = written(tmp_path, content, name)

    with pytest.raises(UnreadableSource) as caught:
        ReadingsFile.open(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert complaint in str(caught.value)


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableSource, match="no such file"):
        ReadingsFile.open(tmp_path / "missing.csv")
    with pytest.raises(UnreadableSource, match="is a folder"):
        ReadingsFile.open(tmp_path)


def test_a_header_alone_is_a_file_without_readings(tmp_path: Path) -> None:
    assert list(opened(tmp_path, HEADER).batches()) == []


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (b'{"device":1}', "a.csv", FileFormat.CSV),
        (HEADER, "a.jsonl", FileFormat.NDJSON),
        (HEADER, "a.NDJSON.gz", FileFormat.NDJSON),
        (HEADER, "a.dat", FileFormat.CSV),
        (b'\xef\xbb\xbf\n {"device":1}', "a.dat", FileFormat.NDJSON),
        (b'[{"device":1}]', "noending", FileFormat.NDJSON),
    ],
)
def test_the_format_goes_by_the_ending_or_else_by_the_first_character(
    tmp_path: Path, content: bytes, name: str, expected: FileFormat
) -> None:
    try:
        found = opened(tmp_path, content, name).format
    except UnreadableSource as error:
        assert "no column" in str(error)
        found = FileFormat.CSV
    assert found is expected
