"""Index a prediction part: make its predictions findable, once."""

from dataclasses import dataclass

from scoring.ports import Blobs, RunStore
from scoring.predictions import read_predictions
from scoring.runs import RunState, parse_prediction_name

_GIVEN_BACK = (RunState.FAILED, RunState.CANCELED)


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
            The name is not that of a prediction part, or the part does not have the agreed form.
        NotFound
            No such run, part of the run, or blob.
        """
        run_id, part = parse_prediction_name(name)
        run = self.store.run(run_id)
        if run.state in _GIVEN_BACK:
            # Its windows went back to be scored by another run: nothing of this one counts.
            return False
        data, blob = self.blobs.read(name)
        return self.store.index_part(run, part, blob.etag, read_predictions(data, name))
