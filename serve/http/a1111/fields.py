"""The types of A1111's fields. It takes numbers as text too, and 0 and 1 for false and true."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

_NUMERAL = r"^-?[0-9]{1,17}(\.[0-9]{1,17})?$"
_Numeral = Annotated[str, Field(pattern=_NUMERAL)]


def _number(value: Any) -> Any:
    if isinstance(value, str) and re.match(_NUMERAL, value):
        value = float(value) if "." in value else int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flag(value: Any) -> Any:
    return bool(value) if type(value) is int and value in (0, 1) else value


Integer = Annotated[int, BeforeValidator(_number, json_schema_input_type=float | _Numeral)]
Number = Annotated[float, BeforeValidator(_number, json_schema_input_type=float | _Numeral)]
Flag = Annotated[bool, BeforeValidator(_flag, json_schema_input_type=bool | Literal[0, 1])]
