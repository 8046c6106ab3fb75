"""Files that are ingested again: with other options, grown, and after a kill."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from scoring import instants
from scoring.adapters.files import ReadingsFile
from scoring.adapters.sql.schema import facts, partitions
from scoring.bootstrap import App, FileOutcome
from scoring.horizon import Standing
from scoring.readings import FieldNames
from scoring.settings import Settings

HEADER = "who,also,what,t1,t2,v1,v2\n"
ARRIVED = 1_600_000_000
"""Seconds since 1970: in 2020."""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    given = {"SCORING_DATA": str(tmp_path / "data"), "SCORING_WINDOW": "1min"}
    with App(Settings.load(given)) as app:
        yield app


class Killed(BaseException):
    """The process is gone."""


def ingest(
    app: App,
    path: Path,
    names: FieldNames,
    *,
    kill_after: int | None = None,
    tell: Callable[[], None] = lambda: None,
) -> FileOutcome | None:
    """Ingest a file by event batches of three; None if killed after some of them.

    Parameters
    ----------
    tell
        Called after each.
    """
    done = 0

    def progress(_: float, __: float) -> None:
        nonlocal done
        done += 1
        tell()
        if done == kill_after:
            raise Killed

    with ReadingsFile.open(path, names) as source:
        try:
            return app.ingest_file(source, progress, batch_size=3)
        except Killed:
            return None


def counted(app: App) -> tuple[int, float]:
    """Return how many readings are in windows, and their sum."""
    statement = (
        "SELECT coalesce(sum(count), 0), coalesce(sum(count * mean), 0) FROM window_partials"
    )
    with app.database.read() as connection:
        count, total = connection.exec_driver_sql(statement).one()
    return int(count), float(total)


@dataclass
class Model:
    """A file whose lines some options can read and others not, and what has to be counted."""

    path: Path
    random: Random
    as_json: bool
    lines: list[dict[str, str]] = field(default_factory=list)
    read: dict[int, float] = field(default_factory=dict)

    def grow(self) -> None:
        written, keys = len(self.lines), HEADER.strip().split(",")
        for _ in range(self.random.randrange(1, 12)):
            number = len(self.lines)
            good = [self.random.random() < 0.6 for _ in range(4)]
            times = [f"2020-01-01 00:00:{number % 60:02}" if one else "then" for one in good[:2]]
            values = [str(number * 2 + i) if one else "much" for i, one in enumerate(good[2:])]
            names = (f"d{number % 5}", f"e{number % 3}", "s")
            self.lines.append(dict(zip(keys, (*names, *times, *values), strict=True)))
        with self.path.open("a") as file:
            if not written and not self.as_json:
                file.write(HEADER)
            for line in self.lines[written:]:
                file.write((self._json(line) if self.as_json else ",".join(line.values())) + "\n")

    def _json(self, line: dict[str, str]) -> str:
        values = {k: int(v) if k in {"v1", "v2"} and v.isdigit() else v for k, v in line.items()}
        return json.dumps(values)

    def options(self) -> FieldNames:
        chosen = (["who", "also"], ["what"], ["t1", "t2"], ["v1", "v2"])
        return FieldNames(*(self.random.choice(names) for names in chosen))

    def note(self, names: FieldNames) -> None:
        """Note what these options can read and no earlier ones could."""
        for number, line in enumerate(self.lines):
            if line[names.ts] != "then" and line[names.value] != "much":
                self.read.setdefault(number, float(line[names.value]))


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_every_line_is_counted_once_if_any_options_could_read_it(
    app: App, tmp_path: Path, seed: int, *, as_json: bool
) -> None:
    random = Random(seed)
    model = Model(tmp_path / ("a.ndjson" if as_json else "a.csv"), random, as_json)
    model.grow()
    for _ in range(6):
        if random.random() < 0.3:
            model.grow()
        names = model.options()
        if random.random() < 0.3:
            ingest(app, model.path, names, kill_after=random.randrange(1, 6))
            # The same command again goes on.
        assert ingest(app, model.path, names) is not None
        model.note(names)

        count, total = counted(app)
        assert count == len(model.read)
        assert total == pytest.approx(sum(model.read.values()))
    replayed, _ = app.replay_rejects()
    assert replayed == 0


def test_a_file_is_known_again_whatever_the_options(app: App, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(HEADER + "a,b,s,2020-01-01 00:00:00,then,1,x\n" * 3)

    first = ingest(app, path, FieldNames("who", "what", "t2", "v1"))
    again = ingest(app, path, FieldNames("also", "what", "t1", "v1"))

    assert first is not None
    assert again is not None
    assert (first.is_known, first.delivered.rejects) == (False, {"bad_time": 3})
    assert (again.is_known, again.replayed, again.stay) == (True, 3, 0)
    assert counted(app) == (3, 3.0)
    # What was counted stays, though these options would read it otherwise.
    other = ingest(app, path, FieldNames("who", "what", "t1", "v1"))
    assert other is not None
    assert (other.replayed, other.stay, counted(app)) == (0, 0, (3, 3.0))


def test_the_same_bytes_by_standard_input_or_another_name_are_the_same_file(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = HEADER + "a,b,s,2020-01-01 00:00:00,then,1,x\n"
    (tmp_path / "a.csv").write_text(content)
    names = FieldNames("who", "what", "t1", "v1")
    ingest(app, tmp_path / "a.csv", names)
    (tmp_path / "a.csv").rename(tmp_path / "b.txt")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))

    for path in (tmp_path / "b.txt", Path("-")):
        found = ingest(app, path, names)
        assert found is not None
        assert found.is_known

    assert counted(app) == (1, 1.0)


@pytest.mark.parametrize("columns", [FieldNames(), FieldNames("who", "what", "t1", "v1")])
def test_a_file_that_an_earlier_version_has_ingested_is_known(
    app: App, tmp_path: Path, columns: FieldNames
) -> None:
    path = tmp_path / "a.csv"
    header = HEADER.replace("who", columns.device).replace("what", columns.sensor)
    header = header.replace("t1", columns.ts).replace("v1", columns.value)
    path.write_text(header + "a,b,s,2020-01-01 00:00:00,then,1,x\n" * 9)
    with ReadingsFile.open(path, columns) as source:
        salt = json.dumps(["csv", 4, *(getattr(columns, n) for n in columns.__slots__)]).encode()
        digest, size = source._source.digest(salt)
    ingest(app, path, columns)
    with app.database.write() as connection:
        # As the earlier version has left it.
        connection.execute(
            facts.update()
            .where(facts.c.name.startswith("file:"))
            .values(name=f"file:file-{digest[:12]}", value=f"{size}:{digest}")
        )
        for table in ("partitions", "epochs", "window_partials", "segments"):
            connection.exec_driver_sql(
                f"UPDATE {table} SET partition ="  # noqa: S608
                f" 'file-{digest[:12]}' || substr(partition, 18)"
            )
    before = counted(app)

    found = ingest(app, path, columns)

    assert found is not None
    assert (found.is_known, found.delivered.duplicates) == (True, 9)
    assert counted(app) == before


def test_two_that_ingest_a_file_at_once_count_it_once(app: App, tmp_path: Path) -> None:
    """The one whose events arrived later does not take the other's for those of a new hub."""
    path, names = tmp_path / "a.csv", FieldNames("who", "what", "t1", "v1")
    rows = [f"a{row % 7},b,s,2020-01-01 00:00:00,then,1,x\n" for row in range(300)]
    path.write_text(HEADER + "".join(rows))
    begun: list[bool] = []

    def meanwhile() -> None:
        if not begun:
            begun.append(True)
            os.utime(path, (ARRIVED - 10, ARRIVED - 10))
            ingest(app, path, names)

    os.utime(path, (ARRIVED, ARRIVED))
    ingest(app, path, names, tell=meanwhile)

    assert counted(app) == (300, 300.0)


def test_a_file_that_grows_holds_windows_open_again_until_it_has_ended(
    app: App, tmp_path: Path
) -> None:
    path, names = tmp_path / "a.csv", FieldNames("who", "what", "t1", "v1")
    row = "a,b,s,2020-01-01 00:00:00,then,1,x\n"
    path.write_text(HEADER + row * 3)
    ingest(app, path, names)

    def ended() -> set[bool]:
        with app.database.read() as connection:
            return set(connection.execute(partitions.select()).scalars(3))

    assert ended() == {True}
    ingest(app, path, names, kill_after=1)
    assert ended() == {True}, "nothing of it is new"
    path.write_text(HEADER + row * 40)
    ingest(app, path, names, kill_after=1)
    assert ended() == {False}
    ingest(app, path, names)
    assert ended() == {True}


def test_a_file_that_has_grown_is_not_taken_for_one_that_nobody_reads(
    app: App, tmp_path: Path
) -> None:
    """Its partitions were last seen to go on before it grew, longer ago than the idle timeout."""
    path, names = tmp_path / "a.csv", FieldNames("who", "what", "t1", "v1")
    rows = [f"a{row % 7},b,s,2020-01-01 00:00:00,then,1,x\n" for row in range(60)]
    path.write_text(HEADER + "".join(rows[:30]))
    begin = ARRIVED * instants.SECOND
    ingest(app, path, names, tell=lambda: app.hub_progress.ask(begin))
    app.hub_progress.ask(begin)
    path.write_text(HEADER + "".join(rows))
    later = begin + 3600 * instants.SECOND
    seen: list[Standing] = []

    def look() -> None:
        app.hub_progress.ask(later)
        seen.extend(standing for _, standing in app.hub_progress.standings(later))

    ingest(app, path, names, tell=look)

    assert set(seen) == {Standing.ACTIVE}


def test_an_old_copy_of_a_file_that_has_grown_is_known(app: App, tmp_path: Path) -> None:
    path, copy, names = (
        tmp_path / "a.csv",
        tmp_path / "b.csv",
        FieldNames("who", "what", "t1", "v1"),
    )
    row = "a,b,s,2020-01-01 00:00:00,then,1,x\n"
    copy.write_text(HEADER + row * 3)
    path.write_text(HEADER + row * 3)
    ingest(app, path, names)
    path.write_text(HEADER + row * 5)
    ingest(app, path, names)

    found = ingest(app, copy, names)

    assert found is not None
    assert found.is_known
    assert counted(app) == (5, 5.0)
    assert ingest(app, path, names) is not None
    assert counted(app) == (5, 5.0)
