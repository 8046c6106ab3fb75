"""A strict validator of the bodies sent to the REST API of Azure ML, made from the SDK's models.

The SDK has one set of REST models, which it sends under each of the api-versions it pins: an
api-version that it does not pin is refused, but each of the others is checked against the same
models. What the models leave free is checked where the SDK knows more: the specification of a
component and the nodes of a pipeline, against the schemas that read them from YAML.
"""

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import isodate  # type: ignore[import-untyped]
from marshmallow import Schema, ValidationError, fields

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # azure-ai-ml's own, of its use of marshmallow.
    from azure.ai.ml import _ml_client
    from azure.ai.ml._restclient.arm_ml_service import models
    from azure.ai.ml._restclient.arm_ml_service.models import _models
    from azure.ai.ml._schema.component.parallel_component import RestParallelComponentSchema
    from azure.ai.ml._schema.core.fields import DataBindingStr, UnionField
    from azure.ai.ml._schema.pipeline.component_job import ParallelSchema
    from azure.ai.ml._schema.pipeline.pipeline_component import RestPipelineComponentSchema
    from azure.ai.ml.constants._common import BASE_PATH_CONTEXT_KEY
    from azure.ai.ml.constants._component import NodeType
    from azure.ai.ml.exceptions import ValidationException

API_VERSIONS: Final = frozenset(
    client.keywords["api_version"]
    for client in vars(_ml_client).values()
    if isinstance(client, partial) and "api_version" in client.keywords
)
_WORKSPACE: Final = (
    r"/+subscriptions/[^/]+/resourceGroups/[^/]+/providers"
    r"/Microsoft\.MachineLearningServices/workspaces/[^/]+"
)
# What the service's own specification asks of a resource's name, and of a cluster's.
_NAME: Final = r"[a-zA-Z0-9][a-zA-Z0-9\-_]{0,254}"
_CLUSTER: Final = r"[a-zA-Z](?![a-zA-Z0-9-]*-\d+$)[a-zA-Z0-9\-]{2,23}"
# The model of each request's body; None where a request has none.
_REQUESTS: Final[dict[str, type | None]] = {
    f"PUT /jobs/{_NAME}": models.JobBase,
    f"POST /jobs/{_NAME}/cancel": None,
    f"PUT /components/{_NAME}/versions/[^/]+": models.ComponentVersion,
    f"PUT /environments/{_NAME}/versions/[^/]+": models.EnvironmentVersion,
    f"PUT /models/{_NAME}/versions/[^/]+": models.ModelVersion,
    f"PUT /codes/{_NAME}/versions/[^/]+": models.CodeVersion,
    f"PUT /data/{_NAME}/versions/[^/]+": models.DataVersionBase,
    f"POST /codes/{_NAME}/versions/[^/]+/startPendingUpload": models.PendingUploadRequestDto,
    f"PUT /datastores/{_NAME}": models.Datastore,
    f"POST /datastores/{_NAME}/listSecrets": models.SecretExpiry,
    f"PUT /computes/{_CLUSTER}": models.ComputeResource,
    f"POST /computes/{_CLUSTER}/listNodes": None,
    f"PATCH /computes/{_CLUSTER}": models.ClusterUpdateParameters,
    f"PUT /batchEndpoints/{_NAME}": models.BatchEndpoint,
    f"PUT /batchEndpoints/{_NAME}/deployments/{_NAME}": models.BatchDeployment,
    r"(GET|HEAD|DELETE) (/(jobs|components|environments|models|codes|data|datastores|computes"
    r"|batchEndpoints)(/[^/]+){0,3})?": None,
}
# An asset, as a body names it once the SDK has put it into the workspace.
_ASSET: Final = re.compile(r"(azureml:)?/subscriptions/|azureml://")
_JSON: Final[dict[Any, tuple[tuple[type, ...], str]]] = {
    bool: ((bool,), "a boolean"),
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    str: ((str,), "a string"),
    dict: ((dict,), "an object"),
    list: ((list,), "an array"),
    fields.Boolean: ((bool,), "a boolean"),
    fields.Integer: ((int,), "an integer"),
    fields.Number: ((int, float), "a number"),
    fields.String: ((str,), "a string"),
    fields.Dict: ((dict,), "an object"),
    fields.List: ((list,), "an array"),
}
# What the SDK writes of every step, beside what the YAML of its type has; the identity is there,
# too, but written otherwise.
_NODE: Final = frozenset(
    {
        *("name", "display_name", "tags", "componentId", "computeId", "inputs", "outputs"),
        *("identity", "_source"),
    }
)
_TYPES: Final = sorted(one for name, one in vars(NodeType).items() if re.match("[A-Z]", name))
_YAML: Final[dict[str, Any]] = {
    NodeType.PARALLEL: RestParallelComponentSchema,
    NodeType.PIPELINE: RestPipelineComponentSchema,
    "step": ParallelSchema,
}
_CONTEXT: Final = {BASE_PATH_CONTEXT_KEY: Path()}
_TIMES: Final[dict[Any, Callable[[str], object]]] = {
    datetime: isodate.parse_datetime,
    timedelta: isodate.parse_duration,
}


def violations(method: str, path: str, api_version: str, body: object) -> list[str]:
    """Say what the service would refuse in a request: nothing, when it is right.

    Parameters
    ----------
    method
        The verb of HTTP.
    path
        The path of the request: an ARM path, or what follows the workspace in one.
    api_version
        The value of the query's `api-version`.
    body
        The parsed JSON body, or None where the request has none.
    """
    found: list[str] = []
    if api_version not in API_VERSIONS:
        found.append(f"api-version: the SDK sends no {api_version!r}")
    request = f"{method.upper()} {re.sub(f'^{_WORKSPACE}', '', path)}"
    known = [model for pattern, model in _REQUESTS.items() if re.fullmatch(pattern, request)]
    if not known:
        found.append(f"path: {request!r} is no known request")
    elif known[0]:
        found += _model("$", known[0], body)
    elif body is not None:
        found.append("$: a body where the request has none")
    return found


def _value(at: str, hint: Any, value: object) -> Iterator[str]:
    """Hold a JSON value to the type of a model's attribute."""
    options = [one for one in get_args(hint) if one is not NoneType]
    if get_origin(hint) is not Union:
        options = [hint]
    # An enumeration is `str | Enum`: it lets in what it does not know yet; this does not.
    (hint,) = options if len(options) == 1 else [o for o in options if o is not str]
    origin = get_origin(hint) or hint
    if hasattr(hint, "_is_model"):
        yield from _model(at, hint, value)
    elif origin is Literal:
        yield from _one_of(at, get_args(hint), value)
    elif hasattr(hint, "__members__"):
        yield from _one_of(at, hint, value)
    elif hint in _TIMES:
        try:
            _TIMES[hint](str(value))
        except ValueError:
            yield f"{at}: {value!r} is not an ISO 8601 {hint.__name__}"
    elif hint is not Any and (wrong := _mistyped(at, origin, value)):
        yield from wrong
    elif origin in {dict, list}:
        for where, one in _items(at, value):
            yield from _value(where, get_args(hint)[-1], one)


def _one_of(at: str, known: Iterable[Any], value: object) -> Iterator[str]:
    names = [str(getattr(one, "value", one)) for one in known]
    # The SDK itself sends `info` for `Info`: the service reads these whatever their case.
    if not isinstance(value, str) or value.lower() not in {name.lower() for name in names}:
        yield f"{at}: {value!r} is not one of {', '.join(names)}"


def _mistyped(at: str, kind: Any, value: object) -> list[str]:
    types, called = _JSON[kind]
    return [] if type(value) in types else [f"{at}: {value!r} is not {called}"]


def _items(at: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"{at}.{key}", one) for key, one in value.items()]
    return [(f"{at}[{index}]", one) for index, one in enumerate(value)]


def _model(at: str, model: Any, value: object) -> Iterator[str]:
    """Hold a JSON value to a REST model, or to the one of its subclasses which it names."""
    if not isinstance(value, dict):
        yield from _mistyped(at, dict, value)
        return
    while "__mapping__" in vars(model):
        tag = next(
            field._rest_name_input or name
            for name, field in vars(model).items()
            if getattr(field, "_is_discriminator", False)
        )
        if value.get(tag) not in model.__mapping__:
            known = ", ".join(sorted(model.__mapping__))
            yield f"{at}.{tag}: {value.get(tag)!r} is not one of {known}"
            return
        model = model.__mapping__[value[tag]]
    hints = get_type_hints(model, vars(_models), {"_models": models})
    attributes = {
        field._rest_name_input or name: (field._visibility == ["read"], hints[name])
        for parent in reversed(model.__mro__)
        for name, field in vars(parent).items()
        if hasattr(field, "_visibility")
    }
    yield from (f"{at}.{name}: unknown property" for name in value if name not in attributes)
    for name, (read_only, hint) in attributes.items():
        given = value.get(name)
        if given is not None:
            if isinstance(given, dict) and type(given.get("hash_version")) is int:
                # The SDK itself puts a number among the texts of a code version's properties.
                given = given | {"hash_version": str(given["hash_version"])}
            wrong = [f"{at}.{name}: read-only property"] if read_only else None
            yield from wrong or _attribute(f"{at}.{name}", hint, given)
        elif not read_only and NoneType not in get_args(hint):
            yield f"{at}.{name}: missing required property"


def _attribute(at: str, hint: Any, value: Any) -> Iterator[str]:
    if wrong := list(_value(at, hint, value)):
        yield from wrong
    # The service's specification asks this of the strings it requires: the models lost it.
    elif hint is str and not re.search("[a-zA-Z0-9_]", value):
        yield f"{at}: {value!r} does not match [a-zA-Z0-9_]"
    elif at.endswith(".componentSpec"):
        yield from _mistyped(at, dict, value) or _component(at, value)
    elif at.endswith(".jobs"):
        yield from _objects(at, value, _node)


def _objects(
    at: str, value: Any, check: Callable[[str, dict[str, Any]], Iterator[str]]
) -> Iterator[str]:
    """Check each of an object's members, every one an object itself."""
    wrong = _mistyped(at, dict, value)
    yield from wrong
    for where, one in () if wrong else _items(at, value):
        yield from _mistyped(where, dict, one) or check(where, one)


def _component(at: str, spec: dict[str, Any]) -> Iterator[str]:
    """Hold a component's specification to the schema of its YAML, if this knows its type."""
    spec = {name: one for name, one in spec.items() if name not in {"_source", "sourceJobId"}}
    yield from _one_of(f"{at}.type", _TYPES, spec.get("type"))
    if spec.get("type") == NodeType.PIPELINE:
        yield from _objects(f"{at}.jobs", spec.pop("jobs", {}), _node)
    if schema := _YAML.get(str(spec.get("type"))):
        yield from _fields(at, schema(context=_CONTEXT), spec)


def _node(at: str, node: dict[str, Any]) -> Iterator[str]:
    """Hold a pipeline's step to what it runs and its ports; a parallel one to its YAML too."""
    yield from _one_of(f"{at}.type", _TYPES, node.get("type"))
    for name, model in (("inputs", models.JobInput), ("outputs", models.JobOutput)):
        yield from _objects(f"{at}.{name}", node.get(name, {}), partial(_port, model))
    if node.get("identity") is not None:
        at_identity = f"{at}.identity"
        yield from _mistyped(at_identity, dict, node["identity"]) or _model(
            at_identity, models.IdentityConfiguration, _camel(node["identity"])
        )
    if not _ASSET.match(str(node.get("componentId"))):
        yield f"{at}.componentId: {node.get('componentId')!r} is not an asset's id"
    if node.get("type") == NodeType.PARALLEL:
        node = {name: one for name, one in node.items() if name not in _NODE}
        if type(node.get("mini_batch_size")) is int:  # Here a number; in a component, text.
            node["mini_batch_size"] = str(node["mini_batch_size"])
        without = ["component", "compute", "inputs", "outputs"]
        yield from _fields(at, _YAML["step"](context=_CONTEXT, exclude=without), node)


def _port(model: type, at: str, port: dict[str, Any]) -> Iterator[str]:
    """Hold a step's input or output to its REST model, whose names it writes in snake case."""
    if "literal" in {port.get("type"), port.get("job_input_type")}:
        known = {"type", "job_input_type", "value", "mode", "name", "version"}
        yield from (f"{at}.{name}: unknown property" for name in port if name not in known)
        yield from _value(f"{at}.value", str, port.get("value"))
    else:
        yield from _model(at, model, _camel(port))


def _camel(value: dict[str, Any]) -> dict[str, Any]:
    return {re.sub("_(.)", lambda m: m[1].upper(), name): one for name, one in value.items()}


def _fields(at: str, schema: Schema, data: dict[str, Any]) -> Iterator[str]:
    """Hold a JSON object to a YAML schema, strictly at every depth, but load nothing."""
    known = {field.data_key or name: field for name, field in schema.load_fields.items()}
    yield from (f"{at}.{name}: unknown property" for name in data if name not in known)
    for name, field in known.items():
        where = f"{at}.{name}"
        if name not in data:
            if field.required:
                yield f"{where}: missing required property"
        elif name in {"code", "environment"}:
            if not _ASSET.match(str(data[name])):
                yield f"{where}: {data[name]!r} is not an asset's id"
        elif name == "partition_keys":  # In YAML a list; in a body, that list's JSON as text.
            try:
                yield from _field(where, field, json.loads(data[name]))
            except (TypeError, ValueError):
                yield f"{where}: {data[name]!r} is not the JSON of a list"
        else:
            yield from _field(where, field, data[name])


def _field(at: str, field: Any, value: Any) -> Iterator[str]:
    kind = next((one for one in type(field).__mro__ if one in _JSON), None)
    if isinstance(field, UnionField):
        # What is wrong with the option that it comes closest to: least, and deepest.
        options = sorted(field.union_fields, key=lambda one: isinstance(one, DataBindingStr))
        tried = [list(_field(at, one, value)) for one in options]
        yield from min(tried, key=lambda found: (len(found), [-one.count(".") for one in found]))
    elif isinstance(field, fields.Nested):
        yield from _mistyped(at, dict, value) or _fields(at, field.schema, value)
    elif kind and (wrong := _mistyped(at, kind, value)):
        yield from wrong
    elif kind in {fields.Dict, fields.List}:
        inner = field.value_field if kind is fields.Dict else field.inner
        for where, one in _items(at, value):
            yield from _field(where, inner, one)
    else:
        try:
            field.deserialize(value)
        except (ValidationError, ValidationException) as refused:
            yield f"{at}: {value!r}: {refused}"
