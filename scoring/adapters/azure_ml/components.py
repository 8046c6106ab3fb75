"""The environment and the two components, under versions that are digests of what they say.

An unchanged content keeps its version, so publishing it again changes nothing; and what a run was
submitted to never changes under it.
"""

import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

import scoring
from scoring.adapters.azure_ml.steps import Step, exists
from scoring.adapters.azure_ml.workspace import Workspace

ENVIRONMENT = "score-fleet"
COMPONENT = "score_fleet"
PIPELINE = "score_fleet_pipeline"

_ROOT = Path(scoring.__file__).parent
_JOB = _ROOT / "job"
_IMAGE = _JOB / "environment"
CORE = (
    *("__init__", "children", "confine", "detectors", "errors", "frames", "instants", "kernels"),
    *("libsvm", "predictions", "processes", "runs", "windows"),
)
"""Modules of the core that the entry script loads."""
_PACKAGE = "fleet"
_DIGITS = 16
"""Hexadecimal digits of a digest that make a version."""


@dataclass(frozen=True, slots=True)
class JobRules:
    """What rules the parallel job.

    Attributes
    ----------
    nodes
        Nodes a run takes.
    timeout
        Seconds that one attempt of a mini-batch may take.
    image
        The environment's image in a registry; empty builds it from ``scoring/job/environment``.
    """

    nodes: int = 1
    mini_batch_size: int = 1
    max_retries: int = 2
    timeout: int = 600
    error_threshold: int = 0
    mini_batch_error_threshold: int = 0
    image: str = ""


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions that a content has."""

    environment: str
    component: str
    pipeline: str


def stage(
    folder: Path, workspace: Workspace, rules: JobRules, *, by_identity: bool = False
) -> Versions:
    """Write into an empty folder what is to be uploaded: code, component and pipeline.

    Parameters
    ----------
    by_identity
        The step reaches the blobs as its cluster's identity.
    """
    (folder / "code").mkdir()
    _stage_code(folder / "code")
    environment = _version(_IMAGE, rules.image)
    used = workspace.arm_id("environments", ENVIRONMENT, environment)
    _write(folder / "component.yml", _component(rules, f"azureml:{used}"))
    component = _version(folder)
    used = workspace.arm_id("components", COMPONENT, component)
    pipeline = _pipeline(rules, f"azureml:{used}", by_identity=by_identity)
    _write(folder / "pipeline.yml", pipeline)
    return Versions(environment, component, _version(folder))


def component_steps(
    workspace: Workspace, folder: Path, versions: Versions, image: str
) -> Iterator[Step]:
    """Publish what was staged."""
    yield _environment_step(workspace, versions.environment, image)
    yield _component_step(workspace, COMPONENT, versions.component, folder / "component.yml")
    yield _component_step(workspace, PIPELINE, versions.pipeline, folder / "pipeline.yml")


def _stage_code(folder: Path) -> None:
    """Put the entry script there and the core that it imports, and nothing else."""
    shutil.copyfile(_JOB / "score.py", folder / "score.py")
    core = [_ROOT / f"{name}.py" for name in CORE]
    for path in [*core, *(_ROOT / _PACKAGE).glob("*.py")]:
        target = folder / "scoring" / path.relative_to(_ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _component(rules: JobRules, environment: str) -> dict[str, Any]:
    content = _read(_JOB / "component.yml") | {
        "mini_batch_size": str(rules.mini_batch_size),
        "error_threshold": rules.error_threshold,
        "mini_batch_error_threshold": rules.mini_batch_error_threshold,
        "retry_settings": {"max_retries": rules.max_retries, "timeout": rules.timeout},
    }
    content["task"]["environment"] = environment
    return content


def _pipeline(rules: JobRules, component: str, *, by_identity: bool) -> dict[str, Any]:
    content = _read(_JOB / "pipeline.yml")
    content["jobs"]["score"] |= {
        "component": component,
        "resources": {"instance_count": rules.nodes},
    }
    if by_identity:
        # Of a pipeline component it has to be said here: of the job alone, it is not heard (see
        # https://learn.microsoft.com/azure/machine-learning/how-to-identity-based-service-authentication).
        # And so it is said to those, too, who come by the batch endpoint.
        content["jobs"]["score"]["identity"] = {"type": "managed"}
    return content


def _environment_step(workspace: Workspace, version: str, image: str) -> Step:
    what = f"environment {ENVIRONMENT}:{version}"

    def make() -> None:
        from azure.ai.ml.entities import BuildContext, Environment  # noqa: PLC0415 - heavy

        with TemporaryDirectory() as folder:
            environment = Environment(
                name=ENVIRONMENT,
                version=version,
                image=image or None,
                build=None if image else BuildContext(path=_stage_image(Path(folder))),
            )
            workspace.ask(what, lambda ml: ml.environments.create_or_update(environment))

    there = exists(workspace, what, lambda ml: ml.environments.get(ENVIRONMENT, version))
    return Step(what, there, make)


def _stage_image(folder: Path) -> str:
    """Copy what the image is built from, as something that was never uploaded before.

    The SDK uploads to a place named by content, and refuses for good to go on where an upload
    was interrupted, or is under way elsewhere.
    """
    copy = folder / _IMAGE.name
    shutil.copytree(_IMAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / ".upload").write_text(secrets.token_hex())
    return str(copy)


def _component_step(workspace: Workspace, name: str, version: str, file: Path) -> Step:
    what = f"component {name}:{version}"

    def make() -> None:
        from azure.ai.ml import load_component  # noqa: PLC0415 - heavy

        component = load_component(file)
        workspace.ask(what, lambda ml: ml.components.create_or_update(component, version=version))

    return Step(what, exists(workspace, what, lambda ml: ml.components.get(name, version)), make)


def _version(folder: Path, *more: str) -> str:
    """Make a version of what a folder's files say, whatever their times and where they are."""
    digest = sha256()
    parts = [text.encode() for text in more]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            parts += [path.relative_to(folder).as_posix().encode(), path.read_bytes()]
    for part in parts:
        # With their lengths: no two lists of parts are the same bytes.
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()[:_DIGITS]


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
