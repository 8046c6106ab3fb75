"""Commands on the fleet: train, import, check, show, list."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scoring.cli.state import (
    JsonFlag,
    Limit,
    cell,
    console,
    instant_option,
    opened,
    plain,
    progress,
    show_json,
    show_rows,
)

if TYPE_CHECKING:
    from scoring.fleet import FleetReport


def _check_features(text: str | None) -> str | None:
    from scoring.predictions import FEATURES

    if text is None:
        return None
    names = _names(text) or ()
    if unknown := [name for name in names if name not in FEATURES]:
        message = f"{', '.join(unknown) or 'nothing'} is not one of {', '.join(FEATURES)}"
        raise typer.BadParameter(message)
    if len(set(names)) < len(names):
        message = "each feature once"
        raise typer.BadParameter(message)
    return text


def _check_gamma(text: str) -> str:
    try:
        return text if text in {"scale", "auto"} else str(float(text))
    except ValueError as error:
        message = f"{text!r} is neither a number nor scale nor auto"
        raise typer.BadParameter(message) from error


def _check_columns(text: str) -> str:
    from scoring.predictions import FEATURES

    for pair in filter(None, text.split(",")):
        name, _, feature = pair.partition("=")
        if not name.strip() or feature.strip() not in FEATURES:
            message = f"{pair!r} is not of the form name=feature, of {', '.join(FEATURES)}"
            raise typer.BadParameter(message)
    return text


Features = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated, of mean,std,min,max,last,count (default: the current fleet's;"
        " for a first one mean,std,min,max to train, mean to import).",
        callback=_check_features,
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Replace the current fleet's models.")]
Version = Annotated[str | None, typer.Option(help="Fleet version (default: current).")]

fleet_app = typer.Typer(no_args_is_help=True)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(fleet_app, name="fleet", help="Train, import, check and show models.")


@fleet_app.command()
def train(
    context: typer.Context,
    features: Features = None,
    since: Annotated[
        str | None, typer.Option(help="Only windows that start then or later (default: all).")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Only windows that end by then (default: all).")
    ] = None,
    nu: Annotated[float, typer.Option(help="Share of usual windows called anomalous.")] = 0.01,
    gamma: Annotated[
        str, typer.Option(help="A number, scale or auto.", callback=_check_gamma)
    ] = "0.02",
    fresh: Fresh = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a StandardScaler and OneClassSVM for each sensor on its windows in the store.

    The models are put over those of the current fleet; imported ones stay.
    """
    from scoring import instants
    from scoring.bootstrap import now
    from scoring.fleet import Training

    last = instants.of(now()) if (given := instant_option(until)) is None else given
    first = instant_option(since)
    width = gamma if gamma in {"scale", "auto"} else float(gamma)
    with opened(context) as app, progress("train") as advance:
        training = Training(nu, width, max_windows=app.settings.training_windows)
        trained = app.train(
            _names(features), training, last, now(), advance, since=first, fresh=fresh
        )
    if as_json:
        lists = {name: [*map(plain, getattr(trained, name))] for name in ("kept", "untrained")}
        numbers = {name: getattr(trained, name) for name in ("models", "windows", "used")}
        show_json({"version": trained.version} | numbers | lists)
        return
    sample = f" of {cell(trained.windows)}" if trained.used < trained.windows else ""
    console().print(
        f"fleet {trained.version}: {cell(trained.models)} models trained on"
        f" {cell(trained.used)}{sample} windows"
    )
    columns = {"device": "device", "sensor": "sensor", "reason": "why"}
    if trained.kept:
        show_rows("older models that stay", trained.kept, columns, as_json=False)
    if trained.untrained:
        show_rows("without a model", trained.untrained, columns, as_json=False)


@fleet_app.command("import")
def import_(
    context: typer.Context,
    folder: Path,
    pattern: Annotated[
        str,
        typer.Option(
            help="How the files are named, without extension: {device} and {sensor}, or"
            " {device:REGEX}; * for any text; with slashes, a path in the folder."
        ),
    ] = "model_{device}_{sensor}",
    map_: Annotated[
        Path | None,
        typer.Option(
            "--map", help="A CSV file with file,device,sensor of each, instead of a pattern."
        ),
    ] = None,
    features: Features = None,
    columns: Annotated[
        str,
        typer.Option(
            help="Which feature a model's own column is: temp=mean,spread=std.",
            callback=_check_columns,
        ),
    ] = "",
    by_position: Annotated[
        bool,
        typer.Option("--by-position", help="Ignore how models name their columns."),
    ] = False,
    fresh: Fresh = False,
    as_json: JsonFlag = False,
) -> None:
    """Import model files (joblib, skops, old pickles) on top of the current fleet.

    Models are OneClassSVM, SGDOneClassSVM, IsolationForest, EllipticEnvelope, LocalOutlierFactor
    (novelty=True), alone or at the end of a Pipeline of: StandardScaler, MinMaxScaler,
    MaxAbsScaler, RobustScaler, Normalizer, Binarizer, PowerTransformer, QuantileTransformer,
    PolynomialFeatures, PCA, IncrementalPCA, TruncatedSVD, FastICA, FactorAnalysis, Nystroem,
    RBFSampler. Of a GridSearchCV or RandomizedSearchCV the best estimator is taken.
    """
    from scoring.bootstrap import now
    from scoring.handlers.models import Naming

    pairs = (pair.split("=") for pair in columns.split(",") if pair)
    renamed = {name.strip(): feature.strip() for name, feature in pairs}
    naming = Naming(pattern, map_, renamed, by_position)
    with opened(context) as app:
        imported = app.import_models(folder, naming, _names(features), now(), fresh=fresh)
    if as_json:
        refused = [plain(one) for one in imported.refused]
        show_json(
            {
                "version": imported.version,
                "imported": imported.models,
                "unknown": imported.unknown,
                "refused": refused,
            }
        )
    else:
        if imported.version:
            console().print(f"fleet {imported.version}: {cell(imported.models)} models imported")
        if imported.unknown:
            console().print(
                f"{cell(imported.unknown)} of them are of sensors that were never seen: if that is"
                " a matter of their names, --pattern or --map says how to read them"
            )
        if imported.refused:
            titles = {"file": "file", "reason": "why it was refused"}
            show_rows("refused", imported.refused, titles, as_json=False)
    if not imported.version:
        raise typer.Exit(1)


@fleet_app.command()
def check(context: typer.Context, version: Version = None, as_json: JsonFlag = False) -> None:
    """Name missing models, orphans, stale and degenerate ones; exits with 1 if there are any."""
    from scoring.bootstrap import now

    with opened(context) as app:
        report = app.check_fleet(now(), version)
    if as_json:
        show_json(plain(report))
    else:
        show_report(report)
    if not report.clean:
        raise typer.Exit(1)


def show_report(report: "FleetReport") -> None:
    """Print what a check found."""
    columns = {"device": "device", "sensor": "sensor", "why": "why"}
    for name in ("missing", "orphans", "stale", "degenerate", "partial"):
        show_rows(name, getattr(report, name), columns, as_json=False)


@fleet_app.command()
def show(
    context: typer.Context,
    device: str,
    sensor: str,
    version: Version = None,
    as_json: JsonFlag = False,
) -> None:
    """Show one sensor's model."""
    from scoring.errors import NotFound

    with opened(context) as app:
        fleet = app.shelf.open(version)
        found = fleet.find(device, sensor)
    if found is None:
        message = f"fleet {fleet.version} has no model for sensor {sensor} of device {device}"
        raise NotFound(message)
    values = plain(found) | {"fleet": fleet.version}
    if as_json:
        show_json(values)
        return
    for name, value in values.items():
        console().print(f"{name:>16}  {cell(value)}", highlight=False)


@fleet_app.command("list")
def list_(
    context: typer.Context, version: Version = None, limit: Limit = 20, as_json: JsonFlag = False
) -> None:
    """List fleets, and the models of one."""
    with opened(context) as app:
        fleet = app.shelf.open(version)
        models = [fleet.describe(row) for row in range(min(limit, len(fleet)))]
        versions = app.shelf.versions()
    if as_json:
        show_json({"version": fleet.version, "versions": versions, "models": [*map(plain, models)]})
        return
    console().print(f"fleets: {cell(', '.join(versions))}")
    columns = {name: name.replace("_", " ") for name in ("device", "sensor", "kind", "source")}
    show_rows(f"{fleet.version}: {len(fleet):,} models", models, columns, as_json=False)


def _names(features: str | None) -> tuple[str, ...] | None:
    return None if features is None else tuple(name.strip() for name in features.split(","))
