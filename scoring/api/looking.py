"""Routes that look: anomalies, devices, windows, rejects, partitions."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from scoring import instants
from scoring.api import cursors
from scoring.api.answers import (
    OPEN_GAPS,
    AnomalousWindow,
    Device,
    Page,
    Partition,
    Reject,
    Replayed,
    SensorCounts,
    Window,
    made_of,
)
from scoring.api.parameters import (
    AnomalyQuery,
    DeviceName,
    NoQuery,
    PageQuery,
    RejectQuery,
    WindowQuery,
)
from scoring.api.parts import Parts
from scoring.api.problems import documented
from scoring.errors import NotFound
from scoring.queries import AnomalyFilter, DeviceCounts, PartitionStatus


class DeviceQuery(PageQuery):
    """Which devices."""

    order: Literal["name", "anomalies"] = Field(
        default="name",
        description="By `anomalies`, the most first: then only devices that have some.",
    )


def router(parts: Parts) -> APIRouter:
    """Build the routes."""
    routes = APIRouter()
    _add_anomalies(routes, parts)
    _add_devices(routes, parts)
    _add_windows(routes, parts)
    _add_rejects(routes, parts)
    _add_partitions(routes, parts)
    return routes


def _add_anomalies(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/anomalies", tags=["anomalies"], responses=documented(400, 404))
    def list_anomalies(query: Annotated[AnomalyQuery, Query()]) -> Page[AnomalousWindow]:
        """List anomalous windows, the newest first."""
        after = cursors.decode(query.cursor, "anomalies", query.filters, (int, str, str))
        if query.run is not None:
            parts.queries.run(query.run)
        which = AnomalyFilter(query.device, query.sensor, query.run, query.since, query.until)
        key = (int(after[0]), str(after[1]), str(after[2])) if after else None
        found = parts.queries.anomalies(which, query.limit + 1, key)
        rows, cursor = cursors.page(
            found, query.limit, "anomalies", query.filters, lambda row: row.key
        )
        return Page[AnomalousWindow].model_validate({"items": rows, "next_cursor": cursor})


def _add_devices(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/devices", tags=["devices"], responses=documented(400))
    def list_devices(query: Annotated[DeviceQuery, Query()]) -> Page[Device]:
        """List devices with their counts, by name or the most anomalous first."""
        rows, cursor = (_by_name if query.order == "name" else _by_anomalies)(parts, query)
        return Page[Device].model_validate({"items": rows, "next_cursor": cursor})

    @routes.get("/devices/{device:path}/sensors", tags=["devices"], responses=documented(400, 404))
    def list_sensors(
        device: DeviceName, query: Annotated[PageQuery, Query()]
    ) -> Page[SensorCounts]:
        """List the sensors of a device with their counts."""
        after = cursors.decode(query.cursor, "sensors", device, (str,))
        found = parts.queries.device_sensors(device, query.limit + 1, *map(str, after or ()))
        if not found and after is None:
            message = f"there is no window of device {device}"
            raise NotFound(message)
        rows, cursor = cursors.page(found, query.limit, "sensors", device, lambda r: (r.sensor,))
        return Page[SensorCounts].model_validate({"items": rows, "next_cursor": cursor})


def _by_name(parts: Parts, query: DeviceQuery) -> tuple[list[DeviceCounts], str | None]:
    after = cursors.decode(query.cursor, "devices", query.filters, (str,))
    found = parts.queries.devices(query.limit + 1, *map(str, after or ()))
    return cursors.page(found, query.limit, "devices", query.filters, lambda row: (row.device,))


def _by_anomalies(parts: Parts, query: DeviceQuery) -> tuple[list[DeviceCounts], str | None]:
    after = cursors.decode(query.cursor, "devices", query.filters, (int, str))
    key = (int(after[0]), str(after[1])) if after else None
    found = parts.queries.anomalous_devices(query.limit + 1, key)
    return cursors.page(
        found, query.limit, "devices", query.filters, lambda row: (row.anomalies, row.device)
    )


def _add_windows(routes: APIRouter, parts: Parts) -> None:
    # Names may hold a slash, which no server leaves encoded.
    @routes.get(
        "/devices/{device:path}/sensors/{sensor:path}/windows",
        tags=["devices"],
        responses=documented(400, 404),
    )
    def list_windows(
        device: DeviceName, sensor: DeviceName, query: Annotated[WindowQuery, Query()]
    ) -> Page[Window]:
        """List the windows of a sensor with their scores, the newest first."""
        filters = {"device": device, "sensor": sensor} | query.filters
        after = cursors.decode(query.cursor, "windows", filters, (int,))
        ends = [end for end in (query.until, *map(int, after or ())) if end is not None]
        until = min(ends, default=None)
        found = parts.queries.windows(device, sensor, query.since, until, query.limit + 1)[::-1]
        if not found and not parts.queries.windows(device, sensor, None, None, 1):
            message = f"there is no window of sensor {sensor} of device {device}"
            raise NotFound(message)
        rows, cursor = cursors.page(
            found, query.limit, "windows", filters, lambda row: (row.window_start,)
        )
        return Page[Window].model_validate({"items": rows, "next_cursor": cursor})


def _add_rejects(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/rejects", tags=["rejects"], responses=documented(400))
    def list_rejects(query: Annotated[RejectQuery, Query()]) -> Page[Reject]:
        """List what could not be read, by partition and sequence number."""
        after = cursors.decode(query.cursor, "rejects", query.filters, (str, int, int, int))
        key = (str(after[0]), int(after[1]), int(after[2]), int(after[3])) if after else None
        found = parts.queries.rejects(query.reason, query.limit + 1, key)
        rows, cursor = cursors.page(
            found, query.limit, "rejects", query.filters, lambda row: row.key
        )
        return Page[Reject].model_validate({"items": rows, "next_cursor": cursor})

    @routes.post("/rejects/replay", tags=["rejects"], responses=documented(415))
    def replay_rejects(query: Annotated[NoQuery, Query()]) -> Replayed:
        """Decode rejects again with the settings of today; what can be read now is counted."""
        with parts.request("api.replay_rejects") as said:
            replayed, stay = parts.replay_rejects()
            said |= {"replayed": replayed, "stay_rejected": stay}
        return Replayed(replayed=replayed, stay_rejected=stay)


def _add_partitions(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/partitions", tags=["partitions"], responses=documented(400))
    def list_partitions(query: Annotated[PageQuery, Query()]) -> Page[Partition]:
        """List partitions: how far each has come, its lag, and its gaps."""
        after = cursors.decode(query.cursor, "partitions", query.filters, (str,))
        found = parts.queries.partitions(query.limit + 1, *map(str, after or ()))
        rows, cursor = cursors.page(
            found, query.limit, "partitions", query.filters, lambda row: (row.partition,)
        )
        items = _with_gaps(parts, rows) if rows else []
        return Page[Partition].model_validate({"items": items, "next_cursor": cursor})


def _with_gaps(parts: Parts, rows: list[PartitionStatus]) -> list[dict[str, Any]]:
    """Give partitions, which follow each other, with their lag and their gaps."""
    ends = rows[0].partition, rows[-1].partition
    gaps, ranges = parts.queries.gaps(*ends), parts.queries.open_gaps(*ends, OPEN_GAPS)
    now = instants.of(parts.now())
    standings = parts.hub_progress.described(now)
    return [
        made_of(
            row,
            lag_seconds=row.lag_seconds(now),
            **standings[row.partition],
            gaps=gaps.get(row.partition, {}),
            open_gaps=ranges.get(row.partition, []),
        )
        for row in rows
    ]
