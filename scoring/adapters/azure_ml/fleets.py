"""Fleets as versioned model assets: their files stay where they are, the asset says where."""

from scoring.adapters.azure_ml.publication import FLEET, datastore_path
from scoring.adapters.azure_ml.steps import Step, exists
from scoring.adapters.azure_ml.workspace import Workspace


def fleet_step(workspace: Workspace, version: str) -> Step:
    """Make a model asset of a fleet in Blob."""
    what = f"model {FLEET}:{version}"

    def make() -> None:
        from azure.ai.ml.entities import Model  # noqa: PLC0415 - heavy

        model = Model(
            name=FLEET,
            version=version,
            type="custom_model",
            path=datastore_path(f"fleets/{version}/"),
            description="All models of one version, in one memory-mapped file.",
        )
        workspace.ask(what, lambda ml: ml.models.create_or_update(model))

    return Step(what, exists(workspace, what, lambda ml: ml.models.get(FLEET, version)), make)


def register_fleet(workspace: Workspace, version: str) -> bool:
    """Make the model asset where it is not there; False if it is."""
    step = fleet_step(workspace, version)
    if step.is_there():
        return False
    step.make()
    return True
