"""Settings: read from one mapping, and everything that is wrong named at once."""

from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.errors import Misconfigured
from scoring.readings import FieldNames, ReadingDecoder
from scoring.settings import PREFIX, Settings, duration

SECOND, MINUTE = 1_000_000, 60_000_000


def problems(**variables: str) -> list[str]:
    with pytest.raises(Misconfigured) as caught:
        Settings.load({PREFIX + key: text for key, text in variables.items()})
    return caught.value.problems


def test_nothing_set_gives_the_defaults() -> None:
    assert Settings.load({}) == Settings()


def test_every_default_is_what_its_text_says() -> None:
    texts = {PREFIX + f.name.upper(): f.metadata["default"] for f in fields(Settings)}

    assert Settings.load(texts) == Settings.load({})


def test_the_defaults_are_those_of_the_design() -> None:
    standard = Settings.load({})

    assert standard.max_future_skew == 5 * MINUTE
    assert standard.field_names == FieldNames("device", "sensor", "ts", "value")
    assert standard.raw_segments
    assert standard.error_threshold == standard.mini_batch_error_threshold == 0


def test_every_setting_can_be_set() -> None:
    texts = {
        "DATA": "/tmp/x",  # noqa: S108 a name only, nothing is written
        "DATABASE": "postgresql://server/store",
        "STORAGE": "https://account.blob.core.windows.net",
        "CONTAINER": "elsewhere",
        "EVENT_HUB": "readings",
        "EVENT_HUB_CONNECTION": "Endpoint=sb://fleet",
        "EVENT_HUB_NAMESPACE": "fleet.servicebus.windows.net",
        "EVENT_HUB_CONSUMER_GROUP": "mine",
        "EVENT_HUB_REPAIR_GROUP": "other",
        "WINDOW": "10s",
        "ALLOWED_LATENESS": "1s",
        "IDLE_TIMEOUT": "2s",
        "MAX_FUTURE_SKEW": "3s",
        "RAW_SEGMENTS": "off",
        "FIELD_DEVICE": "deviceId",
        "FIELD_SENSOR": "tag",
        "FIELD_TS": "time",
        "FIELD_VALUE": "reading",
        "ENGINE": "azure-ml",
        "AZURE_ML_WORKSPACE": "/subscriptions/s",
        "AZURE_ML_DEADLINE": "5s",
        "PART_ROWS": "7",
        "PROCESSES": "3",
        "MINI_BATCH_SIZE": "2",
        "MAX_RETRIES": "0",
        "MINI_BATCH_TIMEOUT": "4s",
        "ERROR_THRESHOLD": "-1",
        "MINI_BATCH_ERROR_THRESHOLD": "9",
    }
    loaded = Settings.load({PREFIX + key: text for key, text in texts.items()})

    assert loaded == Settings(
        data=Path(texts["DATA"]),
        database="postgresql://server/store",
        storage="https://account.blob.core.windows.net",
        container="elsewhere",
        event_hub="readings",
        event_hub_connection="Endpoint=sb://fleet",
        event_hub_namespace="fleet.servicebus.windows.net",
        event_hub_consumer_group="mine",
        event_hub_repair_group="other",
        window=10 * SECOND,
        allowed_lateness=SECOND,
        idle_timeout=2 * SECOND,
        max_future_skew=3 * SECOND,
        raw_segments=False,
        field_device="deviceId",
        field_sensor="tag",
        field_ts="time",
        field_value="reading",
        engine="azure-ml",
        azure_ml_workspace="/subscriptions/s",
        azure_ml_deadline=5 * SECOND,
        part_rows=7,
        processes=3,
        mini_batch_size=2,
        max_retries=0,
        mini_batch_timeout=4 * SECOND,
        error_threshold=-1,
        mini_batch_error_threshold=9,
    )
    assert set(texts) == {f.name.upper() for f in fields(Settings)}
    assert loaded.field_names == FieldNames("deviceId", "tag", "time", "reading")


def test_azure_ml_needs_a_workspace_and_a_storage_account() -> None:
    assert problems(ENGINE="azure-ml") == [
        "SCORING_AZURE_ML_WORKSPACE is missing: the engine azure-ml needs it",
        "SCORING_STORAGE is missing: the engine azure-ml needs it",
    ]


def test_settings_never_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().window = 5  # type: ignore[misc]  # that is what is tested


def test_other_variables_are_left_alone() -> None:
    assert Settings.load({"PATH": "/bin", "scoring_window": "x", "WINDOW": "x"}) == Settings()


def test_everything_that_is_wrong_is_named_at_once() -> None:
    wrong = {
        "WINDOW": "5",
        "ALLOWED_LATENESS": "soon",
        "RAW_SEGMENTS": "maybe",
        "PART_ROWS": "0",
        "PROCESSES": "many",
        "ERROR_THRESHOLD": "-2",
        "FIELD_TS": "",
        "WINDOWS": "5min",
        "DEBUG": "1",
    }
    found = problems(**wrong, IDLE_TIMEOUT="5min")

    assert sorted(problem.replace(":", " ").split()[0] for problem in found) == sorted(
        PREFIX + key for key in wrong
    )


def test_the_error_says_all_of_it() -> None:
    with pytest.raises(Misconfigured) as caught:
        Settings.load({"SCORING_WINDOW": "5", "SCORING_NONSENSE": ""})

    assert str(caught.value) == (
        "settings: SCORING_WINDOW: '5' is not a duration such as 250ms, 5s, 1.5min, 2h or 1d; "
        "SCORING_NONSENSE is not a setting"
    )


def test_two_fields_of_a_body_cannot_have_one_name() -> None:
    found = problems(FIELD_DEVICE="id", FIELD_SENSOR="id", WINDOW="x")

    assert [problem.split(":")[0] for problem in found] == [
        f"SCORING_{key}" for key in ("WINDOW", "FIELD_DEVICE", "FIELD_SENSOR")
    ]
    assert problems(FIELD_DEVICE="ts") == [
        "SCORING_FIELD_DEVICE: 'ts' is the name of another field too",
        "SCORING_FIELD_TS: 'ts' is the name of another field too",
    ]


def test_fields_may_exchange_their_names() -> None:
    loaded = Settings.load({"SCORING_FIELD_DEVICE": "sensor", "SCORING_FIELD_SENSOR": "device"})

    assert loaded.field_names.device == "sensor"


@pytest.mark.parametrize("name", ["", 'a"b', "a\\b", "a\nb", "a\0b", "\ud800"])
def test_a_name_that_no_field_can_have_is_refused(name: str) -> None:
    (problem,) = problems(FIELD_VALUE=name)

    assert problem.startswith("SCORING_FIELD_VALUE: ")


@settings(deadline=None, max_examples=60)
@given(st.text(min_size=1, max_size=6))
def test_field_names_that_the_settings_accept_suit_the_decoder(name: str) -> None:
    try:
        loaded = Settings.load({"SCORING_FIELD_VALUE": name})
    except Misconfigured:
        return
    ReadingDecoder(loaded.field_names)


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        *[("250ms", 250_000), ("5s", 5 * SECOND), ("1.5min", 90 * SECOND), ("2h", 120 * MINUTE)],
        *[("1d", 1440 * MINUTE), ("366d", 366 * 1440 * MINUTE), ("0.001ms", 1)],
        *[("  5 min ", 5 * MINUTE), ("05s", 5 * SECOND), ("4.35min", 261 * SECOND)],
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, microseconds: int) -> None:
    assert duration(text) == microseconds


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "5", "s", "5m", "5 sec", "5S", "-5s", "+5s", "1e3s", ".5s", "5.s", "5s 3s"],
        *["nan s", "infs", "0s", "0.0min", "0.0001ms", "1.0000001s", "366.1d", "9" * 400 + "d"],
    ],
)
def test_what_is_no_positive_duration_of_whole_microseconds_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        duration(text)


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 10**6),
    st.sampled_from([("ms", 1), ("s", 1000), ("min", 60_000), ("h", 3_600_000)]),
)
def test_a_duration_of_thousandths_is_exact(thousandths: int, unit: tuple[str, int]) -> None:
    """Times a float, 4.35min would be no whole number of microseconds."""
    name, milliseconds = unit

    assert duration(f"{thousandths / 1000:.3f}{name}") == thousandths * milliseconds


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_window_is_left_to_the_store(text: str) -> None:
    assert Settings.load({"SCORING_WINDOW": text}).window is None


@pytest.mark.parametrize(
    ("text", "flag"),
    [*((text, True) for text in ("1", "true", "YES", "On")), *((t, False) for t in ("0", "FALSE"))],
)
def test_a_flag_may_be_written_in_several_ways(text: str, flag: bool) -> None:
    assert Settings.load({"SCORING_RAW_SEGMENTS": text}).raw_segments is flag
