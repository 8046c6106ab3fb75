"""The local engine: the parallel job's rules, processes that die, processes that share a run."""

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from scoring import instants
from scoring.adapters.local_engine import LocalEngine, ParallelSettings
from scoring.errors import BadInput, Misconfigured, StorageUnusable, Transient
from scoring.ports import EngineReport, EngineState, ScoringOrder
from tests.adapters.engines import FLEET, LocalHarness, eventually, order_of

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalHarness]:
    harness = LocalHarness(tmp_path)
    yield harness
    harness.close()


def run(engine: LocalEngine, order: ScoringOrder) -> EngineReport:
    engine.submit(order)
    report = engine.wait(order.run_id, 60)
    assert report is not None
    return report


class TestRetries:
    def test_a_mini_batch_that_fails_twice_and_then_works_is_no_failure(
        self, local: LocalHarness
    ) -> None:
        order = local.stage_parts(f"recover {local.mark}")

        report = run(local.new_engine(max_retries=2), order)

        assert report == EngineReport(EngineState.COMPLETED, parts_done=1)
        assert len(local.mark.read_text().splitlines()) == 3

    def test_a_mini_batch_is_not_tried_more_often_than_allowed(self, local: LocalHarness) -> None:
        order = local.stage_parts(f"recover {local.mark}")

        report = run(local.new_engine(max_retries=1), order)

        assert report == EngineReport(
            EngineState.FAILED,
            "part-00000.parquet (mini-batch 1) failed after 2 attempts: ValueError: not yet",
        )

    def test_a_mini_batch_that_takes_too_long_is_stopped(self, local: LocalHarness) -> None:
        order = local.stage(stuck=1)

        report = run(local.new_engine(timeout=0.2, max_retries=1), order)

        assert report.cause == (
            "part-00000.parquet (mini-batch 1) failed after 2 attempts: "
            "run() took longer than 0.2 s"
        )
        assert not local.is_held()

    def test_a_worker_that_is_killed_over_a_mini_batch_is_replaced(
        self, local: LocalHarness
    ) -> None:
        order = local.stage_parts(f"die-once {local.mark}", "count", "count")

        report = run(local.new_engine(max_retries=1), order)

        assert report == EngineReport(EngineState.COMPLETED, parts_done=3)

    def test_a_worker_that_is_killed_every_time_fails_the_run(self, local: LocalHarness) -> None:
        order = local.stage_parts(f"die-once {local.mark}")

        report = run(local.new_engine(max_retries=0), order)

        assert report.state == EngineState.FAILED
        # Exit code, or broken pool: whether pebble has seen by then which mini-batch it was.
        assert "failed after 1 attempt: the worker process" in report.cause

    def test_a_script_that_exits_fails_its_mini_batch(self, local: LocalHarness) -> None:
        report = run(local.engine, local.stage_parts("exit"))

        assert report.cause.endswith("failed after 1 attempt: SystemExit: 3")

    def test_fewer_rows_than_parts_are_a_failure(self, local: LocalHarness) -> None:
        order = local.stage_parts("count", "short", "count")

        report = run(local.new_engine(mini_batch_size=3), order)

        assert report.cause == (
            "part-00000.parquet and 2 more (mini-batch 1) failed after 1 attempt: "
            "run() returned 2 rows for 3 parts"
        )

    def test_a_row_without_predictions_is_a_failure(self, local: LocalHarness) -> None:
        report = run(local.engine, local.stage_parts("idle"))

        assert report.cause.endswith("run() wrote no predictions for part-00000.parquet")


class TestThresholds:
    def test_failures_within_the_thresholds_leave_their_parts_unpredicted(
        self, local: LocalHarness
    ) -> None:
        order = local.stage(good=2, bad=1)

        report = run(local.new_engine(error_threshold=1, mini_batch_error_threshold=1), order)

        assert report == EngineReport(EngineState.COMPLETED, parts_done=2)
        assert local.predictions(order) == ["part-00000.parquet", "part-00001.parquet"]

    @pytest.mark.parametrize(
        "rules",
        [
            {"error_threshold": 1, "mini_batch_error_threshold": -1},
            {"error_threshold": -1, "mini_batch_error_threshold": 1},
        ],
    )
    def test_one_failure_more_aborts_the_run(
        self, local: LocalHarness, rules: dict[str, Any]
    ) -> None:
        report = run(local.new_engine(**rules), local.stage(good=1, bad=2))

        assert report.state == EngineState.FAILED

    def test_minus_one_ignores_every_failure(self, local: LocalHarness) -> None:
        engine = local.new_engine(error_threshold=-1, mini_batch_error_threshold=-1)

        report = run(engine, local.stage(bad=3))

        assert report == EngineReport(EngineState.COMPLETED)

    def test_all_parts_of_a_mini_batch_that_raised_have_failed(self, local: LocalHarness) -> None:
        engine = local.new_engine(
            mini_batch_size=3, error_threshold=2, mini_batch_error_threshold=-1
        )

        report = run(engine, local.stage(good=2, bad=1))

        assert report.state == EngineState.FAILED

    def test_parts_that_were_finished_before_a_failure_are_kept(self, local: LocalHarness) -> None:
        order = local.stage(good=2, bad=1)

        run(local.new_engine(mini_batch_size=3), order)

        assert local.predictions(order) == ["part-00000.parquet", "part-00001.parquet"]


class TestErrorFiles:
    """Why a part has no predictions, in a file beside them."""

    CAUSE = "ValueError: this part is no good"

    def test_the_part_that_the_script_names_is_the_one_that_failed(
        self, local: LocalHarness
    ) -> None:
        order = local.stage_parts("count", "explain", "count")

        report = run(local.new_engine(mini_batch_size=3), order)

        assert report.cause == (
            f"part-00001.parquet (mini-batch 1) failed after 1 attempt: {self.CAUSE}"
        )
        assert local.predictions(order) == ["part-00000.parquet"]
        assert local.errors(order) == {"part-00001.error": "told: this part is no good"}

    def test_without_a_word_of_the_script_every_part_without_predictions_has_the_cause(
        self, local: LocalHarness
    ) -> None:
        order = local.stage_parts("count", "fail", "count")

        run(local.new_engine(mini_batch_size=3), order)

        assert local.errors(order) == {
            "part-00001.error": self.CAUSE,
            "part-00002.error": self.CAUSE,
        }

    def test_a_mini_batch_that_takes_too_long_has_failed_with_all_its_parts(
        self, local: LocalHarness
    ) -> None:
        order = local.stage_parts(f"hold {local.mark}", "count")

        run(local.new_engine(mini_batch_size=2, timeout=0.2), order)

        late = "run() took longer than 0.2 s"
        assert local.errors(order) == {"part-00000.error": late, "part-00001.error": late}

    def test_a_killed_worker_fails_all_parts_whatever_an_earlier_attempt_said(
        self, local: LocalHarness
    ) -> None:
        order = local.stage_parts(f"explain-once {local.mark}", "count")

        run(local.new_engine(mini_batch_size=2, max_retries=1), order)

        errors = local.errors(order)
        assert sorted(errors) == ["part-00000.error", "part-00001.error"]
        # Exit code, or broken pool.
        assert all(text.startswith("the worker process") for text in errors.values())

    def test_a_part_that_the_script_left_out_has_failed(self, local: LocalHarness) -> None:
        order = local.stage_parts("idle", "count")

        run(local.new_engine(mini_batch_size=2), order)

        assert local.errors(order) == {
            "part-00000.error": "run() wrote no predictions for part-00000.parquet"
        }

    def test_parts_of_which_only_the_rows_are_missing_have_predictions_and_no_error(
        self, local: LocalHarness
    ) -> None:
        order = local.stage_parts("short")

        run(local.engine, order)

        assert (local.predictions(order), local.errors(order)) == (["part-00000.parquet"], {})

    def test_a_mini_batch_that_works_in_the_end_leaves_no_error(self, local: LocalHarness) -> None:
        order = local.stage_parts(f"recover {local.mark}")

        run(local.new_engine(max_retries=2), order)

        assert local.errors(order) == {}

    def test_a_run_that_is_completed_within_its_thresholds_says_what_is_missing(
        self, local: LocalHarness
    ) -> None:
        order = local.stage_parts("count", "fail", "explain")
        engine = local.new_engine(error_threshold=2, mini_batch_error_threshold=2)

        report = run(engine, order)

        assert report == EngineReport(EngineState.COMPLETED, parts_done=1)
        assert local.errors(order) == {
            "part-00001.error": self.CAUSE,
            "part-00002.error": "told: this part is no good",
        }

    def test_a_part_with_an_error_is_scored_by_the_next_attempt_and_counts_then(
        self, local: LocalHarness
    ) -> None:
        order = local.stage(good=1, stuck=1)
        local.blobs.write(f"{order.prediction_prefix}part-00000.error", b"no memory")
        local.lose(order)
        eventually(lambda: local.engine.poll(order.run_id) is None)
        local.release()

        report = run(local.engine, order)

        assert report == EngineReport(EngineState.COMPLETED, parts_done=2)
        assert local.predictions(order) == ["part-00000.parquet", "part-00001.parquet"]

    def test_an_error_that_cannot_be_stored_does_not_hide_the_cause(
        self, local: LocalHarness, caplog: pytest.LogCaptureFixture
    ) -> None:
        order = local.stage(bad=1)
        (local.folder / "blobs" / order.prediction_prefix / "part-00000.error").mkdir(parents=True)

        report = run(local.engine, order)

        assert report.cause.endswith(self.CAUSE)
        assert "engine.no_error_file" in [record.message for record in caplog.records]


class TestStart:
    def test_a_missing_fleet_fails_the_run_at_once(self, local: LocalHarness) -> None:
        local.blobs.delete(f"fleets/{FLEET}/")

        report = run(local.new_engine(max_retries=5), local.stage(good=1))

        assert report.state == EngineState.FAILED
        assert report.cause.startswith("init() failed: FileNotFoundError: ")

    def test_an_init_that_exits_fails_the_run_at_once(self, local: LocalHarness) -> None:
        local.blobs.write(f"fleets/{FLEET}/how", b"refuse")

        report = run(local.new_engine(max_retries=5), local.stage(good=1))

        assert report.cause == "init() failed: SystemExit: arguments not understood"

    def test_an_init_that_kills_its_process_fails_the_run(self, local: LocalHarness) -> None:
        local.blobs.write(f"fleets/{FLEET}/how", b"die")

        report = run(local.new_engine(max_retries=1), local.stage(good=1))

        assert report.cause == (
            "part-00000.parquet (mini-batch 1) failed after 2 attempts: "
            "the worker processes ended unexpectedly"
        )

    def test_a_script_that_is_not_there_fails_the_run(self, local: LocalHarness) -> None:
        script = local.folder / "missing.py"
        engine = LocalEngine(local.blobs, local.folder / "work", ParallelSettings(), script)

        report = run(engine, local.stage(good=1))
        engine.close()

        assert "missing.py" in report.cause

    def test_wrong_settings_are_all_named(self) -> None:
        with pytest.raises(Misconfigured) as caught:
            ParallelSettings(processes=0, timeout=0, error_threshold=-2)

        assert caught.value.problems == [
            "processes is 0 and must be at least 1",
            "error_threshold is -2 and must be at least -1",
            "timeout is 0 and must be more than 0 seconds",
        ]

    @pytest.mark.parametrize("run_id", ["", ".", "..", "../other", "a/b", ".hidden"])
    def test_a_run_id_that_leads_out_of_the_work_folder_is_refused(
        self, local: LocalHarness, run_id: str
    ) -> None:
        with pytest.raises(BadInput):
            local.engine.submit(order_of(run_id))

    def test_an_unusable_work_folder_is_reported_as_such(self, local: LocalHarness) -> None:
        (local.folder / "work").write_text("a file, not a folder")

        with pytest.raises(StorageUnusable):
            local.engine.submit(local.stage(good=1))


class TestTurns:
    def test_runs_follow_one_another(self, local: LocalHarness) -> None:
        first, second = local.stage(stuck=1), local.stage(good=1)
        local.engine.submit(first)
        eventually(local.is_held)

        local.engine.submit(second)

        assert local.engine.poll(second.run_id) == EngineReport(EngineState.QUEUED)
        local.release()
        assert run(local.engine, second).state == EngineState.COMPLETED

    def test_a_run_that_waits_for_its_turn_can_be_canceled(self, local: LocalHarness) -> None:
        first, second = local.stage(stuck=1), local.stage(good=1)
        local.engine.submit(first)
        eventually(local.is_held)
        local.engine.submit(second)

        local.engine.cancel(second.run_id)

        report = local.engine.wait(second.run_id, 60)
        assert report == EngineReport(EngineState.CANCELED)
        assert local.is_held()

    def test_progress_is_told_part_by_part(self, local: LocalHarness) -> None:
        order = local.stage(good=2, stuck=1)

        local.engine.submit(order)

        expected = EngineReport(EngineState.RUNNING, parts_done=2)
        eventually(lambda: local.engine.poll(order.run_id) == expected)


class TestBeginning:
    """When a run began to score, which every process can read."""

    @staticmethod
    def started(engine: LocalEngine, order: ScoringOrder) -> int | None:
        report = engine.poll(order.run_id)
        return report.started if report else None

    def test_a_run_begins_when_its_turn_comes(self, local: LocalHarness) -> None:
        moments = iter([MONDAY, MONDAY + HOUR])
        engine = local.new_engine(clock=lambda: next(moments))
        first, second = local.stage(stuck=1), local.stage(good=1)
        engine.submit(first)
        eventually(local.is_held)
        engine.submit(second)

        seen = [self.started(local.new_engine(), order) for order in (first, second)]
        local.release()

        assert seen == [instants.of(MONDAY), None]
        assert run(engine, second).started == instants.of(MONDAY + HOUR)
        assert self.started(local.new_engine(), first) == instants.of(MONDAY)

    def test_progress_does_not_move_the_beginning(self, local: LocalHarness) -> None:
        moments = iter([MONDAY])
        order = local.stage(good=11, stuck=1)

        local.new_engine(clock=lambda: next(moments)).submit(order)

        expected = EngineReport(EngineState.RUNNING, parts_done=11)
        eventually(lambda: local.engine.poll(order.run_id) == expected)
        assert self.started(local.engine, order) == instants.of(MONDAY)

    def test_a_run_that_is_taken_up_again_begins_again(self, local: LocalHarness) -> None:
        order = local.stage(stuck=1)
        local.lose(order)
        eventually(lambda: local.engine.poll(order.run_id) is None)
        local.release()

        report = run(local.new_engine(clock=lambda: MONDAY), order)

        assert report.started == instants.of(MONDAY)


class TestEnd:
    def test_nothing_staged_is_left_behind(self, local: LocalHarness) -> None:
        order = local.stage(good=1)

        run(local.engine, order)

        left = sorted(path.name for path in (local.folder / "work" / order.run_id).iterdir())
        assert left == ["gate", "lock", "outcome.json"]

    def test_what_a_lost_run_had_staged_goes_when_another_run_ends(
        self, local: LocalHarness
    ) -> None:
        lost, other = local.stage(stuck=1), local.stage(good=1)
        local.lose(lost)
        work = local.folder / "work"
        assert list(work.glob(f"{lost.run_id}/stage-*"))

        run(local.engine, other)

        assert not list(work.glob("*/stage-*"))
        assert local.engine.poll(lost.run_id) is None

    def test_what_a_run_of_another_process_has_staged_stays(self, local: LocalHarness) -> None:
        order = local.stage(stuck=1)
        process = local.start_elsewhere(order)

        run(local.engine, local.stage(good=1))

        local.release()
        assert process.wait(60) == 0
        assert local.engine.poll(order.run_id) == EngineReport(EngineState.COMPLETED, parts_done=1)

    def test_a_run_that_was_canceled_before_is_not_begun(self, local: LocalHarness) -> None:
        counter = local.folder / "counter"
        order = local.stage_parts(f"count {counter}")
        local.new_engine().cancel(order.run_id)

        report = run(local.engine, order)

        assert report == EngineReport(EngineState.CANCELED)
        assert not counter.exists()

    def test_a_lost_run_that_was_canceled_is_not_taken_up_again(self, local: LocalHarness) -> None:
        order = local.stage(stuck=1)
        local.lose(order)
        eventually(lambda: local.engine.poll(order.run_id) is None)

        local.engine.cancel(order.run_id)
        local.release()

        assert local.engine.poll(order.run_id) is None
        assert run(local.engine, order) == EngineReport(EngineState.CANCELED)
        assert local.predictions(order) == []

    @pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"state": "x"}', b'{"cause": "\xff"}'])
    def test_a_run_whose_outcome_is_damaged_is_lost_and_can_be_scored_again(
        self, local: LocalHarness, damage: bytes
    ) -> None:
        order = local.stage(good=1)
        done = run(local.engine, order)
        outcome = local.folder / "work" / order.run_id / "outcome.json"
        outcome.write_bytes(damage)

        assert local.engine.poll(order.run_id) is None
        assert run(local.engine, order).state == done.state == EngineState.COMPLETED

    def test_cancel_stops_the_workers(self, local: LocalHarness) -> None:
        order = local.stage(stuck=1)
        local.engine.submit(order)
        eventually(local.is_held)

        local.engine.cancel(order.run_id)
        local.engine.wait(order.run_id, 60)

        assert not local.is_held()

    def test_close_stops_the_workers_and_gives_the_run_back(self, local: LocalHarness) -> None:
        order = local.stage(good=1, stuck=1)
        local.engine.submit(order)
        eventually(local.is_held)

        local.engine.close()

        assert not local.is_held()
        assert local.engine.poll(order.run_id) is None
        local.release()
        assert run(local.new_engine(), order).state == EngineState.COMPLETED

    def test_a_closed_engine_takes_no_runs(self, local: LocalHarness) -> None:
        local.engine.close()

        with pytest.raises(Transient):
            local.engine.submit(local.stage(good=1))

    def test_a_part_that_cannot_be_stored_fails_the_run(self, local: LocalHarness) -> None:
        order = local.stage(good=1)
        (local.folder / "blobs" / "predictions").write_text("a file, not a folder")

        report = run(local.engine, order)

        assert report.state == EngineState.FAILED


class TestSeveralProcesses:
    def test_parts_that_an_earlier_attempt_finished_are_not_scored_again(
        self, local: LocalHarness
    ) -> None:
        counter = local.folder / "counter"
        order = local.stage_parts(f"count {counter}", f"hold {local.mark}")
        process = local.start_elsewhere(order)
        eventually(lambda: len(local.predictions(order)) == 1)
        process.kill()
        process.wait()
        local.release()

        report = run(local.engine, order)

        assert report == EngineReport(EngineState.COMPLETED, parts_done=2)
        assert len(counter.read_text().splitlines()) == 1

    def test_workers_die_with_their_parent_even_if_it_is_killed(self, local: LocalHarness) -> None:
        process = local.start_elsewhere(local.stage(stuck=1))

        process.kill()

        eventually(lambda: not local.is_held())

    def test_a_run_of_another_process_is_seen_and_left_alone(self, local: LocalHarness) -> None:
        order = local.stage(stuck=1)
        process = local.start_elsewhere(order)

        local.engine.submit(order)

        assert local.engine.poll(order.run_id) == EngineReport(EngineState.RUNNING)
        local.release()
        assert process.wait(60) == 0
        assert local.engine.poll(order.run_id) == EngineReport(EngineState.COMPLETED, parts_done=1)

    def test_a_run_of_another_process_can_be_canceled(self, local: LocalHarness) -> None:
        order = local.stage(stuck=1)
        process = local.start_elsewhere(order)

        local.engine.cancel(order.run_id)

        assert process.wait(60) == 0
        assert local.engine.poll(order.run_id) == EngineReport(EngineState.CANCELED)

    def test_ctrl_c_ends_program_and_workers_without_a_word(self, local: LocalHarness) -> None:
        process = local.start_elsewhere(local.stage(stuck=1))

        # As the terminal does: to all processes of the group.
        os.killpg(process.pid, signal.SIGINT)

        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        assert not local.is_held()
