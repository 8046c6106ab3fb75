"""Commands on Azure ML: publish the pipeline that runs are submitted to."""

import re
from collections.abc import Callable
from typing import Annotated

import typer

from scoring.cli.state import JsonFlag, cell, check_duration, console, opened, plain, show_json

# As the service has them; the SDK would find out only when most is made.
_CLUSTER = re.compile(r"[a-zA-Z](?![a-zA-Z0-9-]*-\d+$)[a-zA-Z0-9-]{2,23}")
_ENDPOINT = re.compile("([a-zA-Z][a-zA-Z0-9-]{2,31})?")

azure_ml_app = typer.Typer(no_args_is_help=True)


def _check_name(pattern: re.Pattern[str], rule: str) -> Callable[[str], str]:
    def check(name: str) -> str:
        if not pattern.fullmatch(name):
            message = f"{name!r} is no name that Azure ML takes: {rule}"
            raise typer.BadParameter(message)
        return name

    return check


_check_cluster = _check_name(
    _CLUSTER,
    "3 to 24 letters, digits and hyphens, first a letter, and no hyphen before a number at the end",
)
_check_endpoint = _check_name(_ENDPOINT, "3 to 32 letters, digits and hyphens, and first a letter")


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(azure_ml_app, name="azure-ml", help="Publish the pipeline to Azure ML.")


@azure_ml_app.callback()
def azure_ml() -> None:
    """Publish the pipeline to the workspace SCORING_AZURE_ML_WORKSPACE."""


@azure_ml_app.command()
def publish(
    context: typer.Context,
    cluster: Annotated[
        str, typer.Option(help="Name of the cluster.", callback=_check_cluster)
    ] = "scoring",
    size: Annotated[str, typer.Option(help="Of its virtual machines.")] = "Standard_F4s_v2",
    min_nodes: Annotated[
        int, typer.Option(min=0, help="Nodes kept warm; 0 costs nothing between runs.")
    ] = 0,
    max_nodes: Annotated[int, typer.Option(min=1, help="Nodes at most.")] = 4,
    idle: Annotated[
        str,
        typer.Option(
            help="How long a node is kept without work, such as 2min.", callback=check_duration
        ),
    ] = "2min",
    nodes: Annotated[int, typer.Option(min=1, help="Nodes a run takes.")] = 1,
    image: Annotated[
        str, typer.Option(help="The environment's image in a registry (default: built there).")
    ] = "",
    endpoint: Annotated[
        str,
        typer.Option(
            help="Put a batch endpoint of this name in front of the pipeline.",
            callback=_check_endpoint,
        ),
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is missing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Publish environment, components, cluster and fleet; what is there unchanged stays as it is.

    After a failure the same command goes on from where it stopped.
    """
    from scoring import instants
    from scoring.adapters.azure_ml.resources import Cluster
    from scoring.settings import duration

    if max(min_nodes, nodes) > max_nodes:
        message = f"--max-nodes {max_nodes} is less than --min-nodes or --nodes"
        raise typer.BadParameter(message)
    kept = max(1, duration(idle) // instants.SECOND)
    wanted = Cluster(cluster, size, min_nodes, max_nodes, kept)
    steps = []
    with opened(context) as app:
        for step in app.publish(wanted, nodes, image, endpoint, dry_run=dry_run):
            steps.append(step)
            if not as_json:
                done = "would be made" if dry_run else "made"
                console().print(f"{done if step.made else 'unchanged':>13}  {cell(step.what)}")
    if as_json:
        show_json({"dry_run": dry_run, "steps": [plain(step) for step in steps]})
        return
    if not any(step.made for step in steps):
        console().print("nothing to do: all of it is published")
    for step in steps:
        if step.note:
            console().print(cell(step.note), soft_wrap=True)
