"""Changes of a JSON document: something in it is dropped, or another value takes its place."""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", ".",
    "../x", "/etc/passwd", "a\0b", "a\\b", "half\ud800", "banana", "uint32", "x" * 5000, [], {}, [[]], [{}],
    {"a": 1}, [None],
]  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the way to each value in a document."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*at, key))


@st.composite
def mutations(draw: st.DrawFn, document: Any) -> Any:
    """Draw a document with one change."""
    changed = copy.deepcopy(document)
    where = draw(st.sampled_from(list(places(changed))))
    value = copy.deepcopy(draw(st.sampled_from(ODD)))
    if not where:
        return value
    holder = changed
    for key in where[:-1]:
        holder = holder[key]
    act = draw(st.sampled_from(["replace", "replace", "drop", "nest", "double"]))
    if act == "drop":
        del holder[where[-1]]
    elif act == "double" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[where[-1]]))
    else:
        holder[where[-1]] = [holder[where[-1]]] if act == "nest" else value
    return changed
