"""The types of A1111's fields. It takes numbers as text too, and 0 and 1 for false and true."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

_NUMERAL = r"^-?[0-9]{1,17}(\.[0-9]{1,17})?$"


class _AlsoAsText:
    """An annotation of numbers, which may be text; of integers, 7.0 is one too."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_number, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"type": "string", "pattern": _NUMERAL}]}


def _number(value: Any) -> Any:
    if isinstance(value, str) and re.match(_NUMERAL, value):
        value = float(value) if "." in value else int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flag(value: Any) -> Any:
    return bool(value) if type(value) is int and value in (0, 1) else value


# Put it last in an annotation.
ALSO_AS_TEXT = _AlsoAsText()
Flag = Annotated[bool, BeforeValidator(_flag, json_schema_input_type=bool | Literal[0, 1])]
