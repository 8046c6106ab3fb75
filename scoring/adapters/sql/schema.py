"""The tables. Every change here needs a migration beside it; a test compares the two.

Instants are epoch microseconds UTC, as in the code, and a 64-bit integer on every engine: no driver
and no session can shift them by a time zone.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    false,
    text,
)

from scoring.adapters.sql import texts
from scoring.readings import MAX_NAME

HEAD = "0006"
"""The newest migration: what the code expects to find."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

Instant = BigInteger
REASON = 400
"""Characters of a reason: why a window has no score."""
NAME = texts.name(MAX_NAME)
# At most 256 characters of a hub, a slash, and the few digits of a partition's number.
_PARTITION = texts.word(300)

facts = Table(
    "facts",
    metadata,
    Column("name", texts.word(64), primary_key=True),
    Column("value", texts.prose(400), nullable=False),
    comment="What holds for the whole store, such as its window size",
)

partitions = Table(
    "partitions",
    metadata,
    Column("partition", _PARTITION, primary_key=True),
    Column("watermark", Instant),
    Column("last_enqueued", Instant, nullable=False),
    Column("ended", Boolean, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("readings", BigInteger, nullable=False),
    Column("rejects", BigInteger, nullable=False),
    Column("late", BigInteger, nullable=False),
    comment="One row a partition; updating it takes the partition's lock",
)

epochs = Table(
    "epochs",
    metadata,
    Column("partition", _PARTITION, primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("first_sequence", BigInteger, nullable=False),
    Column("high_water", BigInteger, nullable=False),
    Column("first_enqueued", Instant, nullable=False),
    Column("last_enqueued", Instant, nullable=False),
    # When the hub was created; null while that is not known.
    Column("created", Instant),
    comment="The ledger: what was applied since the partition's hub was made",
)

hub_answers = Table(
    "hub_answers",
    metadata,
    Column("partition", _PARTITION, primary_key=True),
    # Null where the hub was never asked, as of a file.
    Column("created", Instant),
    Column("beginning", BigInteger),
    Column("last", BigInteger),
    Column("last_enqueued", Instant),
    Column("is_empty", Boolean),
    Column("is_absent", Boolean, nullable=False, server_default=false()),
    Column("asked_at", Instant),
    # How much was applied when somebody looked, and since when it has been that much.
    Column("epoch", Integer),
    Column("moved_at", Instant),
    # Since when each look has found the hub to hold more.
    Column("behind_since", Instant),
    Column("applied", BigInteger),
    # Since when that has been so with nothing applied meanwhile.
    Column("stuck_since", Instant),
    comment="What each hub last said of its partitions, and since when the ledger stands",
)

gaps = Table(
    "gaps",
    metadata,
    Column("partition", _PARTITION, primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("first_sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("state", texts.word(16), nullable=False),
    CheckConstraint("state IN ('open', 'repaired', 'lost')", name="state"),
    comment="Ranges that were never delivered, and what became of them",
)

window_partials = Table(
    "window_partials",
    metadata,
    Column("device", NAME, primary_key=True),
    Column("sensor", NAME, primary_key=True),
    Column("window_start", Instant, primary_key=True),
    Column("partition", _PARTITION, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("mean", Double, nullable=False),
    Column("m2", Double, nullable=False),
    Column("min", Double, nullable=False),
    Column("max", Double, nullable=False),
    Column("last", Double, nullable=False),
    Column("last_time", Instant, nullable=False),
    # Of the newest reading that came when the window was final already; 0 where none did.
    Column("late_enqueued", Instant, nullable=False, server_default="0"),
    # The number of the run that took it last; null while it is pending.
    Column("claimed_by", Integer),
    Index("ix_window_partials_claim", "claimed_by", "device", "sensor", "window_start"),
    sqlite_with_rowid=False,
    # An open window is merged into again and again. With room in its page a new version of its
    # row needs no entry in an index: 1.3 to 1.8 times the events a second, a third of the size.
    postgresql_with={"fillfactor": 70},
    comment="Partial aggregates: only a partition's own writer touches its rows",
)

rejects = Table(
    "rejects",
    metadata,
    Column("partition", _PARTITION, primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("sequence_number", BigInteger, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("enqueued_time", Instant, nullable=False),
    Column("reason", texts.word(32), nullable=False),
    Column("detail", texts.prose(400), nullable=False),
    Column("body", texts.octets(), nullable=False),
    Column("connection_device_id", NAME),
    Column("replayed", Boolean, nullable=False),
    Index("ix_rejects_reason", "reason", "partition", "epoch", "sequence_number", "position"),
    comment="Elements of events that could not be read, with their bytes",
)

segments = Table(
    "segments",
    metadata,
    Column("partition", _PARTITION, primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("first_sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("blob", texts.word(400), primary_key=True),
    Column("last_sequence", BigInteger, nullable=False),
    Column("readings", BigInteger, nullable=False),
    # The rebuild that has put its readings into windows; 0 before the first.
    Column("rebuild", Integer, nullable=False, server_default="0"),
    Column("late_enqueued", Instant, nullable=False, server_default="0"),
    Index("ix_segments_rebuild", "rebuild", "partition", "epoch", "first_sequence"),
    comment="The manifest of the raw store: a blob that is not named here counts for nothing",
)

runs = Table(
    "runs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("run_id", texts.word(40), nullable=False, unique=True),
    Column("state", texts.word(16), nullable=False),
    Column("trigger", texts.word(32), nullable=False),
    Column("fleet_version", texts.word(64), nullable=False),
    Column("last_start", Instant, nullable=False),
    # Late readings up to this enqueued time may be taken; null takes all.
    Column("enqueued_until", Instant),
    Column("created_at", Instant, nullable=False),
    Column("ended_at", Instant),
    Column("export", texts.word(32), nullable=False),
    Column("cause", texts.prose(2000), nullable=False),
    # What the engine said when it was last asked.
    Column("engine_status", texts.prose(200), nullable=False, server_default=""),
    Column("link", texts.prose(1000), nullable=False, server_default=""),
    # When the engine last took the run, how often it lost the run, and whether it may still be at
    # work on it: also after the run has ended.
    Column("submitted_at", Instant),
    Column("losses", Integer, nullable=False, server_default="0"),
    Column("job_is_open", Boolean, nullable=False, server_default=false()),
    # What the run was asked for: `last_start` and these say which windows it may take.
    Column("first_start", Instant),
    Column("devices", texts.long_prose(), nullable=False),
    Column("rescore", Boolean, nullable=False),
    Column("request_key", texts.word(255)),
    Column("request_digest", texts.word(64)),
    Index("ix_runs_state", "state"),
    Index("ix_runs_job_is_open", "job_is_open", "state"),
    Index(
        "ix_runs_request_key",
        "request_key",
        unique=True,
        # One null is like another to SQL Server.
        mssql_where=text("request_key IS NOT NULL"),
    ),
    comment="Scoring runs, numbered in the order of their claims",
)

run_parts = Table(
    "run_parts",
    metadata,
    Column("run_number", Integer, primary_key=True, autoincrement=False),
    Column("part", Integer, primary_key=True, autoincrement=False),
    Column("rows", BigInteger, nullable=False),
    # What was indexed of the prediction part; null until then.
    Column("etag", texts.word(128)),
    Column("indexed_rows", BigInteger),
    Column("scored", BigInteger),
    Column("anomalies", BigInteger),
    # Sensors that are set aside: the engine never sees this part.
    Column("is_aside", Boolean, nullable=False, server_default=false()),
    # Why the part failed: then nothing of it is indexed any more. Empty for all others.
    Column("cause", texts.prose(1000), nullable=False, server_default=""),
    comment="Input parts of a run, and what was indexed of their predictions",
)

suspects = Table(
    "suspects",
    metadata,
    Column("device", NAME, primary_key=True),
    Column("sensor", NAME, primary_key=True),
    Column("fleet_version", texts.word(64), nullable=False),
    Column("run_number", Integer, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("sensors", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("cause", texts.prose(REASON), nullable=False),
    Column("set_aside_at", Instant),
    Column("newest_aside", Instant),
    Column("tried_at", Instant),
    Column("tried_in", Integer),
    sqlite_with_rowid=False,
    comment="Sensors that may be why a part failed, and those that are set aside",
)

predictions = Table(
    "predictions",
    metadata,
    Column("device", NAME, primary_key=True),
    Column("sensor", NAME, primary_key=True),
    Column("window_start", Instant, primary_key=True),
    Column("run_number", Integer, nullable=False),
    Column("part", Integer, nullable=False),
    Column("anomaly_score", Double),
    Column("is_anomaly", Boolean),
    Column("status", texts.word(20), nullable=False),
    Column("reason", texts.prose(REASON)),
    # What a run says of each sensor, and what a part said before it is replaced.
    Index("ix_predictions_run", "run_number", "device", "sensor"),
    sqlite_with_rowid=False,
    comment="What is known of each scored window: the word of the newest run",
)


def _index_anomalies(name: str, *columns: Any) -> None:
    """Index the anomalies alone, a small part of all predictions."""
    Index(
        f"ix_predictions_{name}",
        *columns,
        sqlite_where=text("is_anomaly = 1"),
        postgresql_where=text("is_anomaly"),
        mssql_where=text("is_anomaly = 1"),
    )


# Their lists, newest window first: an index for each way to choose among them.
_said, _newest = predictions.c, predictions.c.window_start.desc()
_index_anomalies("anomalies", _newest, _said.device, _said.sensor)
_index_anomalies("device", _said.device, _newest, _said.sensor)
_index_anomalies("sensor", _said.sensor, _newest, _said.device)
# SQLite reads the row to see what the index says already, if the label is not in it.
_of_run = (_said.run_number, _newest, _said.device, _said.sensor, _said.is_anomaly)
_index_anomalies("run_anomalies", *_of_run)

sensor_counts = Table(
    "sensor_counts",
    metadata,
    Column("device", NAME, primary_key=True),
    Column("sensor", NAME, primary_key=True),
    Column("scored", BigInteger, nullable=False),
    Column("anomalies", BigInteger, nullable=False),
    Column("not_scored", BigInteger, nullable=False),
    sqlite_with_rowid=False,
    comment="Predictions counted by sensor, in the transaction that writes them",
)

device_counts = Table(
    "device_counts",
    metadata,
    Column("device", NAME, primary_key=True),
    Column("scored", BigInteger, nullable=False),
    Column("anomalies", BigInteger, nullable=False),
    Column("not_scored", BigInteger, nullable=False),
    sqlite_with_rowid=False,
    comment="The sums of a device's sensor counts, in the transaction that writes those",
)
Index("ix_device_counts_anomalies", device_counts.c.anomalies.desc(), device_counts.c.device)

# A key of SQL Server may have 900 bytes if the table is stored in its order, and else 1,700. A name
# has up to 512, a partition 600, a blob 800; so the key of a window's partial 1,632, a segment's
# 1,412, a prediction's 1,032, a sensor's count 1,024. These tables are stored in no order. All
# other keys and indexes fit, the largest of them the anomalies of a run with 1,037.
for _table in (window_partials, segments, predictions, sensor_counts, suspects):
    _table.primary_key.dialect_options["mssql"]["clustered"] = False
