"""Records with all their fields, out of good inputs and bad ones."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from toolkit.data.text.records import MAX_RECORD_BYTES, Skipped, read_records
from toolkit.errors import DataError

RECORDS = [{"text": "caf\u00e9", "id": 1, "more": {"a": [None]}}, {"text": "two", "id": 2, "more": None}]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def read(path: Path, skipped: Skipped | None = None) -> list[dict[str, Any]]:
    return [record.fields for record in read_records(str(path), column="text", skipped=skipped)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_lines_come_with_their_fields_however_they_are_packed(tmp_path: Path, name: str) -> None:
    packed = {"jsonl": LINES, "gz": gzip.compress(LINES), "zst": zstandard.compress(LINES)}[name.rpartition(".")[2]]
    (tmp_path / name).write_bytes(packed)
    assert read(tmp_path / name) == RECORDS


def test_parquet_comes_with_its_columns_and_text_files_with_their_text(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"text": "x", "id": 1}, {"text": None, "id": 2}]), tmp_path / "a.parquet")
    (tmp_path / "b.txt").write_text("whole file\n", encoding="utf-8")
    assert read(tmp_path / "a.parquet") == [{"text": "x", "id": 1}]
    assert read(tmp_path / "b.txt") == [{"text": "whole file\n"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken", r"a\.jsonl:2 is no JSON"),
        (b'{"text": "\xff"}', r"a\.jsonl:2 is not UTF-8 \(byte 10"),
        (b'{"other": "x", "id": 3}', r"a\.jsonl:2 has no text in field 'text'; it has: other, id"),
        (b'{"text": 3}', r"a\.jsonl:2 has no text"),
        (b"[1]", r"a\.jsonl:2 has no text in field 'text'; it has: list"),
        (b"[" * 100_000, r"a\.jsonl:2 is no JSON"),
        (b'{"text": "' + b"x" * MAX_RECORD_BYTES + b'"}', r"a\.jsonl:2 is longer than 8 MiB"),
    ],
    ids=["json", "utf-8", "field", "type", "list", "depth", "length"],
)
def test_a_broken_record_stops_or_is_skipped_and_the_next_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    first, second = LINES.splitlines()
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([first, line, b"", second]))
    with pytest.raises(DataError, match=reason):
        read(path)
    skipped = Skipped()
    assert read(path, skipped) == RECORDS
    assert skipped.count == 1
    assert "a.jsonl:2" in skipped.reasons[0]


def test_a_file_that_is_cut_off_stops_or_gives_what_is_good(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    lines = b"".join(json.dumps({"text": f"{n * n * n}"}).encode() + b"\n" for n in range(20_000))
    path.write_bytes(gzip.compress(lines)[:-40])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz is cut off or damaged after line \d+"):
        read(path)
    skipped = Skipped()
    assert len(read(path, skipped)) > 10_000
    assert skipped.count == 1


def test_what_is_no_parquet_or_lacks_the_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="no Parquet file, or a damaged one"):
        read(tmp_path / "a.parquet")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="has no column 'text'; it has: body"):
        read(tmp_path / "b.parquet")


def test_reasons_are_kept_only_so_far(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"broken\n" * 250)
    skipped = Skipped()
    assert read(path, skipped) == []
    assert (skipped.count, len(skipped.reasons)) == (250, 100)
