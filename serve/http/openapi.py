"""The OpenAPI document, assembled from the routes' descriptions and from the types that they name."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode
from starlette.routing import BaseRoute, Route

from serve.errors import InvalidApiKeyError, MidstepError
from serve.http.operations import EVENT_STREAM, FORM, Answer, Operation, Parameter, operation_of
from serve.http.problems import PROBLEM_MEDIA_TYPE, Problem

_VERSION = "3.1.0"
_KEY = "apiKey"
_REF_TEMPLATE = "#/components/schemas/{model}"
_ABOUT = """Images from text by diffusion models, in the dialects of OpenAI, Replicate and AUTOMATIC1111.

Paths that begin with `/v1` also work without it. `HEAD` is answered wherever `GET` is; `OPTIONS` lists a
path's methods. Every answer has an `x-request-id`: the request's own, or a new one. Errors have one form in
all dialects: `error_type` is stable, `detail` is a sentence for people, and `x-should-retry: false` says that
the same request would fail again.
"""
_RETRY_AFTER = {"description": "Seconds after which to try again.", "schema": {"type": "string"}}
Json = dict[str, Any]


def openapi_document(
    routes: Sequence[BaseRoute], open_routes: Collection[BaseRoute], needs_keys: bool
) -> Json:
    """The document of all described routes, except those left out of the schema.

    open_routes: routes that need no key; the others do
    """
    schemas = _Schemas()
    paths: Json = {}
    tags: list[str] = []
    for route, operation in described_routes(routes):
        secured = needs_keys and route not in open_routes
        described = _operation(route, operation, secured, schemas)
        for method in sorted((route.methods or {"GET"}) - {"HEAD"}):
            identified = {"operationId": _operation_id(route, method), **described}
            paths.setdefault(route.path_format, {})[method.lower()] = identified
        tags.append(operation.tag)
    schemes = {_KEY: {"type": "http", "scheme": "bearer", "description": "An API key, `mst_...`."}}
    resolved, definitions = schemas.resolved(paths)
    return {
        "openapi": _VERSION,
        "info": {"title": "Midstep", "version": version("midstep"), "description": _ABOUT},
        "tags": [{"name": tag} for tag in dict.fromkeys(tags)],
        "paths": resolved,
        "components": {"schemas": definitions} | ({"securitySchemes": schemes} if needs_keys else {}),
    }


def described_routes(routes: Sequence[BaseRoute]) -> Iterator[tuple[Route, Operation]]:
    for route in routes:
        if isinstance(route, Route) and route.include_in_schema and (found := operation_of(route.endpoint)):
            yield route, found


class _Schemas:
    """The types in the document. All of them get their schemas at once, so that they can share parts."""

    def __init__(self) -> None:
        self._wanted: list[tuple[int, JsonSchemaMode, TypeAdapter[Any]]] = []

    def of(self, wanted: Any, mode: JsonSchemaMode) -> "_Schema":
        self._wanted.append((len(self._wanted), mode, TypeAdapter(wanted)))
        return _Schema(len(self._wanted) - 1, mode)

    def resolved(self, document: Any) -> tuple[Any, Json]:
        """The document with schemas in place of the results of `of`, and the schemas that these refer to."""
        found, shared = TypeAdapter.json_schemas(self._wanted, ref_template=_REF_TEMPLATE)

        def resolve(part: Any) -> Any:
            match part:
                case _Schema():
                    return found[part.key, part.mode]
                case Mapping():
                    return {name: resolve(value) for name, value in part.items()}
                case list():
                    return [resolve(value) for value in part]
                case _:
                    return part

        return resolve(document), shared.get("$defs", {})


class _Schema:
    """A placeholder for a schema that is not made yet."""

    def __init__(self, key: int, mode: JsonSchemaMode) -> None:
        self.key = key
        self.mode = mode


def _operation(route: Route, operation: Operation, secured: bool, schemas: _Schemas) -> Json:
    described: Json = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": [_parameter(one, schemas) for one in _parameters(route, operation)],
    }
    if operation.body is not None:
        examples = {name: {"value": value} for name, value in operation.examples.items()}
        content = {"schema": schemas.of(operation.body, "validation"), "examples": examples}
        media_types = dict.fromkeys(operation.body_media_types, content)
        if operation.form is not None:
            media_types[FORM] = {"schema": schemas.of(operation.form, "validation")}
        described["requestBody"] = {"required": True, "content": media_types}
    errors = operation.all_errors
    if secured:
        errors = (InvalidApiKeyError, *errors)
        described["security"] = [{_KEY: []}]
    described["responses"] = _answers(operation.answers, schemas) | _errors(errors, schemas)
    return described


def _parameters(route: Route, operation: Operation) -> Iterator[Parameter]:
    """The operation's described parameters, and the path's parameters that it does not describe."""
    known = {one.name for one in operation.parameters if one.place == "path"}
    for one in operation.parameters:
        if one.place != "path" or one.name in route.param_convertors:
            yield one
    for name in route.param_convertors:
        if name not in known:
            yield Parameter(name=name, place="path", description="")


def _parameter(parameter: Parameter, schemas: _Schemas) -> Json:
    described: Json = {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "required": parameter.place == "path",
        "schema": schemas.of(parameter.type, "validation"),
    }
    return described | ({} if parameter.example is None else {"example": parameter.example})


def _answers(answers: Sequence[Answer], schemas: _Schemas) -> Json:
    """Answers by status. A status with several kinds of answers has a description of all of them."""
    described: Json = {}
    for answer in answers:
        this = described.setdefault(str(answer.status), {"description": ""})
        this["description"] = f"{this['description']} {answer.description}".strip()
        for media_type in answer.media_types:
            this.setdefault("content", {})[media_type] = _content(answer, media_type, schemas)
        if answer.headers:
            this["headers"] = {
                name: {"description": text, "schema": {"type": "string"}}
                for name, text in answer.headers.items()
            }
    return described


def _content(answer: Answer, media_type: str, schemas: _Schemas) -> Json:
    content: Json = {}
    if answer.type is not None:
        content["schema"] = schemas.of(answer.type, "serialization")
    elif media_type == EVENT_STREAM:
        content["schema"] = {"oneOf": [_event(name, one, schemas) for name, one in answer.events.items()]}
    elif media_type.startswith("text/"):
        content["schema"] = {"type": "string"}
    return content | ({} if answer.example is None else {"example": answer.example})


def _event(name: str, type_of_data: Any, schemas: _Schemas) -> Json:
    """An event of a stream. It is the schema of each event, because OpenAPI 3.1 has no other place for it."""
    data: Json = {"type": "string"}
    if type_of_data is not str:
        schema = schemas.of(type_of_data, "serialization")
        data |= {"contentMediaType": "application/json", "contentSchema": schema}
    return {
        "type": "object",
        "properties": {"event": {"const": name}, "data": data},
        "required": ["event", "data"],
    }


def _errors(errors: Sequence[type[MidstepError]], schemas: _Schemas) -> Json:
    by_status: dict[int, list[type[MidstepError]]] = {}
    for error in sorted(dict.fromkeys(errors), key=lambda one: one.status):
        by_status.setdefault(error.status, []).append(error)
    described: Json = {}
    for status, kinds in by_status.items():
        this = described[str(status)] = {
            "description": ", ".join(f"{kind.title} (`{kind.code}`)" for kind in kinds) + ".",
            "content": {PROBLEM_MEDIA_TYPE: {"schema": schemas.of(Problem, "serialization")}},
        }
        if status in (429, 503):
            this["headers"] = {"retry-after": _RETRY_AFTER}
    return described


def _operation_id(route: Route, method: str) -> str:
    """An id such as `post_v1_predictions_job_id_cancel`. It is unique, because method and path are."""
    words = route.path_format.replace("{", "").replace("}", "").split("/")
    return "_".join([method.lower(), *filter(None, words)])
