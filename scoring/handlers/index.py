"""Index a prediction part: make its predictions findable, once."""

from dataclasses import dataclass

import pyarrow as pa

from scoring.errors import InvalidPart, NotFound
from scoring.ports import Blobs, RunStore
from scoring.predictions import INPUT_SCHEMA, read_predictions, read_table
from scoring.runs import ScoringRun, parse_prediction_name, part_name


@dataclass(frozen=True, slots=True)
class IndexPredictions:
    """The index handler: called once or more for every prediction part, in any order."""

    store: RunStore
    blobs: Blobs

    def __call__(self, name: str) -> bool:
        """Index the blob of this name; False if there was nothing new in it.

        Raises
        ------
        BadInput
            The name is not that of a prediction part.
        InvalidPart
            The part does not have the agreed form or one row a window, or cannot be stored.
        NotFound
            No such run, part of the run, or blob.
        """
        run_id, part = parse_prediction_name(name)
        run = self.store.run(run_id)
        if run.state.gives_back:
            # Its windows went back to be scored by another run: nothing of this one counts.
            return False
        exported = self.store.part(run, part)
        data, blob = self.blobs.read(name)
        predictions = read_predictions(data, name, exported.rows)
        if not exported.is_aside and self._is_of_other_windows(run, part, predictions):
            message = f"{name} has predictions for other windows than its input part"
            raise InvalidPart(message)
        return self.store.index_part(run, part, blob.etag, predictions)

    def _is_of_other_windows(self, run: ScoringRun, part: int, predictions: pa.Table) -> bool:
        """Return whether a part answers other windows than it was asked about.

        Where its input part is gone, that cannot be told.
        """
        name = part_name(part)
        try:
            data, _ = self.blobs.read(run.input_prefix + name)
            asked = read_table(data, INPUT_SCHEMA, name)
        except (NotFound, InvalidPart):
            return False
        return _windows(asked) != _windows(predictions)


def _windows(table: pa.Table) -> set[tuple[str, str, int]]:
    starts = table["window_start"].cast(pa.int64()).to_pylist()
    return set(zip(table["device"].to_pylist(), table["sensor"].to_pylist(), starts, strict=True))
