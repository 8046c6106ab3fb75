"""Entry script of the parallel job: scores mini-batches of input parts with one fleet.

Azure ML's parallel job, and the local engine in the same way, calls `init` once a process and
then `run` for each mini-batch. A mini-batch may come again after a failure, a timeout or a lost
node, also while its first attempt still runs elsewhere: the prediction part of an input part has
its name, equal bytes every time, and is put in place at once. A part that cannot be scored leaves
a file beside the prediction parts that says why; it means nothing where the prediction part itself
is there, which a later attempt, or one elsewhere, has written.

Arguments: ``--fleet FOLDER --fleet-version VERSION --predictions FOLDER --run-id ID``; others are
the platform's.
"""

import argparse
import errno
import json
import logging
import os
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path

import pyarrow as pa
from threadpoolctl import threadpool_limits

from scoring.errors import InvalidFleet, InvalidPart, StorageUnusable
from scoring.fleet import Fleet, score_part
from scoring.predictions import INPUT_SCHEMA, PartSummary, read_table, summarise, write_table
from scoring.runs import error_name

_log = logging.getLogger(__name__)

_CANNOT_RENAME = frozenset({errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EIO, errno.EPERM})
"""What mounts answer that know no renaming."""

_CAUSE = 1000
"""Characters that are kept of why a part was not scored."""

_THREAD_SETTINGS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class _Job:
    fleet: Fleet
    predictions: Path
    run_id: str


_job: _Job | None = None


def init() -> None:
    """Open the fleet, once a process.

    Raises
    ------
    InvalidFleet
        The fleet is missing, damaged, of another format or not the version that was asked for.
    """
    global _job  # noqa: PLW0603 - the parallel job's contract is two functions of a module
    arguments = _arguments(sys.argv[1:])
    _use_one_thread()
    _keep_pandas_out()
    arguments.predictions.mkdir(parents=True, exist_ok=True)
    fleet = Fleet.open(arguments.fleet)
    if fleet.version != (arguments.fleet_version or fleet.version):
        message = f"the fleet is {fleet.version}, and the run asks for {arguments.fleet_version}"
        raise InvalidFleet(message)
    _job = _Job(fleet, arguments.predictions, arguments.run_id)
    _log.info("score.fleet_opened", extra={"run": _job.run_id, "fleet": _job.fleet.version})


def run(mini_batch: Sequence[str]) -> list[str]:
    """Score the input parts at these paths, each into the prediction part of the same name.

    Returns
    -------
    list of str
        One JSON object a part: ``part``, ``rows``, ``scored``, ``anomalies``, ``not_scored``.

    Raises
    ------
    InvalidPart
        Naming the part that cannot be read. The parts before it are done, and stay so; those
        after it are not reached.
    StorageUnusable
        A prediction part cannot be written.
    """
    if _job is None:
        message = "init() must be called before run()"
        raise RuntimeError(message)
    return [_score(Path(path), _job) for path in mini_batch]


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--fleet", type=Path, required=True)
    parser.add_argument("--fleet-version", default="")
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--run-id", required=True)
    # Azure ML adds arguments of its own to every process.
    return parser.parse_known_args(arguments)[0]


def _use_one_thread() -> None:
    """Leave the cores to the processes: there is one a core, and more threads only contend.

    The limit is for libraries that are loaded (numpy), the environment for those to come (SciPy
    brings a BLAS of its own, if the fleet holds an estimator that needs scikit-learn).
    """
    os.environ.update(dict.fromkeys(_THREAD_SETTINGS, "1"))
    threadpool_limits(limits=1)
    pa.set_cpu_count(1)


class _NoPandas(MetaPathFinder):
    """Says of pandas that it is not there."""

    def find_spec(self, fullname: str, *_: object) -> None:
        """Refuse pandas, and leave all else to the finders that follow."""
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def _keep_pandas_out() -> None:
    """Keep pyarrow from importing pandas: 0.4 s and 40 MB a process, for nothing used here.

    pyarrow tries once, in the first `pyarrow.array`, whether pandas is there. If it is not to be
    found at that moment, only conversions from and to pandas ask again.
    """
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)


def _score(path: Path, job: _Job) -> str:
    try:
        return _predict(path, job)
    except Exception as error:
        _explain(job, path.name, error)
        raise


def _predict(path: Path, job: _Job) -> str:
    part = read_table(_read(path), INPUT_SCHEMA, path.name)
    predictions = score_part(job.fleet, part)
    _put(job.predictions / path.name, write_table(predictions))
    return _row(path.name, summarise(predictions))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{path.name} cannot be read: {error}"
        raise InvalidPart(message) from error


def _put(path: Path, data: bytes) -> None:
    # No sync to disk: whoever takes the file from here (blob mount, local engine) makes it last.
    # The random name keeps two attempts apart, on two nodes too; the dot keeps it from being
    # taken for a part, should the process be killed right here.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    try:
        draft.write_bytes(data)
        try:
            draft.replace(path)
        except OSError as error:
            if error.errno not in _CANNOT_RENAME:
                raise
            # A mount of blobs puts a file in place when it is closed: whole, and at once.
            path.write_bytes(data)
            draft.unlink(missing_ok=True)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        message = f"prediction part {path} cannot be written: {error}"
        raise StorageUnusable(message) from error


def _explain(job: _Job, part: str, error: Exception) -> None:
    """Write why a part was not scored beside the predictions, in one line; best effort."""
    try:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:_CAUSE]
        (job.predictions / error_name(part)).write_bytes(text.encode(errors="replace"))
    except Exception as failure:  # noqa: BLE001 - the part's own error counts, and is raised
        facts = {"run": job.run_id, "part": part, "cause": type(failure).__name__}
        _log.warning("score.no_error_file", extra=facts)


def _row(part: str, summary: PartSummary) -> str:
    return json.dumps({"part": part, **asdict(summary)})
