"""The environment of this process: where settings come from."""

from os import environ


def environment() -> dict[str, str]:
    """Give the variables as they are now; this module loads nothing else."""
    return dict(environ)
