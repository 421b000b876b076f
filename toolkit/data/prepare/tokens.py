"""Documents -> token shards + manifest: span by span, by any number of processes, from where it was killed."""

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import storage
from toolkit.data import manifest as manifests
from toolkit.data.manifest import Manifest, read_manifest, write_manifest
from toolkit.data.prepare.alone import hold_out, hold_span
from toolkit.data.prepare.control import ControlCounter
from toolkit.data.prepare.engines import (
    AUTO,
    FAST,
    RECORD,
    Engine,
    EnginesDifferError,
    load_engine,
    tokenizer_for_texts,
)
from toolkit.data.prepare.fidelity import measure_loss, refuse_loss, sample_texts
from toolkit.data.prepare.preparation import (
    Plan,
    Preparation,
    check_inputs,
    is_finished,
    make_plan,
    name_partial,
    read_corpora,
    read_plan,
    start,
)
from toolkit.data.prepare.spans import Span
from toolkit.data.prepare.tokenizer import load_tokenizer, parse_tokenizer
from toolkit.data.prepare.workers import Report, run_tasks
from toolkit.data.prepare.writer import (
    RECORDS,
    SPLITS,
    Counts,
    Record,
    forget_record,
    read_counts,
    read_record,
    write_span,
)
from toolkit.data.text.readers import DamagedError
from toolkit.errors import DataError

log = logging.getLogger(__name__)

_DISTRUST = "distrust.json"  # there when gigatoken was caught: what it did is done again
_SPLIT_FILES = ("state.json", "dataset_info.json")  # by these, and the next, `datasets.load_from_disk` opens it
_DATASET_FILE = "dataset_dict.json"
_AT_ONCE = 16
_NAME_WAIT_S = 60.0
_LISTED = 1000  # skipped records in a manifest; all are counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far an unfinished dataset is; bytes are those of the inputs, as estimated from their sizes."""

    num_spans: int
    num_spans_done: int
    num_bytes: int
    num_bytes_done: int
    num_tokens: int
    num_documents: int
    num_skipped: int


def prepare(
    asked: Preparation, out: str | Path, *, engine: str = AUTO, jobs: int = 1, report: Report | None = None
) -> tuple[Manifest, bool]:
    """Make a token dataset, go on with one that was begun, or find that it is there already.

    Args:
        asked: what to make.
        out: directory or URL of the dataset. Until it is whole, it is `OUT.partial`.
        engine: `auto`, `tokenizers` or `gigatoken`; the ids are the same.
        jobs: processes.
        report: told the bytes of text as they are done.

    Returns:
        The manifest, and whether it was made now.

    Raises:
        DataError: bad input; or another dataset stands there already (the text says what differs).
    """
    partial_dir = begin(asked, str(out))
    if partial_dir is None:
        return read_manifest(str(out)), False
    run_spans(partial_dir, engine=engine, jobs=jobs, report=report)
    return merge(partial_dir, str(out)), True


def begin(asked: Preparation, out: str) -> str | None:
    """Find what is there of a dataset, and begin it where that is nothing.

    Returns:
        The directory to work in; None: the dataset is finished.

    Raises:
        DataError: bad input; or something else stands there already (the text says what differs).
    """
    tokenizer = load_tokenizer(asked.tokenizer)
    plan = make_plan(asked, tokenizer=tokenizer)
    with _hold_name(out):
        if is_finished(plan, out):
            return None
        if not storage.exists(name_partial(out)):
            _refuse_loss(asked, plan, tokenizer)
        partial_dir = start(plan, tokenizer=tokenizer, out=out)
    if storage.exists(storage.join(partial_dir, manifests.NAME)):  # killed in the last moment
        merge(partial_dir, out)
        return None
    return partial_dir


def _refuse_loss(asked: Preparation, plan: Plan, tokenizer: Any) -> None:
    text = tokenizer_for_texts(tokenizer.to_str(pretty=False), keep_special=asked.keep_special)
    loss = measure_loss(text, sample_texts(plan.spans, plan.rules.reading))
    refuse_loss(loss, name=asked.tokenizer, is_accepted=asked.lossy)


def run_spans(
    partial_dir: str,
    *,
    task: int = 0,
    num_tasks: int = 1,
    engine: str = AUTO,
    jobs: int = 1,
    report: Report | None = None,
) -> None:
    """Work on each `num_tasks`-th span from `task` on, with what is done already left as it is.

    Who works on a span, and in how many goes, does not change a byte of the result.

    Raises:
        DataError: bad input.
    """
    plan = read_plan(partial_dir)
    spans = _choose_spans(plan, task=task, num_tasks=num_tasks)
    while todo := _find_open(partial_dir, spans):  # more than once only where gigatoken was caught
        num_workers = min(jobs, len(todo))
        worker = _Worker(partial_dir, plan, engine=engine, parallel=num_workers < jobs)
        run_tasks(todo, worker.work, num_workers=num_workers, report=report or _ignore)


def _choose_spans(plan: Plan, *, task: int, num_tasks: int) -> tuple[Span, ...]:
    if not 0 <= task < num_tasks:
        raise DataError(f"task {task} of {num_tasks}\n  tasks are counted from 0 to {num_tasks - 1}")
    return plan.spans[task::num_tasks]


def progress(partial_dir: str, *, task: int = 0, num_tasks: int = 1) -> Progress:
    """Tell how far an unfinished dataset is, or a task's part of it."""
    spans = _choose_spans(read_plan(partial_dir), task=task, num_tasks=num_tasks)
    pairs = list(zip(spans, _read_records(partial_dir, spans), strict=True))
    done = [(span, record) for span, record in pairs if record is not None]
    return Progress(
        num_spans=len(spans),
        num_spans_done=sum(record.is_done for _, record in done),
        num_bytes=sum(span.num_bytes for span in spans),
        num_bytes_done=sum(span.num_bytes if record.is_done else record.num_text_bytes for span, record in done),
        num_tokens=sum(entry.num_tokens for _, record in done for split in SPLITS for entry in record.shards[split]),
        num_documents=sum(record.num_documents for _, record in done),
        num_skipped=sum(record.num_skipped for _, record in done),
    )


def merge(partial_dir: str, out: str) -> Manifest:
    """Write the manifest of a dataset whose spans are all done, and give it its name.

    Raises:
        DataError: spans are not done, or a split is empty.
    """
    with _hold_name(out):
        if storage.exists(storage.join(out, manifests.NAME)) and not storage.exists(partial_dir):
            return read_manifest(out)  # merged before
        _complete(partial_dir)
        storage.rename(partial_dir, out)
    return read_manifest(out)


def summarize(made: Manifest) -> dict[str, Any]:
    """Give the figures of a dataset."""
    figures: dict[str, Any] = {"dtype": made.dtype, "vocab_size": made.tokenizer.vocab_size}
    for split, entries in made.splits.items():
        figures[f"{split}_tokens"] = made.num_tokens(split)
        figures[f"{split}_documents"] = made.num_documents(split)
        figures[f"{split}_shards"] = len(entries)
    figures["end_of_text"] = made.provenance.get("end_of_text", made.tokenizer.eos_id)
    figures["num_control"] = made.provenance.get("num_control", 0)
    figures["num_skipped"] = made.provenance["num_skipped"]
    return {**figures, "unigram_loss": made.unigram_loss, "fingerprint": made.fingerprint}


def unigram_loss(train_counts: Counts, counts: Counts) -> float:
    """Average over `counts` the nats of guessing by the add-one smoothed frequencies of `train_counts`."""
    smoothed = train_counts + 1.0
    return float(-(counts * np.log(smoothed / smoothed.sum())).sum() / counts.sum())


def _ignore(num_bytes: int) -> None:
    """Take a report of progress that nobody wants."""


class _Worker:
    """Works on spans in a process of its own; an engine is loaded once there."""

    def __init__(self, partial_dir: str, plan: Plan, *, engine: str, parallel: bool) -> None:
        self._partial_dir, self._rules = partial_dir, plan.rules
        self._inputs = {item.path: item for item in plan.inputs}
        self._engine, self._parallel = engine, parallel
        self._keep_special = plan.options["keep_special"]
        with storage.open_file(storage.join(partial_dir, manifests.TOKENIZER_NAME), "rb") as file:
            self._tokenizer_json = file.read().decode()
        self._control = ControlCounter(parse_tokenizer(self._tokenizer_json))
        self._loaded: dict[str, Engine] = {}

    def work(self, span: Span, report: Report) -> None:
        """Work on a span that nobody else works on; who catches gigatoken tells all others by a file.

        Raises:
            HeldError: another process does.
            DataError: bad input.
        """
        with hold_span(self._partial_dir, span.number):
            self._work_alone(span, report)

    def _work_alone(self, span: Span, report: Report) -> None:
        check_inputs([self._inputs[piece.path] for piece in span.pieces], column=self._rules.reading.column)
        engine, record = self._begin(span)
        if record.is_done:
            return  # by a process that has ended since it was looked at
        left = span.num_bytes - record.num_text_bytes

        def count_down(num_bytes: int) -> None:
            nonlocal left
            left -= num_bytes
            report(num_bytes)

        try:
            write_span(
                self._partial_dir, span, record,
                rules=self._rules, engine=engine, control=self._control, report=count_down,
            )  # fmt: skip
        except DamagedError:
            forget_record(self._partial_dir, span.number)
            raise
        except EnginesDifferError as error:
            if self._engine == FAST:
                raise DataError(f"{error}\n  {RECORD} is right by definition\n  use --engine auto") from error
            log.warning("%s: what %s made is made again with %s", error, FAST, RECORD)
            content = json.dumps({"reason": str(error)}).encode()
            storage.write_atomic(storage.join(self._partial_dir, _DISTRUST), content)
        else:
            report(left)  # the size of an input is not that of its text

    def _begin(self, span: Span) -> tuple[Engine, Record]:
        is_distrusted = _is_distrusted(self._partial_dir)
        engine = self._load(RECORD if is_distrusted else self._engine)
        record = read_record(self._partial_dir, span.number)
        if record is None or (is_distrusted and record.engine == FAST):
            return engine, Record(span=span.number, engine=engine.name)
        if engine.name == FAST:
            record.engine = FAST
        return engine, record

    def _load(self, name: str) -> Engine:
        if name not in self._loaded:
            text = tokenizer_for_texts(self._tokenizer_json, keep_special=self._keep_special)
            self._loaded[name] = load_engine(text, name=name, parallel=self._parallel)
        return self._loaded[name]


def _is_distrusted(partial_dir: str) -> bool:
    return storage.exists(storage.join(partial_dir, _DISTRUST))


def _find_open(partial_dir: str, spans: Sequence[Span]) -> list[Span]:
    """Find the spans that are not done, or were done by an engine that was caught since."""
    is_distrusted = _is_distrusted(partial_dir)
    records = zip(spans, _read_records(partial_dir, spans), strict=True)
    return [
        span
        for span, record in records
        if record is None or not record.is_done or (is_distrusted and record.engine == FAST)
    ]


def _complete(partial_dir: str) -> None:
    """Write what makes a dataset of finished spans, and delete what only their making needed."""
    if not storage.exists(storage.join(partial_dir, manifests.NAME)):
        plan = read_plan(partial_dir)
        missing = [str(span.number) for span in _find_open(partial_dir, plan.spans)]
        if missing:
            raise DataError(
                f"{partial_dir}: {len(missing)} of {len(plan.spans)} spans are not done: {', '.join(missing[:10])}\n"
                "  start the same command again: it goes on where it was"
            )
        records = [record for record in _read_records(partial_dir, plan.spans) if record is not None]
        made = _make_manifest(partial_dir, plan, records)
        _describe_for_datasets(partial_dir, made)
        write_manifest(partial_dir, made)
    _remove_strays(partial_dir, read_manifest(partial_dir))


def _hold_name(out: str) -> AbstractContextManager[None]:
    """Hold the name of a dataset while it is begun or completed: the tasks of an array begin at once, and wait."""
    return hold_out(out, what=f"{out} is being begun or completed", wait_s=_NAME_WAIT_S)


def _read_records(partial_dir: str, spans: Sequence[Span]) -> list[Record | None]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda span: read_record(partial_dir, span.number), spans))


def _make_manifest(partial_dir: str, plan: Plan, records: Sequence[Record]) -> Manifest:
    counts = np.zeros((len(SPLITS), plan.tokenizer.vocab_size), dtype=np.int64)
    for record in records:
        counts += read_counts(partial_dir, record, vocab_size=plan.tokenizer.vocab_size)
    splits = {split: tuple(entry for record in records for entry in record.shards[split]) for split in SPLITS}
    for split, entries in splits.items():
        if not entries:
            raise DataError(
                f"the {split} split is empty\n  it needs documents\n  give more text, or another --validation"
            )
    train, validation = counts
    return Manifest(
        dtype=plan.rules.dtype,
        tokenizer=plan.tokenizer,
        splits=splits,
        unigram_loss=unigram_loss(train, validation),
        provenance={
            "plan": plan.describe(),
            "engines": {name: version(name) for name in sorted({RECORD, *(record.engine for record in records)})},
            "texts_xxh3": [record.text_xxh3 for record in records],
            "num_text_bytes": sum(record.num_text_bytes for record in records),
            "num_empty": sum(record.num_empty for record in records),
            "num_control": sum(record.num_control for record in records),
            "end_of_text": load_tokenizer(partial_dir).id_to_token(plan.tokenizer.eos_id),
            "num_skipped": sum(record.num_skipped for record in records),
            "skipped": [asdict(broken) for record in records for broken in record.skipped][:_LISTED],
            "corpus": read_corpora(plan),
        },
    )


def _remove_strays(partial_dir: str, made: Manifest) -> None:
    """Delete what is no part of a dataset: plan, records, and what killed processes left half done."""
    kept = {entry.path for split in SPLITS for entry in made.splits[split]}
    kept |= {f"{split}/{name}" for split in SPLITS for name in _SPLIT_FILES}
    kept |= {manifests.NAME, manifests.TOKENIZER_NAME, _DATASET_FILE}
    folder = f"/{partial_dir.rpartition('/')[2]}/"
    for file in storage.list_files(partial_dir):
        if file.rpartition(folder)[2] not in kept:
            storage.remove_tree(file)
    storage.remove_tree(storage.join(partial_dir, RECORDS))


def _describe_for_datasets(partial_dir: str, made: Manifest) -> None:
    """Write the small files by which `datasets.load_from_disk` opens the directory."""
    features = {"input_ids": {"feature": {"dtype": made.dtype, "_type": "Value"}, "_type": "List"}}

    def write(name: str, content: dict[str, Any]) -> None:
        storage.write_atomic(storage.join(partial_dir, name), json.dumps(content, indent=1).encode())

    for split, entries in made.splits.items():
        state: dict[str, Any] = {
            "_data_files": [{"filename": entry.path.rpartition("/")[2]} for entry in entries],
            "_fingerprint": entries[0].xxh3[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        write(f"{split}/{_SPLIT_FILES[0]}", state)
        write(f"{split}/{_SPLIT_FILES[1]}", {"features": features})
    write(_DATASET_FILE, {"splits": list(made.splits)})
