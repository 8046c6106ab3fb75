"""The command line. Commands import what they need when they run: ``--help`` must be quick."""

import os
import sys

import typer

from scoring.cli import azure_ml, demo, fleet, look, pipeline, plan
from scoring.cli.state import choose_data, visible
from scoring.errors import ScoringError, Transient

app = typer.Typer(
    name="scoring",
    help="Score fleets of per-device anomaly models: readings in, indexed anomalies out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    callback=choose_data,
)
for module in (demo, pipeline, look, fleet, azure_ml, plan):
    module.add_commands(app)


INTERRUPTED = 130
"""What a shell says of a command that Ctrl-C ended."""


def main() -> None:
    """Run the command line; exits with 0, 1 on an error, 2 on wrong usage, 130 when interrupted."""
    try:
        _run()
    except ScoringError as error:
        hint = "; the same command again may succeed" if isinstance(error, Transient) else ""
        sys.exit(f"error: {visible(str(error))}{hint}")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: the same command goes on from here\n")
        sys.exit(INTERRUPTED)
    except OSError as error:
        # What no adapter knows of, such as standard output on a full disk. What is left of the
        # output goes nowhere: Python would try to write it again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # Whoever read our output and left has seen enough.
        sys.exit(0 if isinstance(error, BrokenPipeError) else f"error: {error}")


def _run() -> None:
    try:
        app()
    except SystemExit as end:
        # Typer makes these of a KeyboardInterrupt, and of a pipe that nobody reads.
        if end.code == INTERRUPTED:
            raise KeyboardInterrupt from end
        if isinstance(end.__context__, BrokenPipeError):
            raise end.__context__ from end
        raise
    finally:
        sys.stdout.flush()
