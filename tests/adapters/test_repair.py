"""The repair of all gaps: one that cannot be read keeps nobody from the others."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scoring import instants
from scoring.bootstrap import App
from scoring.errors import Conflict, NotFound, ScoringError, Transient
from scoring.handlers.repair import REPLAY_ROWS, ReplayRejects
from scoring.hosting import HostedApp
from scoring.ledger import HubAnswer
from scoring.readings import (
    EventBatch,
    FieldNames,
    Partition,
    ReadingDecoder,
    Readings,
    Reject,
)
from scoring.settings import Settings

HUB = "readings"
BEGIN = 1_577_836_800 * instants.SECOND
"""2020-01-01: long past, whatever the clock says."""
NOW = BEGIN + 3600 * instants.SECOND


def batch(partition: Partition, *numbers: int) -> EventBatch:
    """Make events of a reading each, enqueued a second apart."""
    sequence = np.array(numbers, dtype=np.int64)
    bodies = [
        json.dumps({"device": "d", "sensor": "s", "ts": BEGIN // 1000 + n, "value": n}).encode()
        for n in numbers
    ]
    return EventBatch(partition, sequence, BEGIN + sequence * instants.SECOND, bodies)


GOOD: dict[str, object] = {"device": "d", "sensor": "s", "ts": BEGIN // 1000, "value": 1.0}
OTHER: dict[str, object] = {"device": "d", "sensor": "s", "ts": BEGIN // 1000, "v": 1.0}
"""The same reading, its value under another name."""


@dataclass
class ScriptedLog:
    """Retains numbers 2 to 5 of each partition; cannot be read where it was told to fail."""

    fails: dict[str, Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def holds(self, partition: Partition) -> bool:
        return partition.hub == HUB

    def survey(self) -> dict[Partition, HubAnswer]:
        answers = {Partition(HUB, number): self.look(Partition(HUB, number)) for number in "012"}
        return {partition: answer for partition, answer in answers.items() if answer}

    def look(self, partition: Partition) -> HubAnswer | None:
        return HubAnswer(BEGIN, 2, 5, BEGIN + 5 * instants.SECOND)

    def created_at(self) -> int | None:
        return BEGIN

    def read(self, partition: Partition, first: int, last: int) -> Iterator[EventBatch]:
        self.asked.append(partition.id)
        if partition.id in self.fails:
            raise self.fails[partition.id]
        yield batch(partition, *range(first, last + 1))


@pytest.fixture
def log() -> ScriptedLog:
    return ScriptedLog()


@pytest.fixture
def app(tmp_path: Path, log: ScriptedLog) -> Iterator[HostedApp]:
    """Give an app whose partitions 0, 1 and 2 lack numbers 1 to 4."""
    given = {"SCORING_DATA": str(tmp_path / "data"), "SCORING_WINDOW": "1min"}
    app = HostedApp(Settings.load(given))
    with app:
        app.__dict__["event_log"] = log
        for number in "012":
            app.ingest()(batch(Partition(HUB, number), 0, 5))
        yield app


def gaps(app: App) -> set[tuple[str, str, int, int]]:
    return {(str(g.partition), g.state, g.first, g.last) for g in app.ingest_store.gaps()}


def facts_of(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.getMessage() == event]


@pytest.mark.parametrize(
    "error", [NotFound("no group"), Conflict("held"), Transient("silent"), KeyError("a defect")]
)
def test_a_gap_that_cannot_be_read_keeps_nobody_from_those_after_it(
    app: App, log: ScriptedLog, error: Exception
) -> None:
    log.fails["0"] = error

    with pytest.raises(type(error)) as raised:
        app.repair_gaps(NOW)

    assert raised.value is error
    assert log.asked == ["0", "1", "2"]
    assert gaps(app) == {
        *(("readings/0", "lost", 1, 1), ("readings/0", "open", 2, 4)),
        *(("readings/1", "lost", 1, 1), ("readings/1", "repaired", 2, 4)),
        *(("readings/2", "lost", 1, 1), ("readings/2", "repaired", 2, 4)),
    }


def test_of_several_failures_the_first_is_raised_and_each_is_logged_with_its_range_and_cause(
    app: App, log: ScriptedLog, caplog: pytest.LogCaptureFixture
) -> None:
    log.fails |= {"0": Conflict("held by another"), "2": KeyError("secret of a statement")}

    with pytest.raises(Conflict, match="held by another"), caplog.at_level(logging.WARNING):
        app.repair_gaps(NOW)

    keys = ("hub", "partition", "first_sequence", "last_sequence", "cause")
    said = facts_of(caplog, "repair.gap_failed")
    assert [(*(one[key] for key in keys), bool(one["exc_info"])) for one in said] == [
        ("readings", "0", 2, 4, "held by another", False),
        ("readings", "2", 2, 4, "KeyError", True),
    ]


def test_the_next_repair_goes_on_where_a_failure_stopped_this_one(
    app: App, log: ScriptedLog
) -> None:
    log.fails["1"] = Transient("silent")
    with pytest.raises(ScoringError):
        app.repair_gaps(NOW)
    log.fails.clear()

    assert app.repair_gaps(NOW).events == 3
    assert {state for _, state, *_ in gaps(app)} == {"lost", "repaired"}


def test_what_was_repaired_is_in_the_log_line_also_where_a_gap_fails(
    app: HostedApp, log: ScriptedLog, caplog: pytest.LogCaptureFixture
) -> None:
    log.fails["0"] = Transient("silent")

    with pytest.raises(Transient), caplog.at_level(logging.INFO):
        app.repair()

    (facts,) = facts_of(caplog, "repair.gaps")
    assert (facts["levelname"], facts["error"]) == ("ERROR", "Transient")
    assert (facts["readings"], facts["missing"]) == (6, -6)


def test_what_the_hub_no_longer_has_is_lost_with_a_warning(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        app.repair_gaps(NOW)

    keys = ("hub", "partition", "first_sequence", "last_sequence", "events")
    assert [tuple(one[key] for key in keys) for one in facts_of(caplog, "repair.lost")] == [
        ("readings", number, 1, 1, 1) for number in "012"
    ]


def event(partition: str, elements: list[dict[str, object]]) -> EventBatch:
    """Return an event of several readings."""
    one = np.ones(1, dtype=np.int64)
    body = json.dumps(elements).encode()
    return EventBatch(Partition("elsewhere", partition), one, one * NOW, [body])


@pytest.mark.parametrize("elements", [[GOOD, OTHER], [OTHER] * (REPLAY_ROWS + 1)])
def test_an_event_that_holds_one_reading_twice_is_replayed(
    app: App, elements: list[dict[str, object]]
) -> None:
    """The old name and the new one of a field, or more elements than one transaction replays."""
    ingest = app.ingest()
    ingest(event("9", elements))
    renamed = replace(ingest, decoder=ReadingDecoder(FieldNames(value="v")))

    replayed, stay = ReplayRejects(app.ingest_store, renamed)()

    assert (replayed, stay) == (elements.count(OTHER), 0)
    with app.database.read() as connection:
        statement = "SELECT sum(count) FROM window_partials WHERE partition = 'elsewhere/9'"
        assert connection.exec_driver_sql(statement).scalar() == len(elements)


def test_a_partition_whose_rejects_cannot_be_replayed_keeps_nobody_from_the_others(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    class Defective(ReadingDecoder):
        def decode(self, batch: EventBatch) -> tuple[Readings, list[Reject]]:
            if batch.partition.id == "8":
                raise KeyError(batch.partition.id)
            return super().decode(batch)

    ingest = app.ingest()
    for number in "89":
        ingest(event(number, [OTHER]))
    replay = ReplayRejects(
        app.ingest_store, replace(ingest, decoder=Defective(FieldNames(value="v")))
    )

    with pytest.raises(KeyError, match="8"):
        replay()

    (facts,) = facts_of(caplog, "replay.partition_failed")
    assert facts["partition"] == "elsewhere/8"
    # The other one was replayed.
    assert replace(replay, ingest=ingest)() == (0, 1)


def test_gaps_of_other_hubs_are_left_open_and_told_of_once_a_call(
    app: App, log: ScriptedLog, caplog: pytest.LogCaptureFixture
) -> None:
    for hub, number in (("old", "0"), ("old", "1"), ("older", "0")):
        app.ingest()(batch(Partition(hub, number), 0, 5))

    with caplog.at_level(logging.WARNING):
        app.repair_gaps(NOW)

    (said,) = facts_of(caplog, "repair.gaps_skipped")
    assert (said["count"], said["hubs"]) == (3, ["old", "older"])
    assert log.asked == ["0", "1", "2"]
    assert {name for name, state, *_ in gaps(app) if state == "open"} == {
        *("old/0", "old/1", "older/0"),
    }
