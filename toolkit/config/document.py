"""A YAML text as nodes: bounded in size and depth, so that whatever was given ends soon, in nodes or a sentence."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 256 << 10  # PyYAML reads about 200 KiB a second
_MOST_NODES = 100_000
_MOST_DEPTH = 40


class NoDocumentError(Exception):
    """A text is no document that can be read: what is, what must hold, and in which line."""

    def __init__(self, what: str, rule: str, line: int = 1) -> None:
        super().__init__(what)
        self.what, self.rule, self.line = what, rule, line


class _Loader(yaml.SafeLoader):
    """Composes nodes: no tags, and not deeper than the readers of nodes may recurse."""

    def __init__(self, text: str, above: int) -> None:
        super().__init__(text)
        self.depth = above

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node and those below it."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if getattr(event, "tag", None):
            what = f"a YAML tag, {event.tag[:60]}"
            raise NoDocumentError(what, "values are read by their key's type: leave out what begins with `!`", line)
        self.depth += 1
        if self.depth > _MOST_DEPTH:
            raise _too_deep(line)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_text(path: Path) -> str:
    """Read a file; a pipe or a device is not waited for.

    Raises:
        NoDocumentError: it is no file of text, or too large.
        OSError: it cannot be read.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise NoDocumentError(f"{path} is no regular file", "a configuration is read from a file")
    with open(number, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise NoDocumentError(
            f"more than {MOST_BYTES >> 10} KiB", "no configuration is so large: is it the right file?"
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"byte {content[error.start]:#04x}"
        raise NoDocumentError(f"not UTF-8 ({byte})", "a configuration is text: convert the file", line) from None


def compose(text: str, *, above: int = 0) -> yaml.Node | None:
    """Turn YAML into a tree of nodes whose keys are scalars; None: there is nothing in it.

    Args:
        text: a document.
        above: nodes that it will stand in when it is written to a file.

    Raises:
        NoDocumentError: it is not YAML, or more than a configuration holds.
    """
    try:
        root: yaml.Node | None = _Loader(text, above).get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise NoDocumentError(f"not YAML: {error.problem or error.context}", "correct the syntax", line) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"not YAML: the character U+{ord(text[error.position]):04X}"
        raise NoDocumentError(what, "YAML holds printable text", line) from None
    except (ValueError, OverflowError) as error:  # of numbers in escapes and directives, which PyYAML does not look at
        raise NoDocumentError(f"not YAML: {error}", "correct the syntax", 1) from None
    for count, (node, depth) in enumerate(_walk(root, above)):
        line = node.start_mark.line + 1
        if depth > _MOST_DEPTH:
            raise _too_deep(line)
        if count > _MOST_NODES:
            what = f"more than {_MOST_NODES:,} values, counted where aliases (`*name`) stand"
            raise NoDocumentError(what, "no configuration has so many", line)
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
    return root


def _too_deep(line: int) -> NoDocumentError:
    what = f"more than {_MOST_DEPTH} values inside each other (or an alias inside itself)"
    return NoDocumentError(what, "no configuration is nested so deeply", line)


def _walk(root: yaml.Node | None, above: int) -> Iterator[tuple[yaml.Node, int]]:
    """Give all nodes with their depth, those of an alias wherever it stands."""
    waiting = [] if root is None else [(root, above + 1)]
    while waiting:
        node, depth = waiting.pop()
        yield node, depth
        if isinstance(node, yaml.SequenceNode):
            waiting += [(item, depth + 1) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            waiting += [(value, depth + 1) for _, value in node.value]


def _check_keys(node: yaml.MappingNode) -> None:
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            raise NoDocumentError("a list or mapping stands as a key", "a key is one word: `key: value`", line)
