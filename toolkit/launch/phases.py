"""What a rehearsal came through, and what went wrong: its run directory read."""

from pathlib import Path

from toolkit.checkpoint import layout
from toolkit.checkpoint.upload import list_remote
from toolkit.cluster.base import JobState, JobStatus
from toolkit.config.schema import RunConfig
from toolkit.errors import Problem, ToolkitError
from toolkit.launch.identity import read_config
from toolkit.launch.ledger import read_attempts, read_failures
from toolkit.launch.shrink import NUM_STEPS
from toolkit.monitor import metrics
from toolkit.monitor.history import read_steps
from toolkit.rundir import RunDir


def count(number: int, noun: str) -> str:
    """Write a number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def list_phases(run_dir: RunDir, cfg: RunConfig) -> list[str]:
    """Say what a rehearsal has come through, in order."""
    attempts = read_attempts(run_dir)
    if not attempts:
        return []
    first, last = attempts[0], attempts[-1]
    phases = [f"started: {count(cfg.world_size, 'rank')} on {count(cfg.cluster.nodes, 'node')}, all connected"]
    steps = read_steps(run_dir.metrics_path)
    if steps:
        phases.append(f"first step done: loss {steps[0][metrics.LOSS]:.3f}")
    saved = layout.list_steps(run_dir.find_checkpoints(cfg.checkpoint.dir))
    if steps and saved:
        phases.append(f"saved in {run_dir.find_checkpoints(cfg.checkpoint.dir)}")
    if first.outcome == "REQUEUE" and first.next:
        phases.append(f"stopped after step {first.last_step} as at a time limit, saved: {first.next}")
    if len(attempts) > 1 and last.first_step:
        phases.append(f"went on from the checkpoint of step {last.first_step}")
    if last.outcome == "FINISHED":
        phases.append(f"finished step {last.last_step}")
    return phases


def find_trouble(run_dir: RunDir, status: JobStatus) -> Problem | None:
    """Say why the job of a rehearsal that has ended was not good; None: it was."""
    attempts = read_attempts(run_dir)
    is_done = bool(attempts) and attempts[-1].outcome == "FINISHED"
    if is_done and status.state is not JobState.FAILED:
        return None
    attempt = attempts[-1].attempt if attempts else f"{status.job_id}.{status.restarts}"
    causes = [failure for failure in read_failures(run_dir, attempt) if not failure.is_echo]
    if causes:
        cause = causes[0]
        what, *rest = cause.error.splitlines()
        log_path = run_dir.rank_log_path(attempt, rank=cause.rank)
        who = f"rank {cause.rank} on {cause.node}"
        must = "\n  ".join(line.strip() for line in rest) or "the run would fail alike"
        return Problem(f"the rehearsal failed: {who}: {what}", must, f"log: {log_path}")
    if status.state is JobState.CANCELLED:
        see = f"see {run_dir.logs_dir}"
        return Problem("the rehearsal was cancelled", "the run starts only after a good one", see)
    log_path = run_dir.attempt_dir(attempt) / "epilogue.out" if is_done else _find_log(run_dir, attempt, status)
    words = _last_line(log_path)
    who = status.exit_note or status.reason or status.state.value
    how = f"{who}: {words}" if words else who
    return Problem(f"the rehearsal failed: {how}", "it ended before a rank could say why", f"log: {log_path}")


def find_gap(run_dir: RunDir) -> Problem | None:
    """Look whether a rehearsal that has finished came through everything."""
    cfg, attempts = read_config(run_dir), read_attempts(run_dir)
    must = "the run would not go on by itself either"
    see = f"see {run_dir.logs_dir}"
    if not any(one.outcome == "REQUEUE" for one in attempts) or not attempts[-1].first_step:
        return Problem("the rehearsal finished, but did not stop and go on from a checkpoint", must, see)
    if cfg.checkpoint.mirror_url is None:
        return None
    try:
        steps = list_remote(cfg.checkpoint.mirror_url)
    except ToolkitError as error:
        return Problem.parse(f"the rehearsal finished, but {error}")
    if NUM_STEPS in steps:
        return None
    what = f"the rehearsal finished, but its checkpoint is not in {cfg.checkpoint.mirror_url}"
    return Problem(what, "copies of the run's checkpoints go there", see)


def _find_log(run_dir: RunDir, attempt: str, status: JobStatus) -> Path:
    words = status.exit_note.split()
    rank = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    is_epilogue = status.exit_note.startswith("epilogue")
    places = [
        run_dir.attempt_dir(attempt) / "epilogue.out" if is_epilogue else run_dir.rank_log_path(attempt, rank=rank),
        run_dir.batch_log_path(status.job_id),  # its first lines failed: there was no rank
    ]
    return next((path for path in places if path.is_file() and path.stat().st_size), places[0])


def _last_line(path: Path) -> str:
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
