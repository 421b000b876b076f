"""Corpora in the making: killed anywhere, changed, on a full disk; only what is whole is taken for whole."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.corpus import make_prose, read_bytes, read_part, show_nothing
from toolkit import storage
from toolkit.data.quality.corpus import open_work, read_corpus, read_input
from toolkit.data.quality.dedup import Deduplication, deduplicate
from toolkit.data.quality.filters import Filtering, filter_corpus
from toolkit.data.quality.parts import open_part
from toolkit.data.quality.rules import Rules
from toolkit.data.text.records import Skipped
from toolkit.errors import DataError, StorageError

Act = Callable[[tuple[str, ...], Path], dict[str, Any]]


def filter_it(inputs: tuple[str, ...], out: Path) -> dict[str, Any]:
    asked = Filtering(inputs=inputs, rules=Rules())
    return filter_corpus(asked, str(out), jobs=1, show=show_nothing)


def deduplicate_it(inputs: tuple[str, ...], out: Path) -> dict[str, Any]:
    asked = Deduplication(inputs=inputs)
    return deduplicate(asked, str(out), jobs=1, memory_bytes=2**30, scratch=None, show=show_nothing)


def write_inputs(directory: Path) -> tuple[str, ...]:
    names = []
    for part in range(2):
        path = directory / f"{part}.jsonl"
        texts = [make_prose(seed % 5) for seed in range(part, 12, 2)] + [f"{make_prose(7 + part)} jo@corp.io"]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        names.append(str(path))
    return tuple(names)


def in_child(act: Callable[[], object]) -> int:
    """Run in a process of its own, which ends without any tidying up; give its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(count: int, act: Callable[[], object]) -> None:
    """Run, but end at once before or after the count-th half of a call that changes files."""
    calls = 0

    def tick() -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            os._exit(9)

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **named: Any) -> Any:
            tick()
            result = original(*args, **named)
            tick()
            return result

        return wrapped

    for name in ("open_file", "write_atomic", "rename", "remove_tree"):
        setattr(storage, name, wrap(getattr(storage, name)))
    act()


@pytest.mark.parametrize("act", [filter_it, deduplicate_it])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path: Path, act: Act) -> None:
    names = write_inputs(tmp_path)
    act(names, tmp_path / "whole")
    expected = read_bytes(tmp_path / "whole")
    deaths = 0
    for count in range(1, 400, 7):  # every seventh, for time: 7 and the calls of an input share no factor
        out = tmp_path / f"out-{count}"
        if in_child(lambda count=count, out=out: die_at(count, lambda: act(names, out))) == 0:
            break
        deaths += 1
        assert not out.exists() or read_bytes(out) == expected
        act(names, out)
        assert read_bytes(out) == expected
        assert not Path(f"{out}.partial").exists()
    assert deaths > 4


@pytest.mark.parametrize("act", [filter_it, deduplicate_it])
def test_killed_again_and_again_it_still_comes_to_the_same_bytes(tmp_path: Path, act: Act) -> None:
    names = write_inputs(tmp_path)
    act(names, tmp_path / "whole")
    out = tmp_path / "out"
    for count in range(5, 100, 9):
        if in_child(lambda count=count: die_at(count, lambda: act(names, out))) == 0:
            break
    act(names, out)
    assert read_bytes(out) == read_bytes(tmp_path / "whole")


@pytest.mark.parametrize("act", [filter_it, deduplicate_it])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing_whole(tmp_path: Path, act: Act) -> None:
    path = tmp_path / "large.jsonl"
    texts = [make_prose(seed, num_words=1000) for seed in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    names = (str(path),)
    out = tmp_path / "out"

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))  # a write beyond it fails, as on a full disk
        with pytest.raises(StorageError, match=r"make room|free space"):
            act(names, out)

    assert in_child(fill) == 0
    assert not out.exists()
    act(names, out)
    act(names, tmp_path / "whole")
    assert read_bytes(out) == read_bytes(tmp_path / "whole")


def test_a_directory_that_is_no_corpus_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"exists and has no corpus\.json"):
        filter_it(write_inputs(tmp_path), tmp_path / "out")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    names = write_inputs(tmp_path)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(StorageError, match="file"):
        filter_it(names, tmp_path / "file" / "out")


def test_other_rules_are_refused_before_and_after_it_is_whole(tmp_path: Path) -> None:
    names = write_inputs(tmp_path)
    other = Filtering(inputs=names, rules=Rules(), column="body")
    in_child(lambda: die_at(12, lambda: filter_it(names, tmp_path / "out")))
    assert (tmp_path / "out.partial" / "work" / "plan.json").is_file()
    with pytest.raises(DataError, match=r"out\.partial was made of something else:\n  column: text there, body asked"):
        filter_corpus(other, str(tmp_path / "out"), jobs=1, show=show_nothing)
    filter_it(names, tmp_path / "out")
    with pytest.raises(DataError, match="column: text there, body asked"):
        filter_corpus(other, str(tmp_path / "out"), jobs=1, show=show_nothing)
    with pytest.raises(DataError, match=r"input .* is gone"):
        filter_it(names[:1], tmp_path / "out")


def test_a_part_that_lost_bytes_is_made_again(tmp_path: Path) -> None:
    names = write_inputs(tmp_path)
    filter_it(names, tmp_path / "whole")
    in_child(lambda: die_at(25, lambda: filter_it(names, tmp_path / "out")))
    part = tmp_path / "out.partial" / "part-00000.jsonl.zst"
    assert (tmp_path / "out.partial" / "work" / "part-00000.json").is_file()
    part.write_bytes(part.read_bytes()[:-1])
    filter_it(names, tmp_path / "out")
    assert read_bytes(tmp_path / "out") == read_bytes(tmp_path / "whole")


def test_what_was_removed_earlier_stays_in_the_report(tmp_path: Path) -> None:
    filter_it(write_inputs(tmp_path), tmp_path / "clean")
    made = deduplicate_it((str(tmp_path / "clean"),), tmp_path / "unique")
    assert [report["act"] for report in made["before"]] == ["filter"]
    assert made["before"][0] == read_corpus(str(tmp_path / "clean"))


def test_progress_adds_up_to_the_bytes_of_the_inputs(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    line = json.dumps({"text": make_prose(1, num_words=100_000)}) + "\n"
    path.write_text(line * 20, encoding="utf-8")
    work, _ = open_work(
        str(tmp_path / "out"), act="x", asked={"column": "text", "on_error": "stop"}, inputs=[str(path)]
    )
    reports: list[int] = []
    assert len(list(read_input(work, 0, skipped=Skipped(), report=reports.append))) == 20
    assert len(reports) > 2
    assert min(reports) >= 0
    assert sum(reports) == path.stat().st_size


def test_half_a_surrogate_pair_goes_through_as_it_came(tmp_path: Path) -> None:
    fields = json.loads('{"text": "\\ud83d caf\u00e9"}')
    with open_part(str(tmp_path / "part"), beside=str(tmp_path / "beside")) as writer:
        writer.write(fields)
        writer.close()
    assert read_part(tmp_path / "part") == [fields]


def test_a_field_that_json_cannot_hold_is_named(tmp_path: Path) -> None:
    with (
        open_part(str(tmp_path / "part"), beside=str(tmp_path / "beside")) as writer,
        pytest.raises(DataError, match="a field that JSON cannot hold"),
    ):
        writer.write({"text": "x", "when": b"bytes"})


def test_signatures_of_a_remote_corpus_need_a_local_directory(tmp_path: Path) -> None:
    asked = Deduplication(inputs=write_inputs(tmp_path))
    out = f"memory://{tmp_path.name}/out"
    with pytest.raises(DataError, match="--scratch DIR"):
        deduplicate(asked, out, jobs=1, memory_bytes=2**30, scratch=None, show=show_nothing)
    storage.remove_tree(f"memory://{tmp_path.name}")
