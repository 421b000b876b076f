"""Records of a run as crashes, other versions and other people leave them."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit import records
from toolkit.errors import RecordError
from toolkit.monitor import history

LINES = st.lists(st.one_of(st.binary(max_size=30), st.just(b'{"step": 3}'), st.just(b"\x00" * 70_000)), max_size=12)


@dataclass(frozen=True)
class Count:
    step: int
    name: str = ""


@given(data=st.binary(max_size=200))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_bytes_are_a_record_or_a_sentence(data: bytes) -> None:
    try:
        found = records.parse_record(data, Count, where="here")
    except RecordError:
        return
    assert isinstance(found, Count)


@given(lines=LINES, is_ended=st.booleans())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_backwards_are_the_lines_as_forwards(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], is_ended: bool
) -> None:
    content = b"\n".join(lines) + (b"\n" if is_ended else b"")
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(content)
    with path.open("rb") as file:
        found = list(records.lines_backwards(file))[::-1]
    assert b"".join(line + b"\n" * ended for _, line, ended in found) == content
    assert [line for _, line, _ in found] == (content.split(b"\n") if content else [])
    assert all(content[start:].startswith(line) for start, line, _ in found)


@given(lines=LINES, step=st.integers(0, 5))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_rewinding_ends_a_file_behind_the_newest_step_that_stays(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], step: int
) -> None:
    content = b'{"step": 1}\n' + b"\n".join([*lines, b""])
    path = tmp_path_factory.getbasetemp() / "metrics"
    path.write_bytes(content)
    before = history.read_steps(path)
    history.rewind(path, step=step)
    after = history.read_steps(path)
    assert all(found["step"] <= step for found in after[-1:])
    assert after == before[: len(after)]
    assert path.read_bytes()[-1:] in {b"", b"\n"}


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(RecordError, match=r"is no file"):
            records.read_bytes(path)
        with pytest.raises(RecordError):
            records.open_to_append(path)
