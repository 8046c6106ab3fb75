"""The environment and the two components, under versions that begin with digests of their content.

An unchanged content keeps its version, so publishing it again changes nothing; and what a run was
submitted to never changes under it. A version that was deleted can never be created again: the
same content is then published as the next revision of its digest, ``<digest>r2``.
"""

import re
import secrets
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

import scoring
from scoring.adapters.azure_ml.steps import find
from scoring.adapters.azure_ml.workspace import VersionDeleted, Workspace
from scoring.errors import Conflict, NotFound

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

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

_REVISIONS = 20
"""Revisions of one content that are tried; each but the last was deleted."""


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


@dataclass(slots=True)
class Asset:
    """A versioned asset of the workspace; its versions are revisions of one content.

    Implements `steps.Step`.

    Attributes
    ----------
    kind
        As errors name it, such as ``component``.
    digest
        Of the content; the first version.
    get, list
        Read a version of the asset, and all of them, archived ones too.
    create
        Creates a version of the asset.
    version
        The version that has the content, once it was looked for or made; until then, the one that
        would be made first.
    """

    workspace: Workspace
    kind: str
    name: str
    digest: str
    get: "Callable[[MLClient, str, str], Any]"
    list: "Callable[[MLClient, str], Iterable[Any]]"
    create: Callable[[str, str], object]
    version: str = field(init=False)

    def __post_init__(self) -> None:
        """Begin with the first revision."""
        self.version = self.digest

    @property
    def what(self) -> str:
        """The asset with its version."""
        return f"{self.kind} {self.name}:{self.version}"

    def is_there(self) -> bool:
        """Return whether a revision exists, and take it for the version.

        An archived revision counts: it is hidden from lists, and can still be used
        (https://learn.microsoft.com/cli/azure/ml/component#az-ml-component-archive).
        """
        if find(self.workspace, self.what, lambda ml: self.get(ml, self.name, self.version)):
            return True
        revisions = {
            number: version for version in self._versions() if (number := self._of(version))
        }
        if not revisions:
            return False
        self.version = revisions[max(revisions)]
        return True

    def make(self) -> None:
        """Create the first revision that was not deleted.

        Raises
        ------
        Conflict
            All that are tried were deleted.
        """
        for number in range(1, _REVISIONS + 1):
            version = self.digest if number == 1 else f"{self.digest}r{number}"
            what = f"{self.kind} {self.name}:{version}"
            try:
                self.create(what, version)
            except VersionDeleted:
                continue
            except NotFound as error:
                # So the service said it of a component that had been deleted:
                # https://github.com/MicrosoftDocs/azure-docs/issues/88726.
                if not re.search(rf"not found component {self.name}\b", str(error), re.IGNORECASE):
                    raise
                continue
            self.version = version
            return
        message = (
            f"the versions {self.digest} to r{_REVISIONS} of {self.kind} {self.name} were deleted,"
            " and Azure ML lets no deleted version be created again: publish with another option,"
            " such as another `--timeout`, which gives the content another digest"
        )
        raise Conflict(message)

    def note(self) -> str:
        """Return nothing: nobody has to do anything."""
        return ""

    def _versions(self) -> Iterator[str]:
        what = f"versions of {self.kind} {self.name}"
        try:
            found = self.workspace.ask(what, lambda ml: [*self.list(ml, self.name)])
        except NotFound:
            return
        for asset in found:
            if getattr(asset, "provisioning_state", "") != "Failed":
                yield str(asset.version)

    def _of(self, version: str) -> int:
        """Return the number of a revision; 0 for a version of other content."""
        match = re.fullmatch(rf"{self.digest}(?:r(\d+))?", version)
        return int(match[1] or 1) if match else 0


def publish_components(
    workspace: Workspace, folder: Path, rules: JobRules, *, by_identity: bool = False
) -> Generator[Asset, None, str]:
    """Give the assets in the order in which to make them; return the pipeline's version.

    Each is staged when it is asked for, because it names the version of the one before.

    Parameters
    ----------
    folder
        An empty folder for code, component and pipeline.
    by_identity
        The step reaches the blobs as its cluster's identity.
    """
    (folder / "code").mkdir()
    _stage_code(folder / "code")
    environment = _environment(workspace, rules.image)
    yield environment
    used = workspace.arm_id("environments", ENVIRONMENT, environment.version)
    _write(folder / "component.yml", _component(rules, f"azureml:{used}"))
    component = _component_asset(workspace, COMPONENT, _digest(folder), folder / "component.yml")
    yield component
    used = workspace.arm_id("components", COMPONENT, component.version)
    content = _pipeline(rules, f"azureml:{used}", by_identity=by_identity)
    _write(folder / "pipeline.yml", content)
    pipeline = _component_asset(workspace, PIPELINE, _digest(folder), folder / "pipeline.yml")
    yield pipeline
    return pipeline.version


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


def _environment(workspace: Workspace, image: str) -> Asset:
    def create(what: str, version: str) -> None:
        from azure.ai.ml.entities import BuildContext, Environment  # noqa: PLC0415 - heavy

        with TemporaryDirectory() as folder:
            environment = Environment(
                name=ENVIRONMENT,
                version=version,
                image=image or None,
                build=None if image else BuildContext(path=_stage_image(Path(folder))),
            )
            workspace.ask(what, lambda ml: ml.environments.create_or_update(environment))

    return Asset(
        workspace,
        "environment",
        ENVIRONMENT,
        _digest(_IMAGE, image),
        get=lambda ml, name, version: ml.environments.get(name, version),
        list=lambda ml, name: ml.environments.list(name, list_view_type=_all()),
        create=create,
    )


def _stage_image(folder: Path) -> str:
    """Copy what the image is built from, as something that was never uploaded before.

    The SDK uploads to a place named by content, and refuses for good to go on where an upload
    was interrupted, or is under way elsewhere.
    """
    copy = folder / _IMAGE.name
    shutil.copytree(_IMAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / ".upload").write_text(secrets.token_hex())
    return str(copy)


def _component_asset(workspace: Workspace, name: str, digest: str, file: Path) -> Asset:
    def create(what: str, version: str) -> None:
        from azure.ai.ml import load_component  # noqa: PLC0415 - heavy

        component = load_component(file)
        workspace.ask(what, lambda ml: ml.components.create_or_update(component, version=version))

    return Asset(
        workspace,
        "component",
        name,
        digest,
        get=lambda ml, name, version: ml.components.get(name, version),
        list=lambda ml, name: ml.components.list(name, list_view_type=_all()),
        create=create,
    )


def _all() -> Any:
    from azure.ai.ml.constants import ListViewType  # noqa: PLC0415 - heavy

    return ListViewType.ALL


def _digest(folder: Path, *more: str) -> str:
    """Return a digest of what a folder's files say, whatever their times and where they are."""
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
