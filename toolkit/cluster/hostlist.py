"""Names of nodes in Slurm's short form, `rack[1-2]n[01-16],head`: pure.

Source: Slurm 22.05, scontrol(1), show hostnames; names with several brackets are their product.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby, product


def expand_nodes(text: str) -> list[str]:
    """Expand the short form: `node[1-2,5],head` -> node1, node2, node5, head."""
    if text in ("", "(null)"):
        return []
    return [name for part in re.findall(r"(?:[^,\[\]\s]|\[[^\]]*\])+", text) for name in _expand_one(part)]


def _expand_one(text: str) -> Iterator[str]:
    pieces = re.findall(r"\[([^\]]*)\]|([^\[\]]+)", text)
    choices = [list(_expand_numbers(inside)) if inside else [plain] for inside, plain in pieces]
    return ("".join(words) for words in product(*choices))


def _expand_numbers(inside: str) -> Iterator[str]:
    for piece in inside.split(","):
        first, _, last = piece.partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            yield piece
            continue
        for number in range(int(first), int(last or first) + 1):
            yield f"{number:0{len(first)}d}"


def shorten_nodes(names: Iterable[str]) -> str:
    """Write names in the short form: node1, node2, head -> head,node[1-2]."""
    split = [re.fullmatch(r"(.*?)(\d*)", name).groups() for name in dict.fromkeys(names)]  # type: ignore[union-attr]
    padded = {stem for stem, digits in split if digits.startswith("0")}
    numbered: dict[tuple[str, int], list[int]] = {}
    for stem, digits in split:
        width = (len(digits) if stem in padded else 0) if digits else -1
        numbered.setdefault((stem, width), []).append(int(digits or 0))
    parts = []
    for (stem, width), numbers in sorted(numbered.items()):
        if width < 0:
            parts.append(stem)
            continue
        inside = ",".join(_shorten_numbers(numbers, width))
        parts.append(f"{stem}[{inside}]" if len(numbers) > 1 else f"{stem}{inside}")
    return ",".join(parts)


def _shorten_numbers(numbers: Iterable[int], width: int) -> Iterator[str]:
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        ends = [members[0]] if len(members) == 1 else [members[0], members[-1]]
        yield "-".join(f"{number:0{width}d}" for number in ends)
