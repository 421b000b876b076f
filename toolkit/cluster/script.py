"""The batch script of a job, by submitit's renderer. Pure.

submitit's executor would pickle the function and refuses to exist without srun, so a dry run on a laptop could not show
the script; its renderer is pure. It leaves out --requeue, --kill-on-bad-exit, the CPUs of srun and --chdir.

Source: submitit 1.5.4, slurm/slurm.py; Slurm 22.05.
"""

import itertools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.cluster.hostlist import shorten_nodes
from toolkit.cluster.marks import write_comment
from toolkit.cluster.shell import write_setup
from toolkit.cluster.spec import JobSpec

_RANK_LOG = "@RANK_LOG@"
_TASK_LOG = "%j_%t_log.out"
_FLAG = "#SBATCH --"
_INSTEAD = {
    "requeue": {"no-requeue"},
    "no-requeue": {"requeue"},
    "mem": {"mem-per-cpu", "mem-per-gpu"},
    "gpus-per-node": {"gpus", "gpus-per-task", "gpus-per-socket"},
    "ntasks-per-node": {"ntasks-per-gpu"},
    "cpus-per-task": {"cpus-per-gpu"},
}
"""Flags of ours, and those that say the same in another way."""


def render_script(spec: JobSpec) -> str:
    """Write the batch script."""
    # deferred: costs 0.13 s, and most verbs do without
    from submitit.slurm.slurm import _make_sbatch_string  # noqa: PLC0415

    text: str = _make_sbatch_string(
        command=spec.command_line,
        folder=spec.log_dir,
        job_name=spec.name,
        partition=spec.partition,
        time=_minutes(spec.time_limit_s),
        nodes=spec.nodes,
        ntasks_per_node=spec.tasks_per_node,
        cpus_per_task=spec.cpus_per_task,
        qos=spec.qos,
        account=spec.account,
        constraint=spec.constraint,
        exclude=shorten_nodes(spec.exclude) or None,
        dependency=spec.dependency,
        mem=spec.mem_per_node,
        signal_delay_s=spec.signal_delay_s,
        wckey=None,
        stderr_to_stdout=True,
        setup=_setup(spec),
        additional_parameters=_parameters(spec),
        srun_args=[
            f"--kill-on-bad-exit={0 if spec.epilogue else 1}",
            "--wait=60",
            "--output",
            _RANK_LOG,
            *spec.srun_extra,
        ],
    )
    head, mark, srun = text.rpartition("\nsrun ")
    assert mark, "submitit's script has no srun line"
    # submitit's own file of each task; srun would take the later one all the same
    srun = srun.replace(f" --output {shlex.quote(f'{spec.log_dir}/{_TASK_LOG}')}", "", 1)
    # srun's file names know the job's id but not how often it was requeued; submitit quotes variables.
    srun = srun.replace(_RANK_LOG, f"{_attempt_logs(_escape(spec.log_dir))}/%t.out", 1)
    return _apply_extra(f"{head}\n{_end(f'srun {srun}', spec)}", _add_mark(spec))


def _add_mark(spec: JobSpec) -> dict[str, Any]:
    """Write the job's mark into its comment, behind what the user wants to stand there."""
    extra = dict(spec.sbatch_extra)
    if spec.mark:
        extra["comment"] = write_comment(str(extra.get("comment") or ""), spec.mark)
    return extra


def _end(srun: str, spec: JobSpec) -> str:
    """Let srun's end not be the script's where something comes after it."""
    if not spec.epilogue:
        return srun
    log = f"{_attempt_logs(str(spec.log_dir))}/epilogue.out"
    after = f'{spec.epilogue_line} "$code" >>{log} 2>&1'
    return f"source sbatch/tasks.sh\nrun_tasks {srun.rstrip()}\n\n# epilogue\n{after}\n"


def _parameters(spec: JobSpec) -> dict[str, object]:
    parameters: dict[str, object] = {
        "chdir": spec.work_dir,
        "requeue" if spec.requeue else "no-requeue": True,
        "output": f"{_escape(spec.log_dir)}/{'%A_%a' if spec.array else '%j'}.batch.out",
    }
    if spec.time_limit_s is None:
        parameters["time"] = "UNLIMITED"  # without a word it would be the partition's default, often minutes
    if spec.reservation:
        parameters["reservation"] = spec.reservation
    if spec.array:
        parameters["array"] = ",".join(map(str, spec.array))
    if spec.dependency:
        parameters["kill-on-invalid-dep"] = "yes"
    if spec.gpus_per_node:
        kind = f"{spec.gpu_type}:" if spec.gpu_type else ""
        parameters["gpus-per-node"] = f"{kind}{spec.gpus_per_node}"
    return parameters


def _apply_extra(text: str, extra: Mapping[str, Any]) -> str:
    """Let the flags of a user take the place of those that say the same; null and false leave nothing there."""
    given = {name.replace("_", "-"): value for name, value in extra.items()}
    wanted = {name: value for name, value in given.items() if value is not None and value is not False}
    gone = {*given, *(flag for flag, others in _INSTEAD.items() if others & set(wanted))}
    if "gpu" in str(wanted.get("gres", "")):
        gone.add("gpus-per-node")
    lines = text.split("\n")
    first = next(index for index, line in enumerate(lines) if line.startswith(_FLAG))
    flags = list(itertools.takewhile(lambda line: line.startswith(_FLAG), lines[first:]))
    kept = [line for line in flags if line.removeprefix(_FLAG).partition("=")[0] not in gone]
    added = [
        f"{_FLAG}{name}" if value is True else f"{_FLAG}{name}={shlex.quote(str(value))}"
        for name, value in wanted.items()
    ]
    return "\n".join([*lines[:first], *sorted([*kept, *added]), *lines[first + len(flags) :]])


def _setup(spec: JobSpec) -> list[str]:
    # -u comes after the site's lines: the scripts behind `module` read variables that are not set
    lines = ["set -u", "source sbatch/env.sh", f"mkdir -p {_attempt_logs(str(spec.log_dir))}"]
    return [*write_setup(spec.setup, spec.env), *lines]


def _attempt_logs(log_dir: str) -> str:
    return f'{shlex.quote(log_dir)}/"$TOOLKIT_ATTEMPT"'


def _escape(path: Path) -> str:
    """Write a path for --output, where Slurm puts something else in the place of `%j` and the like."""
    return str(path).replace("%", "%%")


def _minutes(seconds: int | None) -> int | None:
    return None if seconds is None else max(1, -(-seconds // 60))
