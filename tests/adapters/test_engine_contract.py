"""What every engine promises: the same tests on each."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scoring.ports import EngineReport, EngineState, ScoringOrder
from tests.adapters.engines import EngineHarness, LocalHarness, eventually
from tests.azure_ml.harness import CALM_SDK, AzureMLHarness

HARNESSES: list[Callable[[Path], EngineHarness]] = [LocalHarness, AzureMLHarness]


# On all of them: what one test leaves open may be found while another one runs.
@pytest.fixture(params=[pytest.param(one, marks=CALM_SDK) for one in HARNESSES])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineHarness]:
    harness: EngineHarness = request.param(tmp_path)
    yield harness
    harness.close()


def state(harness: EngineHarness, order: ScoringOrder) -> EngineState | None:
    report = harness.engine.poll(order.run_id)
    return report.state if report else None


def assert_completed(report: EngineReport | None, parts: int = 0) -> None:
    """Check that a run went well; not every engine counts parts, or has words of its own."""
    assert report
    assert report.state == EngineState.COMPLETED
    assert report.parts_done in {0, parts}
    assert (report.cause, report.logs) == ("", ())


class TestEngine:
    def test_a_run_that_was_never_submitted_is_unknown(self, harness: EngineHarness) -> None:
        order = harness.stage(good=1)

        assert harness.engine.poll(order.run_id) is None

    def test_a_submitted_run_predicts_every_part(self, harness: EngineHarness) -> None:
        order = harness.stage(good=3)

        harness.engine.submit(order)

        assert_completed(harness.settle(order), parts=3)
        assert harness.predictions(order) == [f"part-0000{n}.parquet" for n in range(3)]

    def test_a_run_without_parts_completes(self, harness: EngineHarness) -> None:
        order = harness.stage()

        harness.engine.submit(order)

        assert_completed(harness.settle(order))

    def test_a_run_is_known_as_soon_as_it_is_submitted(self, harness: EngineHarness) -> None:
        order = harness.stage(stuck=1)

        harness.engine.submit(order)

        report = harness.engine.poll(order.run_id)
        assert report is not None
        assert report.state in (EngineState.QUEUED, EngineState.RUNNING)

    def test_a_run_tells_when_it_began_to_score_as_long_as_it_does(
        self, harness: EngineHarness
    ) -> None:
        order = harness.stage(stuck=1)
        harness.engine.submit(order)

        eventually(lambda: state(harness, order) == EngineState.RUNNING)
        first, second = (harness.engine.poll(order.run_id) for _ in range(2))

        assert first
        assert second
        assert first.started is not None
        assert first.started == second.started

    def test_a_run_that_waits_has_not_begun(self, harness: EngineHarness) -> None:
        first, second = harness.stage(stuck=1), harness.stage(good=1)
        harness.engine.submit(first)
        eventually(lambda: state(harness, first) == EngineState.RUNNING)

        harness.engine.submit(second)

        report = harness.engine.poll(second.run_id)
        assert report
        assert (report.state, report.started) == (EngineState.QUEUED, None)

    def test_a_run_submitted_again_under_way_is_the_same_run(self, harness: EngineHarness) -> None:
        order = harness.stage(good=1, stuck=1)
        harness.engine.submit(order)

        harness.engine.submit(order)
        harness.release()

        assert_completed(harness.settle(order), parts=2)

    def test_a_run_submitted_again_after_its_failure_has_still_failed(
        self, harness: EngineHarness
    ) -> None:
        order = harness.stage(bad=1)
        harness.engine.submit(order)
        failed = harness.settle(order)

        harness.engine.submit(order)

        assert failed
        assert failed.state == EngineState.FAILED
        assert harness.engine.poll(order.run_id) == failed

    def test_a_failed_run_tells_part_and_cause_in_one_line(self, harness: EngineHarness) -> None:
        order = harness.stage(good=1, bad=1)

        harness.engine.submit(order)

        report = harness.settle(order)
        assert report
        assert report.state == EngineState.FAILED
        assert "part-00001.parquet" in report.cause
        assert "ValueError: this part is no good" in report.cause
        assert "\n" not in report.cause

    def test_a_part_that_could_not_be_scored_says_why_beside_the_predictions(
        self, harness: EngineHarness
    ) -> None:
        order = harness.stage(good=1, bad=1)

        harness.engine.submit(order)

        harness.settle(order)
        assert harness.errors(order) == {"part-00001.error": "ValueError: this part is no good"}
        assert "part-00001.parquet" not in harness.predictions(order)

    def test_a_run_that_is_scored_has_no_error_files(self, harness: EngineHarness) -> None:
        order = harness.stage(good=2)

        harness.engine.submit(order)

        harness.settle(order)
        assert harness.errors(order) == {}

    def test_a_canceled_run_ends_as_canceled(self, harness: EngineHarness) -> None:
        order = harness.stage(stuck=1)
        harness.engine.submit(order)

        harness.engine.cancel(order.run_id)

        report = harness.settle(order)
        assert report
        assert report.state == EngineState.CANCELED
        assert harness.predictions(order) == []

    def test_a_canceled_run_is_not_started_again(self, harness: EngineHarness) -> None:
        order = harness.stage(stuck=1)
        harness.engine.submit(order)
        harness.engine.cancel(order.run_id)
        canceled = harness.settle(order)

        harness.engine.submit(order)

        assert harness.engine.poll(order.run_id) == canceled

    def test_a_run_that_is_canceled_before_it_is_submitted_is_unknown(
        self, harness: EngineHarness
    ) -> None:
        order = harness.stage(good=1)

        harness.engine.cancel(order.run_id)
        harness.engine.cancel(order.run_id)

        assert harness.engine.poll(order.run_id) is None

    def test_a_run_that_was_canceled_before_it_is_submitted_ends_as_canceled_at_once(
        self, harness: EngineHarness
    ) -> None:
        order = harness.stage(good=1)
        harness.engine.cancel(order.run_id)

        for _ in range(2):
            harness.engine.submit(order)

            report = harness.engine.poll(order.run_id)
            assert report
            assert (report.state, report.started) == (EngineState.CANCELED, None)
            assert harness.predictions(order) == []

    def test_to_cancel_an_ended_run_changes_nothing(self, harness: EngineHarness) -> None:
        order = harness.stage(good=1)
        harness.engine.submit(order)
        completed = harness.settle(order)

        harness.engine.cancel(order.run_id)

        assert harness.engine.poll(order.run_id) == completed

    def test_a_run_whose_engine_died_can_be_submitted_again(self, harness: EngineHarness) -> None:
        order = harness.stage(good=1, stuck=1)
        harness.lose(order)
        eventually(lambda: harness.engine.poll(order.run_id) is None)

        harness.engine.submit(order)
        harness.release()

        assert_completed(harness.settle(order), parts=2)
        assert len(harness.predictions(order)) == 2

    def test_runs_do_not_mix(self, harness: EngineHarness) -> None:
        good, bad = harness.stage(good=1), harness.stage(bad=1)

        harness.engine.submit(good)
        harness.engine.submit(bad)

        reports = [harness.settle(good), harness.settle(bad)]
        assert [report and report.state for report in reports] == ["completed", "failed"]
        assert harness.predictions(bad) == []
