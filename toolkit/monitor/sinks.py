"""Where numbers go: metrics.jsonl is the source, the log, W&B and TensorBoard are copies.

No sink ever stops a training: one that fails is switched off with a warning.
"""

import json
import logging
import queue
import re
import secrets
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from toolkit import records, storage
from toolkit.config.schema import MonitorSection
from toolkit.errors import RunError
from toolkit.monitor import history
from toolkit.monitor.metrics import ETA_S, step_line
from toolkit.monitor.wandb_env import DEFAULT_PROJECT
from toolkit.rundir import RunDir

log = logging.getLogger(__name__)

_WANDB_ANSWER_S = 5.0
_WANDB_INIT_S = 60.0
_CLOSE_S = 300.0  # W&B sends what it has not sent yet


class Sink(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step."""

    def rewind(self, step: int) -> None:
        """Hear that the steps beyond this one are done again."""

    def close(self, outcome: str) -> None:
        """End the attempt."""


class JsonlSink:
    """One line a step, flushed."""

    def __init__(self, path: Path, *, attempt: str) -> None:
        self._path = path
        self._file = records.open_to_append(path)
        self._attempt = attempt

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the line of a step."""
        kept = {name: value for name, value in values.items() if name != ETA_S}
        line = {"step": step, "time": round(time.time(), 3), "attempt": self._attempt, **kept}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def rewind(self, step: int) -> None:
        """Drop the lines beyond a step."""
        self._file.close()
        history.rewind(self._path, step=step)
        self._file = records.open_to_append(self._path)

    def close(self, outcome: str) -> None:
        """Close the file."""
        self._file.close()


class ConsoleSink:
    """A line in the log every few steps, at the first, the last, and where validation was measured."""

    def __init__(self, *, num_steps: int, every: int) -> None:
        self._num_steps = num_steps
        self._every = every
        self._is_first = True

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log a step that is due."""
        if self._is_first or step % self._every == 0 or step == self._num_steps:
            log.info("%s", step_line(step, num_steps=self._num_steps, values=values))
        self._is_first = False

    def rewind(self, step: int) -> None:
        """Log the next step."""
        self._is_first = True

    def close(self, outcome: str) -> None:
        """Nothing is open."""


class WandbSink:
    """One W&B run for all attempts: its id belongs to the run directory."""

    def __init__(self, section: MonitorSection, run_dir: RunDir, *, name: str, config: dict[str, Any]) -> None:
        import wandb  # deferred: costs 0.6 s, and many runs go without  # noqa: PLC0415

        options: dict[str, Any] = {
            "project": section.wandb_project or DEFAULT_PROJECT,
            "entity": section.wandb_entity,
            "name": name,
            "id": _run_id(run_dir),
            "resume": "allow",
            "dir": str(run_dir.root),
            "config": config,
            "settings": wandb.Settings(silent=True, init_timeout=_WANDB_INIT_S, console="off"),
        }
        self._run: Any = None
        if section.wandb != "offline" and _answers(wandb.setup().settings.base_url):
            try:
                if section.wandb == "online" or wandb.login(prompt=False):
                    self._run = wandb.init(mode="online", **options)
            except wandb.Error as error:
                log.warning("W&B refused: %s", error)
        if self._run is None:
            self._run = wandb.init(mode="offline", **options)
            log.info("W&B is recorded offline; send it: python -m toolkit sync %s", run_dir.name)
        # Steps that are redone after a fault are told again: the axis is a value, not W&B's own counter.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Send a step."""
        self._run.log({"step": step, **values})

    def rewind(self, step: int) -> None:
        """Tell nothing: W&B draws a step that is told again at its place."""

    def close(self, outcome: str) -> None:
        """End the attempt's part of the run."""
        self._run.finish(exit_code=1 if outcome == "FAILED" else 0)


def _answers(url: str) -> bool:
    """Whether a server answers at all: wandb itself would try for minutes, while all ranks wait."""
    try:
        urllib.request.urlopen(url, timeout=_WANDB_ANSWER_S).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


class TensorBoardSink:
    """TensorBoard event files."""

    def __init__(self, directory: Path) -> None:
        # deferred: only where it was asked for
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: PLC0415

        self._writer = EventFileWriter(str(directory))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write a step."""
        from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb  # noqa: PLC0415

        for name, value in values.items():
            self._writer.add_event(Event(wall_time=time.time(), step=step, summary=scalar_pb(name, value)))

    def rewind(self, step: int) -> None:
        """Have TensorBoard forget what it has seen beyond a step.

        It forgets at each start of a session but the first that it meets, and files of former versions have none.

        Source: tensorboard 2.21, backend/event_processing/plugin_event_accumulator.py, _CheckForRestartAndMaybePurge.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415

        for _ in range(2):
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def close(self, outcome: str) -> None:
        """Flush."""
        self._writer.close()


class BackgroundSink:
    """A sink that lives in a thread of its own: W&B takes seconds to open, and all ranks would wait for rank 0."""

    def __init__(self, name: str, build: Callable[[], Sink]) -> None:
        self._name = name
        self._told: queue.SimpleQueue[Callable[[Sink], None] | str] = queue.SimpleQueue()
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._serve, args=(build,), name=name, daemon=True)
        self._thread.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hand a step over; raise what went wrong with an earlier one."""
        self._raise_problem()
        kept = dict(values)
        self._told.put(lambda sink: sink.write(step, kept))

    def rewind(self, step: int) -> None:
        """Hand it over."""
        self._told.put(lambda sink: sink.rewind(step))

    def close(self, outcome: str) -> None:
        """Let the thread finish; raise what went wrong."""
        self._told.put(outcome)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            raise RunError(f"{self._name} did not end within {_CLOSE_S:.0f} s")
        self._raise_problem()

    def _serve(self, build: Callable[[], Sink]) -> None:
        try:
            sink = build()
            while not isinstance(told := self._told.get(), str):
                told(sink)
            sink.close(told)
        except Exception as error:  # told to the main thread, which goes on without the sink
            self._problem = error

    def _raise_problem(self) -> None:
        if self._problem is not None:
            raise RunError(f"{self._name}: {self._problem}") from self._problem


class Sinks:
    """All sinks of rank 0; on other ranks there are none."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hand a step to every sink that still works."""
        for sink in list(self._sinks):
            self._guard(sink, lambda sink=sink: sink.write(step, values))

    def rewind(self, step: int) -> None:
        """Tell every sink that the run went back to a step."""
        for sink in list(self._sinks):
            self._guard(sink, lambda sink=sink: sink.rewind(step))

    def close(self, outcome: str) -> None:
        """Close every sink."""
        for sink in list(self._sinks):
            self._guard(sink, lambda sink=sink: sink.close(outcome))

    def _guard(self, sink: Sink, act: Any) -> None:
        try:
            act()
        except Exception as error:  # metrics never stop a training
            log.warning("%s is switched off: %s", type(sink).__name__, error)
            self._sinks.remove(sink)


def open_sinks(
    section: MonitorSection,
    run_dir: RunDir,
    *,
    name: str,
    attempt: str,
    num_steps: int,
    config: dict[str, Any],
) -> Sinks:
    """Open what the configuration asks for; on rank 0 only."""
    sinks: list[Sink] = [
        JsonlSink(run_dir.metrics_path, attempt=attempt),
        ConsoleSink(num_steps=num_steps, every=section.log_every),
    ]
    if section.wandb != "off":
        sinks.append(BackgroundSink("W&B", lambda: WandbSink(section, run_dir, name=name, config=config)))
    if section.tensorboard:
        sinks.append(BackgroundSink("TensorBoard", lambda: TensorBoardSink(run_dir.tensorboard_dir)))
    return Sinks(sinks)


def _run_id(run_dir: RunDir) -> str:
    path = run_dir.wandb_id_path
    known = (records.read_text(path) or "").strip()
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", known):
        return known
    run_id = secrets.token_hex(4)
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_atomic(str(path), run_id.encode())
    return run_id


def sync_wandb(run_dir: RunDir) -> list[str]:
    """Send what was recorded offline, oldest attempt first; give the directories that were sent.

    Raises:
        RunError: wandb could not send; its own words are in the text.
    """
    import wandb  # deferred: costs 0.6 s, and many runs go without  # noqa: PLC0415

    unsent = [path for path in sorted(run_dir.wandb_dir.glob("offline-run-*")) if not list(path.glob("*.synced"))]
    if not unsent:
        return []
    url = wandb.setup().settings.base_url
    if not _answers(url):
        raise RunError(f"W&B does not answer at {url}\n  it needs the network\n  sync from a node that reaches it")
    # In one call: wandb then sends the attempts of one run one after another, by time of start.
    command = [sys.executable, "-m", "wandb", "sync", *map(str, unsent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    left = [path.name for path in unsent if not list(path.glob("*.synced"))]
    if done.returncode != 0 or left:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise RunError(
            f"{len(left)} of {len(unsent)} attempts were not sent: {words[-1] if words else 'wandb said nothing'}\n"
            "  wandb needs a key and the network\n  type: wandb login, on a node that reaches the internet"
        )
    return [path.name for path in unsent]
