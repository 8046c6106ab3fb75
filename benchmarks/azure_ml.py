"""What Azure ML costs a cold process, requests a run, and the entry script's speed from files.

``python benchmarks/azure_ml.py``; the service is the tests' control plane on loopback, so that its
times are those of the SDK alone.
"""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from scoring.adapters.blobs import FolderBlobs
from tests.azure_ml.harness import publish_without_upload
from tests.azure_ml.plane import ControlPlane

ROUNDS = 3

COLD = """
import json, sys, time
from datetime import timedelta
from pathlib import Path

def note(name):
    status = Path("/proc/self/status").read_text()
    memory = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    print(json.dumps([name, time.perf_counter(), memory]), flush=True)

note("start")
import scoring.hosting
note("the app without Azure ML")
from scoring.adapters.azure_ml.engine import AzureMLEngine
from scoring.adapters.azure_ml.workspace import Workspace
from scoring.adapters.blobs import FolderBlobs
import azure.ai.ml
note("import azure.ai.ml")
from scoring.adapters.blobs import FolderBlobs
from tests.azure_ml.harness import order_of
blobs = FolderBlobs(Path(sys.argv[2]))
engine = AzureMLEngine(Workspace(sys.argv[1]), blobs, timedelta(hours=1))
engine.submit(order_of("r1"))
note("first submit")
engine.submit(order_of("r2"))
note("second submit")
engine.poll("r2")
note("poll")
"""


def cold_process() -> None:
    """Time the submit path in fresh processes, and count what it asks."""
    rounds = []
    for _ in range(ROUNDS):
        with ControlPlane() as plane, TemporaryDirectory() as folder:
            publish_without_upload(plane, FolderBlobs(Path(folder)))
            asked = len(plane.requests)
            command = [sys.executable, "-c", COLD, plane.workspace_id, folder]
            environment = os.environ | plane.environment | {"PYTHONPATH": "."}
            out = subprocess.run(
                command, env=environment, text=True, capture_output=True, check=True
            ).stdout
            rounds.append([json.loads(line) for line in out.splitlines()])
            requests = [
                f"{one.method} {'/'.join(one.path.split('/')[-2:])}"
                for one in plane.requests[asked:]
            ]
    best = min(rounds, key=lambda lines: lines[-1][1] - lines[0][1])
    app = best[1][1] - best[0][1]
    for (_, before, had), (name, after, has) in pairwise(best):
        taken = after - before
        print(f"{name:>26}: {taken:6.3f} s ({taken / app:5.2f} x the app's), +{has - had:.0f} MB")
    print("requests of two submits and a poll: " + ", ".join(requests))


def entry_script() -> None:
    """Time the cluster's entry script on parts in files, one process a core."""
    from scoring.cli.measuring import measure

    for windows in (1, 24):
        found = measure(os.cpu_count() or 1, windows, 20_000)
        print(
            f"entry script, {windows:>2} windows a model: {found.rows_per_second:,.0f} rows/s in"
            f" each of {found.processes} processes; ready in {found.opening_seconds:.2f} s"
        )


if __name__ == "__main__":
    cold_process()
    entry_script()
