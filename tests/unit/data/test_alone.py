"""Two at once: whoever comes second is told who makes it, and changes nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from toolkit.cli.script import run
from toolkit.data.prepare.alone import hold_out, hold_span
from toolkit.data.prepare.preparation import PLAN, Preparation
from toolkit.data.prepare.tokens import begin, prepare, run_spans
from toolkit.errors import EXIT_REFUSED, DataError, HeldError

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("alone")
    make_dataset(made)
    return made


def ask(folder: Path) -> Preparation:
    return Preparation(inputs=(str(folder / "corpus.jsonl"),), tokenizer=str(folder / "tokenizer.json"), validation=0.1)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def test_a_span_that_is_worked_on_is_left_alone(folder: Path, tmp_path: Path) -> None:
    partial = begin(ask(folder), str(tmp_path / "out"))
    assert partial is not None
    with hold_span(partial, 0):
        before = names(tmp_path)
        with pytest.raises(HeldError, match=f"its span 0\\) by another process: host .*, pid {os.getpid()}"):
            run_spans(partial)
        assert names(tmp_path) == before
    prepare(ask(folder), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not [name for name in names(tmp_path) if name.endswith(".lock")]


def test_a_dataset_that_another_has_finished_is_not_begun_anew(folder: Path, tmp_path: Path) -> None:
    partial = begin(ask(folder), str(tmp_path / "out"))
    assert partial is not None
    Path(partial).rename(tmp_path / "out")
    with pytest.raises(HeldError, match="is gone"), hold_span(partial, 0):
        pass
    assert not Path(partial).exists()


def test_the_script_that_comes_second_says_so_with_code_3(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, CHECKOUT / "data_prep" / "filter_corpus.py", folder / "corpus.jsonl"]
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    out = tmp_path / "out"
    with hold_out(str(out), what=f"{out} is being made"):
        done = subprocess.run(
            [*command, "--out", out], env=environ, capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == EXIT_REFUSED
    assert done.stderr.startswith(f"{out} is being made by another process: host {os.uname().nodename}, pid")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("span_bytes", [0, -1])
def test_a_span_holds_text(folder: Path, tmp_path: Path, span_bytes: int) -> None:
    asked = Preparation(
        inputs=(str(folder / "corpus.jsonl"),), tokenizer=str(folder / "tokenizer.json"), span_bytes=span_bytes
    )
    with pytest.raises(DataError, match=f"span_bytes={span_bytes}"):
        begin(asked, str(tmp_path / "out"))


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"inputs": [], "options": {}, "tokenizer": 1}'])
def test_a_damaged_plan_is_said_to_be_one(folder: Path, tmp_path: Path, content: str) -> None:
    partial = begin(ask(folder), str(tmp_path / "out"))
    assert partial is not None
    (Path(partial) / PLAN).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="is damaged"):
        run_spans(partial)


def test_a_record_that_leads_out_is_refused(folder: Path, tmp_path: Path) -> None:
    partial = begin(ask(folder), str(tmp_path / "out"))
    assert partial is not None
    run_spans(partial)
    record = next(path for path in Path(partial).rglob("*.json") if "shards" in path.read_text(encoding="utf-8"))
    fields = json.loads(record.read_text(encoding="utf-8"))
    fields["shards"]["train"][0]["path"] = "../../x"
    record.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(DataError, match="names a shard outside"):
        prepare(ask(folder), tmp_path / "out")


def raise_interrupt() -> int:
    raise KeyboardInterrupt


def raise_missing() -> int:
    raise FileNotFoundError("x: there is no such file")


@pytest.mark.parametrize(("main", "code"), [(raise_interrupt, 130), (raise_missing, 2), (lambda: 0, 0)])
def test_a_script_ends_with_a_code_and_without_a_trace(main: Callable[[], int], code: int) -> None:
    assert run(main) == code
