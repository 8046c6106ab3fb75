"""The entry script, called as the parallel job calls it."""

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd  # noqa: F401 - else the script would keep pyarrow from it, for all other tests
import pyarrow as pa
import pytest
from sklearn.svm import OneClassSVM
from threadpoolctl import threadpool_info, threadpool_limits

from scoring.adapters.blobs import FolderBlobs
from scoring.adapters.local_engine import LocalEngine, ParallelSettings
from scoring.errors import InvalidFleet, InvalidPart, StorageUnusable
from scoring.fleet import Fleet, Model, score_part, write_fleet
from scoring.job import score
from scoring.ports import EngineReport, EngineState, ScoringOrder
from scoring.predictions import INPUT_SCHEMA, read_predictions, read_table, write_table

ROWS = 24
CREATED = datetime(2026, 11, 22, 23, tzinfo=UTC)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sensors d0/s to d3/s, scored on mean and std."""
    folder = tmp_path_factory.mktemp("fleet")
    normal = np.random.default_rng(1).normal(size=(60, 2))
    models = (Model(f"d{n}", "s", OneClassSVM(nu=0.1).fit(normal + n)) for n in range(4))
    write_fleet(models, ("mean", "std"), folder, CREATED)
    return folder


@pytest.fixture
def job(fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Give the script after `init`; what it does to its process is undone."""
    threads = pa.cpu_count()
    with threadpool_limits():
        start(fleet, tmp_path, monkeypatch)
        yield score
    pa.set_cpu_count(threads)


def start(fleet: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in score._THREAD_SETTINGS:
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(score, "_job", None)
    monkeypatch.setattr("sys.argv", ["score.py", *arguments(fleet, folder)])
    score.init()


def arguments(fleet: Path, folder: Path) -> list[str]:
    predictions = str(folder / "predictions")
    platform = ["--amlbi_file_format", "none", "--client_sdk_version", "1.0"]
    return ["--fleet", str(fleet), "--predictions", predictions, "--run-id", "r1", *platform]


def part(*devices: str, mean: float = 0.0) -> pa.Table:
    rows = [(device, n) for device in devices for n in range(ROWS)]
    rng = np.random.default_rng(2)
    columns = {
        "device": [device for device, _ in rows],
        "sensor": ["s"] * len(rows),
        "window_start": [n * 3_600_000_000 for _, n in rows],
        "count": [5] * len(rows),
        "std": np.abs(rng.normal(size=len(rows))),
        **{name: mean + rng.normal(size=len(rows)) for name in ("mean", "min", "max", "last")},
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in INPUT_SCHEMA]
    return pa.table(arrays, schema=INPUT_SCHEMA)


def stage(folder: Path, name: str, data: bytes) -> str:
    path = folder / "input" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return str(path)


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "predictions").iterdir()}


class TestRun:
    def test_a_part_is_scored_into_a_prediction_part_of_its_name(
        self, job: ModuleType, fleet: Path, tmp_path: Path
    ) -> None:
        windows = part("d0", "d1")

        job.run([stage(tmp_path, "part-00003.parquet", write_table(windows))])

        data = stored(tmp_path)["part-00003.parquet"]
        expected = score_part(Fleet.open(fleet), windows)
        assert read_predictions(data, "part-00003.parquet").equals(expected)

    def test_there_is_one_summary_row_for_each_part(self, job: ModuleType, tmp_path: Path) -> None:
        near, far = write_table(part("d0")), write_table(part("d1", "d2", mean=1e6))

        rows = job.run([stage(tmp_path, "a.parquet", near), stage(tmp_path, "b.parquet", far)])

        first, second = map(json.loads, rows)
        assert first["part"] == "a.parquet"
        assert first["rows"] == first["scored"] == ROWS
        assert second == {
            "part": "b.parquet",
            "rows": 2 * ROWS,
            "scored": 2 * ROWS,
            "anomalies": 2 * ROWS,
            "not_scored": 0,
        }

    def test_a_device_without_a_model_has_rows_all_the_same(
        self, job: ModuleType, tmp_path: Path
    ) -> None:
        windows = part("d0", "stranger")

        rows = job.run([stage(tmp_path, "a.parquet", write_table(windows))])

        assert json.loads(rows[0])["not_scored"] == ROWS
        predictions = read_predictions(stored(tmp_path)["a.parquet"], "a.parquet")
        assert predictions["device"].to_pylist() == windows["device"].to_pylist()
        assert predictions["status"].to_pylist() == ["scored"] * ROWS + ["no_model"] * ROWS

    def test_a_part_without_rows_gives_predictions_without_rows(
        self, job: ModuleType, tmp_path: Path
    ) -> None:
        rows = job.run([stage(tmp_path, "a.parquet", write_table(INPUT_SCHEMA.empty_table()))])

        assert json.loads(rows[0])["rows"] == 0
        assert read_predictions(stored(tmp_path)["a.parquet"], "a.parquet").num_rows == 0

    def test_an_empty_mini_batch_gives_no_rows(self, job: ModuleType, tmp_path: Path) -> None:
        assert job.run([]) == []
        assert stored(tmp_path) == {}

    def test_a_mini_batch_that_comes_again_changes_no_byte(
        self, job: ModuleType, tmp_path: Path
    ) -> None:
        paths = [
            stage(tmp_path, f"part-0000{n}.parquet", write_table(part(f"d{n}"))) for n in range(2)
        ]
        rows = job.run(paths)
        first = stored(tmp_path)

        assert job.run(paths) == rows
        assert stored(tmp_path) == first

    def test_a_mini_batch_that_was_broken_off_is_made_whole_by_the_next_attempt(
        self, job: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths = [
            stage(tmp_path, f"part-0000{n}.parquet", write_table(part(f"d{n}"))) for n in range(2)
        ]
        job.run(paths)
        whole = stored(tmp_path)
        # Half a part, as from a writer that did not put it in place at once, and a killed draft.
        (tmp_path / "predictions" / "part-00000.parquet").write_bytes(b"PAR1")
        (tmp_path / "predictions" / ".part-00001.parquet.0.draft").write_bytes(b"PAR1")
        (tmp_path / "predictions" / "part-00001.parquet").unlink()

        job.run(paths)

        assert {name: stored(tmp_path)[name] for name in whole} == whole

    @pytest.mark.parametrize("code", ["ENOTSUP", "ENOSYS", "EINVAL", "EIO", "EPERM"])
    def test_on_a_mount_that_cannot_rename_a_part_is_written_where_it_belongs(
        self, job: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
    ) -> None:
        def refuse(path: Path, _: Path) -> Path:
            raise OSError(getattr(errno, code), code, str(path))

        windows = write_table(part("d0"))
        job.run([stage(tmp_path, "a.parquet", windows)])
        monkeypatch.setattr(Path, "replace", refuse)

        job.run([stage(tmp_path, "b.parquet", windows)])

        found = stored(tmp_path)
        assert sorted(found) == ["a.parquet", "b.parquet"]
        assert found["a.parquet"] == found["b.parquet"]

    def test_run_before_init_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(score, "_job", None)

        with pytest.raises(RuntimeError, match="init"):
            score.run([])


class TestInvalidParts:
    @pytest.mark.parametrize("damage", ["cut", "other columns", "not parquet", "missing"])
    def test_a_part_that_cannot_be_read_is_named(
        self, job: ModuleType, tmp_path: Path, damage: str
    ) -> None:
        whole = write_table(part("d0"))
        data = {
            "cut": whole[: len(whole) // 2],
            "other columns": write_table(pa.table({"device": ["d0"]})),
            "not parquet": b"device,sensor\n",
            "missing": b"",
        }[damage]
        path = stage(tmp_path, "part-00007.parquet", data)
        if damage == "missing":
            Path(path).unlink()

        with pytest.raises(InvalidPart, match="part-00007") as error:
            job.run([path])

        text = " ".join(f"InvalidPart: {error.value}".split())
        assert stored(tmp_path) == {"part-00007.error": text.encode()}

    def test_parts_before_an_unreadable_one_are_done_and_those_after_it_are_not_reached(
        self, job: ModuleType, tmp_path: Path
    ) -> None:
        good = stage(tmp_path, "a.parquet", write_table(part("d0")))
        bad = stage(tmp_path, "b.parquet", b"")
        other = stage(tmp_path, "c.parquet", b"")

        with pytest.raises(InvalidPart, match=r"b\.parquet"):
            job.run([good, bad, other])

        assert sorted(stored(tmp_path)) == ["a.parquet", "b.error"]

    def test_why_a_part_was_not_scored_is_one_line_of_bounded_length(
        self, job: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            message = "no\r\n  memory \ud800 für " + "x" * 5000
            raise MemoryError(message)

        monkeypatch.setattr(score, "score_part", refuse)
        path = stage(tmp_path, "part-00007.parquet", write_table(part("d0")))

        with pytest.raises(MemoryError):
            job.run([path])

        text = stored(tmp_path)["part-00007.error"].decode()
        assert text.startswith("MemoryError: no memory ? für xxx")
        assert (len(text), text.splitlines()) == (1000, [text])

    def test_a_reason_that_cannot_be_kept_does_not_hide_the_error(
        self, job: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = stage(tmp_path, "part-00007.parquet", b"")
        (tmp_path / "predictions" / "part-00007.error").mkdir()

        with pytest.raises(InvalidPart, match="part-00007"):
            job.run([path])

        (record,) = [r for r in caplog.records if r.message == "score.no_error_file"]
        assert record.__dict__["part"] == "part-00007.parquet"

    def test_a_prediction_part_that_cannot_be_written_is_an_error(
        self, job: ModuleType, tmp_path: Path
    ) -> None:
        path = stage(tmp_path, "a.parquet", write_table(part("d0")))
        (tmp_path / "predictions").rmdir()

        with pytest.raises(StorageUnusable, match=r"a\.parquet"):
            job.run([path])


class TestInit:
    def test_a_missing_fleet_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with threadpool_limits(), pytest.raises(InvalidFleet):
            start(tmp_path / "nothing", tmp_path, monkeypatch)

    def test_a_fleet_of_another_format_is_refused(
        self, fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = tmp_path / "fleet"
        other.mkdir()
        for file in fleet.iterdir():
            (other / file.name).write_bytes(file.read_bytes())
        manifest = json.loads((other / "manifest.json").read_text())
        (other / "manifest.json").write_text(json.dumps({**manifest, "format": 999}))

        with threadpool_limits(), pytest.raises(InvalidFleet):
            start(other, tmp_path, monkeypatch)

    def test_a_fleet_that_is_not_the_one_asked_for_is_refused_by_name(
        self, fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        version = Fleet.open(fleet).version
        monkeypatch.setattr(
            "sys.argv", ["score.py", *arguments(fleet, tmp_path), "--fleet-version", "other"]
        )

        with threadpool_limits(), pytest.raises(InvalidFleet, match=f"{version}.*asks for other"):
            score.init()

    def test_a_fleet_of_another_version_scores_by_its_own_models(
        self, job: ModuleType, fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = stage(tmp_path, "a.parquet", write_table(part("d0")))
        job.run([path])
        before = stored(tmp_path)["a.parquet"]
        other = tmp_path / "fleet"
        detector = OneClassSVM(nu=0.5).fit(np.random.default_rng(3).normal(size=(60, 2)))
        write_fleet([Model("d0", "s", detector)], ("mean", "std"), other, CREATED)

        start(other, tmp_path, monkeypatch)
        job.run([path])

        assert stored(tmp_path)["a.parquet"] != before
        assert list(stored(tmp_path)) == ["a.parquet"]

    def test_the_libraries_use_one_thread(self, job: ModuleType) -> None:
        assert {library["num_threads"] for library in threadpool_info()} == {1}

    def test_a_process_of_its_own_loads_nothing_heavy(self, fleet: Path, tmp_path: Path) -> None:
        path = stage(tmp_path, "a.parquet", write_table(part("d0", "d1")))
        program = (
            "import sys; from scoring.job import score;"
            "score.init(); print(*score.run([sys.argv[1]]));"
            "print(*{'pandas', 'sklearn', 'scipy', 'sqlalchemy', 'skops'} & set(sys.modules))"
        )
        command = [sys.executable, "-c", program, path, *arguments(fleet, tmp_path)]

        result = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
        )

        row, heavy = result.stdout.splitlines()
        assert json.loads(row)["scored"] == 2 * ROWS
        assert heavy == ""
        written = stored(tmp_path)["a.parquet"]
        assert read_table(Path(path).read_bytes(), INPUT_SCHEMA, "a").num_rows == 2 * ROWS
        assert read_predictions(written, "a.parquet").num_rows == 2 * ROWS


class TestUnderTheLocalEngine:
    @pytest.fixture
    def blobs(self, fleet: Path, tmp_path: Path) -> FolderBlobs:
        blobs, version = FolderBlobs(tmp_path / "blobs"), Fleet.open(fleet).version
        for file in fleet.iterdir():
            blobs.write(f"fleets/{version}/{file.name}", file.read_bytes())
        for number in range(2):
            data = write_table(part(f"d{number}", "stranger"))
            blobs.write(f"runs/r1/input/1/part-0000{number}.parquet", data)
        return blobs

    def score(self, blobs: FolderBlobs, folder: Path) -> EngineReport | None:
        engine = LocalEngine(blobs, folder / "work", ParallelSettings())
        version = next(blobs.list("fleets/")).name.split("/")[1]
        engine.submit(ScoringOrder("r1", version, "runs/r1/input/1/", "predictions/r1/"))
        report = engine.wait("r1", 60)
        engine.close()
        return report

    def test_every_window_has_its_prediction(
        self, blobs: FolderBlobs, fleet: Path, tmp_path: Path
    ) -> None:
        report = self.score(blobs, tmp_path)

        assert report == EngineReport(EngineState.COMPLETED, parts_done=2)
        for number in range(2):
            data, _ = blobs.read(f"predictions/r1/part-0000{number}.parquet")
            expected = score_part(Fleet.open(fleet), part(f"d{number}", "stranger"))
            assert data == write_table(expected)

    def test_a_fleet_that_was_tampered_with_scores_nothing(
        self, blobs: FolderBlobs, tmp_path: Path
    ) -> None:
        models = next(info.name for info in blobs.list("fleets/") if "manifest" not in info.name)
        data, _ = blobs.read(models)
        blobs.write(models, data[:-100] + bytes(100))

        report = self.score(blobs, tmp_path)

        assert report
        assert report.state == EngineState.FAILED
        assert report.cause.startswith("init() failed: InvalidFleet: ")
        assert list(blobs.list("predictions/")) == []

    def test_a_corrupt_part_fails_the_run_by_name(self, blobs: FolderBlobs, tmp_path: Path) -> None:
        blobs.write("runs/r1/input/1/part-00001.parquet", b"PAR1")

        report = self.score(blobs, tmp_path)

        assert report
        assert report.state == EngineState.FAILED
        assert "failed after 3 attempts: InvalidPart: part-00001.parquet" in report.cause
        text, _ = blobs.read("predictions/r1/part-00001.error")
        assert text.startswith(b"InvalidPart: part-00001.parquet")
