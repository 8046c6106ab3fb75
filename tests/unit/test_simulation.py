"""The simulated fleet: its events, its truth, and how its hub delivers."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring import instants
from scoring.errors import Misconfigured
from scoring.readings import EventBatch, Partition, ReadingDecoder, Readings, Reason, Reject
from scoring.simulation import (
    AnomalyKind,
    BodyFault,
    DeliveredSlice,
    DeliveryRules,
    EventChunk,
    SimulationSettings,
    deliveries,
    ground_truth,
    simulate,
)

SMALL = SimulationSettings(
    devices=6,
    duration=timedelta(hours=4),
    pattern_period=timedelta(hours=1),
    late=0.05,
    malformed=0.02,
)
CALM = replace(SMALL, late=0.0, malformed=0.0, drifting=0.0, spiking=0.0, stuck=0.0, dead=0.0)
MANY_BATCHES = DeliveryRules(batch_size=10, redelivered=0.1)

small_fleets = st.builds(
    SimulationSettings,
    devices=st.integers(1, 9),
    sensors=st.integers(1, 6),
    duration=st.integers(1, 5000).map(lambda s: timedelta(minutes=1, seconds=s)),
    interval=st.integers(7, 60).map(lambda s: timedelta(seconds=s)),
    slice_length=st.integers(20, 900).map(lambda s: timedelta(seconds=s)),
    partitions=st.integers(1, 5),
    seed=st.integers(0, 2**40),
    late=st.sampled_from([0.0, 0.1]),
)


def joined(chunks: Iterable[EventChunk], column: str) -> npt.NDArray[Any]:
    return np.concatenate([getattr(chunk, column) for chunk in chunks])


def all_bodies(chunks: Iterable[EventChunk]) -> list[bytes]:
    return [body for chunk in chunks for body in chunk.bodies]


def test_the_same_settings_give_the_same_events_to_the_last_byte() -> None:
    first, second = list(simulate(SMALL)), list(simulate(SMALL))

    assert all_bodies(first) == all_bodies(second)
    for column in ("enqueued_time", "sequence_number", "partition"):
        assert np.array_equal(joined(first, column), joined(second, column))


def test_the_events_are_those_of_every_other_platform() -> None:
    digest = sha256()
    for chunk in simulate(SMALL):
        digest.update(b"\n".join(chunk.bodies))
        digest.update(chunk.enqueued_time.astype("<i8").tobytes())

    assert digest.hexdigest()[:16] == "fdd9ee2c0fb44036"


def test_another_seed_gives_other_events() -> None:
    one, other = next(simulate(SMALL)), next(simulate(replace(SMALL, seed=2)))

    assert one.bodies != other.bodies


@settings(max_examples=40, deadline=None)
@given(small_fleets)
def test_chunks_are_in_order_of_enqueued_time_and_sequence_numbers_have_no_holes(
    fleet: SimulationSettings,
) -> None:
    chunks = list(simulate(fleet))

    enqueued = joined(chunks, "enqueued_time")
    partition, sequence = joined(chunks, "partition"), joined(chunks, "sequence_number")
    assert len(chunks) == fleet.chunks
    assert [chunk.index for chunk in chunks] == list(range(fleet.chunks))
    assert (np.diff(enqueued) >= 0).all()
    assert all((chunk.enqueued_time < chunk.end).all() for chunk in chunks)
    for one in range(fleet.partitions):
        own = sequence[partition == one]
        assert np.array_equal(own, np.arange(len(own)))


@settings(max_examples=40, deadline=None)
@given(small_fleets)
def test_every_sensor_is_read_once_in_each_interval_unless_its_device_is_dead(
    fleet: SimulationSettings,
) -> None:
    chunks = list(simulate(replace(fleet, dead=0.0)))

    interval = fleet.interval // timedelta(microseconds=1)
    steps = (joined(chunks, "event_time") - fleet.begin) // interval
    names = zip(joined(chunks, "device"), joined(chunks, "sensor"), steps.tolist(), strict=True)
    counts = Counter(names)
    total = -(-fleet.duration // fleet.interval)
    assert set(counts.values()) == {1}
    assert len(counts) == total * fleet.devices * fleet.sensors


@settings(max_examples=20, deadline=None)
@given(st.integers(10, 20_000).map(lambda s: timedelta(seconds=s)))
def test_how_time_is_sliced_changes_no_event(slice_length: timedelta) -> None:
    sliced = list(simulate(replace(SMALL, slice_length=slice_length)))

    whole = list(simulate(SMALL))
    assert all_bodies(sliced) == all_bodies(whole)
    for column in ("enqueued_time", "sequence_number", "partition"):
        assert np.array_equal(joined(sliced, column), joined(whole, column))


def test_a_device_keeps_to_one_partition() -> None:
    chunks = list(simulate(SMALL))

    pairs = set(zip(joined(chunks, "device"), joined(chunks, "partition").tolist(), strict=True))
    assert len(pairs) == SMALL.devices


def decoded(chunk: EventChunk) -> tuple[Readings, list[Reject]]:
    batch = EventBatch(
        Partition("simulation", "0"), chunk.sequence_number, chunk.enqueued_time, chunk.bodies
    )
    return ReadingDecoder().decode(batch)


def test_bodies_without_a_fault_decode_to_exactly_the_columns() -> None:
    for chunk in simulate(SMALL):
        readings, _ = decoded(chunk)

        good = chunk.fault == BodyFault.NONE
        assert readings.device == chunk.device[good].tolist()
        assert readings.sensor == chunk.sensor[good].tolist()
        assert np.array_equal(readings.event_time, chunk.event_time[good])
        assert np.array_equal(readings.value, chunk.value[good])


def test_every_fault_is_rejected_for_its_own_reason() -> None:
    reasons: dict[BodyFault, set[Reason]] = {}
    for chunk in simulate(replace(SMALL, malformed=0.2)):
        for reject in decoded(chunk)[1]:
            reasons.setdefault(BodyFault(chunk.fault[reject.event]), set()).add(reject.reason)

    assert reasons == {
        BodyFault.TRUNCATED: {Reason.NOT_JSON},
        BodyFault.NOT_A_NUMBER: {Reason.NOT_FINITE},
        BodyFault.STRING_VALUE: {Reason.BAD_VALUE},
        BodyFault.BOOLEAN_VALUE: {Reason.BAD_VALUE},
        BodyFault.MISSING_FIELD: {Reason.MISSING_FIELD},
        BodyFault.NOT_UTF8: {Reason.NOT_UTF8},
        BodyFault.EMPTY: {Reason.EMPTY_BODY},
        BodyFault.FUTURE_CLOCK: {Reason.FROM_FUTURE},
    }


def test_the_share_of_late_events_arrives_minutes_after_its_event_time() -> None:
    chunks = list(simulate(SMALL))
    delay = joined(chunks, "enqueued_time") - joined(chunks, "event_time")

    late = delay > 30 * instants.SECOND
    assert delay.min() > 0
    assert delay[late].min() >= 60 * instants.SECOND
    assert delay.max() < 8.5 * 60 * instants.SECOND
    assert late.mean() == pytest.approx(SMALL.late, rel=0.15)


def test_a_simulation_without_trouble_has_none() -> None:
    chunks = list(simulate(CALM))
    delay = joined(chunks, "enqueued_time") - joined(chunks, "event_time")

    assert ground_truth(CALM) == []
    assert not joined(chunks, "fault").any()
    assert delay.max() < instants.SECOND


def test_no_anomaly_begins_before_the_training_part_ends() -> None:
    truth = ground_truth(SMALL)

    assert {anomaly.kind for anomaly in truth} == set(AnomalyKind)
    assert all(SMALL.training_end <= anomaly.start < anomaly.end for anomaly in truth)
    assert all(anomaly.end <= SMALL.end for anomaly in truth)


def test_no_sensor_gets_two_anomalies_and_a_dead_device_none_but_its_death() -> None:
    truth = ground_truth(
        SimulationSettings(devices=40, drifting=0.3, spiking=0.3, stuck=0.3, dead=0.2)
    )

    dead = {anomaly.device for anomaly in truth if anomaly.kind is AnomalyKind.DEAD}
    others = [anomaly for anomaly in truth if anomaly.kind is not AnomalyKind.DEAD]
    assert len(dead) == 8
    assert len({(a.device, a.sensor) for a in others}) == len(others)
    assert not dead & {anomaly.device for anomaly in others}


def test_outside_of_its_anomalies_a_fleet_measures_what_one_without_any_would() -> None:
    stricken, calm = replace(SMALL, late=0.0, malformed=0.0, dead=0.0), CALM
    with_them, without = list(simulate(stricken)), list(simulate(calm))

    changed = joined(with_them, "value") != joined(without, "value")
    inside = np.zeros(len(changed), dtype=bool)
    for anomaly in ground_truth(stricken):
        inside |= readings_of(with_them, anomaly.device, anomaly.sensor) & during(
            with_them, anomaly.start, anomaly.end
        )
    assert not (changed & ~inside).any()
    assert changed[inside].mean() > 0.95


def readings_of(chunks: list[EventChunk], device: str, sensor: str) -> npt.NDArray[np.bool_]:
    """Find the readings of a sensor, or of a whole device where `sensor` is empty."""
    pairs = zip(joined(chunks, "device"), joined(chunks, "sensor"), strict=True)
    return np.array([d == device and sensor in {"", s} for d, s in pairs])


def during(chunks: list[EventChunk], start: int, end: int) -> npt.NDArray[np.bool_]:
    times = joined(chunks, "event_time")
    return np.asarray((times >= start) & (times < end))


def test_each_kind_of_anomaly_looks_the_way_it_should() -> None:
    fleet = replace(SMALL, devices=20, drifting=0.1, spiking=0.1, stuck=0.1, dead=0.1)
    chunks = list(simulate(fleet))
    values = joined(chunks, "value")

    for anomaly in ground_truth(fleet):
        own = readings_of(chunks, anomaly.device, anomaly.sensor)
        affected = values[own & during(chunks, anomaly.start, anomaly.end)]
        usual = values[own & during(chunks, fleet.begin, fleet.training_end)]
        swing = usual.max() - usual.min()
        match anomaly.kind:
            case AnomalyKind.DEAD:
                assert len(affected) == 0
            case AnomalyKind.STUCK:
                assert len(affected) > 30
                assert np.ptp(affected) == 0
            case AnomalyKind.SPIKE:
                assert len(affected) in {2, 3, 4}
                assert np.abs(affected - usual.mean()).min() > swing
            case AnomalyKind.DRIFT:
                assert np.abs(affected - usual.mean()).max() > swing
                assert np.abs(affected[:3] - usual.mean()).max() < swing


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"devices": 0}, "devices"),
        ({"seed": -1}, "seed"),
        ({"start": datetime(2026, 1, 5)}, "start"),  # noqa: DTZ001 - that is what is wrong
        ({"late": 1.5}, "late"),
        ({"interval": timedelta()}, "interval"),
        ({"duration": timedelta(seconds=1)}, "duration"),
    ],
)
def test_a_setting_out_of_range_is_named(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(Misconfigured, match=named):
        replace(SMALL, **wrong)  # type: ignore[arg-type]


def test_settings_out_of_range_are_all_named_at_once() -> None:
    with pytest.raises(Misconfigured) as caught:
        SimulationSettings(devices=0, sensors=-1, dead=2, start=datetime(2026, 1, 5, tzinfo=UTC))

    assert len(caught.value.problems) == 3


def numbers(batches: Iterable[EventBatch]) -> Counter[tuple[str, int]]:
    return Counter((b.partition.id, n) for b in batches for n in b.sequence_numbers.tolist())


def delivered(slices: list[DeliveredSlice]) -> list[EventBatch]:
    return [batch for one in slices for batch in one.delivered]


def test_all_events_are_delivered_but_for_one_event_batch() -> None:
    slices = list(deliveries(SMALL, "simulation", MANY_BATCHES))

    sent = numbers(batch for one in slices for batch in one.sent)
    swallowed = [one.swallowed for one in slices if one.swallowed]
    assert set(sent.values()) == {1}
    assert len(swallowed) == 1
    assert set(sent) - set(numbers(delivered(slices))) == set(numbers(swallowed))


def test_what_is_swallowed_leaves_a_gap_that_later_events_show() -> None:
    slices = list(deliveries(SMALL, "simulation", MANY_BATCHES))

    (lost,) = (one.swallowed for one in slices if one.swallowed)
    after = [b for b in delivered(slices) if b.partition == lost.partition]
    assert min(int(b.sequence_numbers[0]) for b in after) < lost.sequence_numbers[0]
    assert max(int(b.sequence_numbers[-1]) for b in after) > lost.sequence_numbers[-1]


def test_without_swallowing_every_event_arrives() -> None:
    rules = replace(MANY_BATCHES, swallow=False)
    slices = list(deliveries(SMALL, "simulation", rules))

    sent = numbers(batch for one in slices for batch in one.sent)
    assert set(numbers(delivered(slices))) == set(sent)


def test_some_event_batches_come_again_later_and_some_of_them_cut_elsewhere() -> None:
    slices = list(deliveries(SMALL, "simulation", MANY_BATCHES))

    batches = delivered(slices)
    newest: dict[str, int] = {}
    again, seen = [], set()
    for batch in batches:
        if batch.sequence_numbers[-1] <= newest.get(batch.partition.id, -1):
            again.append(boundaries(batch))
        else:
            seen.add(boundaries(batch))
            newest[batch.partition.id] = int(batch.sequence_numbers[-1])
    assert 0.05 < len(again) / len(batches) < 0.2
    assert set(again) & seen
    assert set(again) - seen


def boundaries(batch: EventBatch) -> tuple[str, int, int]:
    return batch.partition.id, int(batch.sequence_numbers[0]), int(batch.sequence_numbers[-1])


def test_first_deliveries_of_a_partition_come_in_order() -> None:
    rules = replace(MANY_BATCHES, redelivered=0.0)
    next_number: dict[str, int] = {}
    for batch in delivered(list(deliveries(SMALL, "simulation", rules))):
        assert batch.sequence_numbers[0] >= next_number.get(batch.partition.id, 0)
        assert (np.diff(batch.sequence_numbers) == 1).all()
        next_number[batch.partition.id] = int(batch.sequence_numbers[-1]) + 1


@pytest.mark.parametrize("seed", range(6))
def test_no_event_batch_has_a_hole_and_none_brings_back_what_was_swallowed(seed: int) -> None:
    rules = replace(MANY_BATCHES, redelivered=1.0)
    slices = list(deliveries(replace(SMALL, seed=seed), "simulation", rules))

    (lost,) = (one.swallowed for one in slices if one.swallowed)
    assert all((np.diff(batch.sequence_numbers) == 1).all() for batch in delivered(slices))
    assert not set(numbers(delivered(slices))) & set(numbers([lost]))


def test_an_event_says_the_same_each_time_it_is_delivered() -> None:
    slices = list(deliveries(SMALL, "simulation", MANY_BATCHES))

    events = set()
    for batch in [*delivered(slices), *(b for one in slices for b in one.sent)]:
        columns = (batch.sequence_numbers.tolist(), batch.enqueued_times.tolist(), batch.bodies)
        events |= {(batch.partition.id, *event) for event in zip(*columns, strict=True)}
    assert len(events) == len({event[:2] for event in events})


def test_event_batches_are_about_as_large_as_asked_for() -> None:
    rules = DeliveryRules(batch_size=40, redelivered=0.0)
    fleet = replace(SMALL, slice_length=timedelta(hours=1))
    sizes = [len(batch) for batch in delivered(list(deliveries(fleet, "simulation", rules)))]

    assert max(sizes) <= 60
    assert len(set(sizes)) > 10


def test_deliveries_are_the_same_in_every_process() -> None:
    first = [boundaries(b) for b in delivered(list(deliveries(SMALL, "s", MANY_BATCHES)))]
    second = [boundaries(b) for b in delivered(list(deliveries(SMALL, "s", MANY_BATCHES)))]

    assert first == second
