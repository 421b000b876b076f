"""A finished run of emulated nodes as the code writes it, and the ways in which files get damaged."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from toolkit.cluster.base import JobState
from toolkit.cluster.jobfiles import write_state
from toolkit.config.load import dump_config, load_config
from toolkit.launch.identity import Identity
from toolkit.launch.ledger import Attempt, Failure, JobRecord, begin_attempt, write_failure, write_job_record
from toolkit.launch.nodes import MANUAL, NodeLedger
from toolkit.monitor import metrics
from toolkit.monitor.sinks import JsonlSink
from toolkit.rundir import RunDir

CONFIGS = Path(__file__).parents[1] / "configs"


def make_run(root: Path, name: str) -> RunDir:
    """Write a run that failed once and was finished by job 1 of emulated nodes."""
    run_dir = RunDir(root / name)
    run_dir.logs_dir.mkdir(parents=True)
    cfg = load_config(CONFIGS / "runs" / "tiny-cpu.yaml").config
    run = replace(cfg.run, root=str(root), name=name)
    cfg = replace(cfg, run=run, cluster=replace(cfg.cluster, scheduler="local", gpus_per_node=1))
    for path in (run_dir.config_path, run_dir.asked_path):
        path.write_text(dump_config(cfg), encoding="utf-8")
    identity = Identity(run_id="0123456789ab", root=str(run_dir.root))
    run_dir.identity_path.write_text(json.dumps(asdict(identity)), encoding="utf-8")
    mark = f"toolkit:{identity.run_id}:{name}"
    write_job_record(run_dir, JobRecord(scheduler="local", job_id="1", attempts_before=0, mark=mark))
    for number, outcome in enumerate(["CRASHED", "FINISHED"]):
        attempt = Attempt(
            attempt=f"1.{number}", job_id="1", nodes=("node1",), layout="1 x 1", start_time=100.0 + number
        )
        begin_attempt(run_dir, replace(attempt, outcome=outcome, end_time=200.0, first_step=0, last_step=9))
    write_failure(run_dir, "1.1", Failure(rank=0, node="node1", time=1.0, is_echo=False, error="it broke"))
    run_dir.refusal_path("1.1").write_text("turned away", encoding="utf-8")
    run_dir.rank_log_path("1.1", rank=0).write_text("hello\n", encoding="utf-8")
    sink = JsonlSink(run_dir.metrics_path, attempt="1.1")
    for step in range(1, 40):
        sink.write(step, {metrics.LOSS: 5.0 - step / 20, metrics.STEP_S: 0.1, metrics.TOKENS_PER_S: 1e4})
    sink.close("FINISHED")
    _make_job(root, run_dir, mark)
    return run_dir


def _make_job(root: Path, run_dir: RunDir, mark: str) -> None:
    number = 1 + sum(1 for _ in (root / ".cluster" / "jobs").glob("*"))
    write_job_record(run_dir, JobRecord(scheduler="local", job_id=str(number), attempts_before=0, mark=mark))
    job_dir = root / ".cluster" / "jobs" / str(number)
    (job_dir / "requests").mkdir(parents=True)
    spec = {
        "requeue": True,
        "exclude": [],
        "time_limit_s": 60,
        "nodes": 1,
        "array": [],
        "gpus_per_node": 0,
        "mark": mark,
    }
    (job_dir / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    write_state(job_dir, {"state": JobState.COMPLETED, "submit_time": 1.0, "restarts": 1, "nodes": ["node1"]})


def make_root(root: Path) -> dict[str, Path]:
    """Write the directory of two runs; give the files of the first one, and those of all runs, by their names."""
    first, _ = make_run(root, "first"), make_run(root, "second")
    NodeLedger(root).record("node9", MANUAL, reason="loud", now=1.0)
    return {
        "config.yaml": first.config_path,
        "asked.yaml": first.asked_path,
        "identity.json": first.identity_path,
        "job.json": first.job_path,
        "attempts.jsonl": first.attempts_path,
        "metrics.jsonl": first.metrics_path,
        "expected.json": first.expected_path,
        "failure.json": first.failure_path("1.1", rank=0),
        "refused": first.refusal_path("1.1"),
        "0.out": first.rank_log_path("1.1", rank=0),
        "nodes.jsonl": root / "nodes.jsonl",
        "state.json": root / ".cluster" / "jobs" / "1" / "state.json",
        "spec.json": root / ".cluster" / "jobs" / "1" / "spec.json",
    }


def _put(content: bytes) -> Callable[[Path], None]:
    return lambda path: _replace(path, lambda: path.write_bytes(content) and None)


def _replace(path: Path, make: Callable[[], None]) -> None:
    path.unlink(missing_ok=True)
    make()


def _cut(part: float) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        data = path.read_bytes() if path.exists() else b"{}"
        path.write_bytes(data[: int(len(data) * part)])

    return cut


def _append(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes((path.read_bytes() if path.exists() else b"") + content) and None


def _change(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    """Change each record of a file that holds some."""

    def apply(path: Path) -> None:
        if path.suffix not in {".json", ".jsonl"} or not path.exists():
            path.write_bytes(b"")
            return
        lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
        path.write_text("".join(f"{json.dumps(change(json.loads(line)))}\n" for line in lines), encoding="utf-8")

    return apply


DAMAGES: dict[str, Callable[[Path], None]] = {
    "gone": lambda path: path.unlink(missing_ok=True),
    "empty": _put(b""),
    "cut after a third": _cut(0.3),
    "cut before its end": _cut(0.98),
    "zeros": _put(b"\x00" * 4096),
    "zeros behind it": _append(b"\x00" * 70_000),
    "half a line behind it": _append(b'{"step": 4'),
    "no text": _put(bytes(range(256)) * 3),
    "latin-1": _put(b'{"step": 1, "x": "\xe9"}\n'),
    "null": _put(b"null\n"),
    "list": _put(b"[]\n"),
    "object": _put(b"{}\n"),
    "number": _put(b"7\n"),
    "word": _put(b'"word"\n'),
    "deep": _put(b"[" * 100_000),
    "long line": _put(b'{"x": "' + b"y" * 3_000_000 + b'"}\n'),
    "huge number": _put(b'{"step": 1' + b"0" * 5000 + b"}\n"),
    "not YAML": _put(b"run: [\n"),
    "unknown section": _put(b"nonsense: {a: 1}\n"),
    "newer": _change(lambda fields: {**fields, "of_a_newer_version": {"a": [1]}}),
    "all words": _change(lambda fields: dict.fromkeys(fields, "word")),
    "all numbers": _change(lambda fields: dict.fromkeys(fields, -3)),
    "all null": _change(lambda fields: dict.fromkeys(fields)),
    "all lists": _change(lambda fields: {name: [] for name in fields}),
    "half its fields": _change(lambda fields: dict(list(fields.items())[::2])),
    "directory": lambda path: _replace(path, path.mkdir),
    "pipe": lambda path: _replace(path, lambda: os.mkfifo(path)),
    "loop": lambda path: _replace(path, lambda: path.symlink_to(path.name)),
    "leads nowhere": lambda path: _replace(path, lambda: path.symlink_to("nowhere")),
}
