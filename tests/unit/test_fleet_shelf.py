"""Fleets are published by several at once, and none takes another one's models away."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from scoring.adapters.blobs import FolderBlobs
from scoring.errors import BadInput, Conflict, InvalidFleet, NotFound
from scoring.fleet import Model, Training, train_model
from scoring.handlers.fleets import CURRENT, FleetShelf
from scoring.ports import BlobInfo

NOW = datetime(2026, 1, 5, tzinfo=UTC)


class Meanwhile(FolderBlobs):
    """Blobs of somebody to whom something happens before a fleet of theirs is on the shelf."""

    happens: Callable[[], object] | None = None

    def write(self, name: str, data: bytes | Path) -> BlobInfo:
        if self.happens and name.endswith("manifest.json"):
            happens, self.happens = self.happens, None
            happens()
        return super().write(name, data)


@pytest.fixture
def blobs(tmp_path: Path) -> Meanwhile:
    return Meanwhile(tmp_path / "blobs")


@pytest.fixture
def shelf(blobs: Meanwhile, tmp_path: Path) -> FleetShelf:
    return FleetShelf(blobs, tmp_path / "cache")


def models(*sensors: str, scale: float = 1) -> list[Model]:
    x = np.random.default_rng(1).normal(3, 2, (20, 1)) * scale
    return [Model("d", sensor, train_model(x, Training())) for sensor in sensors]


def sensors(shelf: FleetShelf) -> list[str]:
    return sorted(sensor for _, sensor in list(shelf.open().keys()))


def test_without_a_fleet_an_update_is_the_first_one(shelf: FleetShelf) -> None:
    with pytest.raises(NotFound, match="no fleet yet"):
        shelf.current()

    assert shelf.update(models("s1"), ("mean",), NOW).version == shelf.current()
    assert sensors(shelf) == ["s1"]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"../f0", b"two words"])
def test_a_pointer_that_names_no_fleet_is_named_and_the_next_fleet_mends_it(
    shelf: FleetShelf, blobs: Meanwhile, content: bytes
) -> None:
    version = shelf.publish(models("s1"), ("mean",), NOW)
    blobs.write(CURRENT, version.encode() + b"\r\n")
    assert shelf.current() == version
    blobs.write(CURRENT, content)

    with pytest.raises(InvalidFleet, match=CURRENT):
        shelf.current()

    shelf.publish(models("s1"), ("mean",), NOW)
    assert shelf.current() == version


def test_an_update_keeps_what_it_does_not_change(shelf: FleetShelf) -> None:
    shelf.publish(models("s1", "s2"), ("mean",), NOW)

    shelf.update(models("s2", "s3", scale=2), ("mean",), NOW)

    assert sensors(shelf) == ["s1", "s2", "s3"]


def test_an_update_of_other_features_is_refused_and_names_both(shelf: FleetShelf) -> None:
    version = shelf.publish(models("s1"), ("mean",), NOW)

    with pytest.raises(BadInput, match=r"features mean, and these are to have max: .*--fresh"):
        shelf.update(models("s2"), ("max",), NOW)

    assert shelf.current() == version


def test_a_fleet_is_replaced_if_it_is_still_the_one_that_was_to_be(shelf: FleetShelf) -> None:
    shelf.publish(models("s1"), ("mean",), NOW)
    before = shelf.mark()
    shelf.update(models("theirs"), ("mean",), NOW)

    with pytest.raises(Conflict, match="became current"):
        shelf.replace(models("ours"), ("max",), NOW, before)
    assert sensors(shelf) == ["s1", "theirs"]

    shelf.replace(models("ours"), ("max",), NOW, shelf.mark())
    assert sensors(shelf) == ["ours"]


@pytest.mark.parametrize("before", [True, False])
def test_of_two_updates_at_once_the_second_is_told_and_takes_nothing_away(
    shelf: FleetShelf, blobs: Meanwhile, *, before: bool
) -> None:
    if before:
        shelf.publish(models("s1"), ("mean",), NOW)
    blobs.happens = lambda: shelf.update(models("theirs"), ("mean",), NOW)

    with pytest.raises(Conflict, match=r"became current while fleet .* was made"):
        shelf.update(models("ours"), ("mean",), NOW)
    assert sensors(shelf) == [*["s1"] * before, "theirs"]

    shelf.update(models("ours"), ("mean",), NOW)
    assert sensors(shelf) == ["ours", *["s1"] * before, "theirs"]


def test_two_that_make_the_same_fleet_are_both_content(shelf: FleetShelf, blobs: Meanwhile) -> None:
    blobs.happens = lambda: shelf.update(models("s1"), ("mean",), NOW)

    assert shelf.update(models("s1"), ("mean",), NOW).version == shelf.current()


def test_a_fleet_that_stands_for_itself_is_published_over_any_other(
    shelf: FleetShelf, blobs: Meanwhile
) -> None:
    blobs.happens = lambda: shelf.publish(models("theirs"), ("mean",), NOW)

    shelf.publish(models("ours"), ("mean",), NOW)

    assert sensors(shelf) == ["ours"]
    assert len(shelf.versions()) == 2
