"""Spans: every record in one of them, however the corpus is cut."""

import json
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.prepare.spans import Span, choose_span_bytes, cut_spans
from toolkit.data.text.readers import Reading, read_batches
from toolkit.data.text.sources import Input, find_inputs, identify_inputs

READING = Reading(column="text")


def read_spans(spans: tuple[Span, ...]) -> list[str]:
    batches = (batch for span in spans for piece in span.pieces for batch in read_batches(piece, reading=READING))
    return [text.decode() for batch in batches for text in batch.texts]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=30), span_bytes=st.integers(1, 200), data=st.data())
def test_every_line_is_in_one_span(
    texts: list[str], span_bytes: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    first = data.draw(st.integers(0, len(texts)))
    end = data.draw(st.sampled_from(["\n", "\n\n", "\r\n", ""]))
    for name, part in (("a.jsonl", texts[:first]), ("b.jsonl", texts[first:])):
        lines = "\n".join(json.dumps({"text": text}, ensure_ascii=text.isalpha()) for text in part)
        (folder / name).write_bytes((lines + end).encode("utf-8", "surrogatepass") if part else b"")
    spans = cut_spans(identify_inputs(find_inputs([str(folder)]), column="text"), span_bytes=span_bytes)
    assert read_spans(spans) == texts


@pytest.mark.parametrize("span_bytes", [1, 500, 1 << 30])
def test_every_row_is_in_one_span(tmp_path: Path, span_bytes: int) -> None:
    texts = [f"text {number} " * 10 for number in range(100)]
    for name, part in (("a.parquet", texts[:70]), ("b.parquet", texts[70:])):
        pq.write_table(pa.table({"text": part, "other": range(len(part))}), tmp_path / name, row_group_size=9)
    spans = cut_spans(identify_inputs(find_inputs([str(tmp_path)]), column="text"), span_bytes=span_bytes)
    assert read_spans(spans) == texts
    assert len(spans) == {1: 12, 1 << 30: 1}.get(span_bytes, len(spans))


def test_spans_within_one_long_line_read_little(tmp_path: Path) -> None:
    """Each of them must see that no line begins in it; reading on to the next line would take the square."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps({"text": "x" * (64 << 20)}).encode() + b"\n" + json.dumps({"text": "y"}).encode())
    (corpus,) = identify_inputs([str(path)], column="text")
    spans = cut_spans([corpus], span_bytes=1 << 20)
    before = psutil.Process().io_counters().read_chars
    reading = Reading(column="text", on_error="skip", max_record_bytes=1000)
    pieces = [piece for span in spans for piece in span.pieces]
    batches = [batch for piece in pieces for batch in read_batches(piece, reading=reading)]
    assert [text for batch in batches for text in batch.texts] == [b"y"]
    assert [broken.place for batch in batches for broken in batch.skipped] == [0]
    assert psutil.Process().io_counters().read_chars - before < 3 * corpus.num_bytes


def test_small_files_share_a_span_and_large_ones_are_cut_evenly() -> None:
    small = [Input(path=f"{number}.txt", num_bytes=10, sampled_xxh3="") for number in range(100)]
    large = Input(path="large.jsonl", num_bytes=10_000, sampled_xxh3="")
    spans = cut_spans([*small, large], span_bytes=2000)
    assert [span.num_bytes for span in spans] == [2000, 2000, 2000, 2000, 2000, 1000]
    assert len(spans[0].pieces) == 101


@pytest.mark.parametrize("total", [1, 10 << 20, 40 << 20, 100 << 30, 10 << 40])
def test_spans_of_any_corpus_are_even(total: int) -> None:
    corpus = [Input(path="a.jsonl", num_bytes=total, sampled_xxh3="")]
    span_bytes = choose_span_bytes(corpus)
    assert span_bytes <= 1 << 30
    if total < 100 << 30:
        assert span_bytes >= min(total, 16 << 20)
        spans = cut_spans(corpus, span_bytes=span_bytes)
        assert spans[-1].num_bytes >= span_bytes - len(spans)
