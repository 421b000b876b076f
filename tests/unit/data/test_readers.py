"""Readers: what is good is read from any place on, what is bad is named or counted."""

import gzip
import json
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from toolkit.data.text.readers import Batch, Piece, Reading, read_batches
from toolkit.data.text.sources import find_inputs
from toolkit.errors import DataError

LIMIT = 10_000
STOP = Reading(column="text", max_record_bytes=LIMIT)
SKIP = Reading(column="text", max_record_bytes=LIMIT, on_error="skip")


def read_all(path: Path, reading: Reading, *, resume: int | None = None) -> Batch:
    whole = Batch(0)
    for batch in read_batches(Piece(path=str(path)), reading=reading, resume=resume):
        whole.texts += batch.texts
        whole.ends += batch.ends
        whole.empty += batch.empty
        whole.skipped += batch.skipped
    return whole


def pack(path: Path, data: bytes) -> Path:
    packers = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
    path.write_bytes(packers.get(path.suffix, bytes)(data))
    return path


def line(text: str) -> bytes:
    return json.dumps({"text": text}).encode() + b"\n"


MIXED = b"".join(
    [
        line("first"),
        b"\n",
        b"{broken\n",
        line(""),
        b'{"txt": "x"}\n',
        b'{"text": 7}\n',
        b'["text"]\n',
        b'{"text": "\xff"}\n',
        b'{"text": "half \\ud83d"}\n',
        b'{"text": ' + b"[" * 9000 + b"\n",
        line("x" * LIMIT),
        line("long" * (LIMIT * 10)),
        b'{"text": "not a number", "score": NaN}\n',
        line("last")[:-1],
    ]
)
REASONS = [
    "is no JSON",
    "no text in field 'text'; it has: txt",
    "no text in field 'text'; it has: text",
    "no text in field 'text'; it has: list",
    "is not UTF-8",
    "half of a surrogate pair",
    "is nested too deeply",
    "longer than 10,000 bytes",
    "longer than 10,000 bytes",
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_broken_lines_are_skipped_with_their_place_and_reason(tmp_path: Path, name: str) -> None:
    found = read_all(pack(tmp_path / name, MIXED), SKIP)
    assert found.texts == [b"first", b"not a number", b"last"]
    assert len(found.empty) == 1
    for broken, reason in zip(found.skipped, REASONS, strict=True):
        assert reason in broken.reason
        assert MIXED[broken.place - 1 : broken.place] == b"\n", "a line begins there"


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_reading_goes_on_behind_any_text(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / name, MIXED)
    whole = read_all(path, SKIP)
    for number, end in enumerate(whole.ends):
        rest = read_all(path, SKIP, resume=end)
        assert (rest.texts, rest.ends) == (whole.texts[number + 1 :], whole.ends[number + 1 :])
        assert rest.skipped == [broken for broken in whole.skipped if broken.place >= end]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_what_was_good_of_a_damaged_file_does_not_depend_on_where_reading_began(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    random = Random(0)
    texts = [random.randbytes(300).hex() for _ in range(1000)]
    path = pack(tmp_path / f"a.jsonl{suffix}", b"".join(map(line, texts)))
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[len(data) * 2 // 3 :]
    else:
        data[len(data) // 2] ^= 255
    path.write_bytes(data)
    place = "is cut off or damaged after byte" if damage == "cut" else ""
    with pytest.raises(DataError, match=f"a.jsonl{suffix}.* {place}"):
        read_all(path, STOP)
    whole = read_all(path, SKIP)
    assert [broken.reason for broken in whole.skipped if "cut off or damaged" in broken.reason]
    if damage == "cut":
        assert whole.texts == [text.encode() for text in texts[: len(whole.texts)]] != []
    for number in range(0, len(whole.texts), 100):
        rest = read_all(path, SKIP, resume=whole.ends[number])
        assert rest.texts == whole.texts[number + 1 :]
        assert rest.skipped == [broken for broken in whole.skipped if broken.place >= whole.ends[number]]


def test_members_frames_and_padding_are_read_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line("one")) + gzip.compress(line("two")) + bytes(512))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(line("one")) + zstandard.compress(line("two")))
    for file in find_inputs([str(tmp_path)]):
        assert read_all(Path(file), STOP).texts == [b"one", b"two"], file


def test_a_line_far_beyond_the_limit_takes_no_memory_of_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packed:
        packed.write(line("before") + b'{"text": "')
        for _ in range(200):
            packed.write(b"x" * (1 << 20))
        packed.write(b'"}\n' + line("after"))
    import tracemalloc

    tracemalloc.start()
    found = read_all(path, SKIP)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.texts == [b"before", b"after"]
    assert len(found.skipped) == 1
    assert peak_bytes < 100 << 20
    with pytest.raises(DataError, match=r"a.jsonl.zst:2 \(byte 19\) is longer than 10,000 bytes\n  raise --max-rec"):
        read_all(path, STOP)


def test_rows_are_skipped_with_their_number(tmp_path: Path) -> None:
    texts = [b"one", b"\xff", b"", None, b"x" * (LIMIT + 1), b"last"]
    binary = pa.array(texts, type=pa.binary())
    column = pa.StringArray.from_buffers(len(binary), *binary.buffers()[1:], binary.buffers()[0])
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", row_group_size=2)
    found = read_all(tmp_path / "a.parquet", SKIP)
    assert found.texts == [b"one", b"last"]
    assert [(broken.place, broken.reason) for broken in found.skipped] == [
        (1, "is not UTF-8 (byte 0)"),
        (4, "is longer than 10,000 bytes"),
    ]
    assert found.empty == [2, 3]
    assert read_all(tmp_path / "a.parquet", SKIP, resume=found.ends[0]).texts == [b"last"]
    with pytest.raises(DataError, match=r"a.parquet:row 1 is not UTF-8"):
        read_all(tmp_path / "a.parquet", STOP)


def test_a_parquet_column_must_be_there_and_hold_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'text' is int64, not text"):
        read_all(tmp_path / "a.parquet", SKIP)
    with pytest.raises(DataError, match="no column 'body'; it has: text"):
        read_all(tmp_path / "a.parquet", Reading(column="body"))


def test_dictionaries_and_large_strings_are_text(tmp_path: Path) -> None:
    column = pa.array(["one", "two", "one"])
    for name, kind in (("a", pa.large_string()), ("b", pa.dictionary(pa.int32(), pa.string()))):
        pq.write_table(pa.table({"text": column.cast(kind)}), tmp_path / f"{name}.parquet")
        assert read_all(tmp_path / f"{name}.parquet", STOP).texts == [b"one", b"two", b"one"]


def test_a_text_file_is_one_document_within_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * LIMIT)
    (tmp_path / "b.txt").write_bytes(b"x" * (LIMIT + 1))
    assert [len(text) for text in read_all(tmp_path / "a.txt", STOP).texts] == [LIMIT]
    assert len(read_all(tmp_path / "b.txt", SKIP).skipped) == 1
