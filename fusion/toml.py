"""TOML of what recipes hold: nested mappings of text, numbers, truth values and lists."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from featcache.errors import UsageError


def dump(values: Mapping[str, Any], section: str = "") -> str:
    """The text; `section` is the dotted name of the section that the values are in.

    Raises:
        UsageError: a value is of another type.
    """
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    nested = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    lines = [f"[{section}]"] if section and (plain or not nested) else []
    lines += [f"{_key(key)} = {_value(value)}" for key, value in plain.items() if value is not None]
    parts = ["\n".join(lines) + "\n"] if lines else []
    for key, value in nested.items():
        parts.append(dump(value, f"{section}.{_key(key)}" if section else _key(key)))
    return "\n".join(parts)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):  # a TOML basic string is a JSON string that also escapes DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, int | float):
        return repr(value)
    raise UsageError(f"a recipe cannot hold {type(value).__name__} {value!r}; use text, numbers, true/false and lists")
