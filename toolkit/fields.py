"""Dataclasses out of JSON that somebody else wrote: each field of its declared type, or a sentence that names it."""

import functools
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

LARGEST = 2**63 - 1
"""What a count, a size or a step can be."""


def build(declared: Any, value: Any, *, name: str = "") -> Any:
    """Make a value of a declared type: a dataclass, int, float, str, bool, a tuple, a list, a mapping, or None.

    Args:
        declared: the type.
        value: as `json.loads` gives it.
        name: of the value, for the sentence.

    Raises:
        ValueError: it is of another type, or an integer below 0 or out of range; a field is missing or unknown.
    """
    if is_dataclass(declared):
        return _build_dataclass(declared, value, name=name)
    origin, inner = get_origin(declared), get_args(declared)
    if origin in {Union, UnionType}:
        kinds = [kind for kind in inner if kind is not NoneType]
        return None if value is None else build(kinds[0], value, name=name)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(build(inner[0], one, name=f"{name}[{number}]") for number, one in enumerate(value))
    if origin is list and isinstance(value, list):
        return [build(inner[0], one, name=f"{name}[{number}]") for number, one in enumerate(value)]
    if origin in {dict, Mapping} and isinstance(value, dict):
        return {key: build(inner[1], one, name=f"{name}.{key}") for key, one in value.items()}
    if declared is Any or (declared in {str, bool} and isinstance(value, declared)):
        return value
    if declared is int and type(value) is int and 0 <= value <= LARGEST:
        return value
    if declared is float and type(value) in {int, float} and abs(value) <= LARGEST and math.isfinite(value):
        return float(value)
    raise ValueError(f"{name} is {_show(value)}, and must be {_say(declared)}")


def _build_dataclass(declared: Any, value: Any, *, name: str) -> Any:
    where = f"{name}." if name else ""
    if not isinstance(value, dict):
        raise ValueError(f"{name or 'its content'} is {_show(value)}, and must be an object")
    hints, needed = _describe(declared)
    if unknown := sorted(set(value) - set(hints)):
        raise ValueError(f"{where}{unknown[0]} is a field that this toolkit does not know")
    if missing := [one for one in needed if one not in value]:
        raise ValueError(f"{where}{missing[0]} is missing")
    return declared(**{key: build(hints[key], one, name=f"{where}{key}") for key, one in value.items()})


@functools.cache
def _describe(declared: Any) -> tuple[dict[str, Any], list[str]]:
    """Give the types of its fields, and the names of those that have no default."""
    needed = [one.name for one in fields(declared) if one.default is MISSING and one.default_factory is MISSING]
    hints = get_type_hints(declared)
    return {one.name: hints[one.name] for one in fields(declared)}, needed


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _say(declared: Any) -> str:
    words = {int: f"an integer from 0 to {LARGEST}", float: "a number", str: "a text", bool: "true or false"}
    return words.get(declared, "a list" if get_origin(declared) in {tuple, list} else "an object")
