"""Index a prediction part: make its predictions findable, once."""

from dataclasses import dataclass

from scoring.errors import InvalidPart
from scoring.ports import Blobs, RunStore
from scoring.predictions import read_predictions
from scoring.runs import parse_prediction_name


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
        exported = self.store.part(run, part).rows
        data, blob = self.blobs.read(name)
        predictions = read_predictions(data, name)
        if predictions.num_rows != exported:
            message = f"{name} has {predictions.num_rows} predictions for {exported} windows"
            raise InvalidPart(message)
        return self.store.index_part(run, part, blob.etag, predictions)
