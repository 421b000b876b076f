"""One run, and whatever can go wrong with it: random faults on emulated nodes, and what they cost.

A reference run without faults comes first. The disturbed run must come to the same losses step by step, and to the
same weights and moments in its last checkpoint, bit for bit, without a hand but where a person stopped it or its whole
job was killed. Anything else makes the exit code 1.
"""

import argparse
import contextlib
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emulated import Observer, Run, guarded, list_left, make_dataset
from faults import FAULTS, IN_PLACE, MissedError, Scene, is_finished, small_disk

from toolkit.checkpoint import layout
from toolkit.checkpoint.reader import TensorReader
from toolkit.launch.ledger import Attempt

DISK_BYTES = 24 << 20
_RECOVERY_S = 240.0
_STANDS_S = 8.0  # a run without a job for so long does not go on by itself
_TIMING_STEPS = 150
_SAME = ("train/loss", "train/grad_norm", "train/learning_rate", "train/tokens")
SETTINGS = (
    "cluster.env={OMP_NUM_THREADS: '1'}",  # or the number of threads would depend on the ranks of a node
    "cluster.max_requeues=100_000", "cluster.max_fruitless=10", "cluster.signal_delay_s=10",
    "checkpoint.keep=3", "monitor.eval_every=200",
    "faults.hang_min_s=10", "faults.hang_start_s=60",
)  # fmt: skip


@dataclass(kw_only=True, slots=True)
class Record:
    """A fault and what it cost. Times are Unix seconds."""

    kind: str
    words: str
    time: float
    step: int
    """Done when it struck."""
    hit: tuple[str, ...]
    """Attempts that were harmed."""
    survivor: str = ""
    """The attempt that went on training."""
    problem: str = ""
    """Why it was not survived."""
    seconds: dict[str, float | None] | None = None
    """Lost, by part."""
    redone: int = 0


class Chaos:
    """Disturbs a run until it is done."""

    def __init__(self, scene: Scene, observer: Observer, *, num_steps: int, end: float) -> None:
        self.scene = scene
        self.run = scene.run
        self.observer = observer
        self.records: list[Record] = []
        self._num_steps = num_steps
        self._begin, self._end = time.time(), end
        self._kinds: list[str] = []

    def disturb(self) -> None:
        """Strike whenever the run is ahead of the clock, until the time is over."""
        while self._await_turn():
            record = self.strike(self._choose_kind())
            if record is not None:
                self.tell(record)

    def strike(self, kind: str) -> Record | None:
        """Do a fault and wait until the run trains again; None: there was nothing to hit."""
        known = set(self.observer.firsts)
        record = Record(kind=kind, words="", time=time.time(), step=self.run.step(), hit=())
        self.scene.hit.clear()
        is_hit = True
        try:
            record.words = FAULTS[kind](self.scene)
        except MissedError:
            is_hit = False
        except RuntimeError as error:  # a command that should have been taken was refused
            record.problem = str(error)
        record.hit = tuple(dict.fromkeys(self.scene.hit))
        self._await_recovery(record, known=known | set(record.hit), is_hit=is_hit)
        return record if is_hit else None

    def tell(self, record: Record) -> None:
        """Keep a record, and show it."""
        self.records.append(record)
        end = f"  NOT SURVIVED: {record.problem}" if record.problem else ""
        print(f"{len(self.records):3d}  step {record.step:6d}  {record.kind:<18}  {record.words}{end}", flush=True)

    def finish(self) -> None:
        """Let the run come to its end."""
        deadline = time.monotonic() + 4 * (self._end - self._begin) + _RECOVERY_S
        while not is_finished(self.run) and time.monotonic() < deadline:
            if self._stands():
                self._help("before its end")
            time.sleep(0.2)
        self.run.await_end(timeout_s=60)

    def _choose_kind(self) -> str:
        """Draw a kind; each comes once before one comes again."""
        if not self._kinds:
            self._kinds = [kind for kind in FAULTS if kind != "disk full" or self.scene.disk_bytes]
            self.scene.rng.shuffle(self._kinds)
        return self._kinds.pop()

    def _await_turn(self) -> bool:
        """Wait until the run is ahead of the clock; False: it is done, or the time is over."""
        pause = time.time() + self.scene.rng.uniform(0.5, 2.5)
        while True:
            now, step = time.time(), self.run.step()
            if now > self._end or step >= self._num_steps or is_finished(self.run):
                return False
            share = (now - self._begin) / (self._end - self._begin)
            if now > pause and step / self._num_steps >= min(share, 0.97) and self.run.ranks():
                return True
            if self._stands():
                self._help("between faults")
            time.sleep(0.1)

    def _await_recovery(self, record: Record, *, known: set[str], is_hit: bool) -> None:
        """Wait until an attempt trains that was not there before, or the same one where it outlives the fault."""
        deadline = time.monotonic() + (_RECOVERY_S if is_hit else 20.0)
        while time.monotonic() < deadline:
            fresh = [attempt for attempt in dict(self.observer.firsts) if attempt not in known]
            if record.kind in IN_PLACE and self.observer.reached.get(self.run.attempt(), 0) > record.step:
                fresh = [self.run.attempt()]
            if fresh or is_finished(self.run):
                record.survivor = fresh[-1] if fresh else self.run.attempts()[-1].attempt
                return
            if self._stands():
                self._help(record.kind)
                record.problem = record.problem or "the run stood still and was resumed by hand"
            time.sleep(0.05)
        if is_hit:
            record.problem = record.problem or f"no step for {_RECOVERY_S:.0f} s"
            self.run.verb("cancel")
            self.run.await_end(timeout_s=60)
            self._help(record.kind)

    def _stands(self) -> bool:
        """Whether no job of the run is live, and none comes."""
        deadline = time.monotonic() + _STANDS_S
        while time.monotonic() < deadline:
            if self.run.status().state.is_live or is_finished(self.run):
                return False
            time.sleep(0.1)
        return True

    def _help(self, when: str) -> None:
        attempts = self.run.attempts()
        said = f"{attempts[-1].outcome}, {attempts[-1].reason}; next: {attempts[-1].next}" if attempts else "no attempt"
        words = f"stood still ({said}) and was resumed"
        now = time.time()
        problem = f"{when}: {words}"
        self.tell(Record(kind="by hand", words=words, time=now, step=self.run.step(), hit=(), problem=problem))
        done = self.run.verb("resume")
        if done.returncode != 0 and not is_finished(self.run):
            raise RuntimeError(f"resume was refused: {done.stderr}")


def measure(records: Sequence[Record], attempts: Sequence[Attempt], observer: Observer) -> None:
    """Fill in what each fault cost: attempts.jsonl says when attempts ended, the observer when they began and trained.

    Detection is from the fault to the end of the ranks, requeue from there to the start of the next ones, start-up to
    their first step but for the load of the checkpoint.
    """
    by_name = {attempt.attempt: attempt for attempt in attempts}
    order = list(by_name)
    for record in records:
        survivor = by_name.get(record.survivor)
        if survivor is None or survivor.attempt not in observer.firsts or record.kind in IN_PLACE:
            continue
        first_time = observer.firsts[survivor.attempt][0]
        start_time = observer.starts.get(survivor.attempt, survivor.start_time)
        hit = [by_name[name] for name in record.hit if name in by_name]
        ended = hit[-1].end_time if hit and hit[-1].end_time is not None else None
        load_s = survivor.seconds.get("load")
        record.seconds = {
            "detection": None if ended is None else max(0.0, ended - record.time),
            "requeue": start_time - (record.time if ended is None else max(ended, record.time)),
            "start-up": first_time - start_time - (load_s or 0.0),
            "load": load_s,
            "total": first_time - record.time,
        }
        harmed = order.index(record.hit[0]) + 1 if record.hit and record.hit[0] in order else 0
        record.redone = sum(one.redone for one in attempts[harmed : order.index(survivor.attempt) + 1])


def tabulate(records: Sequence[Record]) -> dict[str, dict[str, float | None]]:
    """Sum up by kind: how many, how many survived, steps redone, mean seconds lost by part."""
    table = {}
    for kind in dict.fromkeys(record.kind for record in records):
        mine = [record for record in records if record.kind == kind]
        row: dict[str, float | None] = {
            "faults": len(mine),
            "survived": sum(not record.problem for record in mine),
            "redone": sum(record.redone for record in mine),
        }
        for part in ("detection", "requeue", "start-up", "load", "total"):
            known = [value for record in mine if (value := (record.seconds or {}).get(part)) is not None]
            row[part] = statistics.mean(known) if known else None
        table[kind] = row
    return table


def compare(reference: Run, run: Run, *, checkpoints_dir: Path, num_steps: int) -> list[str]:
    """Compare the ends of both runs; give a sentence for each difference."""
    problems = []
    wanted, found = reference.steps(), run.steps()
    if [line["step"] for line in found] != list(range(1, num_steps + 1)):
        problems.append(f"metrics.jsonl has {len(found)} lines instead of the steps 1 to {num_steps}, each once")
    for name in _SAME:
        pairs = zip(wanted, found, strict=False)
        differing = [a["step"] for a, b in pairs if a.get(name) != b.get(name)]
        if differing:
            problems.append(f"{name} differs in {len(differing)} steps, first in step {differing[0]}")
    if (run.run_dir.root / "skips.jsonl").exists():
        problems.append("samples were left out")
    return problems + compare_checkpoints(reference.run_dir.checkpoints_dir, checkpoints_dir, step=num_steps)


def compare_checkpoints(wanted_dir: Path, found_dir: Path, *, step: int) -> list[str]:
    """Compare weights and moments of two checkpoints of a step bit for bit, and what they say of their data."""
    paths = [layout.step_dir(directory, step=step) for directory in (wanted_dir, found_dir)]
    lost = [f"there is no {path}" for path in paths if not path.is_dir()]
    if lost:
        return lost
    wanted, found = (layout.read_index(path) for path in paths)
    problems = []
    if (wanted.dataset, wanted.tokens_per_step, wanted.seed) != (found.dataset, found.tokens_per_step, found.seed):
        problems.append("the last checkpoints are of other data")
    with TensorReader(paths[0], wanted) as ours, TensorReader(paths[1], found) as theirs:
        if ours.names() != theirs.names():
            problems.append("the last checkpoints hold other parameters")
            return problems
        for name in ours.names():
            for kind in layout.KINDS:
                pair = [reader.read(kind, name).contiguous().numpy().tobytes() for reader in (ours, theirs)]
                if pair[0] != pair[1]:
                    problems.append(f"{kind} of {name} differs")
    return problems


def print_table(table: Mapping[str, Mapping[str, float | None]]) -> None:
    """Print a row for each kind of fault."""
    parts = ("detection", "requeue", "start-up", "load", "total")
    print(f"\n{'fault':<20}{'survived':>10}{'redone':>8}" + "".join(f"{part:>11}" for part in parts))
    for kind, row in table.items():
        seconds = ["-" if (value := row[part]) is None else f"{value:.1f} s" for part in parts]
        survived = f"{row['survived']} of {row['faults']}"
        print(f"{kind:<20}{survived:>10}{row['redone']:>8}" + "".join(f"{text:>11}" for text in seconds))


def run_reference(root: Path, dataset: Path, arguments: Sequence[str]) -> Run:
    """Let the run go to its end undisturbed."""
    run = Run(root=root, name="reference", dataset=dataset)
    _submit(run, arguments)
    status = run.await_end(timeout_s=86400)
    if not is_finished(run):
        sys.exit(f"the run does not finish even undisturbed: {status}")
    return run


def time_step(root: Path, dataset: Path, arguments: Sequence[str]) -> float:
    """Give the seconds of a step, from a short run."""
    run = Run(root=root, name="timing", dataset=dataset)
    _submit(run, [*arguments, f"run.tokens={_TIMING_STEPS * 1024}", "checkpoint.save_every=50"])
    run.await_end(timeout_s=600)
    times = [line["time"] for line in run.steps()]
    if len(times) < _TIMING_STEPS:
        sys.exit(f"a run of {_TIMING_STEPS} steps did not finish: {run.run_dir.root}")
    return float(times[-1] - times[_TIMING_STEPS // 5]) / (_TIMING_STEPS * 4 / 5)


def _submit(run: Run, arguments: Sequence[str]) -> None:
    done = run.submit(*arguments)
    if done.returncode != 0:
        sys.exit(done.stderr)


def play(root: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Run the reference, then the disturbed run; give the figures."""
    dataset = make_dataset(root / "data")
    wanted_s = asked.minutes * 60 if asked.minutes else asked.hours * 3600
    settings = ["--nodes", "2", "--gpus-per-node", "1", f"parallel.stages={asked.stages}", *SETTINGS]
    step_s = time_step(root, dataset, settings)
    # Faults are struck while the run is ahead of the clock: with so many steps about half of the time goes to them.
    num_steps = max(400, int(asked.training * wanted_s / step_s))
    save_every = max(5, round(asked.save_s / step_s))
    settings += [f"run.tokens={num_steps * 1024}", f"checkpoint.save_every={save_every}"]
    print(f"{num_steps} steps of {step_s * 1000:.0f} ms, saved every {save_every}; reference ...", flush=True)
    reference = run_reference(root, dataset, settings)
    run = Run(root=root, name="chaos", dataset=dataset)
    disk_dir = root / "disk"
    with small_disk(disk_dir, num_bytes=DISK_BYTES) as disk_bytes, contextlib.closing(Observer(run)) as observer:
        checkpoints_dir = disk_dir if disk_bytes else run.run_dir.checkpoints_dir
        place = [f"checkpoint.dir={disk_dir}"] if disk_bytes else []
        scene = Scene(
            run=run, rng=random.Random(asked.seed), checkpoints_dir=checkpoints_dir, disk_bytes=disk_bytes
        )  # fmt: skip
        started = time.time()
        _submit(run, [*settings, *place])
        chaos = Chaos(scene, observer, num_steps=num_steps, end=started + wanted_s)
        chaos.disturb()
        chaos.finish()
        took_s = time.time() - started
        measure(chaos.records, run.attempts(), observer)
        problems = compare(reference, run, checkpoints_dir=checkpoints_dir, num_steps=num_steps)
    problems += [f"fault {number}: {one.problem}" for number, one in enumerate(chaos.records, 1) if one.problem]
    problems += [f"left behind: {words}" for words in _await_empty(root)]
    return {
        "seed": asked.seed,
        "seconds": took_s,
        "undisturbed_s": num_steps * step_s,
        "steps": num_steps,
        "faults": sum(one.kind != "by hand" for one in chaos.records),
        "attempts": len(run.attempts()),
        "redone": sum(attempt.redone for attempt in run.attempts()),
        "by_kind": tabulate(chaos.records),
        "records": [asdict(record) for record in chaos.records],
        "problems": problems,
    }


def _await_empty(root: Path) -> list[str]:
    """List what lives on after the end; a controller takes a moment to leave."""
    deadline = time.monotonic() + 10
    while (left := list_left(root)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def main() -> int:
    """Play, print the table; give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--hours", type=float, default=0.75, help="length of the disturbed run (default: %(default)s)")
    length.add_argument("--minutes", type=float, help="the same in minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: %(default)s)")
    parser.add_argument("--stages", type=int, choices=(1, 2), default=1, help="of 2 ranks (default: %(default)s)")
    parser.add_argument("--training", type=float, default=0.4, help="share of time for steps (default: %(default)s)")
    parser.add_argument("--save-s", type=float, default=1.5, help="seconds between saves (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs in a new directory")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        if asked.keep:
            asked.keep.mkdir(parents=True)
        root = (asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))).absolute()
        stack.enter_context(guarded(root))
        figures = play(root, asked)
    print_table(figures["by_kind"])
    print(
        f"\n{figures['faults']} faults in {figures['seconds'] / 60:.1f} min, {figures['attempts']} attempts, "
        f"{figures['redone']} of {figures['steps']} steps redone"
    )
    print("\n".join(figures["problems"]) or "losses, weights and moments equal the undisturbed run's bit for bit")
    if asked.json:
        print(json.dumps(figures))
    return 1 if figures["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
