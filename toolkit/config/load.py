"""YAML layers + `key.path=value` -> RunConfig: every mistake at once with file and line, origin of each value.

Layers, later wins: defaults < `base:` files in order < the file < the site profile < the command line.
Scalars are read from their text by the declared type, so that `5e5` is a whole number, `no` a word and
`12:30:00` a time.
"""

import dataclasses
import difflib
import os
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from toolkit.config.schema import Range, RunConfig, Seconds, to_dict
from toolkit.errors import ConfigError, Problem

_Sections = TypeVar("_Sections")

COMMAND_LINE = "command line"
_BASE = "base"
_NULLS = {"null", "~", "None", "none"}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and where each value comes from (`default`, `FILE:LINE`, `command line`)."""

    config: RunConfig
    origins: dict[str, str]


@dataclass(slots=True)
class _Layers:
    """What has been read so far."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def complain(self, what: str, origin: str, rule: str, remedy: str = "") -> None:
        self.problems.append(Problem(f"{what}  [{origin}]", rule, remedy))


def load_config(
    path: Path | None,
    *,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    profile: Path | None = None,
) -> Loaded:
    """Read a configuration.

    Args:
        path: the file; None: defaults only.
        overrides: `key.path=value` of the command line.
        flags: values of the command line that have their type already.
        profile: the site profile.

    Raises:
        ConfigError: with all mistakes.
    """
    layers = _Layers()
    types_by_key = _field_types(RunConfig)
    for file in [path, profile]:
        if file is not None:
            _read_file(file, layers, types_by_key, above=())
    for override in overrides:
        _read_override(override, layers, types_by_key)
    for key, value in (flags or {}).items():
        layers.values[key], layers.origins[key] = value, COMMAND_LINE
    if layers.problems:
        raise ConfigError(layers.problems)
    return Loaded(_build(layers.values, RunConfig), {key: layers.origins.get(key, "default") for key in types_by_key})


def load_sections(path: Path, schema: type[_Sections]) -> _Sections:
    """Read a file of sections that is no run's: `schema` is a frozen dataclass of sections, as RunConfig is.

    Raises:
        ConfigError: with all mistakes.
    """
    layers = _Layers()
    _read_file(path, layers, _field_types(schema), above=())
    if layers.problems:
        raise ConfigError(layers.problems)
    return _build(layers.values, schema)


def find_profile(environ: Mapping[str, str], *, home: Path, profiles_dir: Path) -> Path | None:
    """Find the site profile: $TOOLKIT_CLUSTER_PROFILE (a path, or a name in `profiles_dir`), else the user's own.

    Raises:
        ConfigError: $TOOLKIT_CLUSTER_PROFILE leads to nothing.
    """
    named = environ.get("TOOLKIT_CLUSTER_PROFILE")
    if named:
        candidates = [Path(named), profiles_dir / f"{named}.yaml"]
        found = next((candidate for candidate in candidates if candidate.is_file()), None)
        if found is None:
            names = ", ".join(sorted(file.stem for file in profiles_dir.glob("*.yaml")))
            what = f"TOOLKIT_CLUSTER_PROFILE={named} is no file and no profile"
            raise ConfigError([Problem(what, f"profiles here: {names}", "correct it or unset it")])
        return found
    own = home / ".config" / "toolkit" / "cluster.yaml"
    return own if own.is_file() else None


def dump_config(cfg: RunConfig) -> str:
    """Write YAML that loads back equal."""
    return yaml.safe_dump(to_dict(cfg), sort_keys=False, allow_unicode=True)


def _field_types(schema: type) -> dict[str, Any]:
    found = {}
    for section, section_type in get_type_hints(schema).items():
        for name, declared in get_type_hints(section_type, include_extras=True).items():
            found[f"{section}.{name}"] = declared
    return found


def _build(values: Mapping[str, Any], schema: type[_Sections]) -> _Sections:
    sections = {}
    for section, section_type in get_type_hints(schema).items():
        names = [item.name for item in dataclasses.fields(section_type)]
        given = {name: values[f"{section}.{name}"] for name in names if f"{section}.{name}" in values}
        sections[section] = section_type(**given)
    return schema(**sections)


def _read_file(path: Path, layers: _Layers, known: Mapping[str, Any], *, above: tuple[Path, ...]) -> None:
    if path.resolve() in above:
        layers.complain(f"{path} is its own base", str(above[-1]), "`base:` files must not form a circle")
        return
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        origin = str(above[-1]) if above else COMMAND_LINE
        layers.complain(f"{path} cannot be read: {error.strerror}", origin, "a configuration file must exist")
        return
    except yaml.YAMLError as error:
        line = error.problem_mark.line + 1 if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark else 1
        layers.complain(f"not YAML: {getattr(error, 'problem', error)}", f"{path}:{line}", "correct the syntax")
        return
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        layers.complain("not a mapping", f"{path}:1", "the file must hold sections: `model: {...}`")
        return
    entries = _entries(root, path, layers)
    base = entries.pop(_BASE, None)
    names = [] if base is None else base.value if isinstance(base, yaml.SequenceNode) else [base]
    for name in names:
        _read_file(Path(os.path.normpath(path.parent / str(name.value))), layers, known, above=(*above, path.resolve()))
    for section, node in entries.items():
        _read_section(section, node, path, layers, known)


def _entries(node: yaml.MappingNode, path: Path, layers: _Layers) -> dict[str, yaml.Node]:
    entries: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if key.value in entries:
            layers.complain(f"{key.value} is given twice", _at(path, key), "a key may stand once")
        entries[key.value] = value
    return entries


def _read_section(section: str, node: yaml.Node, path: Path, layers: _Layers, known: Mapping[str, Any]) -> None:
    sections = sorted({key.split(".")[0] for key in known})
    if section not in sections:
        layers.complain(f"unknown section {section}", _at(path, node), *_suggest(section, [*sections, _BASE, *known]))
    elif isinstance(node, yaml.ScalarNode) and not node.value:
        return  # an empty section
    elif not isinstance(node, yaml.MappingNode):
        layers.complain(f"{section} is no mapping", _at(path, node), "a section holds `key: value` lines")
    else:
        for name, value in _entries(node, path, layers).items():
            _take(f"{section}.{name}", value, _at(path, value), layers, known)


def _read_override(text: str, layers: _Layers, known: Mapping[str, Any]) -> None:
    key, equals, value = text.partition("=")
    if not equals:
        layers.complain(f"{text!r} is no setting", COMMAND_LINE, "a setting is written key.path=value")
        return
    try:
        node = yaml.compose(value, Loader=yaml.SafeLoader) or yaml.ScalarNode("tag:yaml.org,2002:str", "")
    except yaml.YAMLError:
        layers.complain(f"{text!r} has a value that is not YAML", COMMAND_LINE, "quote the value")
        return
    _take(key, node, COMMAND_LINE, layers, known)


def _take(key: str, node: yaml.Node, origin: str, layers: _Layers, known: Mapping[str, Any]) -> None:
    if key not in known:
        layers.complain(f"unknown key {key}", origin, *_suggest(key, list(known)))
        return
    try:
        layers.values[key] = _parse(node, known[key])
        layers.origins[key] = origin
    except ValueError as error:
        layers.complain(f"{key}: {error}", origin, "", "")


def _suggest(key: str, known: Sequence[str]) -> tuple[str, str]:
    last = key.rpartition(".")[2]
    same_name = [name for name in known if name.rpartition(".")[2] == last]
    close = same_name or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:
        by_name = {name.rpartition(".")[2]: name for name in known}
        close = [by_name[name] for name in difflib.get_close_matches(last, by_name, n=1, cutoff=0.7)]
    if close:
        return f"did you mean {close[0]}?", ""
    sections = [name.partition(".")[0] for name in known]
    siblings = [name for name, section in zip(known, sections, strict=True) if section == key.partition(".")[0]]
    return f"there are: {', '.join(siblings or dict.fromkeys(sections))}", ""


def _parse(node: yaml.Node, declared: Any) -> Any:
    """Read a node as the declared type; ValueError says what is wrong."""
    if get_origin(declared) in (Union, types.UnionType):
        inner, *others = (part for part in get_args(declared) if part is not type(None))
        if type(None) in get_args(declared) and _is_null(node):
            return None
        words = [word for part in others for word in get_args(part)]  # `Count | Literal["auto"]`
        return _text(node) if words and _text(node) in words else _parse(node, inner)
    if get_origin(declared) is Annotated:
        base, *marks = get_args(declared)
        seconds = any(isinstance(mark, Seconds) for mark in marks)
        value = parse_seconds(_text(node)) if seconds else _parse(node, base)
        for mark in marks:
            _check_range(value, mark)
        return value
    if get_origin(declared) is Literal:
        text = _text(node)
        if text not in get_args(declared):
            raise ValueError(f"{text!r} is none of {', '.join(get_args(declared))}")
        return text
    if get_origin(declared) in (list, dict):
        return _parse_collection(node, declared)
    return _parse_scalar(_text(node), declared)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.style and node.value in {*_NULLS, ""}


def _parse_collection(node: yaml.Node, declared: Any) -> Any:
    arguments = get_args(declared)
    if get_origin(declared) is list:
        if isinstance(node, yaml.MappingNode):
            raise ValueError("a list is wanted: [a, b]")
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]  # one value is a list of one
        return [_parse(item, arguments[0]) for item in items]
    if not isinstance(node, yaml.MappingNode):
        raise ValueError("a mapping is wanted: {key: value}")
    if arguments[1] is Any:
        return yaml.safe_load(yaml.serialize(node))
    names = [key.value for key, _ in node.value]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is given twice")
    return {key.value: _parse(value, arguments[1]) for key, value in node.value}


def _text(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError("one value is wanted, not a list or mapping")
    return str(node.value)


def _parse_scalar(text: str, declared: Any) -> Any:
    if declared is str:
        return text
    if declared is bool:
        words = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
        if text.lower() not in words:
            raise ValueError(f"{text!r} is neither true nor false")
        return words[text.lower()]
    try:
        number = float(text.replace("_", ""))
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None
    if declared is int:
        if number != int(number):
            raise ValueError(f"{text} is no whole number")
        return int(text.replace("_", "")) if re.fullmatch(r"[-+]?[\d_]+", text) else int(number)
    return number


def parse_seconds(text: str) -> int:
    """Read a time as it may be written in a configuration; ValueError says what is wrong."""
    unit = re.fullmatch(r"(\d+)\s*([smhd]?)", text)
    if unit:
        return int(unit[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit[2]]
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+)(?::(\d+))?", text)
    if clock is None:
        raise ValueError(f"{text!r} is no time; write 90, 30m, 12h, 2d, 12:30:00 or 1-12:00:00")
    days, first, second, third = (int(part or 0) for part in clock.groups())
    if clock[4] is None and clock[1] is None:  # Slurm reads MM:SS
        return first * 60 + second
    return days * 86400 + first * 3600 + second * 60 + third


def _check_range(value: Any, mark: Any) -> None:
    if isinstance(mark, Range):
        if mark.low is not None and value < mark.low:
            raise ValueError(f"{value} is less than {mark.low:g}")
        if mark.high is not None and value > mark.high:
            raise ValueError(f"{value} is more than {mark.high:g}")


def _at(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"
