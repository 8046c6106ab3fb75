"""The command line. Commands import what they need when they run: ``--help`` must be quick."""

import sys

import typer

from scoring.cli import demo, fleet, look, pipeline
from scoring.cli.state import choose_data
from scoring.errors import ScoringError, Transient

app = typer.Typer(
    name="scoring",
    help="Score fleets of per-device anomaly models: readings in, indexed anomalies out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    callback=choose_data,
)
for module in (demo, pipeline, look, fleet):
    module.add_commands(app)


def main() -> None:
    """Run the command line; exits with 0, 1 on an error, 130 when interrupted."""
    try:
        app()
    except ScoringError as error:
        hint = "; the same command again may succeed" if isinstance(error, Transient) else ""
        sys.exit(f"error: {error}{hint}")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: the same command goes on from here\n")
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stderr.close()
        sys.exit(0)
