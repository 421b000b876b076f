"""Nodes of YAML as values of a declared type; ValueError says what is wrong: what is, what must hold, what to do."""

import math
import re
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from toolkit.config.kinds import Lines, Place, Seconds, check_text, escape_place, expand_place

_NULLS = {"null", "~", "None", "none", ""}
_BOOLS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
_NUMBER = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d{1,9})?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.?(nan|inf|infinity)", re.IGNORECASE | re.ASCII)
_MOST_DIGITS = 400
_TOO_LARGE = 2**63
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def read_value(node: yaml.Node, declared: Any, environ: Mapping[str, str]) -> Any:
    """Read a node as the declared type."""
    origin, arguments = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        inner, *others = (part for part in arguments if part is not type(None))
        if type(None) in arguments and _is_null(node):
            return None
        words = [word for part in others for word in get_args(part)]  # `Count | Literal["auto"]`
        return _text(node) if words and _text(node) in words else read_value(node, inner, environ)
    if origin is Annotated:
        return _read_marked(node, *arguments, environ=environ)
    if origin is Literal:
        if _text(node) not in arguments:
            raise ValueError(f"{_text(node)!r} is none of {', '.join(arguments)}")
        return _text(node)
    if origin is list:
        return [read_value(item, arguments[0], environ) for item in _items(node)]
    if origin is dict:
        return _read_mapping(node, *arguments, environ=environ)
    if declared is Any:
        return _read_any(node)
    if declared is str:
        return _read_str(node)
    return _read_bool(_text(node)) if declared is bool else _read_number(_text(node), declared)


def is_plain(text: str) -> bool:
    """Whether a text, written without quotes, is read as itself and nothing else."""
    is_number = _NUMBER.fullmatch(text) or _NOT_FINITE.fullmatch(text)
    return text not in _NULLS and text.lower() not in _BOOLS and not is_number


def write_places(value: Any, declared: Any) -> Any:
    """Turn a value of a declared type into what `read_value` reads as it: dollar signs of paths are written twice."""
    origin, arguments = get_origin(declared), get_args(declared)
    if value is None:
        return None
    if origin in (Union, types.UnionType):
        return write_places(value, arguments[0])
    if origin is Annotated:
        is_place = any(isinstance(mark, Place) for mark in arguments[1:])
        return escape_place(value) if is_place else write_places(value, arguments[0])
    if origin is list:
        return [write_places(item, arguments[0]) for item in value]
    if origin is dict:
        return {write_places(key, arguments[0]): item for key, item in value.items()}
    return value


def _read_marked(node: yaml.Node, base: Any, *marks: Any, environ: Mapping[str, str]) -> Any:
    place = next((mark for mark in marks if isinstance(mark, Place)), None)
    if any(isinstance(mark, Seconds) for mark in marks):
        value: Any = parse_seconds(_text(node))
    elif any(isinstance(mark, Lines) for mark in marks):
        lines = [line for item in _items(node) for line in _text(item).split("\n") if line.strip()]
        for line in lines:
            check_text(line.replace("\t", " "))
        return lines
    elif place is not None:
        text = "~" if _text(node) == "~" else _read_str(node)  # YAML's null, and everybody's home
        value = expand_place(text, place, environ)
    else:
        value = read_value(node, base, environ)
    for mark in marks:
        if not isinstance(mark, Seconds):
            mark.check(value)
    return value


def _is_null(node: yaml.Node) -> bool:
    return _is_bare(node) and node.value in _NULLS


def _is_bare(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.style


def _items(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        raise ValueError("a list is wanted: [a, b]")
    if _is_bare(node) and node.value in {"null", "~"}:
        raise ValueError(f"{node.value} is no list", "an empty one is []", "quote it if it is meant")
    return list(node.value) if isinstance(node, yaml.SequenceNode) else [node]  # one value is a list of one


def _read_mapping(node: yaml.Node, keys: Any, values: Any, *, environ: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise ValueError("a mapping is wanted: {key: value}")
    found: dict[str, Any] = {}
    for key, value in node.value:
        name = read_value(key, keys, environ)
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = read_value(value, values, environ)
    return found


def _read_any(node: yaml.Node) -> Any:
    """Read what has no type of its own as JSON has it, so that dates, sexagesimal numbers and the like are text."""
    if isinstance(node, yaml.MappingNode):
        return _read_mapping(node, str, Any, environ={})
    if isinstance(node, yaml.SequenceNode):
        return [_read_any(item) for item in node.value]
    text = _text(node)
    check_text(text)
    return _read_plain(text) if _is_bare(node) else text


def _read_plain(text: str) -> Any:
    if is_plain(text):
        return text
    if text in _NULLS:
        return None
    if text.lower() in _BOOLS:
        return _BOOLS[text.lower()]
    return _read_number(text, int if re.fullmatch(r"[-+]?[\d_]+", text, re.ASCII) else float)


def _text(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError("one value is wanted, not a list or mapping")
    return str(node.value)


def _read_str(node: yaml.Node) -> str:
    text = _text(node)
    if _is_bare(node) and text in {"null", "~"}:
        raise ValueError(f"{text} is no text", "this key has no empty value", "quote it if it is meant")
    check_text(text)
    return text


def _read_bool(text: str) -> bool:
    if text.lower() not in _BOOLS:
        raise ValueError(f"{_short(text)} is neither true nor false")
    return _BOOLS[text.lower()]


def _read_number(text: str, declared: type) -> Any:
    """Read a finite number; a whole one may be written 5e5."""
    plain = text.strip(" ").replace("_", "")
    if _NOT_FINITE.fullmatch(plain):
        raise ValueError(f"{_short(text)} is no finite number")
    if not _NUMBER.fullmatch(plain):
        raise ValueError(f"{_short(text)} is no number")
    number = float(plain)
    if not math.isfinite(number) or len(plain) > _MOST_DIGITS:
        raise ValueError(f"{_short(text)} is too large")
    if declared is not int:
        return number
    if number != int(number):
        raise ValueError(f"{_short(text)} is no whole number")
    if abs(number) >= _TOO_LARGE:
        raise ValueError(f"{_short(text)} is too large", "a whole number has 64 bits")
    return int(plain) if re.fullmatch(r"[-+]?\d+", plain) else int(number)


def _short(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:30]!r}... ({len(text):,} characters)"


def parse_seconds(text: str) -> int:
    """Read a time as it may be written in a configuration; ValueError says what is wrong."""
    unit = re.fullmatch(r"(\d{1,12})\s*([smhd]?)", text, re.ASCII)
    if unit:
        return int(unit[1]) * _UNITS[unit[2]]
    clock = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9}):(\d{1,9})(?::(\d{1,9}))?", text, re.ASCII)
    if clock is None:
        raise ValueError(f"{_short(text)} is no time; write 90, 30m, 12h, 2d, 12:30:00 or 1-12:00:00")
    days, first, second, third = (int(part or 0) for part in clock.groups())
    if clock[4] is None and clock[1] is None:  # Slurm reads MM:SS
        return first * 60 + second
    return days * 86400 + first * 3600 + second * 60 + third
