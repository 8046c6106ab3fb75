"""Install what some tests need and pip cannot install: PostgreSQL, PgBouncer, unixODBC, Azurite.

Run from the project's folder: ``python -m tools.services``, or with ``missing`` to only say what is
not installed.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from tests.services import ROOT, SERVICES, forget, listed, missing


def install() -> int:
    """Install the missing services; return 1 if that failed for one, having said why."""
    absent = missing()
    if not absent:
        names = listed([service.name for service in SERVICES])
        print(f"Nothing to do: {names} are installed.")
        return 0
    apt = [service for service in absent if not service.by_npm]
    npm = [service for service in absent if service.by_npm]
    problems = [
        *(_install_by_apt([service.package for service in apt]) if apt else []),
        *(_install_by_npm([service.package for service in npm]) if npm else []),
    ]
    forget()
    left = missing()
    for service in absent:
        print(f"{service.name}: {'NOT installed' if service in left else 'installed'}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if left else 0


def _install_by_apt(packages: Sequence[str]) -> list[str]:
    """Install Debian packages for the whole machine; return what went wrong."""
    commands = [["apt-get", "update"], ["apt-get", "install", "--yes", *packages]]
    by_hand = " && ".join(" ".join(command) for command in commands)
    if shutil.which("apt-get") is None:
        return [f"There is no apt-get here: install {listed(packages)} another way."]
    become_root = [] if os.geteuid() == 0 else ["sudo"]
    if become_root and shutil.which("sudo") is None:
        return [
            f"Only root can install {listed(packages)}, and there is no sudo. As root: {by_hand}"
        ]
    print(
        f"Installing {listed(packages)} with apt-get, for the whole machine. Tests start servers"
        " of their own and never use one that a package starts.",
        flush=True,
    )
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive"]
    for command in commands:
        problem = _run([*become_root, *quiet, *command])
        # An index that cannot be refreshed may still name the packages.
        if problem and command is commands[-1]:
            return [problem]
    return []


def _install_by_npm(packages: Sequence[str]) -> list[str]:
    """Install npm packages into this folder; return what went wrong."""
    if shutil.which("npm") is None:
        return [f"There is no npm here, which {listed(packages)} needs: it comes with Node.js."]
    print(f"Installing {listed(packages)} with npm into node_modules/.", flush=True)
    command = ["npm", "install", "--no-save", "--no-audit", "--no-fund", *packages]
    problem = _run(command)
    return [problem] if problem else []


def _run(command: Sequence[str]) -> str | None:
    """Run a command, showing its output; say so if it fails."""
    code = subprocess.run(command, cwd=ROOT, check=False).returncode  # noqa: S603 - all commands are here
    return f"This failed with exit code {code}: {' '.join(command)}" if code else None


def main(command: str = "install") -> int:
    """Run ``install``, or say with ``missing`` which services are not here."""
    if command == "install":
        return install()
    absent = [service.reason for service in missing()]
    print("\n".join(absent), file=sys.stderr)
    return 1 if absent else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
