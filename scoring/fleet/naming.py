"""Which sensor a model file belongs to: by its name and a pattern, or by a list of files."""

import csv
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Protocol, Self

from scoring.errors import BadInput, ModelRefused

Sensor = tuple[str, str]
"""Device and sensor."""

PATTERN = "model_{device}_{sensor}"
"""How model files are named, before the extension."""

MAX_NAME = 128
"""Longest device or sensor, in characters: as in a reading."""

_EXTENSION = re.compile(
    r"\.(?:joblib|pkl|pickle|p|sav|model|skops)(?:\.(?:gz|gzip|bz2|xz|lzma|z|zlib))?$",
    re.IGNORECASE,
)
"""What is taken off a file's name; the content decides how it is read."""

_FIELD = re.compile(r"\{(device|sensor)(?::((?:[^{}]|\{[\d,]*\})+))?\}|(\*)")
"""A field of a pattern with the regular expression that its text must match, or a wildcard."""


class Names(Protocol):
    """A way to tell the sensor of a file."""

    @property
    def is_deep(self) -> bool:
        """Whether files of folders in the folder are looked at too."""

    def sensor_of(self, name: str) -> Sensor:
        """Return a file's device and sensor.

        Parameters
        ----------
        name
            Path of the file in the folder, with slashes.

        Raises
        ------
        ModelRefused
            It has none, or several.
        """


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern of names: ``{device}`` and ``{sensor}`` once each, ``*`` for any text.

    ``{device:EXPRESSION}`` is a device whose whole text matches a regular expression. A pattern
    with a slash is that of a path in the folder. No field reaches over a slash by itself.

    Attributes
    ----------
    known
        The sensors of the store by what `normalised` makes of them: where a name can be split in
        several ways, the one that yields a known sensor holds.
    """

    text: str
    known: Mapping[Sensor, Sensor]
    _expression: str = field(repr=False)
    _wanted: Mapping[str, re.Pattern[str]] = field(repr=False)

    @classmethod
    def of(cls, text: str = PATTERN, known: Iterable[Sensor] = ()) -> Self:
        """Check a pattern.

        Raises
        ------
        BadInput
            A field is missing, there twice, or beside the other one; or an expression is none.
        """
        fields = list(_FIELD.finditer(text))
        if sorted(one[1] for one in fields if one[1]) != ["device", "sensor"]:
            message = f"pattern {text!r} needs {{device}} and {{sensor}}, once each"
            raise BadInput(message)
        if any(one.end() == other.start() for one, other in pairwise(fields)):
            message = f"pattern {text!r} has nothing between two fields"
            raise BadInput(message)
        try:
            wanted = {one[1]: re.compile(one[2] or "[^/]+") for one in fields if one[1]}
        except re.error as error:
            message = f"pattern {text!r}: {error.pattern!r} is no regular expression: {error.msg}"
            raise BadInput(message) from error
        by_name = {normalised(sensor): sensor for sensor in known}
        return cls(text, by_name, _expression_of(text), wanted)

    @property
    def is_deep(self) -> bool:
        """Whether files of folders in the folder are looked at too."""
        return "/" in _FIELD.sub("", self.text)

    def sensor_of(self, name: str) -> Sensor:
        """Return a file's device and sensor; see `Names`."""
        stem = _EXTENSION.sub("", name)
        found = self._splits(stem) if stem.isprintable() else []
        if not found:
            message = f"its name does not match {self.text}"
            raise ModelRefused(message)
        splits = {normalised(split): None for split in found}
        known = [self.known[split] for split in splits if split in self.known]
        if len(known) == 1:
            return known[0]
        if len(splits) == 1:
            return next(iter(splits))
        raise ModelRefused(self._ambiguous(known or [*splits], is_known=bool(known)))

    def _splits(self, stem: str) -> list[Sensor]:
        """Return every way to read a name, those with a short device first."""
        # With the sensor as long as can be the device is as short, and the other way round.
        ends = [("+?", "+"), ("+", "+?")]
        shortest, longest = (_compiled(self._sized(*sizes)).fullmatch(stem) for sizes in ends)
        if shortest is None or longest is None:
            return []
        if shortest.span("device") == longest.span("device"):
            # As most names are; to try one length after the other takes three times as long.
            only = shortest["device"], shortest["sensor"]
            return [only] if self._fits(shortest) else []
        splits = []
        for size in range(len(shortest["device"]), len(longest["device"]) + 1):
            sized = _compiled(self._sized(f"{{{size}}}", "+"))
            if (match := sized.fullmatch(stem)) and self._fits(match):
                splits.append((match["device"], match["sensor"]))
        return splits

    def _sized(self, device: str, sensor: str) -> str:
        return self._expression.replace(_DEVICE, device).replace(_SENSOR, sensor)

    def _fits(self, match: re.Match[str]) -> bool:
        return all(
            len(match[name]) <= MAX_NAME and wanted.fullmatch(match[name])
            for name, wanted in self._wanted.items()
        )

    def _ambiguous(self, splits: list[Sensor], *, is_known: bool) -> str:
        first, last = splits[0], splits[-1]
        either = (
            f"device {first[0]}, sensor {first[1]} or device {last[0]}, sensor {last[1]}"
            f"{', both of them known' if is_known else ''}"
        )
        text = re.sub(r"\{(device|sensor):[^}]*\}", r"{\1}", self.text)
        between = re.search(r"\}([^{]+)\{", text)
        mark = (between[1] if between else "_")[0]
        short, long = (
            text.replace("{" + name + "}", "{" + name + f":[^{mark}]+" + "}")
            for name in ("device", "sensor")
        )
        if text.index("{sensor}") < text.index("{device}"):
            short, long = long, short
        return (
            f"is {either}: --pattern '{short}' takes it for the one, --pattern '{long}' for the"
            " other, and --map FILE names each file's device and sensor"
        )


_DEVICE, _SENSOR = "\0d", "\0s"
"""Stand in an expression for how often the characters of each repeat."""


def _expression_of(text: str) -> str:
    """Turn a pattern into a regular expression in which the repeats are still to be put."""
    device, sensor = f"(?P<device>.{_DEVICE})", f"(?P<sensor>.{_SENSOR})"
    bodies = {None: "[^/]*", "device": device, "sensor": sensor}
    parts, end = [], 0
    for match in _FIELD.finditer(text):
        parts += [re.escape(text[end : match.start()]), bodies[match[1]]]
        end = match.end()
    return "".join([*parts, re.escape(text[end:])])


@lru_cache(maxsize=1024)
def _compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expression)


def normalised(sensor: Sensor) -> Sensor:
    """Return names in the form in which equal ones are equal: a Mac decomposes file names."""
    device, name = sensor
    return unicodedata.normalize("NFC", device), unicodedata.normalize("NFC", name)


@dataclass(frozen=True, slots=True)
class Listed:
    """Files listed in a CSV file with the columns file, device and sensor.

    Attributes
    ----------
    is_deep
        Always: a file is named by its path in the folder.
    """

    path: Path
    sensors: Mapping[str, Sensor]
    is_deep: bool = True

    @classmethod
    def of(cls, path: Path) -> Self:
        """Read a list.

        Raises
        ------
        BadInput
            It cannot be read, lacks a column, or has a row that is not whole or there twice.
        """
        sensors: dict[str, Sensor] = {}
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = csv.DictReader(file)
                lacking = [name for name in _COLUMNS if name not in (rows.fieldnames or [])]
                if lacking:
                    message = (
                        f"{path} has no column {', '.join(lacking)}; it needs file,device,sensor"
                    )
                    raise BadInput(message)
                for row in rows:
                    name, device, sensor = (row[column] or "" for column in _COLUMNS)
                    if not (name and 0 < len(device) <= MAX_NAME and 0 < len(sensor) <= MAX_NAME):
                        message = (
                            f"{path} line {rows.line_num}: file, device or sensor is missing, or"
                            f" longer than {MAX_NAME} characters"
                        )
                        raise BadInput(message)
                    key = _plain(name)
                    if key in sensors:
                        message = f"{path} line {rows.line_num}: {name} stands there twice"
                        raise BadInput(message)
                    sensors[key] = device, sensor
        except (OSError, UnicodeError, csv.Error) as error:
            message = f"{path} cannot be read: {error}"
            raise BadInput(message) from error
        return cls(path, sensors)

    def sensor_of(self, name: str) -> Sensor:
        """Return a file's device and sensor; see `Names`."""
        found = self.sensors.get(_plain(name))
        if found is None:
            message = f"{self.path.name} does not list it"
            raise ModelRefused(message)
        return found

    def missing(self, names: Collection[str]) -> list[str]:
        """Return the files that are listed and not among some names."""
        there = set(map(_plain, names))
        return [name for name in self.sensors if name not in there]


_COLUMNS = ("file", "device", "sensor")


def _plain(name: str) -> str:
    """Return a path in the form in which equal ones are equal."""
    return unicodedata.normalize("NFC", PurePosixPath(name.replace("\\", "/")).as_posix())
