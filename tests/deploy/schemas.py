"""What an API server would refuse: unknown fields, wrong types, and the CEL rules of custom resources."""

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celpy
import jsonschema
from kubernetes_validate.utils import latest_version, major_minor, schema_contents
from referencing import Registry, Resource

from tests.deploy.render import Document

CRD = Path(__file__).with_name("crd")
# The oldest that has all that we use, a limit of retries for each index last; the newest that the package knows.
OLDEST, NEWEST = "1.33", latest_version()

Schema = dict[str, Any]


def problems(document: Document, version: str = NEWEST) -> list[str]:
    """version: of Kubernetes, for its own kinds; custom resources have the one that is kept in crd/."""
    key = (document.get("apiVersion", ""), document.get("kind", ""))
    schema = _custom_schemas().get(key)
    validator = _core_validator(version, *key) if schema is None else _custom_validator(*key)
    if validator is None:
        return [f"{key}: no schema for that in {version}"]
    found = [f"{_name(document)} {error.json_path}: {error.message[:200]}" for error in validator.iter_errors(document)]
    if schema is not None and not found:
        found = [f"{_name(document)} {message}" for message in _broken_rules(schema, _with_defaults(schema, document))]
    return found


def _name(document: Document) -> str:
    return f"{document['kind']}/{document.get('metadata', {}).get('name')}"


@functools.cache
def _core_validator(version: str, api_version: str, kind: str) -> jsonschema.protocols.Validator | None:
    group, _, name = api_version.rpartition("/")
    file = "-".join(filter(None, [kind.lower(), group.partition(".")[0], name]))
    try:
        schema = schema_contents(f"{_core_folder(version)}/{file}.json", version)
    except FileNotFoundError:
        return None
    return jsonschema.Draft202012Validator(schema, registry=Resource.from_contents(schema) @ _core_definitions(version))


@functools.cache
def _core_definitions(version: str) -> Registry[Any]:
    definitions = Resource.from_contents(schema_contents(f"{_core_folder(version)}/_definitions.json", version))
    return (definitions @ Registry()).crawl()


def _core_folder(version: str) -> str:
    return f"kubernetes-json-schema/v{major_minor(version)}.0-local-strict"


@functools.cache
def _custom_schemas() -> dict[tuple[str, str], Schema]:
    kept = [json.loads(path.read_text()) for path in CRD.glob("*.json")]
    return {(each["apiVersion"], each["kind"]): each["schema"] for each in kept}


@functools.cache
def _custom_validator(api_version: str, kind: str) -> jsonschema.protocols.Validator:
    schema = _strict(_custom_schemas()[api_version, kind])
    schema["properties"]["metadata"] = {"type": "object"}  # its own rules are Kubernetes', not the definition's
    return jsonschema.Draft202012Validator(schema)


def _strict(schema: Any) -> Any:
    """Kubernetes' structural schema as JSON schema that refuses what it does not know."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    # Inside these a schema only narrows what is described elsewhere, and must not be closed.
    narrowing = {name: schema[name] for name in ("allOf", "anyOf", "oneOf", "not") if name in schema}
    properties = {name: _strict(each) for name, each in schema.get("properties", {}).items()}
    rest = {name: _strict(schema[name]) for name in ("items", "additionalProperties") if name in schema}
    closed = {**schema, **narrowing, **rest, **({"properties": properties} if properties else {})}
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
        closed.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    open_object = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and properties and not open_object:
        closed["additionalProperties"] = False
    if schema.get("nullable") and "type" in closed:
        closed["type"] = [closed["type"], "null"]
    return closed


def _with_defaults(schema: Schema, value: Any) -> Any:
    """What the API server fills in before it looks at rules."""
    if isinstance(value, list):
        return [_with_defaults(schema.get("items", {}), each) for each in value]
    if not isinstance(value, dict):
        return value
    properties, filled = schema.get("properties", {}), dict(value)
    for name, each in properties.items():
        if "default" in each:
            filled.setdefault(name, copy.deepcopy(each["default"]))
    return {name: _with_defaults(_member(schema, name), each) for name, each in filled.items()}


def _member(schema: Schema, name: str) -> Schema:
    others = schema.get("additionalProperties")
    return schema.get("properties", {}).get(name) or (others if isinstance(others, dict) else {})


def _broken_rules(schema: Schema, value: Any, path: str = "$") -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" in rule["rule"]:
            continue  # about changes; nothing is there before
        if not _program(rule["rule"]).evaluate({"self": celpy.json_to_cel(value)}):
            yield f"{path}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _broken_rules(_member(schema, name), each, f"{path}.{name}")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _broken_rules(schema.get("items", {}), each, f"{path}[{index}]")


@functools.cache
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
