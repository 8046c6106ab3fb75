"""Settings: read from one mapping, and everything that is wrong named at once."""

from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.errors import Misconfigured
from scoring.readings import FieldNames, ReadingDecoder
from scoring.settings import PREFIX, HostSettings, Settings, duration, host_variables
from tests.worker.host import SETTINGS

WORKSPACE = (
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
)
CONNECTION = (
    "Endpoint=sb://fleet.servicebus.windows.net/;SharedAccessKeyName=k;SharedAccessKey=hush=="
)
ODBC = "Driver={ODBC Driver 18 for SQL Server};Server=tcp:s,1433;UID=u;PWD={hu;s}}h}"

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
        "DATABASE_POOL_SIZE": "11",
        "DATABASE_MAX_OVERFLOW": "0",
        "DATABASE_POOLER": "true",
        "STORAGE": "https://account.blob.core.windows.net",
        "CONTAINER": "elsewhere",
        "EVENT_HUB": "readings",
        "EVENT_HUB_NAMESPACE": "fleet.servicebus.windows.net",
        "EVENT_HUB_CONSUMER_GROUP": "mine",
        "EVENT_HUB_REPAIR_GROUP": "other",
        "WINDOW": "10s",
        "ALLOWED_LATENESS": "1s",
        "IDLE_TIMEOUT": "2s",
        "STALL_TIMEOUT": "8s",
        "WATERMARK_LAG": "9s",
        "MAX_FUTURE_SKEW": "3s",
        "MAX_AGE": "7d",
        "EARLIEST_TIME": "1999-12-31T23:00:00-01:00",
        "RAW_SEGMENTS": "off",
        "FIELD_DEVICE": "deviceId",
        "FIELD_SENSOR": "tag",
        "FIELD_TS": "time",
        "FIELD_VALUE": "reading",
        "ENGINE": "azure-ml",
        "AZURE_ML_WORKSPACE": WORKSPACE,
        "RUN_DEADLINE": "5s",
        "QUEUE_LIMIT": "6s",
        "MAX_ACTIVE_RUNS": "4",
        "MAX_RUN_WINDOWS": "50",
        "PART_ROWS": "7",
        "TRAINING_WINDOWS": "70",
        "PROCESSES": "3",
        "MINI_BATCH_SIZE": "2",
        "MAX_RETRIES": "0",
        "MINI_BATCH_TIMEOUT": "4s",
        "ERROR_THRESHOLD": "-1",
        "MINI_BATCH_ERROR_THRESHOLD": "9",
    }
    loaded = Settings.load({PREFIX + key: text for key, text in texts.items()})
    # The other way to the hub: there is one only.
    of_connection = Settings.load({"SCORING_EVENT_HUB_CONNECTION": CONNECTION})

    assert of_connection.event_hub_connection == CONNECTION
    assert loaded == Settings(
        data=Path(texts["DATA"]),
        database="postgresql://server/store",
        database_pool_size=11,
        database_max_overflow=0,
        database_pooler=True,
        storage="https://account.blob.core.windows.net",
        container="elsewhere",
        event_hub="readings",
        event_hub_connection="",
        event_hub_namespace="fleet.servicebus.windows.net",
        event_hub_consumer_group="mine",
        event_hub_repair_group="other",
        window=10 * SECOND,
        allowed_lateness=SECOND,
        idle_timeout=2 * SECOND,
        stall_timeout=8 * SECOND,
        watermark_lag=9 * SECOND,
        max_future_skew=3 * SECOND,
        max_age=7 * 86_400 * SECOND,
        earliest_time=946_684_800 * SECOND,
        raw_segments=False,
        field_device="deviceId",
        field_sensor="tag",
        field_ts="time",
        field_value="reading",
        engine="azure-ml",
        azure_ml_workspace=WORKSPACE,
        run_deadline=5 * SECOND,
        queue_limit=6 * SECOND,
        max_active_runs=4,
        max_run_windows=50,
        part_rows=7,
        training_windows=70,
        processes=3,
        mini_batch_size=2,
        max_retries=0,
        mini_batch_timeout=4 * SECOND,
        error_threshold=-1,
        mini_batch_error_threshold=9,
    )
    assert {*texts, "EVENT_HUB_CONNECTION"} == {f.name.upper() for f in fields(Settings)}
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
        "TRAINING_WINDOWS": "9",
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


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *(
            ("DATABASE", text)
            for text in (
                *("garbage", "mysql://u:hush@h/d", "postgresql:/u:hush@h", "Server=s;PWD=hush"),
                *("Driver={x};PWD=hush", "postgresql://h:port/d", "Driver=hush;Server", " ", "a=b"),
            )
        ),
        *(
            ("STORAGE", text)
            for text in (
                *("garbage", "http://127.0.0.1:10000/hush", "https://", "https://a.b/c/d", "a=b"),
                *("AccountName=a", "AccountKey=hush", "https://a.blob.example?sig=hush", "ftp://a"),
                *("UseDevelopmentStorage=false", "HTTP://a.example"),
            )
        ),
        *(
            ("CONTAINER", t)
            for t in ("Bad_Name!", "", "ab", "a" * 64, "a--b", "-ab", "abc-", "$web")
        ),
        *(("EVENT_HUB", text) for text in ("two words", "-a", "a/b", "a" * 257, "ü")),
        *(
            ("EVENT_HUB_CONNECTION", text)
            for text in (
                *("garbage", "Endpoint=sb://fleet", "SharedAccessKeyName=k;SharedAccessKey=hush"),
                *(
                    "Endpoint=https://h;SharedAccessKeyName=k;SharedAccessKey=hush",
                    "Endpoint=hush;",
                ),
                "Endpoint=sb://h;SharedAccessKeyName=k",
            )
        ),
        *(
            ("EVENT_HUB_NAMESPACE", text)
            for text in ("fleet", "https://a.b", "a.b:5671", "a..b", "no host.name", "a.b/")
        ),
        *(("EVENT_HUB_CONSUMER_GROUP", text) for text in ("", "two words", "$Other", "a" * 51)),
        ("EVENT_HUB_REPAIR_GROUP", ""),
        *(
            ("AZURE_ML_WORKSPACE", text)
            for text in ("garbage", "/subscriptions/s", WORKSPACE + "/x", WORKSPACE + " ")
        ),
        *(("PROCESSES", text) for text in ("10000000", "1025", "1_0", "-1", "1.5", "", "9" * 5000)),
    ],
)
def test_what_has_not_the_form_of_its_setting_is_named_and_not_repeated(
    key: str, text: str
) -> None:
    (problem,) = problems(**{key: text})

    assert problem.startswith(f"SCORING_{key}: ")
    assert "hush" not in problem
    assert len(problem) < 200


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *(
            ("DATABASE", text)
            for text in (
                *("", ODBC, "postgresql://u:p%40:/[w@h:5432/d?sslmode=require", "sqlite:////tmp/a"),
                *(
                    "postgresql+psycopg://h/d",
                    "postgresql:///d?host=/run/pg",
                    "postgresql://[::1]/d",
                ),
                "driver=/opt/lib.so;;SERVER=s;Encrypt=yes; Network Address = a ;",
            )
        ),
        *(
            ("STORAGE", text)
            for text in (
                *("", "UseDevelopmentStorage=true", "https://127.0.0.1:10000/devstoreaccount1"),
                *("https://a.blob.core.windows.net/", "AccountName=a;AccountKey=a2V5=="),
                "BlobEndpoint=http://127.0.0.1:1/a;SharedAccessSignature=sv=1&sig=x",
            )
        ),
        *(("CONTAINER", text) for text in ("abc", "a" * 63, "a-b-c", "007")),
        *(("EVENT_HUB", text) for text in ("", "a", "Readings.v2_b-c")),
        ("EVENT_HUB_CONNECTION", "Endpoint=sb://localhost:5672;SharedAccessSignature=s;"),
        *(("EVENT_HUB_CONSUMER_GROUP", text) for text in ("$Default", "$default", "a.b-c_d")),
        *(("AZURE_ML_WORKSPACE", text) for text in ("", WORKSPACE, WORKSPACE.lower() + "/")),
        *(("PROCESSES", text) for text in ("0", "1024", " 7 ")),
    ],
)
def test_every_form_that_a_setting_can_have_is_taken(key: str, text: str) -> None:
    way = {"SCORING_EVENT_HUB_NAMESPACE": "fleet.example"} if key == "EVENT_HUB" else {}

    Settings.load({PREFIX + key: text} | way)


def test_readings_are_not_rejected_as_too_old_while_their_window_is_open() -> None:
    found = problems(MAX_AGE="6min", ALLOWED_LATENESS="2min")

    assert len(found) == 1
    assert "SCORING_MAX_AGE is below SCORING_WINDOW and SCORING_ALLOWED_LATENESS" in found[0]
    assert len(problems(MAX_AGE="1h", WINDOW="1h")) == 1
    Settings.load({"SCORING_MAX_AGE": "7min", "SCORING_ALLOWED_LATENESS": "2min"})
    Settings.load({"SCORING_MAX_FUTURE_SKEW": "1h", "SCORING_ALLOWED_LATENESS": "2min"})


def test_an_event_hub_cannot_have_a_name_that_stands_for_a_file() -> None:
    way = {"SCORING_EVENT_HUB_CONNECTION": CONNECTION}

    assert len(problems(EVENT_HUB="file-0123456789ab", EVENT_HUB_CONNECTION=CONNECTION)) == 1
    Settings.load({"SCORING_EVENT_HUB": "file-uploads"} | way)


def test_an_event_hub_has_one_way_to_it() -> None:
    both = {"EVENT_HUB_CONNECTION": CONNECTION, "EVENT_HUB_NAMESPACE": "fleet.example"}

    assert problems(EVENT_HUB="a", **both) == [
        "SCORING_EVENT_HUB_CONNECTION and SCORING_EVENT_HUB_NAMESPACE:"
        " only one of them can be the way"
    ]
    assert problems(EVENT_HUB="a") == [
        "SCORING_EVENT_HUB_CONNECTION or SCORING_EVENT_HUB_NAMESPACE is missing:"
        " SCORING_EVENT_HUB needs one of them"
    ]
    assert problems(EVENT_HUB="a", EVENT_HUB_CONNECTION=f"{CONNECTION};EntityPath=b") == [
        "SCORING_EVENT_HUB_CONNECTION: its EntityPath is another hub than SCORING_EVENT_HUB"
    ]
    assert len(problems(EVENT_HUB="a", EVENT_HUB_CONNECTION="garbage")) == 1


def test_the_address_of_azurite_is_the_same_however_it_ends() -> None:
    loaded = Settings.load({"SCORING_STORAGE": "UseDevelopmentStorage=true;"})

    assert loaded.storage == "UseDevelopmentStorage=true"


def host_problems(**variables: str) -> list[str]:
    with pytest.raises(Misconfigured) as caught:
        HostSettings.load(SETTINGS | variables)
    return caught.value.problems


class TestFunctionApp:
    def test_everything_that_is_wrong_is_named_at_once_by_the_name_it_was_given_by(self) -> None:
        found = host_problems(
            EVENT_HUB="garbage",
            EVENT_HUB_CONSUMER_GROUP="two words",
            STORAGE="garbage",
            REPAIR_SCHEDULE="garbage",
            BLOB_TRIGGER_SOURCE="Queue",
            SCORING_DATABASE="garbage",
            SCORING_STORAGE="garbage",
            SCORING_CONTAINER="Bad_Name!",
            SCORING_PROCESSES="10000000",
            SCORING_AZURE_ML_WORKSPACE="garbage",
            SCORING_EVENT_HUB="other",
            WATCH_SCHEDULE="",
        )

        assert sorted(problem.partition(":")[0] for problem in found) == [
            "BLOB_TRIGGER_SOURCE",
            "EVENT_HUB",
            "EVENT_HUB_CONSUMER_GROUP",
            "REPAIR_SCHEDULE",
            "SCORING_AZURE_ML_WORKSPACE",
            "SCORING_CONTAINER",
            "SCORING_DATABASE",
            "SCORING_EVENT_HUB and EVENT_HUB_NAME",
            "SCORING_PROCESSES",
            "SCORING_STORAGE",
            "STORAGE",
            "WATCH_SCHEDULE is missing",
        ]

    def test_gaps_cannot_be_repaired_from_another_hub_than_the_triggers(self) -> None:
        way = SETTINGS["EVENT_HUB"]

        assert host_problems(SCORING_EVENT_HUB="other") == [
            "SCORING_EVENT_HUB and EVENT_HUB_NAME: two hubs, where one is needed"
        ]
        assert host_problems(EVENT_HUB=f"{way}EntityPath=other") == [
            "EVENT_HUB: its EntityPath is another hub than EVENT_HUB_NAME",
        ]
        assert host_problems(SCORING_EVENT_HUB_CONNECTION=CONNECTION) == [
            "SCORING_EVENT_HUB_CONNECTION and EVENT_HUB: two namespaces"
        ]
        assert host_problems(SCORING_EVENT_HUB_NAMESPACE="fleet.example") == [
            "SCORING_EVENT_HUB_NAMESPACE and EVENT_HUB: two namespaces"
        ]
        HostSettings.load(SETTINGS | {"SCORING_EVENT_HUB": "readings"})
        HostSettings.load(SETTINGS | {"SCORING_EVENT_HUB_CONNECTION": way.replace("=k", "=other")})

    def test_what_is_empty_is_taken_from_the_host(self) -> None:
        """An empty name would mean the embedded hub: no gap of the real one would be repaired."""
        empty = dict.fromkeys(("SCORING_EVENT_HUB", "SCORING_EVENT_HUB_CONNECTION"), "")

        loaded = Settings.load(host_variables(SETTINGS | empty))

        assert loaded.event_hub == SETTINGS["EVENT_HUB_NAME"]
        assert loaded.event_hub_connection == SETTINGS["EVENT_HUB"]

    def test_in_azure_nothing_may_be_kept_on_an_instances_own_disk(self) -> None:
        """Core Tools that fetched the app's settings is on a laptop all the same."""
        azure = {"WEBSITE_SITE_NAME": "app"}
        kept = {"SCORING_DATABASE": ODBC, "SCORING_STORAGE": "https://a.blob.core.windows.net"}

        assert [p.partition(" ")[0] for p in host_problems(**azure)] == list(kept)
        HostSettings.load(SETTINGS | azure | kept)
        HostSettings.load(SETTINGS | azure | {"FUNCTIONS_CORETOOLS_ENVIRONMENT": "True"})

    @pytest.mark.parametrize("name", ["SUBMIT_SCHEDULE", "REPAIR_SCHEDULE", "WATCH_SCHEDULE"])
    def test_what_is_no_schedule_stops_the_start(self, name: str) -> None:
        assert host_problems(**{name: "every hour"}) == [
            f"{name}: is not a schedule of six fields such as 0 */5 * * * *"
        ]

    def test_a_day_that_not_every_month_has_is_doubted(self) -> None:
        assert HostSettings.load(SETTINGS).doubts == ()
        (doubt,) = HostSettings.load(SETTINGS | {"SUBMIT_SCHEDULE": "0 0 0 31 * *"}).doubts
        assert doubt.startswith("SUBMIT_SCHEDULE: day 31")

    def test_the_storage_of_a_trigger_is_no_url(self) -> None:
        assert "STORAGE__blobServiceUri" in host_problems(STORAGE="https://a.example")[0]
        HostSettings.load(
            SETTINGS | {"STORAGE": "UseDevelopmentStorage=true;DevelopmentStorageProxyUri=http://a"}
        )
