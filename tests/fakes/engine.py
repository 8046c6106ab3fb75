"""An engine for tests of what comes before scoring."""

from typing import NoReturn

from scoring.ports import ScoringOrder


class NoEngine:
    """Implements `ports.Engine` as far as a run is submitted: it takes any run and does nothing.

    A test that follows its runs further has to choose another engine, and is told so.
    """

    def submit(self, order: ScoringOrder) -> None:
        """Take it."""

    def poll(self, run_id: str) -> NoReturn:
        """Refuse: nobody follows runs here."""
        message = f"run {run_id} is followed, and this engine scores nothing"
        raise AssertionError(message)

    def cancel(self, run_id: str) -> NoReturn:
        """Refuse: nobody stops runs here."""
        self.poll(run_id)

    def wait(self, run_id: str, timeout: float) -> NoReturn:
        """Refuse: nobody waits for runs here."""
        self.poll(run_id)
