"""The horizon: the event time up to which everything is assumed to have arrived.

It is the smallest effective watermark over all partitions. A partition that lags behind its hub
holds windows open; a silent one does not, and which of the two it is only the hub can tell.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from scoring.ledger import CLOCK_TOLERANCE, HubAnswer
from scoring.readings import Partition

HOUR = 3_600_000_000
FORGOTTEN_AFTER = HOUR
"""Microseconds after which a hub that nobody asks any more holds no window open."""


class Standing(StrEnum):
    """How a partition stands, and so whether it holds windows open."""

    ACTIVE = "active"
    """Its watermark counts."""
    BEHIND = "behind"
    """The hub holds events that were not applied: its watermark counts, however old it is."""
    IDLE = "idle"
    """The hub holds nothing new, and that for the idle timeout."""
    ENDED = "ended"
    """A file that was read to its end."""
    ABANDONED = "abandoned"
    """A file that nobody reads any more, or a hub that nobody asks any more."""
    ABSENT = "absent"
    """The hub says that it has no such partition."""
    STALLED = "stalled"
    """Behind, and without progress, while other partitions of its hub went on."""


@dataclass(frozen=True, slots=True)
class PartitionState:
    """The progress of one partition, and the last answer of its hub.

    Attributes
    ----------
    watermark
        Epoch microseconds UTC; None if no event was applied.
    last_enqueued
        The greatest enqueued time of what was applied, epoch microseconds UTC; 0 if nothing was.
    high_water
        The highest sequence number that was applied since the hub was created. If none was, it
        precedes the first number that is expected.
    mark_enqueued
        The greatest enqueued time of what is known of since the hub was created, epoch
        microseconds UTC; that of the high-water mark.
    has_spoken
        Whether anything was applied since the hub was created.
    epoch, hub_created
        The number of the newest epoch, None if there is none yet, and when its hub was created,
        epoch microseconds UTC; None while that is not known.
    ended
        Nothing will follow: a file read to its end.
    answer, asked_at
        What its hub said last, and when it was asked, epoch microseconds UTC; None if it never was.
    is_absent
        The hub said last that it has no such partition.
    moved_at
        When it was first seen to be where it was at the last look, epoch microseconds UTC; None if
        nobody looked.
    events
        How many events were ever applied.
    has_moved
        Whether any was applied since that look.
    behind_since, stuck_since
        Since when each look has found it behind, and since when nothing was applied meanwhile;
        epoch microseconds UTC.
    skipped_from
        The first number of the open gaps that reach to the high-water mark: nothing behind them
        was applied, so that they may be a backlog that the host is yet to deliver. None if none do.
    """

    partition: Partition
    watermark: int | None
    last_enqueued: int
    high_water: int = -1
    mark_enqueued: int = 0
    has_spoken: bool = True
    epoch: int | None = 0
    hub_created: int | None = None
    ended: bool = False
    answer: HubAnswer | None = None
    asked_at: int | None = None
    is_absent: bool = False
    moved_at: int | None = None
    events: int = 0
    has_moved: bool = False
    behind_since: int | None = None
    stuck_since: int | None = None
    skipped_from: int | None = None

    def looked_at(self, now: int) -> "PartitionState":
        """Return the state after a look at it."""
        seen = replace(self, moved_at=self.moved(now), has_moved=False)
        if not self.unapplied:
            return replace(seen, behind_since=None, stuck_since=None)
        behind = now if self.behind_since is None else self.behind_since
        stuck = now if self.has_moved or self.stuck_since is None else self.stuck_since
        return replace(seen, behind_since=behind, stuck_since=stuck)

    def moved(self, now: int) -> int:
        """Return when the partition was last seen to go on; `now` if it has since the last look."""
        return now if self.has_moved or self.moved_at is None else self.moved_at

    @property
    def unapplied(self) -> int:
        """How many events, when the hub was asked last, followed the last one that was applied."""
        answer = self.heard
        if answer is None or self.ended or self.is_absent:
            return 0
        if self.epoch is None:
            mark = answer.first - 1
        elif self.skipped_from is not None:
            mark = min(self.high_water, max(self.skipped_from, answer.first) - 1)
        else:
            mark = self.high_water
        if answer.last != mark or not self.has_spoken:
            return max(0, answer.last - mark)
        if answer.created is not None and answer.created == self.hub_created:
            return 0
        # The same number at another time is another event: of a hub that was created again.
        is_same = abs(answer.last_enqueued - self.mark_enqueued) <= CLOCK_TOLERANCE
        return 0 if is_same else 1

    @property
    def heard(self) -> HubAnswer | None:
        """The answer; None too if it is that of a hub whose successor was met since."""
        answer, created = self.answer, self.hub_created
        if answer is None or answer.created is None or created is None:
            return answer
        return None if answer.created < created else answer

    @property
    def behind(self) -> int:
        """How many events, at least, the hub held that were not applied, when it was asked last."""
        return 0 if self.answer is None or self.answer.is_empty else self.unapplied


@dataclass(frozen=True, slots=True)
class HorizonRules:
    """When a partition no longer holds windows open; microseconds.

    Attributes
    ----------
    idle_timeout
        How long a partition must have been silent.
    stall_timeout
        How long one that lags may make no progress while others of its hub do.
    """

    idle_timeout: int
    stall_timeout: int = HOUR

    def standings(
        self,
        states: Iterable[PartitionState],
        now: int,
        is_ours: Callable[[Partition], bool] = lambda _: True,
    ) -> list[tuple[PartitionState, Standing]]:
        """Return each partition with its standing.

        Parameters
        ----------
        is_ours
            Whether a partition is of the hub that is asked from here.
        """
        known = list(states)
        moved: dict[str, int] = {}
        for state in known:
            hub, at = state.partition.hub, state.moved(now)
            moved[hub] = max(moved.get(hub, at), at)
        return [
            (state, self._standing(state, now, is_ours, moved[state.partition.hub]))
            for state in known
        ]

    def _standing(
        self,
        state: PartitionState,
        now: int,
        is_ours: Callable[[Partition], bool],
        hub_moved_at: int,
    ) -> Standing:
        if state.ended:
            return Standing.ENDED
        if self._is_abandoned(state, now, is_ours):
            return Standing.ABANDONED
        if state.is_absent:
            return Standing.ABSENT
        if state.behind:
            stalled_since = now - self.stall_timeout
            since = now if state.stuck_since is None or state.has_moved else state.stuck_since
            is_stalled = since <= stalled_since < hub_moved_at
            return Standing.STALLED if is_stalled else Standing.BEHIND
        return Standing.IDLE if self._is_idle(state) else Standing.ACTIVE

    def _is_abandoned(
        self, state: PartitionState, now: int, is_ours: Callable[[Partition], bool]
    ) -> bool:
        if state.partition.is_file:
            return state.moved(now) <= now - self.idle_timeout
        if is_ours(state.partition):
            return False
        asked_at = state.moved(now) if state.asked_at is None else state.asked_at
        return max(asked_at, state.moved(now)) <= now - FORGOTTEN_AFTER

    def _is_idle(self, state: PartitionState) -> bool:
        """Return whether the hub held nothing that was not applied, and that for long enough."""
        if state.heard is None or state.asked_at is None:
            return False
        return state.last_enqueued <= state.asked_at - self.idle_timeout

    def horizon(self, standings: Iterable[tuple[PartitionState, Standing]], now: int) -> int | None:
        """Return the horizon, epoch microseconds UTC.

        Returns
        -------
        int or None
            None if nothing was ever applied, or a partition of which nothing was applied is behind.
        """
        marks: list[int] = []
        has_any = False
        for state, standing in standings:
            has_any |= state.watermark is not None
            if standing is Standing.IDLE and state.asked_at is not None:
                idle_since = state.asked_at - self.idle_timeout
                marks.append(max(state.watermark or idle_since, idle_since))
            elif standing in {Standing.ACTIVE, Standing.BEHIND}:
                if state.watermark is not None:
                    marks.append(state.watermark)
                elif standing is Standing.BEHIND:
                    return None
        if not has_any:
            return None
        return min(marks, default=now)
