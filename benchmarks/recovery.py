"""What a fault costs a run on emulated nodes: from a signal to the saved state, and from a fault to the next step.

Each kind of fault strikes a tiny run some times, one after the other, each time after some undisturbed steps. All
ranks share this machine's cores: start-up is longer than on nodes of their own, the rest is not.
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
from pathlib import Path

from chaos import DISK_BYTES, SETTINGS, Chaos, Record, measure, print_table, tabulate
from emulated import Observer, Run, guarded, make_dataset
from faults import FAULTS, Scene, small_disk

from toolkit.checkpoint import layout

_SIGNALS = ("USR2", "stop, resume", "preempted")
_TRAINS_S = 120.0


def main() -> None:
    """Strike, and print tables, or JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key.path=value", help="change a value, for a larger model")
    parser.add_argument("--rounds", type=int, default=3, help="faults of each kind (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=sorted(FAULTS), default=list(FAULTS), help="(default: all)")
    parser.add_argument("--stages", type=int, choices=(1, 2), default=1, help="of 2 ranks (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is hit (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="recovery-") as directory, guarded(Path(directory)):
        records, saved = strike(Path(directory), asked)
    table = tabulate(records)
    print_table(table)
    print("\nfrom the signal to the saved state:")
    for kind, seconds in saved.items():
        print(f"  {kind:<18}{statistics.median(seconds):6.2f} s (longest {max(seconds):.2f} s, {len(seconds)} saves)")
    if asked.json:
        print(json.dumps({"by_kind": table, "signal_to_saved_s": saved}))
    if any(record.problem for record in records):
        sys.exit(1)


def strike(root: Path, asked: argparse.Namespace) -> tuple[list[Record], dict[str, list[float]]]:
    """Start the run and strike it; give the records, and the seconds from signals to saved states."""
    run = Run(root=root, name="recovery", dataset=make_dataset(root / "data"))
    saved: dict[str, list[float]] = {}
    disk = small_disk(root / "disk", num_bytes=DISK_BYTES) if not asked.settings else contextlib.nullcontext(0)
    with disk as disk_bytes, contextlib.closing(Observer(run)) as observer:
        place = [f"checkpoint.dir={root / 'disk'}"] if disk_bytes else []
        layout_settings = ["--nodes", "2", "--gpus-per-node", "1", f"parallel.stages={asked.stages}"]
        done = run.submit(
            *layout_settings, *SETTINGS, "run.tokens=1e9", "checkpoint.save_every=40", *place, *asked.settings
        )
        if done.returncode != 0:
            sys.exit(done.stderr)
        checkpoints_dir = root / "disk" if disk_bytes else run.run_dir.checkpoints_dir
        rng = random.Random(asked.seed)
        scene = Scene(run=run, rng=rng, checkpoints_dir=checkpoints_dir, disk_bytes=disk_bytes)
        chaos = Chaos(scene, observer, num_steps=10**6, end=time.time() + 86400)
        kinds = [kind for kind in FAULTS if kind in asked.kinds and (kind != "disk full" or disk_bytes)]
        for kind in kinds * asked.rounds:
            _await_training(chaos)
            record = chaos.strike(kind)
            if record is None:
                continue
            chaos.tell(record)
            seconds = find_saved(record, chaos)
            if kind in _SIGNALS and seconds is not None:
                saved.setdefault(kind, []).append(seconds)
        run.verb("cancel")
        run.await_end(timeout_s=60)
        measure(chaos.records, run.attempts(), observer)
    return chaos.records, saved


def find_saved(record: Record, chaos: Chaos) -> float | None:
    """Give the seconds from a signal until the checkpoint was complete that the next attempt began with.

    None where it had been saved before: the grace was too short.
    """
    survivor = next((one for one in chaos.run.attempts() if one.attempt == record.survivor), None)
    if survivor is None or survivor.first_step is None:
        return None
    marker = layout.step_dir(chaos.scene.checkpoints_dir, step=survivor.first_step) / layout.MARK_NAME
    with contextlib.suppress(FileNotFoundError):
        seconds = marker.stat().st_mtime - record.time
        return seconds if seconds > 0 else None
    return None


def _await_training(chaos: Chaos) -> None:
    """Wait until the attempt has made 100 steps, so that two checkpoints are there and the watchdog knows a step."""
    deadline = time.monotonic() + _TRAINS_S
    while time.monotonic() < deadline:
        attempt = chaos.run.attempt()
        first = chaos.observer.firsts.get(attempt)
        if first is not None and chaos.observer.reached.get(attempt, 0) >= first[1] + 100:
            return
        time.sleep(0.05)
    sys.exit(f"the run does not train: {chaos.run.status()}")


if __name__ == "__main__":
    main()
