"""Ask the event hub how far its partitions are, and tell up to when everything has arrived."""

import logging
from dataclasses import dataclass
from typing import Any

from scoring import ledger
from scoring.errors import ScoringError, cause_of
from scoring.horizon import HorizonRules, PartitionState, Standing
from scoring.ledger import HubAnswer
from scoring.ports import EventLog, Gap, IngestStore
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
        known = {state.partition: state for state in self.store.states()}
        answers: dict[Partition, HubAnswer | None] = {}
        gone: list[Partition] = []
        try:
            present = self.log.survey()
            gone = [one for one in known if self.log.holds(one) and one not in present]
            answers = {**present, **dict.fromkeys(gone)}
        except ScoringError as error:
            log.warning("hub.not_asked", extra={"cause": cause_of(error)})
        for partition, answer in answers.items():
            if answer and _is_news(answer, known.get(partition)):
                self._admit(partition, answer)
        states = self.store.observe(answers, now)
        for partition in gone:
            # What the hub was seen to hold of it and nobody applied went with it.
            self.note_skipped(known[partition])
        self._warn(self.rules.standings(states, now, self.log.holds))

    @retried
    def note_skipped(self, state: PartitionState) -> None:
        """Record what the hub held behind the high-water mark as a gap, if that has not moved."""
        if state.answer is None or state.answer.last <= state.high_water:
            return
        with self.store.transaction(state.partition) as transaction:
            newest = ledger.in_order(transaction.epochs)[-1]
            answer = transaction.answer
            has_moved = (newest.number, newest.high_water) != (state.epoch, state.high_water)
            if answer is None or has_moved:
                return
            after = ledger.skip(newest, answer)
            if after == newest:
                return
            transaction.admit([after], answer)
        gap = Gap(state.partition, after.number, newest.high_water + 1, after.high_water, "open")
        log.warning("hub.skipped", extra=gap.facts | {"events": gap.events})

    def standings(self, now: int) -> list[tuple[PartitionState, Standing]]:
        """Return how each partition stands."""
        return self.rules.standings(self.store.states(), now, self.log.holds)

    def described(self, now: int) -> dict[str, dict[str, Any]]:
        """Return by partition what people are shown of how it stands.

        That is its `standing`, how many events the hub held at least that were not applied, since
        when it has been behind, and when the hub was asked.
        """
        return {
            str(state.partition): {
                "standing": standing.value,
                "behind": state.behind,
                "behind_since": state.behind_since if state.behind else None,
                "asked_at": state.asked_at,
            }
            for state, standing in self.standings(now)
        }

    def horizon(self, now: int) -> int | None:
        """Return the event time up to which everything has arrived, epoch microseconds UTC.

        None if nothing ever did, or if all windows are held open.
        """
        return self.rules.horizon(self.standings(now), now)

    def _warn(self, standings: list[tuple[PartitionState, Standing]]) -> None:
        """Log the partitions that are behind, and hold windows open or no longer do."""
        for standing, event in _WARNINGS.items():
            if states := [state for state, its in standings if its is standing]:
                extra = {
                    "partitions": [str(state.partition) for state in states],
                    "events": sum(state.behind for state in states),
                }
                log.warning(event, extra=extra)

    @retried
    def _admit(self, partition: Partition, answer: HubAnswer) -> None:
        with self.store.transaction(partition) as transaction:
            changed = ledger.admit(transaction.epochs, answer, transaction.answer)
            transaction.admit(changed, answer)


_WARNINGS = {Standing.BEHIND: "hub.partitions_behind", Standing.STALLED: "hub.partitions_stalled"}


def _is_news(answer: HubAnswer, state: PartitionState | None) -> bool:
    """Return whether an answer may open or change an epoch."""
    return state is None or state.epoch is None or state.hub_created != answer.created
