"""Names of nodes in Slurm's short form, `rack[1-2]n[01-16],head`: pure.

Source: Slurm 22.05, scontrol(1), show hostnames; names with several brackets are their product.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, groupby, islice, product

from toolkit.errors import ClusterError

_MOST = 200_000


def expand_nodes(text: str) -> list[str]:
    """Expand the short form: `node[1-2,5],head` -> node1, node2, node5, head.

    Raises:
        ClusterError: it names more nodes than there can be.
    """
    if text in ("", "(null)"):
        return []
    parts = re.findall(r"(?:[^,\[\]\s]|\[[^\]]*\])+", text)
    names = list(islice(chain.from_iterable(map(_expand_one, parts)), _MOST + 1))
    if len(names) > _MOST:
        what, must = f"{text[:80]} names more than {_MOST:,} nodes", "no cluster has so many"
        raise ClusterError(f"{what}\n  {must}\n  name the nodes that are meant")
    return names


def _expand_one(text: str) -> Iterator[str]:
    pieces = re.findall(r"\[([^\]]*)\]|([^\[\]]+)", text)
    choices = [list(islice(_expand_numbers(inside), _MOST + 1)) if inside else [plain] for inside, plain in pieces]
    return ("".join(words) for words in product(*choices))


def _expand_numbers(inside: str) -> Iterator[str]:
    for piece in inside.split(","):
        first, _, last = piece.partition("-")
        if not re.fullmatch(r"[0-9]+-?[0-9]*", piece):
            yield piece
            continue
        for number in range(int(first[-18:]), int((last or first)[-18:]) + 1):
            yield f"{number:0{len(first)}d}"


def shorten_nodes(names: Iterable[str]) -> str:
    """Write names in the short form: node1, node2, head -> head,node[1-2]."""
    split = [re.fullmatch(r"(.*?)([0-9]{0,18})", name).groups() for name in dict.fromkeys(names)]  # type: ignore[union-attr]
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
