"""Even parts of a corpus: a pure function of its inputs, whoever works on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toolkit.data.text.readers import LINES, PACKED, ROWS, Piece, kind_of
from toolkit.data.text.sources import Input

_EXPANSION = 4  # assumption: text unpacks to about this many times its size
_FEWEST, _SMALLEST, _LARGEST = 64, 16 << 20, 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """What one process works on at a time: pieces of inputs, about as many bytes as in any other span."""

    number: int
    pieces: tuple[Piece, ...]
    num_bytes: int


def choose_span_bytes(inputs: Sequence[Input]) -> int:
    """Choose even spans: about 64, but each of at least 16 MiB (it ends in a short shard) and at most 1 GiB."""
    total = max(1, sum(map(weigh, inputs)))
    num_spans = max(min(_FEWEST, total // _SMALLEST), -(-total // _LARGEST))
    return -(-total // num_spans)


def weigh(item: Input) -> int:
    """Estimate the bytes of text in an input."""
    kind = kind_of(item.path)
    if kind == ROWS:
        return sum(num_bytes for _, num_bytes in item.row_groups)
    return item.num_bytes * (_EXPANSION if kind == PACKED else 1)


def cut_spans(inputs: Sequence[Input], *, span_bytes: int) -> tuple[Span, ...]:
    """Cut a corpus into spans, in order: plain JSONL at any byte, Parquet between row groups, others not at all."""
    spans: list[Span] = []
    pieces: list[Piece] = []
    held = 0
    for item in inputs:
        for piece, num_bytes in _cut(item, span_bytes=span_bytes, room=span_bytes - held):
            pieces.append(piece)
            held += num_bytes
            if held >= span_bytes:
                spans.append(Span(number=len(spans), pieces=tuple(pieces), num_bytes=held))
                pieces, held = [], 0
    if pieces:
        spans.append(Span(number=len(spans), pieces=tuple(pieces), num_bytes=held))
    return tuple(spans)


def _cut(item: Input, *, span_bytes: int, room: int) -> Iterator[tuple[Piece, int]]:
    """Cut an input, the first part to fill the `room` of a span that has begun."""
    kind = kind_of(item.path)
    if kind == LINES:
        start = 0
        while start < item.num_bytes:
            stop = min(item.num_bytes, start + (span_bytes if start else room))
            yield Piece(path=item.path, start=start, stop=stop), stop - start
            start = stop
    elif kind == ROWS:
        yield from _cut_groups(item, span_bytes=span_bytes, room=room)
    else:
        yield Piece(path=item.path), weigh(item)


def _cut_groups(item: Input, *, span_bytes: int, room: int) -> Iterator[tuple[Piece, int]]:
    start = row = held = 0
    for num_rows, num_bytes in item.row_groups:
        row, held = row + num_rows, held + num_bytes
        if held >= room:
            yield Piece(path=item.path, start=start, stop=row), held
            start, held, room = row, 0, span_bytes
    if row > start:
        yield Piece(path=item.path, start=start, stop=row), held
