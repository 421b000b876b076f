"""A corpus directory: parts of JSON lines, and a corpus.json that says what was asked, removed and why.

    OUT/part-00000.jsonl.zst    one an input, in the order of inputs; records keep all their fields
    OUT/corpus.json             written last: what was asked, of which inputs, counts by rule, samples
    OUT.partial/                the same while in work, and work/: what was asked, and one record a finished part

A part counts when its record is there and fits it, so a killed act goes on with the inputs that are left and
gives the same bytes as an undisturbed one.
"""

import functools
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import xxhash

from toolkit import storage
from toolkit.data.prepare.workers import Report, run_tasks
from toolkit.data.quality.parts import Part, sum_parts
from toolkit.data.text.hub import PREFIX as HUB_PREFIX
from toolkit.data.text.records import Record, Skipped, read_records
from toolkit.errors import DataError
from toolkit.fields import build

Show = Callable[..., AbstractContextManager[Report]]
"""`bar.show_progress`, or what else takes a title, total_bytes and done_bytes."""

NAME = "corpus.json"
FORMAT_VERSION = 1
_PROBE_BYTES = 1 << 20
_REPORT_BYTES = 4 << 20
_EXPANSION = 4  # assumption: text unpacks to about this many times its size; only the bar depends on it


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """An input and what tells its content from another: its size, and xxh3 of its first and last MiB."""

    name: str
    num_bytes: int
    xxh3: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A corpus in the making."""

    out: str
    act: str
    asked: dict[str, Any]
    inputs: tuple[InputFile, ...]

    @property
    def partial(self) -> str:
        """Directory in which the corpus grows."""
        return f"{self.out.rstrip('/')}.partial"

    def num_bytes(self, indices: Iterable[int] | None = None) -> int:
        """Add up the bytes of inputs, of all when none are named."""
        chosen = range(len(self.inputs)) if indices is None else indices
        return sum(self.inputs[index].num_bytes for index in chosen)

    def part_name(self, index: int) -> str:
        """Name the part of an input."""
        return f"part-{index:05d}.jsonl.zst"

    def part_url(self, index: int) -> str:
        """Place the part of an input."""
        return storage.join(self.partial, self.part_name(index))

    def beside_url(self, index: int) -> str:
        """Place the part of an input while it is written: another name each time."""
        return self.work_url(f"{self.part_name(index)}.{uuid.uuid4().hex[:8]}")

    def work_url(self, name: str) -> str:
        """Place what only a restart needs."""
        return storage.join(self.partial, "work", name)


Task = Callable[[Work, int, Report], Part]


def identify(name: str) -> InputFile:
    """Identify an input without reading all of it; a `datasets:` name is known by its name alone."""
    if name.startswith(HUB_PREFIX):
        return InputFile(name=name, num_bytes=0, xxh3="")
    num_bytes = storage.size(name)
    with storage.open_file(name, "rb") as file:
        digest = xxhash.xxh3_128(file.read(_PROBE_BYTES))
        file.seek(max(0, num_bytes - _PROBE_BYTES))
        digest.update(file.read(_PROBE_BYTES))
    return InputFile(name=name, num_bytes=num_bytes, xxh3=digest.hexdigest())


def open_work(
    out: str, *, act: str, asked: Mapping[str, Any], inputs: Sequence[str]
) -> tuple[Work, dict[str, Any] | None]:
    """Begin a corpus, or take one up where it was left.

    Returns:
        The work, and the content of corpus.json when the same corpus is there already.

    Raises:
        DataError: OUT or its unfinished twin came of something else; the text says what differs.
    """
    work = Work(out=out, act=act, asked=dict(asked), inputs=tuple(identify(name) for name in inputs))
    plan = {"act": act, "asked": work.asked, "inputs": [asdict(item) for item in work.inputs]}
    plan = json.loads(json.dumps(plan))  # tuples become lists, as in what is read back
    if storage.exists(storage.join(work.partial, NAME)):
        _give_name(work)  # the one before was killed between its last steps
    if storage.exists(storage.join(out, NAME)):
        finished = read_corpus(out)
        _raise_different(out, finished, plan)
        return work, finished
    if storage.exists(out):
        raise DataError(
            f"{out} exists and has no {NAME}\n  a corpus is made in a new directory\n  choose another --out"
        )
    if storage.exists(work.work_url("plan.json")):
        _raise_different(work.partial, _read_plan(work.work_url("plan.json")), plan)
    else:
        storage.write_atomic(work.work_url("plan.json"), _to_json(plan))
    return work, None


def read_corpus(directory: str) -> dict[str, Any]:
    """Read the report of a complete corpus.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    url = storage.join(directory, NAME)
    try:
        found = _read_plan(url)
    except FileNotFoundError as error:
        raise DataError(f"{directory} has no {NAME}\n  a complete corpus has one") from error
    if found.get("format_version") != FORMAT_VERSION:
        raise DataError(f"{url} has format {found.get('format_version')}; this toolkit reads {FORMAT_VERSION}")
    return found


def missing_parts(work: Work) -> list[int]:
    """List the inputs whose part is still to be made."""
    return [index for index in range(len(work.inputs)) if _read_part(work, index) is None]


def run_parts(work: Work, task: Task, *, jobs: int, report: Report) -> list[Part]:
    """Make the parts that are missing, and give all of them in the order of inputs.

    Args:
        work: the corpus.
        task: writes the part of an input and says what became of it; importable, since it is sent to other processes.
        jobs: processes. The result does not depend on it.
        report: told the bytes of inputs as they are done.
    """
    run_tasks(missing_parts(work), functools.partial(_make_part, work, task), num_workers=jobs, report=report)
    parts = [_read_part(work, index) for index in range(len(work.inputs))]
    return [part for part in parts if part is not None]


def _make_part(work: Work, task: Task, index: int, report: Report) -> None:
    storage.write_atomic(work.work_url(f"part-{index:05d}.json"), _to_json(asdict(task(work, index, report))))


def read_input(work: Work, index: int, *, skipped: Skipped, report: Report) -> Iterator[Record]:
    """Read the records of an input as was asked, and report its bytes on the way.

    Args:
        work: the corpus; `asked` names the column and what becomes of broken records.
        index: of the input.
        skipped: takes broken records, if they are to be skipped.
        report: told estimates, and at the end what is left of the size of the input.
    """
    item, column = work.inputs[index], work.asked["column"]
    expansion = _EXPANSION if item.name.endswith((".gz", ".zst")) else 1
    left, passed = item.num_bytes, 0
    takes = skipped if work.asked["on_error"] == "skip" else None
    for record in read_records(item.name, column=column, skipped=takes):
        yield record
        passed += len(record.fields[column])
        if passed > _REPORT_BYTES:
            done, passed = min(left, passed // expansion), 0
            left -= done
            report(done)
    report(left)


def finish(work: Work, parts: Sequence[Part], *, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Write corpus.json and give the directory its name.

    Args:
        work: the corpus.
        parts: of all inputs, in order.
        extra: what else the act has to say.

    Returns:
        The content of corpus.json.
    """
    report = {
        "format_version": FORMAT_VERSION,
        "act": work.act,
        "asked": work.asked,
        "inputs": [asdict(item) for item in work.inputs],
        "parts": [asdict(part) for part in parts],
        "totals": sum_parts(parts),
        **extra,
        "before": _reports_of(work.inputs),
    }
    storage.write_atomic(work.work_url(NAME), _to_json(report))  # there, so that a kill leaves no litter in the corpus
    storage.rename(work.work_url(NAME), storage.join(work.partial, NAME))
    _give_name(work)
    return report


def _give_name(work: Work) -> None:
    storage.remove_tree(storage.join(work.partial, "work"))
    storage.rename(work.partial, work.out)


def _read_part(work: Work, index: int) -> Part | None:
    url = work.work_url(f"part-{index:05d}.json")
    if not storage.exists(url):
        return None
    try:
        part: Part = build(Part, _read_json(url))
    except (DataError, ValueError):  # damaged: the part is made again
        return None
    is_whole = storage.exists(work.part_url(index)) and storage.size(work.part_url(index)) == part.num_bytes
    return part if is_whole else None


def _reports_of(inputs: Sequence[InputFile]) -> list[dict[str, Any]]:
    """Collect the reports of the corpora that inputs come from: what was removed earlier, and why."""
    directories = dict.fromkeys(item.name.rpartition("/")[0] for item in inputs if not item.name.startswith(HUB_PREFIX))
    return [read_corpus(place) for place in directories if place and storage.exists(storage.join(place, NAME))]


def _raise_different(place: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    lines = [f"act: {found['act']} there, {wanted['act']} asked"] if found["act"] != wanted["act"] else []
    for key in sorted({*found["asked"], *wanted["asked"]}):
        old, new = found["asked"].get(key), wanted["asked"].get(key)
        if old != new:
            lines.append(f"{key}: {old} there, {new} asked")
    before, now = ({item["name"]: item for item in side["inputs"]} for side in (found, wanted))
    lines += [f"input {name} is new" for name in now if name not in before]
    lines += [f"input {name} is gone" for name in before if name not in now]
    lines += [f"input {name} has changed" for name in now if name in before and before[name] != now[name]]
    if not lines and list(before) != list(now):
        lines.append("the order of inputs")
    if lines:
        raise DataError(
            "\n  ".join([f"{place} was made of something else:", *lines, "choose another --out or delete it"])
        )


def _read_plan(url: str) -> dict[str, Any]:
    """Read what a corpus is made of, from its plan or from its report."""
    found = _read_json(url)
    try:
        inputs = build(Mapping[str, Any], found)["inputs"]
        build(tuple[InputFile, ...], inputs, name="inputs")
        build(str, found["act"], name="act")
        build(Mapping[str, Any], found["asked"], name="asked")
    except (ValueError, KeyError) as error:
        raise DataError(f"{url} is damaged: {error}\n  delete its directory and start again") from error
    return dict(found)


def _to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _read_json(url: str) -> Any:
    with storage.open_file(url, "rb") as file:
        try:
            return json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{url} is damaged: {error}\n  delete its directory and start again") from error
