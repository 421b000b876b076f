"""Check, freeze, submit: everything between the command and the queue."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit import storage
from toolkit.cluster.base import (
    Cluster,
    JobSpec,
    JobState,
    ask_for_gpus,
    make_spec,
)
from toolkit.cluster.choose import open_cluster
from toolkit.cluster.partitions import PartitionLimits, find_partition
from toolkit.cluster.slurm import fill_from_environment
from toolkit.config.check import check_config
from toolkit.config.load import COMMAND_LINE, Loaded, dump_config
from toolkit.config.schema import ClusterSection, RunConfig
from toolkit.errors import ClusterError, ConfigError, Problem, RunError, StorageError, ToolkitError
from toolkit.launch.expected import Expected, expect, name_device, write_expected
from toolkit.launch.gate.checks import raise_refusals, refuse_unknown, run_checks
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.finding import Finding
from toolkit.launch.gate.host import ask_for_memory
from toolkit.launch.gate.mistakes import check_partition, refuse_foreign_checkpoint
from toolkit.launch.gate.mounts import MOUNT_TABLE, read_mounts
from toolkit.launch.jobs import find_job, job_status, state_dir
from toolkit.launch.ledger import JobRecord, find_job_record, read_attempts, write_job_record
from toolkit.launch.nodes import NodeLedger, choose_exclusions
from toolkit.launch.placement import fill_section, place, usable_nodes
from toolkit.launch.planning import Site
from toolkit.launch.prepare import PreparationJobs, ask_for, name_dataset, plan_jobs, stands, submit_jobs
from toolkit.launch.rehearsal import Rehearsal, claim, hand_in
from toolkit.launch.snapshot import freeze_code
from toolkit.plan.search import Plan, TooLargeError, plan_text, resolve
from toolkit.rundir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A run as it would be submitted; nothing has been written yet."""

    cluster: Cluster
    run_dir: RunDir
    asked: RunConfig
    """What the plan fills is still open in it."""
    plan: Plan
    expected: Expected
    spec: JobSpec
    script: str
    findings: tuple[Finding, ...]
    """Of all checks; none of them refuses the run."""
    preparation: PreparationJobs | None
    """Jobs that make the dataset first; None: it stands."""
    left_out: dict[str, str]
    """Nodes that the job does not use because of what they did before, with the reason."""
    rehearsal: Rehearsal | None = None
    """A job that must be good first; None: none on the cluster."""
    code_dir: Path | None = None
    """Frozen code that was rehearsed here; None: the code that is running is frozen."""


def prepare_request(loaded: Loaded, site: Site, *, accept: Sequence[str] = (), num_rehearsals: int = 0) -> Request:
    """Check everything and plan the run; writes nothing.

    Args:
        loaded: the configuration.
        site: what the site knows of its devices and of earlier runs.
        accept: names of checks whose refusals are overridden.
        num_rehearsals: jobs of a rehearsal that will be handed in before the run.

    Raises:
        ConfigError: with all mistakes that can be found before the queue.
        RefusedError: with all that checks refuse.
        RunError: the run is live already, or has checkpoints of another configuration.
    """
    refuse_unknown(accept)
    context = replace(look_around(loaded, site), num_rehearsals=num_rehearsals)
    findings = run_checks(context, accept=accept)
    raise_refusals(findings)
    refuse_foreign_checkpoint(context.cfg, context.run_dir)
    device = name_device(context.plan.hardware, _name_scheduler(context.cfg.cluster, context.cluster))
    attempts_before = len(read_attempts(context.run_dir))
    return Request(
        cluster=context.cluster,
        run_dir=context.run_dir,
        asked=_make_absolute(_place_source(loaded)),
        plan=context.plan,
        expected=expect(context.plan, device=device, site_dir=site.folder, attempts_before=attempts_before),
        spec=context.spec,
        script=context.cluster.render(context.spec),
        findings=tuple(findings),
        preparation=_plan_preparation(context.cfg, context.partition),
        left_out=dict(context.left_out),
    )


def look_around(loaded: Loaded, site: Site) -> Context:
    """Fill and plan the run, and collect what the checks judge.

    Raises:
        ConfigError: with all mistakes that can be found before the queue.
        RunError: the run is live already.
    """
    cluster = open_cluster(loaded.config.cluster.scheduler, state_dir=state_dir(Path(loaded.config.run.root)))
    cfg, partition = _fill(loaded, cluster, checks=(check_partition,))
    run_dir = RunDir(Path(cfg.run.root) / cfg.run.name)
    refuse_live(run_dir)
    plan, too_large = _plan(cfg, site, cluster)
    left_out = _leave_out(plan.cfg, cluster)
    spec = ask_for_memory(_make_spec(plan.cfg, run_dir, partition), plan, partition)
    return Context(
        plan=plan,
        too_large=too_large,
        cluster=cluster,
        spec=replace(spec, exclude=tuple(dict.fromkeys([*spec.exclude, *left_out]))),
        partition=partition,
        run_dir=run_dir,
        environ=os.environ,
        home=Path.home(),
        python=Path(sys.executable),
        prefix=Path(sys.prefix),
        mounts=read_mounts(MOUNT_TABLE.read_text(encoding="utf-8")) if MOUNT_TABLE.is_file() else (),
        left_out=left_out,
    )


def _plan(cfg: RunConfig, site: Site, cluster: Cluster) -> tuple[Plan, Problem | None]:
    """Plan the run; where nothing fits, give the nearest plan and why it does not."""
    section = _name_scheduler(cfg.cluster, cluster)
    hardware = site.find_hardware(section)
    device = name_device(hardware, section)
    try:
        return resolve(cfg, hardware=hardware, calibration=site.calibrate(device)), None
    except TooLargeError as error:
        return error.nearest, error.problems[0]


def _leave_out(cfg: RunConfig, cluster: Cluster) -> dict[str, str]:
    bad = NodeLedger(Path(cfg.run.root)).excluded(time.time())
    if not bad:
        return {}
    usable = usable_nodes(cluster, cfg.cluster)
    return {node: bad[node].reason for node in choose_exclusions(bad, usable, cfg.cluster.nodes)}


def _plan_preparation(cfg: RunConfig, partition: PartitionLimits) -> PreparationJobs | None:
    if not cfg.data.source:
        return None
    asked, out = ask_for(cfg.data)
    if stands(out):
        return None
    return plan_jobs(
        asked, out=out, root=Path(cfg.run.root), num_tasks=cfg.cluster.nodes, section=cfg.cluster, partition=partition
    )


def fill_for_plan(loaded: Loaded) -> RunConfig:
    """Fill in the cluster without asking for a run's data or directory: for a look ahead on any machine.

    Where nodes would be emulated the run is planned for another machine, and may be larger than this one.
    """
    cluster = open_cluster(loaded.config.cluster.scheduler, state_dir=state_dir(Path(loaded.config.run.root)))
    cfg, _ = _fill(loaded, cluster, checks=() if cluster.name == "local" else (check_partition,))
    return replace(cfg, cluster=_name_scheduler(cfg.cluster, cluster))


def _name_scheduler(section: ClusterSection, cluster: Cluster) -> ClusterSection:
    return replace(section, scheduler="local" if cluster.name == "local" else "slurm")


def carry_out(request: Request) -> str:
    """Write the run directory, freeze the code, hand the job in; give its id.

    Raises:
        StorageError: the run directory cannot be written.
        ClusterError: the scheduler refused after all; a run directory that is new is taken away again.
    """
    run_dir = request.run_dir
    is_new = not run_dir.root.exists()
    attempts_before = len(read_attempts(run_dir))  # before the job can add its own
    try:
        _write_run_dir(request)
        prepared_by = submit_jobs(request.preparation, request.cluster) if request.preparation else None
        dependency = f"afterok:{prepared_by}" if prepared_by else None
        job_id = _hand_in(replace(request, spec=replace(request.spec, dependency=dependency)))
    except ToolkitError:
        if is_new:
            shutil.rmtree(run_dir.root, ignore_errors=True)
        raise
    record = JobRecord(
        scheduler=request.cluster.name,
        job_id=job_id,
        attempts_before=attempts_before,
        prepared_in=str(request.preparation.jobs_dir) if request.preparation is not None else None,
        rehearsed_in=str(request.rehearsal.run_dir.root) if request.rehearsal is not None else None,
    )
    write_job_record(run_dir, record)
    return job_id


def _hand_in(request: Request) -> str:
    """Hand in the job of the run, behind that of its rehearsal where there is one; give its id."""
    if request.rehearsal is None:
        return request.cluster.submit(request.spec, script_path=request.run_dir.script_path)
    with claim(request.rehearsal):
        code_dir, dependency = request.run_dir.code_dir, request.spec.dependency
        rehearsed_by = hand_in(request.rehearsal, code_dir=code_dir, dependency=dependency)
    try:
        spec = replace(request.spec, dependency=f"afterok:{rehearsed_by}")
        return request.cluster.submit(spec, script_path=request.run_dir.script_path)
    except ToolkitError:
        request.cluster.cancel(rehearsed_by)
        raise


def _write_run_dir(request: Request) -> None:
    run_dir = request.run_dir
    try:
        run_dir.logs_dir.mkdir(parents=True, exist_ok=True)
        run_dir.root.chmod(0o700)  # its code is executed
        freeze_code(run_dir.code_dir, source_dir=request.code_dir)
    except OSError as error:
        raise StorageError(
            f"cannot write {run_dir.root}: {error.strerror}\n  the run lives there\n  free space, or set run.root"
        ) from error
    run_dir.halt_path.unlink(missing_ok=True)
    storage.write_atomic(str(run_dir.asked_path), dump_config(request.asked).encode())
    storage.write_atomic(str(run_dir.config_path), dump_config(request.plan.cfg).encode())
    storage.write_atomic(str(run_dir.plan_path), plan_text(request.plan).encode())
    write_expected(run_dir, request.expected)


def halt(run_dir: RunDir, *, how: str) -> tuple[str, JobState]:
    """Let a run stand still until it is submitted again.

    Args:
        run_dir: the run.
        how: `stop` lets a job that runs save first; `cancel` ends it now.

    Returns:
        The job, and what it was doing.

    Raises:
        RunError: it has no job that waits or runs.
    """
    job = find_job(run_dir)
    status = job[0].state(job[1]) if job else None
    if job is None or status is None or not status.state.is_live:
        raise RunError(f"run {run_dir.name} has no live job\n  `python -m toolkit status {run_dir.name}` shows it")
    storage.write_atomic(str(run_dir.halt_path), f"{how}\n".encode())  # first: what comes after a job looks for it
    if how == "stop" and status.state is JobState.RUNNING:
        job[0].signal(job[1], "TERM")
    else:
        job[0].cancel(job[1])
        _cancel_rehearsal(run_dir, job[0])
    return job[1], status.state


def _cancel_rehearsal(run_dir: RunDir, cluster: Cluster) -> None:
    record = find_job_record(run_dir)
    status = job_status(RunDir(Path(record.rehearsed_in))) if record and record.rehearsed_in else None
    if status is not None and status.state.is_live:
        cluster.cancel(status.job_id)


def _absolute_if_there(name: str) -> str:
    """Leave a name on the Hub as it is."""
    return storage.make_absolute(name) if storage.is_local(name) and storage.exists(name) else name


def refuse_live(run_dir: RunDir) -> None:
    """Raise when a job of the run is waiting or running."""
    status = job_status(run_dir)
    if status is not None and status.state.is_live:
        raise RunError(
            f"run {run_dir.name} is live: job {status.job_id} is {status.state.value}\n"
            "  a run has one job at a time\n"
            f"  wait, or type: python -m toolkit cancel {run_dir.name}; another run: --name NAME"
        )


def _fill(
    loaded: Loaded,
    cluster: Cluster,
    *,
    checks: Sequence[Callable[[RunConfig, PartitionLimits], list[Problem]]],
) -> tuple[RunConfig, PartitionLimits]:
    """Take what is open from the shell and the partition, and raise all mistakes of the configuration at once."""
    cfg, partition, limits = _make_absolute(_place_source(loaded)), None, cluster.limits()
    if cluster.name == "slurm":
        cfg = replace(cfg, cluster=fill_from_environment(cfg.cluster, os.environ))
    try:
        partition = place(find_partition(limits, cfg.cluster.partition), cfg.cluster)
        cfg = replace(cfg, cluster=fill_section(cfg.cluster, partition))
        problems = [problem for check in checks for problem in check(cfg, partition)]
    except ClusterError as error:
        problems = [Problem.parse(str(error))]
    problems = [*check_config(cfg, loaded.origins), *problems]
    if problems:
        raise ConfigError(problems)
    assert partition is not None, "a partition that does not exist was not refused"
    return cfg, partition


def _place_source(loaded: Loaded) -> RunConfig:
    """Give text that is named on the command line a dataset of its own, unless that is named there too."""
    cfg, origins = loaded.config, loaded.origins
    is_new = origins["data.source"] == COMMAND_LINE != origins["data.path"]
    if not is_new or not cfg.data.source:
        return cfg
    return replace(cfg, data=replace(cfg.data, path=name_dataset(cfg.data)))


def _make_absolute(cfg: RunConfig) -> RunConfig:
    """Make paths absolute: the job starts elsewhere."""
    data = replace(
        cfg.data,
        path=storage.make_absolute(cfg.data.path) if cfg.data.path else None,
        mixture={storage.make_absolute(path): weight for path, weight in cfg.data.mixture.items()},
        source=[storage.make_absolute(name) for name in cfg.data.source],
        tokenizer=_absolute_if_there(cfg.data.tokenizer) if cfg.data.tokenizer else None,
    )
    checkpoint = replace(cfg.checkpoint, dir=storage.make_absolute(cfg.checkpoint.dir) if cfg.checkpoint.dir else None)
    run = replace(cfg.run, root=storage.make_absolute(cfg.run.root))
    return replace(cfg, data=data, checkpoint=checkpoint, run=run)


def _make_spec(cfg: RunConfig, run_dir: RunDir, partition: PartitionLimits) -> JobSpec:
    section = cfg.cluster
    assert section.gpus_per_node is not None, "cluster.gpus_per_node is not resolved"
    spec = make_spec(
        section,
        name=cfg.run.name,
        command=(sys.executable, "-m", "toolkit.launch.job", str(run_dir.root)),
        work_dir=run_dir.code_dir,
        log_dir=run_dir.logs_dir,
        nodes=section.nodes,
        tasks_per_node=section.gpus_per_node,
    )
    spec = replace(spec, epilogue=(sys.executable, "-m", "toolkit.launch.after", str(run_dir.root)))
    return ask_for_gpus(spec, section, partition)
