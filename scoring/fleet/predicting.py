"""A part scored by a fleet: look up models, gather rows by model, decide, put back in order."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scoring.detectors import Array, Flags, Kind, anomaly_scores, decide, is_anomaly
from scoring.fleet.asking import decide_payload
from scoring.fleet.columns import choose, pack
from scoring.fleet.file import Fleet, Group
from scoring.fleet.gathering import Indices, Work, blocks, gather, stretch
from scoring.predictions import PREDICTION_SCHEMA, Status

_SCORED, _WITHOUT_MODEL, _WITHOUT_FEATURES = range(3)


@dataclass(slots=True)
class _Outcome:
    """What became of rows; all arrays of shape (rows,).

    Attributes
    ----------
    reason
        Position in `reasons`; the status follows from it.
    """

    decision: Array
    anomaly: Flags
    reason: npt.NDArray[np.int32]
    reasons: list[tuple[Status, str]]

    def fail(self, rows: slice | Indices, text: str) -> None:
        """Set rows aside for one reason."""
        self.reason[rows] = len(self.reasons)
        self.reasons.append((Status.MODEL_FAILED, text))


def score_part(fleet: Fleet, part: pa.Table) -> pa.Table:
    """Score every row of an input part by its sensor's own model.

    Parameters
    ----------
    part
        Of `INPUT_SCHEMA`. A sensor's rows need not stand together.

    Returns
    -------
    pa.Table
        Of `PREDICTION_SCHEMA`, a row for every row of the part, in the same order. A model that
        fails sets only its own rows aside.
    """
    part = part.unify_dictionaries()
    work = gather(fleet, part)
    reasons = [
        (Status.SCORED, ""),
        (Status.NO_MODEL, "the fleet has no model of this sensor"),
        (Status.INVALID_FEATURES, "a feature is not a finite number"),
    ]
    rows = len(work.valid)
    outcome = _Outcome(
        np.zeros(rows), np.zeros(rows, dtype=bool), np.zeros(rows, dtype=np.int32), reasons
    )
    outcome.reason[~work.valid] = _WITHOUT_FEATURES
    for group in fleet.groups:
        if group.shape.kind is Kind.PAYLOAD:
            _score_payloads(fleet, group, work, outcome)
        else:
            _score_group(group, work, outcome)
    return _predictions(part, _in_order(work, outcome, part.num_rows))


def decide_model(fleet: Fleet, row: int, x: Array) -> tuple[Array, Flags]:
    """Decide rows by one model.

    Parameters
    ----------
    row
        Of the model, in the fleet's file.
    x
        Finite features, shape (rows, features).

    Returns
    -------
    tuple
        Decisions and whether each is an anomaly, both of shape (rows,).
    """
    model = fleet.compiled(row)
    picked = model.shape.pick(x.T)
    if model.shape.kind is Kind.PAYLOAD:
        return decide_payload(model.payload, picked.T)
    decisions = decide(model.shape, model.parameters[None], picked[None])[0]
    return decisions, is_anomaly(model.shape.kind, decisions)


def _score_group(group: Group, work: Work, outcome: _Outcome) -> None:
    low, high = np.searchsorted(work.models, [group.start, group.stop]).tolist()
    for some, rows in blocks(work.count[low:high], group.shape):
        models = low + some
        try:
            _score_block(group, models, rows, work, outcome)
        except Exception:  # noqa: BLE001 - whichever model it was fails below, alone
            for model in models:
                _score_alone(group, model, rows, work, outcome)


def _score_block(
    group: Group, models: Indices, rows: Indices, work: Work, outcome: _Outcome
) -> None:
    """Decide a block of equal models; parameters as of `stretch`."""
    local = work.models[models] - group.start
    follow = local[-1] - local[0] == len(local) - 1
    parameters = group.parameters[slice(local[0], local[-1] + 1) if follow else local]
    where = stretch(work, models, rows)
    x = group.shape.pick(work.x[:, where]).reshape(-1, len(models), len(rows)).swapaxes(0, 1)
    decisions = decide(group.shape, parameters, x).ravel()
    outcome.decision[where] = decisions
    outcome.anomaly[where] = is_anomaly(group.shape.kind, decisions)


def _score_alone(
    group: Group, model: np.intp, rows: Indices, work: Work, outcome: _Outcome
) -> None:
    try:
        _score_block(group, np.array([model]), rows, work, outcome)
    except Exception as error:  # noqa: BLE001 - a damaged model fails its own rows
        start = int(work.start[model])
        failed = slice(start, start + int(work.count[model]))
        outcome.fail(failed, f"{type(error).__name__}: {error}")


def _score_payloads(fleet: Fleet, group: Group, work: Work, outcome: _Outcome) -> None:
    low, high = np.searchsorted(work.models, [group.start, group.stop]).tolist()
    for model in range(low, high):
        start = int(work.start[model])
        rows = slice(start, start + int(work.count[model]))
        try:
            payload = fleet.payload(int(work.models[model]))
            decided = decide_payload(payload, group.shape.pick(work.x[:, rows]).T)
        except Exception as error:  # noqa: BLE001 - estimators raise anything
            outcome.fail(rows, f"{type(error).__name__}: {error}")
            continue
        outcome.decision[rows], outcome.anomaly[rows] = decided


def _in_order(work: Work, found: _Outcome, rows: int) -> _Outcome:
    """Put the outcome back into the part's order; rows that had no work have no model."""
    broken = (found.reason == _SCORED) & ~np.isfinite(found.decision)
    if broken.any():
        found.fail(np.flatnonzero(broken), "the model's decision is not a finite number")
    if isinstance(work.rows, slice) and work.rows == slice(0, rows):
        return found
    reason = np.full(rows, _WITHOUT_MODEL, dtype=np.int32)
    decision, anomaly = np.zeros(rows), np.zeros(rows, dtype=bool)
    reason[work.rows], decision[work.rows] = found.reason, found.decision
    anomaly[work.rows] = found.anomaly
    return _Outcome(decision, anomaly, reason, found.reasons)


def _predictions(part: pa.Table, outcome: _Outcome) -> pa.Table:
    missing = outcome.reason != _SCORED
    statuses = list(Status)
    of_reason = np.array([statuses.index(status) for status, _ in outcome.reasons], dtype=np.int32)
    columns = [
        *(part[name] for name in ("device", "sensor", "window_start")),
        pack(anomaly_scores(outcome.decision), missing),
        pack(outcome.anomaly, missing),
        choose(statuses, of_reason[outcome.reason]),
        choose([text for _, text in outcome.reasons], outcome.reason, ~missing),
    ]
    return pa.table(columns, schema=PREDICTION_SCHEMA)
