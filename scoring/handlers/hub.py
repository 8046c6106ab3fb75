"""Ask the event hub how far its partitions are, and tell up to when everything has arrived."""

import logging
from dataclasses import dataclass

from scoring import ledger
from scoring.errors import ScoringError, cause_of
from scoring.horizon import HorizonRules, PartitionState, Standing
from scoring.ledger import HubAnswer
from scoring.ports import EventLog, IngestStore
from scoring.readings import Partition
from scoring.retrying import retried

log = logging.getLogger("scoring.hub")


@dataclass(frozen=True, slots=True)
class HubProgress:
    """How far ingest is behind the event hub; asked before each run and each repair."""

    store: IngestStore
    log: EventLog
    rules: HorizonRules

    def ask(self, now: int) -> None:
        """Ask the hub about every partition that it has or had, and note its answers.

        If the hub cannot be asked, its last answers stand.

        Parameters
        ----------
        now
            Epoch microseconds UTC; of a demonstration the simulated time.
        """
        states = {state.partition: state for state in self.store.states()}
        answers: dict[Partition, HubAnswer | None] = {}
        try:
            present = self.log.survey()
            gone = [one for one in states if self.log.holds(one) and one not in present]
            answers = {**present, **dict.fromkeys(gone)}
        except ScoringError as error:
            log.warning("hub.not_asked", extra={"cause": cause_of(error)})
        for partition, answer in answers.items():
            if answer and _is_news(answer, states.get(partition)):
                self._admit(partition, answer)
        self.store.observe(answers, now)

    def standings(self, now: int) -> list[tuple[PartitionState, Standing]]:
        """Return how each partition stands."""
        return self.rules.standings(self.store.states(), now, self.log.holds)

    def horizon(self, now: int) -> int | None:
        """Return the event time up to which everything has arrived, epoch microseconds UTC.

        None if nothing ever did, or if all windows are held open. Partitions that hold windows open
        though they are behind, and those that no longer do, are logged.
        """
        standings = self.standings(now)
        for standing, word in _TOLD.items():
            told = [state for state, its in standings if its is standing]
            if told:
                extra = {
                    "partitions": [str(state.partition) for state in told],
                    "events": sum(state.behind for state in told),
                }
                log.warning(word, extra=extra)
        return self.rules.horizon(standings, now)

    @retried
    def _admit(self, partition: Partition, answer: HubAnswer) -> None:
        with self.store.transaction(partition) as transaction:
            changed = ledger.admit(transaction.epochs, answer, transaction.answer)
            transaction.admit(changed, answer)


_TOLD = {Standing.BEHIND: "hub.partitions_behind", Standing.STALLED: "hub.partitions_stalled"}


def _is_news(answer: HubAnswer, state: PartitionState | None) -> bool:
    """Return whether an answer may open or change an epoch."""
    return state is None or state.epoch is None or state.hub_created != answer.created
