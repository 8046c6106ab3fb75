"""Fleets as versioned model assets: their files stay where they are, the asset says where."""

from scoring.adapters.azure_ml.publication import DATASTORE, FLEET, datastore_path
from scoring.adapters.azure_ml.steps import Step, exists
from scoring.adapters.azure_ml.workspace import Workspace
from scoring.errors import Misconfigured, NotFound
from scoring.runs import fleet_prefix


def fleet_step(workspace: Workspace, version: str) -> Step:
    """Make a model asset of a fleet in Blob."""
    what = f"model {FLEET}:{version}"

    def make() -> None:
        from azure.ai.ml.entities import Model  # noqa: PLC0415 - heavy

        model = Model(
            name=FLEET,
            version=version,
            type="custom_model",
            path=datastore_path(fleet_prefix(version)),
            description="All models of one version, in one memory-mapped file.",
        )
        workspace.ask(what, lambda ml: ml.models.create_or_update(model))

    return Step(what, exists(workspace, what, lambda ml: ml.models.get(FLEET, version)), make)


def register_fleet(workspace: Workspace, version: str) -> bool:
    """Make the model asset where it is not there; False if it is.

    Raises
    ------
    Misconfigured
        Nothing is published: there is no datastore that the asset's files could stand in.
    """
    step = fleet_step(workspace, version)
    if step.is_there():
        return False
    try:
        workspace.ask(f"datastore {DATASTORE}", lambda ml: ml.datastores.get(DATASTORE))
    except NotFound as error:
        workspace.check()
        problem = (
            f"the workspace {workspace.name} has no datastore {DATASTORE} yet:"
            " `azure-ml publish` makes it"
        )
        raise Misconfigured([problem]) from error
    step.make()
    return True
