"""Bytes of events to readings: what is read, what is rejected and why, and who is not affected."""

import json
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring import instants
from scoring.readings import (
    MAX_NAME,
    MAX_VALUE,
    EventBatch,
    FieldNames,
    Partition,
    Plausible,
    ReadingDecoder,
    Readings,
    Reason,
    Reject,
)

HUB = Partition("hub", "0")
ENQUEUED = 1_795_388_400_000_000
"""2026-11-22T23:00:00Z."""
GOOD = b'{"device":"pump","sensor":"heat","ts":"2026-11-22T22:59:00Z","value":1.5}'
DECODER = ReadingDecoder()
DEEP = 50_000

Row = tuple[str, str, int, float]
"""A reading: device, sensor, event time, value."""
PUMP: Row = ("pump", "heat", ENQUEUED - 60_000_000, 1.5)


def element(**fields: str | None) -> bytes:
    """Write a reading's object; each field is given as JSON, None leaves it out."""
    texts = {"device": '"pump"', "sensor": '"heat"', "ts": '"2026-11-22T22:59:00Z"', "value": "1.5"}
    given_fields = {key: text for key, text in (texts | fields).items() if text is not None}
    body = "{" + ",".join(f'"{key}":{text}' for key, text in given_fields.items()) + "}"
    return body.encode()


def decode(
    *bodies: bytes,
    decoder: ReadingDecoder = DECODER,
    senders: Sequence[str | None] | None = None,
) -> tuple[Readings, list[Reject]]:
    numbers = np.arange(len(bodies))
    return decoder.decode(
        EventBatch(HUB, numbers, np.full(len(bodies), ENQUEUED), list(bodies), senders)
    )


def rows(readings: Readings) -> list[Row]:
    return list(
        zip(
            readings.device,
            readings.sensor,
            readings.event_time.tolist(),
            readings.value.tolist(),
            strict=True,
        )
    )


def read(*bodies: bytes, decoder: ReadingDecoder = DECODER) -> list[Row]:
    """Decode bodies that are all good."""
    readings, rejects = decode(*bodies, decoder=decoder)
    assert rejects == []
    return rows(readings)


def refused(body: bytes, decoder: ReadingDecoder = DECODER) -> Reject:
    """Decode a body that gives one reject and nothing else."""
    readings, rejects = decode(body, decoder=decoder)
    assert len(readings) == 0
    (reject,) = rejects
    return reject


# --- the forms of a body ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        GOOD,
        b" \r\n" + GOOD + b"\t\n",
        b"\xef\xbb\xbf" + GOOD,
        b"\xef\xbb\xbf  " + GOOD,
        json.dumps(json.loads(GOOD), indent=4).encode(),
        b"[" + GOOD + b"]",
        b"\xef\xbb\xbf[\n" + GOOD + b"\n]\n",
        json.dumps([json.loads(GOOD)], indent=4).encode(),
    ],
    ids=range(8),
)
def test_an_object_may_come_alone_or_in_an_array_pretty_printed_or_with_a_bom(body: bytes) -> None:
    assert read(body) == [PUMP]


@pytest.mark.parametrize(
    ("before", "between", "after"),
    [
        *[(b"[", b",", b"]"), (b"\xef\xbb\xbf[ ", b"\n ,\n", b" ]\n")],
        *[(b"", b"\n", b""), (b"\xef\xbb\xbf", b"\r\n", b"\r\n"), (b"\n", b"\n\n", b"\n")],
    ],
)
def test_an_array_or_lines_give_each_element_in_order(
    before: bytes, between: bytes, after: bytes
) -> None:
    elements = [element(value=str(number)) for number in range(5)]

    readings, rejects = decode(GOOD, before + between.join(elements) + after, GOOD)

    assert rejects == []
    assert readings.value.tolist() == [1.5, 0, 1, 2, 3, 4, 1.5]
    assert readings.event.tolist() == [0, 1, 1, 1, 1, 1, 2]


def test_an_empty_array_holds_nothing_and_is_not_wrong() -> None:
    assert read(b"[]") == read(b" [ ] ") == []


def test_an_empty_event_batch_gives_nothing() -> None:
    assert read() == []


def test_unknown_fields_are_ignored_whatever_they_hold() -> None:
    assert read(element(unit='"C"', nested='{"a":[1,null]}', huge="1e400")) == [PUMP]


def test_of_a_field_that_stands_twice_the_last_one_counts() -> None:
    assert read(element(value="1")[:-1] + b',"value":2}')[0][3] == 2.0


@pytest.mark.parametrize("text", ["0", "-3", "1e3", "1.25", "123456789012345678901234567890"])
def test_any_json_number_is_a_value(text: str) -> None:
    assert read(element(value=text))[0][3] == float(text)


def test_a_negative_zero_is_zero() -> None:
    """The two are equal: which one became a window's minimum would depend on their order."""
    assert [str(row[3]) for row in read(element(value="-0.0"), element(value="-0"))] == ["0.0"] * 2


def test_a_million_bytes_are_read_as_one_object_or_as_thousands() -> None:
    padding = json.dumps("x" * 1_000_000)
    many = b"[" + b",".join([GOOD] * 14_000) + b"]"

    assert read(element(padding=padding)) == [PUMP]
    assert len(many) > 1_000_000
    assert Counter(read(many)) == {PUMP: 14_000}


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["0", "42", "-7", "9" * 40, "9" * 128])
def test_an_integer_is_the_name_that_its_digits_are(number: str) -> None:
    bodies = [element(device=text, sensor=text) for text in (number, f'"{number}"')]

    assert read(bodies[0]) == read(bodies[1]) == [(number, number, *PUMP[2:])]


def test_a_name_has_at_most_128_characters_not_bytes() -> None:
    for name in ("x" * MAX_NAME, "\u00e9" * MAX_NAME, "\U0001f600" * MAX_NAME):
        body = element(device=json.dumps(name), sensor=json.dumps(name, ensure_ascii=False))
        assert read(body) == [(name, name, *PUMP[2:])]


@pytest.mark.parametrize("field", ["device", "sensor"])
@pytest.mark.parametrize(
    "text",
    [
        *[json.dumps("x" * 129), "9" * 129, "9" * 5000, '""', '"a\\u0000b"', '"\\u0000"'],
        *["1.5", "1e400", "true", "[]", "{}"],
    ],
)
def test_a_name_that_no_database_would_store_is_refused(field: str, text: str) -> None:
    body = element(**{field: text})

    assert refused(body).reason == f"bad_{field}"
    assert refused(body).body == body


def test_an_integer_name_among_text_names_is_judged_as_it_is_alone() -> None:
    bodies = [element(device="9" * 129), element(device="7"), GOOD, element(sensor='"\\u0000"')]
    readings, rejects = decode(*bodies)

    assert readings.device == ["7", "pump"]
    assert [reject.event for reject in rejects] == [0, 3]


def test_a_null_sensor_is_no_sensor() -> None:
    assert refused(element(sensor="null")).reason is Reason.BAD_SENSOR


def test_a_missing_device_is_the_one_that_iot_hub_names() -> None:
    bodies = [
        GOOD,
        element(device=None),
        element(device="null"),
        b"[" + element(device=None) + b"]",
    ]
    readings, rejects = decode(*bodies, senders=["a", "b", "c", "d"])

    assert rejects == []
    assert readings.device == ["pump", "b", "c", "d"]


@pytest.mark.parametrize("sender", [None, ""])
def test_without_iot_hub_a_missing_device_is_a_missing_field(sender: str | None) -> None:
    for senders in (None, [sender]):
        _, (reject,) = decode(element(device=None), senders=senders)
        assert reject.reason is Reason.MISSING_FIELD
        assert "device" in reject.detail


def test_an_empty_device_is_wrong_and_not_missing() -> None:
    _, (reject,) = decode(element(device='""'), senders=["a"])

    assert reject.reason is Reason.BAD_DEVICE


@pytest.mark.parametrize("sender", ["x" * 129, "a\0b"])
def test_a_sender_that_no_database_would_store_is_refused(sender: str) -> None:
    readings, rejects = decode(element(device=None), GOOD, senders=[sender, sender])

    assert rows(readings) == [PUMP]
    assert [reject.reason for reject in rejects] == [Reason.BAD_DEVICE]


# --- one bad element --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (element(sensor=None), Reason.MISSING_FIELD),
        (element(ts=None), Reason.MISSING_FIELD),
        (element(value=None), Reason.MISSING_FIELD),
        (b"{}", Reason.MISSING_FIELD),
        *((element(value=text), Reason.NOT_FINITE) for text in ("NaN", "Infinity", "-Infinity")),
        *((element(value=text), Reason.NOT_FINITE) for text in ("1e400", "-1e400", "9" * 400)),
        (element(value="9" * 5000), Reason.NOT_FINITE),
        (element(value="1.1e140"), Reason.BAD_VALUE),
        (element(value="-1" + "0" * 141), Reason.BAD_VALUE),
        *(
            (element(value=text), Reason.BAD_VALUE)
            for text in ("true", "false", "null", '"1.5"', '"NaN"', "[1]", "{}")
        ),
        *(
            (element(ts=text), Reason.BAD_TIME)
            for text in ("true", "null", "1.5", "1e12", "1e400", "9" * 30, "9" * 5000)
        ),
        *(
            (element(ts=json.dumps(text)), Reason.BAD_TIME)
            for text in ("", "now", "2026-11-22", "9999-12-31T23:59:59-14:00", "a\0b")
        ),
        (element(ts='"2026-11-22T23:05:00.000001Z"'), Reason.FROM_FUTURE),
        (element(ts='"9998-12-31T23:59:59Z"'), Reason.FROM_FUTURE),
        (element(unit="NaN"), Reason.NOT_FINITE),
        (element(unit=r'"\ud800"'), Reason.NOT_JSON),
        (element(device=r'"\ud800"'), Reason.NOT_JSON),
        (element(ts=r'"\udfff"'), Reason.NOT_JSON),
        (element(device='"@"').replace(b"@", b"\xff"), Reason.NOT_UTF8),
        (element(ts='"@"').replace(b"@", b"\xc3"), Reason.NOT_UTF8),
        (element(value="[" * DEEP + "]" * DEEP), Reason.BAD_VALUE),
        (element(unit="[" * DEEP + "]" * DEEP), Reason.TOO_DEEP),
        (element(unit='{"a":' * DEEP + "1" + "}" * DEEP), Reason.TOO_DEEP),
        (element(value="1,5"), Reason.NOT_JSON),
        (element(value="01"), Reason.NOT_JSON),
        (element(value="+1"), Reason.NOT_JSON),
        (GOOD[:-1] + b",}", Reason.NOT_JSON),
        *((text, Reason.NOT_AN_OBJECT) for text in (b"3", b'"x"', b"null", b"true")),
    ],
    ids=repr,
)
def test_one_bad_element_is_one_reject_and_drops_no_neighbour(bad: bytes, reason: Reason) -> None:
    alone = refused(bad)
    in_array, array_rejects = decode(b"[" + GOOD + b", " + bad + b" ," + GOOD + b"]")
    in_lines, line_rejects = decode(GOOD + b"\n" + bad + b"\r\n" + GOOD)
    in_batch, batch_rejects = decode(GOOD, bad, GOOD)

    assert rows(in_array) == rows(in_lines) == rows(in_batch) == [PUMP, PUMP]
    assert alone.reason is reason
    assert alone.body == bad
    assert (alone.event, alone.position) == (0, 0)
    assert array_rejects == line_rejects == [Reject(0, 1, alone.reason, alone.detail, bad)]
    assert batch_rejects == [Reject(1, 0, alone.reason, alone.detail, bad)]


# --- a body that is bad as a whole ------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        *(
            (text, Reason.EMPTY_BODY)
            for text in (b"", b" \r\n\t", b"\xef\xbb\xbf", b"\xef\xbb\xbf ")
        ),
        (b"\xff\xfe", Reason.NOT_UTF8),
        (GOOD.decode().encode("utf-16"), Reason.NOT_UTF8),
        (GOOD.decode().encode("utf-16-be") + b"\0\n", Reason.NOT_JSON),
        (b"pump,heat,1.5", Reason.NOT_JSON),
        (b" hello \n world ", Reason.NOT_JSON),
        (GOOD[:-1], Reason.NOT_JSON),
        (GOOD + GOOD, Reason.NOT_JSON),
        (b"[" + GOOD, Reason.NOT_JSON),
        (b"[" + GOOD + b',{"device', Reason.NOT_JSON),
        (b"[" + GOOD + b"," + GOOD + b"]]", Reason.NOT_JSON),
        (b"[" + GOOD[:-1] + b"]", Reason.NOT_JSON),
        (b"[" * DEEP, Reason.TOO_DEEP),
        (b'{"a":' * DEEP, Reason.TOO_DEEP),
        (b"[2026-11-22T22:59:00Z] pump [heat]", Reason.NOT_JSON),
        (b"NaN", Reason.NOT_FINITE),
        (b"\xef\xbb\xbf " + element(value='"1"') + b"\n", Reason.BAD_VALUE),
        (json.dumps(json.loads(GOOD) | {"value": float("nan")}, indent=1).encode(), "not_finite"),
        (json.dumps(json.loads(GOOD), indent=1).encode()[:-1] + b",}", Reason.NOT_JSON),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_body_whose_elements_cannot_be_told_apart_is_one_reject_with_all_its_bytes(
    body: bytes, reason: Reason
) -> None:
    readings, rejects = decode(GOOD, body, GOOD)

    assert rows(readings) == [PUMP, PUMP]
    (reject,) = rejects
    assert (reject.event, reject.position, reject.reason, reject.body) == (1, 0, reason, body)


def test_a_comma_too_many_at_the_end_of_an_array_drops_no_element() -> None:
    readings, rejects = decode(b"[" + GOOD + b",]")

    assert rows(readings) == [PUMP]
    assert [(reject.position, reject.body) for reject in rejects] == [(1, b"")]


def test_brackets_commas_and_quotes_inside_strings_separate_nothing() -> None:
    tricky = element(device=json.dumps('],[{"\\"}],"'))
    readings, rejects = decode(b"[" + tricky + b"," + element(value="NaN") + b"," + tricky + b"]")

    assert readings.device == ['],[{"\\"}],"'] * 2
    assert [(reject.position, reject.reason) for reject in rejects] == [(1, Reason.NOT_FINITE)]


@pytest.mark.parametrize("filling", [rb"\"", b'"', b"[", b"{,", b'"\\', b"\\", b"0,"])
def test_a_million_bytes_of_nonsense_take_no_more_than_reading_them_a_few_times(
    filling: bytes,
) -> None:
    """A pattern that backtracks would need hours here."""
    body = b'["' + filling * (1_000_000 // len(filling)) + b"]"

    assert refused(body).body == body


BROKEN = b'{\n  "device": "d",\n  "readings": [\n%s\n  ]\n  "ts": 1\n}'


@pytest.mark.parametrize(
    "body",
    [
        BROKEN % GOOD,
        BROKEN.replace(b"\n", b"\r\n") % GOOD,
        b"\xef\xbb\xbf\n\n" + BROKEN % GOOD + b"\n \n",
        b"[\n" + GOOD + b"\n" + GOOD + b"\n]",
        b"[\n" + GOOD + b",\n{1}\n]",
        b" [ \n" + GOOD + b",\n ] ",
        b"{\n" + GOOD + b"\n}",
        b"{\n" + GOOD + b"\n]",
    ],
)
def test_a_broken_document_over_several_lines_is_one_reject_with_the_whole_body(
    body: bytes,
) -> None:
    readings, rejects = decode(body)

    assert len(readings) == 0
    assert [(one.reason, one.position, one.body) for one in rejects] == [(Reason.NOT_JSON, 0, body)]


@pytest.mark.parametrize(
    ("body", "good"),
    [
        (b"{\n" + GOOD, 1),
        (GOOD + b"\n}", 1),
        (b"[\n" + GOOD + b"\n", 1),
        (b"{1}\n" + GOOD + b"\n{2}", 1),
        (b"[" + GOOD + b",\n{1},\n" + GOOD + b"]", 2),
    ],
)
def test_everything_else_is_read_element_by_element(body: bytes, good: int) -> None:
    readings, rejects = decode(body)

    assert rows(readings) == [PUMP] * good
    assert rejects


def test_lines_that_are_all_bad_are_a_reject_each() -> None:
    _, rejects = decode(element(value="NaN") + b"\n\n" + element(value="NaN"))

    assert [(reject.position, reject.reason) for reject in rejects] == [
        (0, Reason.NOT_FINITE),
        (2, Reason.NOT_FINITE),
    ]


def test_the_first_line_may_be_anything() -> None:
    for bad in (b"[1]", b"[", b"device,sensor", b"\xff", b'{"cut'):
        readings, rejects = decode(bad + b"\n" + GOOD)
        assert rows(readings) == [PUMP]
        assert [(reject.position, reject.body) for reject in rejects] == [(0, bad)]


def test_rejects_come_in_the_order_of_their_events_and_positions() -> None:
    late = element(ts='"2027-01-01T00:00:00Z"')
    _, rejects = decode(late, b"?", b"[" + late + b",1," + late + b"]", late)

    places = [(reject.event, reject.position) for reject in rejects]
    assert places == [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (3, 0)]


# --- wrong clocks -----------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [1, 1_000, 300_000_000])
def test_a_time_may_lie_ahead_of_the_enqueued_time_by_the_skew_and_no_more(skew: int) -> None:
    decoder = ReadingDecoder(plausible=Plausible(skew))
    at_limit, past = (
        element(ts=f'"{instants.text(ENQUEUED + ahead)}"') for ahead in (skew, skew + 1)
    )

    assert read(at_limit, decoder=decoder)[0][2] == ENQUEUED + skew
    assert refused(past, decoder).reason is Reason.FROM_FUTURE


def test_each_event_is_judged_by_its_own_enqueued_time() -> None:
    body = element(ts='"2026-11-22T23:30:00Z"')
    enqueued = np.array([ENQUEUED, ENQUEUED + 3_600_000_000])
    readings, rejects = DECODER.decode(EventBatch(HUB, np.arange(2), enqueued, [body, body]))

    assert readings.event.tolist() == [1]
    assert [reject.event for reject in rejects] == [0]


FILE = Partition("file-0123456789ab", "0")
AGE = 30 * 86_400_000_000


def in_file(*bodies: bytes, decoder: ReadingDecoder = DECODER) -> tuple[Readings, list[Reject]]:
    numbers = np.arange(len(bodies))
    return decoder.decode(EventBatch(FILE, numbers, np.full(len(bodies), ENQUEUED), list(bodies)))


@pytest.mark.parametrize("age", [1_000, 3_600_000_000])
def test_an_event_of_a_hub_may_be_as_old_as_the_age_and_no_older(age: int) -> None:
    decoder = ReadingDecoder(plausible=Plausible(max_age=age))
    at_limit, past = (element(ts=f'"{instants.text(ENQUEUED - old)}"') for old in (age, age + 1))

    assert read(at_limit, decoder=decoder)[0][2] == ENQUEUED - age
    assert refused(past, decoder).reason is Reason.FROM_PAST


def test_a_reading_in_a_file_may_be_as_old_as_the_earliest_time() -> None:
    readings, rejects = in_file(
        element(ts='"2018-07-01T00:00:00Z"'),
        element(ts='"2001-01-01T00:00:00Z"'),
        element(ts='"2000-12-31T23:59:59.999999Z"'),
    )

    assert readings.event.tolist() == [0, 1]
    assert [(reject.event, reject.reason) for reject in rejects] == [(2, Reason.FROM_PAST)]
    assert rejects[0].detail == "2000-12-31T23:59:59.999999Z is before 2001-01-01T00:00:00Z"


NOON = ENQUEUED // 1_000_000
"""The enqueued time as a number of seconds."""


@pytest.mark.parametrize(
    ("stamp", "reason", "unit"),
    [
        (NOON, Reason.FROM_PAST, "seconds"),
        (NOON * 10**6, Reason.BAD_TIME, "microseconds"),
        (NOON * 10**9, Reason.BAD_TIME, "nanoseconds"),
    ],
)
@pytest.mark.parametrize("of_file", [False, True])
def test_a_number_of_another_unit_is_rejected_and_the_unit_is_named(
    stamp: int, reason: Reason, unit: str, *, of_file: bool
) -> None:
    body = element(ts=str(stamp))
    reject = in_file(body)[1][0] if of_file else refused(body)

    assert reject.reason is reason
    assert reject.detail.endswith(
        f"; numbers are milliseconds, in {unit} it is 2026-11-22T23:00:00Z"
    )


def test_no_unit_is_named_where_a_number_is_plausible_in_none() -> None:
    assert refused(element(ts="0")).detail == (
        "1970-01-01T00:00:00Z is before 2026-10-23T23:00:00Z"
    )
    assert "milliseconds" not in refused(element(ts='"2001-01-01T00:00:00Z"')).detail


@settings(deadline=None, max_examples=100)
@given(st.integers(-(10**19), 10**19))
def test_whatever_the_number_it_is_read_or_rejected(stamp: int) -> None:
    readings, rejects = decode(element(ts=str(stamp)))

    assert len(readings) + len(rejects) == 1
    if len(readings):
        assert ENQUEUED - AGE <= stamp * 1000 <= ENQUEUED + 300_000_000


# --- other field names ------------------------------------------------------------------------

NAMES = [
    FieldNames("deviceId", "tag", "time", "reading"),
    FieldNames("class", "def", "None", "import"),
    FieldNames("sensor", "device", "value", "ts"),
    FieldNames("a.b", "with space", "\u00e9\U0001f600", "$.value"),
    FieldNames("self", "cls", "__init__", "__class__"),
]


@pytest.mark.parametrize("names", NAMES, ids=str)
def test_the_fields_may_have_any_names(names: FieldNames) -> None:
    decoder = ReadingDecoder(names)
    good: dict[str, object] = {
        names.device: "pump",
        names.sensor: "heat",
        names.ts: "2026-11-22T22:59:00Z",
        names.value: 1.5,
    }
    reasons = {
        names.device: Reason.BAD_DEVICE,
        names.sensor: Reason.BAD_SENSOR,
        names.ts: Reason.BAD_TIME,
        names.value: Reason.BAD_VALUE,
    }

    assert read(json.dumps(good).encode(), decoder=decoder) == [PUMP]
    for name, reason in reasons.items():
        wrong = refused(json.dumps(good | {name: []}).encode(), decoder)
        missing = refused(
            json.dumps({k: v for k, v in good.items() if k != name}).encode(), decoder
        )
        assert wrong.reason is reason
        assert missing.reason is Reason.MISSING_FIELD
        assert name in missing.detail


# --- the law ----------------------------------------------------------------------------------

good_elements = st.builds(
    lambda device, ts, value: (
        element(device=json.dumps(device), ts=json.dumps(ts), value=str(value)),
        (str(device), "heat", instants.parse([ts])[0][0], float(value)),
    ),
    st.sampled_from(["pump", "\u00fcber", 7, "a,]}"]),
    st.sampled_from(["2026-11-22T22:59:00Z", "2026-11-22T22:59:00", 1_795_388_000_000]),
    st.integers(-5, 5),
)
bad_elements = st.sampled_from(
    [
        *(element(value=text) for text in ("NaN", "-Infinity", "1e400", "true", '"1"', "null")),
        *(element(device=text) for text in ('""', '"\\u0000"', r'"\ud800"', "9" * 129, "1.5")),
        *(element(ts=text) for text in ('"x"', '"2026-11-22T23:05:00.000001Z"', "1e400")),
        *(element(sensor=None), element(device=None), element(unit="[" * DEEP + "]" * DEEP)),
        *(element(device='"@"').replace(b"@", b"\xff"), b"{}", b'{"a":[,]}', b"3", b'{"a" 1}'),
    ]
)
Element = tuple[bytes, Row | None]
elements: st.SearchStrategy[Element] = st.one_of(
    good_elements, bad_elements.map(lambda raw: (raw, None))
)
Body = tuple[bytes, list[Row], list[tuple[int, bytes]]]
"""A body, the readings that it holds, and the places and bytes of its bad elements."""


@st.composite
def bodies(draw: st.DrawFn) -> Body:
    form = draw(st.sampled_from(["alone", "array", "lines"]))
    inside = draw(st.lists(elements, min_size=1, max_size=1 if form == "alone" else 5))
    raws = [raw for raw, _ in inside]
    good = [row for _, row in inside if row]
    bad = [(i, raw) for i, (raw, row) in enumerate(inside) if not row]
    if form == "array":
        return b"[" + b" ,\n".join(raws) + b"]", good, bad
    # Lines of which none looks like an object are no lines, and one alone is an object alone.
    braces = [raw for raw in raws if re.fullmatch(rb"\{.*\}", raw)]
    return (b"\n".join(raws) if braces else raws[0]), *(
        (good, bad) if braces else ([], [(0, raws[0])])
    )


@settings(deadline=None, max_examples=150)
@given(st.lists(bodies(), max_size=6), st.data())
def test_any_mixture_in_any_batches_gives_the_good_readings_and_a_reject_for_each_bad_element(
    mixture: list[Body], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(mixture)), max_size=3)))
    found: list[tuple[int, Row]] = []
    rejected: list[tuple[int, int, bytes]] = []
    for first, last in zip([0, *cuts], [*cuts, len(mixture)], strict=True):
        readings, rejects = decode(*(body for body, _, _ in mixture[first:last]))
        events = (readings.event + first).tolist()
        found += zip(events, rows(readings), strict=True)
        rejected += [(reject.event + first, reject.position, reject.body) for reject in rejects]

    assert found == [(i, row) for i, (_, good, _) in enumerate(mixture) for row in good]
    assert rejected == [
        (i, place, raw) for i, (*_, bad) in enumerate(mixture) for place, raw in bad
    ]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.binary(max_size=40) | st.text('[]{}",:\\\n1eN', max_size=20).map(str.encode)))
def test_no_bytes_whatever_stop_a_batch(nonsense: list[bytes]) -> None:
    readings, rejects = decode(*nonsense, GOOD)

    assert rows(readings)[-1] == PUMP
    assert {reject.event for reject in rejects} <= set(range(len(nonsense)))


# --- readings as columns ----------------------------------------------------------------------


def test_readings_can_be_chosen_by_a_mask_or_by_place() -> None:
    readings, _ = decode(*(element(value=str(number)) for number in range(4)))

    assert readings.where(np.array([True] * 4)) is readings
    assert readings.where(np.array([False, True, False, True])).value.tolist() == [1.0, 3.0]
    assert readings.take(np.array([2, 0])).event.tolist() == [2, 0]
    assert len(readings.where(np.array([False] * 4))) == 0


def test_the_largest_value_that_is_read_is_the_limit_itself() -> None:
    assert read(element(value=str(MAX_VALUE)), element(value="-1e140"))[1][3] == -MAX_VALUE
