"""YAML layers + `key.path=value` -> RunConfig: every mistake at once with file and line, origin of each value.

Layers, later wins: defaults < `base:` files in order < the file < the site profile < the command line.
Scalars are read from their text by the declared type, so that `5e5` is a whole number, `no` a word and
`12:30:00` a time.
"""

import dataclasses
import difflib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from toolkit.config import kinds
from toolkit.config.document import MOST_BYTES, NoDocumentError, compose, read_text
from toolkit.config.schema import RunConfig, to_dict
from toolkit.config.values import is_plain, read_value, write_places
from toolkit.errors import ConfigError, Problem

_Sections = TypeVar("_Sections")

COMMAND_LINE = "command line"
_BASE = "base"
_TEXT = "tag:yaml.org,2002:str"
_MOST_FILES = 100
_LONGEST = 400  # characters of what is told of a value
_SHOWN = 100  # characters of a word that is no key


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
    num_files: int = 0
    num_characters: int = 0

    def complain(self, what: str, origin: str, rule: str = "", remedy: str = "") -> None:
        shown = what if len(what) <= _LONGEST else f"{what[:_LONGEST]}..."
        self.problems.append(Problem(f"{shown}  [{origin}]", rule, remedy))


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
            _read_file(file, layers, types_by_key)
    for override in overrides:
        _read_override(override, layers, types_by_key)
    for key, value in (flags or {}).items():
        layers.values[key], layers.origins[key] = value, COMMAND_LINE
    if layers.problems:
        raise ConfigError(layers.problems)
    config = _build(layers.values, RunConfig)
    if layers.num_characters > MOST_BYTES // 8 and len(dump_config(config).encode()) > MOST_BYTES:
        layers.complain(
            f"more than {MOST_BYTES >> 10} KiB when it is written out", str(path), "a job could not read it"
        )
        raise ConfigError(layers.problems)
    return Loaded(config, {key: layers.origins.get(key, "default") for key in types_by_key})


def load_sections(path: Path, schema: type[_Sections]) -> _Sections:
    """Read a file of sections that is no run's: `schema` is a frozen dataclass of sections, as RunConfig is.

    Raises:
        ConfigError: with all mistakes.
    """
    layers = _Layers()
    _read_file(path, layers, _field_types(schema))
    if layers.problems:
        raise ConfigError(layers.problems)
    return _build(layers.values, schema)


def load_mapping(path: Path) -> dict[str, Any]:
    """Read a file of mappings whose keys no schema knows; values are what JSON has.

    Raises:
        ConfigError: it is no such file.
    """
    layers, found = _Layers(), dict[str, Any]()
    try:
        root = compose(read_text(path))
        found = {} if root is None else read_value(root, dict[str, Any], os.environ)
    except OSError as error:
        layers.complain(f"{path} cannot be read: {error.strerror}", str(path))
    except NoDocumentError as error:
        layers.complain(error.what, f"{path}:{error.line}", error.rule)
    except ValueError as error:
        layers.complain(str(error.args[0]), str(path), *error.args[1:])
    if layers.problems:
        raise ConfigError(layers.problems)
    return found


def find_profile(environ: Mapping[str, str], *, home: Path, profiles_dir: Path) -> Path | None:
    """Find the site profile: $TOOLKIT_CLUSTER_PROFILE (a path, or a name in `profiles_dir`), else the user's own.

    Raises:
        ConfigError: $TOOLKIT_CLUSTER_PROFILE leads to nothing.
    """
    named = environ.get("TOOLKIT_CLUSTER_PROFILE")
    if named:
        candidates = [Path(named), profiles_dir / f"{named}.yaml"]
        found = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)
        if found is None:
            names = ", ".join(sorted(file.stem for file in profiles_dir.glob("*.yaml")))
            what = f"TOOLKIT_CLUSTER_PROFILE={named} is no file and no profile"
            raise ConfigError([Problem(what, f"profiles here: {names}", "correct it or unset it")])
        return found
    own = home / ".config" / "toolkit" / "cluster.yaml"
    return own if os.path.isfile(own) else None


class _Dumper(yaml.SafeDumper):
    """Quotes what would be read as something else without."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value where it stands."""
        return True


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar(_TEXT, text, style=None if is_plain(text) else '"')
)


def dump_config(cfg: RunConfig) -> str:
    """Write YAML that loads back equal."""
    types_by_key = _field_types(RunConfig)
    sections = {
        section: {name: write_places(value, types_by_key[f"{section}.{name}"]) for name, value in fields.items()}
        for section, fields in to_dict(cfg).items()
    }
    return yaml.dump(sections, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


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


def _read_file(
    path: Path, layers: _Layers, known: Mapping[str, Any], *, above: tuple[str, ...] = (), asked_by: str = COMMAND_LINE
) -> None:
    real = os.path.realpath(path)
    if real in above:
        layers.complain(f"{path} is its own base", asked_by, "`base:` files must not form a circle")
        return
    layers.num_files += 1
    if layers.num_files > _MOST_FILES:
        layers.complain(f"more than {_MOST_FILES} files", asked_by, "no configuration has so many `base:` files")
        raise ConfigError(layers.problems)
    try:
        text = read_text(path)
        layers.num_characters += len(text)
        root = compose(text)
    except OSError as error:
        layers.complain(f"{path} cannot be read: {error.strerror}", asked_by, "a configuration file must exist")
        return
    except NoDocumentError as error:
        layers.complain(error.what, f"{path}:{error.line}", error.rule)
        return
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        layers.complain("not a mapping", f"{path}:1", "the file must hold sections: `model: {...}`")
        return
    entries = _entries(root, path, layers)
    for base, origin in _read_bases(entries.pop(_BASE, None), path, layers):
        _read_file(base, layers, known, above=(*above, real), asked_by=origin)
    for section, node in entries.items():
        _read_section(section, node, path, layers, known)


def _read_bases(node: yaml.Node | None, path: Path, layers: _Layers) -> list[tuple[Path, str]]:
    """Give the files that a file builds on, each with where it is named."""
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
        return []
    try:
        names = read_value(node, list[kinds.PathOrUrl], os.environ)
    except ValueError as error:
        layers.complain(f"{_BASE}: {error.args[0]}", _at(path, node), *error.args[1:])
        return []
    return [(Path(os.path.normpath(path.parent / name)), _at(path, node)) for name in names]


def _entries(node: yaml.MappingNode, path: Path, layers: _Layers) -> dict[str, yaml.Node]:
    entries: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if key.value in entries:
            layers.complain(f"{_say(key.value)} is given twice", _at(path, key), "a key may stand once")
        entries[key.value] = value
    return entries


def _read_section(section: str, node: yaml.Node, path: Path, layers: _Layers, known: Mapping[str, Any]) -> None:
    sections = sorted({key.split(".")[0] for key in known})
    if section not in sections:
        what = f"unknown section {_say(section)}"
        layers.complain(what, _at(path, node), *_suggest(section, [*sections, _BASE, *known]))
    elif isinstance(node, yaml.ScalarNode) and not node.value:
        return  # an empty section
    elif not isinstance(node, yaml.MappingNode):
        layers.complain(f"{section} is no mapping", _at(path, node), "a section holds `key: value` lines")
    else:
        for name, value in _entries(node, path, layers).items():
            _take(f"{section}.{name}", value, _at(path, value), layers, known)


def _read_override(text: str, layers: _Layers, known: Mapping[str, Any]) -> None:
    layers.num_characters += len(text)
    key, equals, value = text.partition("=")
    if not equals:
        layers.complain(f"{text!r} is no setting", COMMAND_LINE, "a setting is written key.path=value")
        return
    try:
        node = compose(value, above=2) or yaml.ScalarNode("tag:yaml.org,2002:str", "")
    except NoDocumentError as error:
        layers.complain(f"{_say(key)}: {error.what}", COMMAND_LINE, error.rule, "quote the value if it is a text")
        return
    _take(key, node, COMMAND_LINE, layers, known)


def _take(key: str, node: yaml.Node, origin: str, layers: _Layers, known: Mapping[str, Any]) -> None:
    if key not in known:
        layers.complain(f"unknown key {_say(key)}", origin, *_suggest(key, list(known)))
        return
    try:
        layers.values[key] = read_value(node, known[key], os.environ)
        layers.origins[key] = origin
    except ValueError as error:
        layers.complain(f"{key}: {error.args[0]}", origin, *error.args[1:])


def _say(word: str) -> str:
    """Write a word that may be anything, so that it stays on its line."""
    shown = word if word.isprintable() else repr(word)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def _suggest(key: str, known: Sequence[str]) -> tuple[str, str]:
    if len(key) > _SHOWN:
        return "no key is so long", ""
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


def _at(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"
