"""One model a sensor trained on its windows, over several processes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np

from scoring.detectors import Array
from scoring.errors import BadInput, ModelRefused
from scoring.fleet.adding import Model, prepare
from scoring.fleet.matching import Columns
from scoring.processes import exit_with_parent

MIN_WINDOWS = 10
"""A sensor with fewer windows gets no model: a boundary around less says nothing."""

MAX_WINDOWS = 5_000
"""Windows that a sensor is trained on, if nobody says otherwise: 50 support vectors, 2 kB."""

_ROUNDING = 1e-12
"""Part of a feature's size below which its differences are those of rounding."""

_CHUNK = 32
"""Sensors that a process trains at a time."""

_AHEAD = 2
"""Chunks for each process that are under way: one in work, one waiting."""


@dataclass(frozen=True, slots=True)
class Training:
    """How models are trained.

    Attributes
    ----------
    nu
        Part of the training windows that may fall outside: an upper bound on them and a lower
        bound on the support vectors (Schoelkopf et al., 2001). 0.01 calls about one usual window
        in a hundred anomalous. Raised to 1 / windows where it is less: below that the boundary
        shrinks onto a single support vector and everything is an anomaly.
    gamma
        Of the rbf kernel, over standardised features. 0.02 is smooth: with scikit-learn's ``scale``
        (1 / features) a model of 100 windows of noise calls a third of the next ones anomalous,
        with 0.02 one in twenty, and both find a shift of one deviation in 30 readings.
    min_windows
        Sensors with fewer are left out.
    max_windows
        Of a sensor with more a random sample is taken: a model grows with the windows it was
        trained on, and the time to fit it with their square.
    """

    nu: float = 0.01
    gamma: float | str = 0.02
    min_windows: int = MIN_WINDOWS
    max_windows: int = MAX_WINDOWS

    def __post_init__(self) -> None:
        """Refuse what scikit-learn would refuse, once and not for every sensor."""
        if not 0 < self.nu <= 1:
            message = f"nu must be in (0, 1], not {self.nu}"
            raise BadInput(message)
        known = self.gamma in ("scale", "auto") if isinstance(self.gamma, str) else self.gamma > 0
        if not known:
            message = f"gamma must be scale, auto or a number above 0, not {self.gamma}"
            raise BadInput(message)


@dataclass(frozen=True, slots=True)
class Untrained:
    """A sensor that got no model, and why."""

    device: str
    sensor: str
    reason: str


Sensor = tuple[str, str, Array]
"""Device, sensor and feature rows, shape (windows, features)."""


def train_model(x: Array, training: Training) -> Any:
    """Fit a StandardScaler and a OneClassSVM on the windows of one sensor.

    Parameters
    ----------
    x
        Shape (windows, features).

    Returns
    -------
    sklearn.pipeline.Pipeline
        The same one for the same windows.

    Raises
    ------
    BadInput
        Too few windows, a feature that never changes, or one that is not finite.
    """
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415
    from sklearn.svm import OneClassSVM  # noqa: PLC0415

    if problem := unfit(x, training):
        raise BadInput(problem)
    if constant := len(x[0]) - len(varying(x)):
        message = f"{constant} of {len(x[0])} features the same in all {len(x)} windows"
        raise BadInput(message)
    nu = max(training.nu, 1.0 / len(x))
    return make_pipeline(StandardScaler(), OneClassSVM(nu=nu, gamma=training.gamma)).fit(x)


def unfit(x: Array, training: Training) -> str:
    """Say why nothing can be learned from these windows, empty if something can."""
    least = max(training.min_windows, 1)
    if len(x) < least:
        return f"{len(x)} windows, fewer than {least}"
    if not np.isfinite(x).all():
        return "a feature is not a finite number"
    if not varying(x):
        return f"every feature the same in all {len(x)} windows"
    return ""


def varying(x: Array) -> tuple[int, ...]:
    """Return the positions of the features that are not the same in all windows.

    A constant one says nothing of what is usual, and has no deviation to be scaled by: one reading
    a window has a ``std`` of 0 in every window. Differences of rounding are none: means of equal
    readings differ in their last digit.
    """
    spread, size = x.max(axis=0) - x.min(axis=0), np.abs(x).max(axis=0)
    return tuple(np.flatnonzero(spread > _ROUNDING * size).tolist())


def sample(x: Array, most: int) -> Array:
    """Return at most so many rows, in their order; the same ones for the same rows.

    One from each of as many stretches of equal length, at random: all of the span is in it, and
    every time of the day. Evenly spaced rows could all be from the same minute of the hour.
    """
    if len(x) <= most:
        return x
    edges = np.linspace(0, len(x), most + 1).astype(np.intp)
    return x[np.random.default_rng(0).integers(edges[:-1], edges[1:])]


def train_fleet(  # noqa: PLR0913 - the last two are by keyword
    sensors: Iterable[Sensor],
    features: tuple[str, ...],
    training: Training,
    trained_at: datetime,
    *,
    processes: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Model | Untrained]:
    """Train all sensors, in their order, whatever the number of processes.

    Parameters
    ----------
    sensors
        Taken in as they are needed, not all at once.
    trained_at
        Aware; what the models say of their age.
    processes
        1 trains in this process; more start fresh ones, each with one BLAS thread.
    progress
        Told how many sensors are done, after each chunk.

    Yields
    ------
    Model or Untrained
        One for each sensor.
    """
    done = 0
    work = _chunks(sensors)
    for chunk in _mapped(work, (features, training, trained_at), processes):
        done += len(chunk)
        progress(done)
        yield from chunk


def _chunks(sensors: Iterable[Sensor]) -> Iterator[list[Sensor]]:
    rest = iter(sensors)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


_Common = tuple[tuple[str, ...], Training, datetime]


def _mapped(
    work: Iterator[list[Sensor]], common: _Common, processes: int
) -> Iterator[list[Model | Untrained]]:
    """Train chunks in order, at most two for each process under way at a time."""
    if processes <= 1:
        yield from (_train_chunk(chunk, common) for chunk in work)
        return
    # Fresh processes: a fork would take along the caller's threads and locks.
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=exit_with_parent) as pool:
        under_way: deque[Future[list[Model | Untrained]]] = deque()
        for chunk in work:
            under_way.append(pool.submit(_train_chunk, chunk, common))
            if len(under_way) >= _AHEAD * processes:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _train_chunk(chunk: list[Sensor], common: _Common) -> list[Model | Untrained]:
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    with threadpool_limits(limits=1):
        return [_train_sensor(sensor, common) for sensor in chunk]


def _train_sensor(sensor: Sensor, common: _Common) -> Model | Untrained:
    (device, name, x), (features, training, trained_at) = sensor, common
    if x.shape != (len(x), len(features)):
        return Untrained(device, name, f"feature rows of shape {x.shape}")
    windows = f"{len(x):,} windows"
    if len(x) > training.max_windows:
        windows = f"{training.max_windows:,} of {windows}"
        x = sample(x, training.max_windows)
    if problem := unfit(x, training):
        return Untrained(device, name, problem)
    taken = varying(x)
    source = f"trained on {windows}, nu {training.nu:g}, gamma {training.gamma}"
    if constant := [feature for i, feature in enumerate(features) if i not in taken]:
        source += f", without {', '.join(constant)}: the same in all of them"
    own = Columns(tuple(features[i] for i in taken))
    try:
        compiled = prepare(train_model(x[:, taken], training), own)
    except (ModelRefused, ValueError) as error:
        return Untrained(device, name, str(error))
    if constant:
        compiled = replace(compiled, shape=replace(compiled.shape, columns=taken))
    return Model(device, name, compiled, source, trained_at)
