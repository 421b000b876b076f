"""Check, freeze, submit: everything between the command and the queue."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit import storage
from toolkit.cluster.base import Cluster
from toolkit.cluster.choose import open_cluster
from toolkit.cluster.environment import fill_from_environment
from toolkit.cluster.partitions import PartitionLimits, find_partition
from toolkit.cluster.spec import JobSpec, ask_for_gpus, make_spec
from toolkit.config.check import check_config
from toolkit.config.load import COMMAND_LINE, Loaded
from toolkit.config.schema import ClusterSection, RunConfig
from toolkit.errors import ClusterError, ConfigError, Problem
from toolkit.launch.expected import Expected, expect, name_device
from toolkit.launch.gate.checks import raise_refusals, refuse_unknown, run_checks
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.finding import Finding
from toolkit.launch.gate.host import ask_for_memory
from toolkit.launch.gate.mistakes import check_health, check_partition, check_root, refuse_foreign_checkpoint
from toolkit.launch.gate.mounts import MOUNT_TABLE, read_mounts
from toolkit.launch.halt import refuse_live
from toolkit.launch.identity import original_of, refuse_shared_checkpoints
from toolkit.launch.jobs import state_dir
from toolkit.launch.ledger import JobRecord, find_job_record, read_attempts
from toolkit.launch.nodes import NodeLedger, choose_exclusions
from toolkit.launch.placement import fill_section, place, usable_nodes
from toolkit.launch.planning import Site
from toolkit.launch.prepare import PreparationJobs, ask_for, name_dataset, plan_jobs, stands
from toolkit.launch.progress import refuse_loss
from toolkit.launch.rehearsal import Rehearsal
from toolkit.launch.snapshot import name_code
from toolkit.monitor.wandb_env import fill_monitor
from toolkit.plan.search import Plan, TooLargeError, resolve
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
    known: JobRecord | None
    """The run's newest job when all this was looked at."""
    from_scratch: bool = False
    """The run begins again at step 0: what tells of its former life is put aside."""
    rehearsal: Rehearsal | None = None
    """A job that must be good first; None: none on the cluster."""
    code_dir: Path | None = None
    """Code that was rehearsed here; None: the code that is running is frozen."""

    @property
    def original(self) -> Path | None:
        """Give the directory of the run that this one was copied from, and becomes a run of its own now; else None."""
        return original_of(self.run_dir)


def prepare_request(
    loaded: Loaded, site: Site, *, accept: Sequence[str] = (), num_rehearsals: int = 0, from_scratch: bool = False
) -> Request:
    """Check everything and plan the run; writes nothing.

    Args:
        loaded: the configuration.
        site: what the site knows of its devices and of earlier runs.
        accept: names of checks whose refusals are overridden.
        num_rehearsals: jobs of a rehearsal that will be handed in before the run.
        from_scratch: whether a run whose checkpoints are gone is to begin again at step 0.

    Raises:
        ConfigError: with all mistakes that can be found before the queue.
        RefusedError: with all that checks refuse.
        RunError: the run is live already, or has checkpoints of another configuration.
    """
    refuse_unknown(accept)
    context = replace(look_around(loaded, site, accept=accept), num_rehearsals=num_rehearsals)
    findings = run_checks(context, accept=accept)
    raise_refusals(findings)
    refuse_foreign_checkpoint(context.cfg, context.run_dir)
    refuse_shared_checkpoints(context.run_dir, context.cfg)
    refuse_loss(context.run_dir, context.cfg, accept=accept, from_scratch=from_scratch)
    device = name_device(context.plan.hardware, _name_scheduler(context.cfg.cluster, context.cluster))
    attempts_before = 0 if from_scratch else len(read_attempts(context.run_dir))
    return Request(
        cluster=context.cluster,
        run_dir=context.run_dir,
        asked=_settle(loaded),
        plan=context.plan,
        expected=expect(context.plan, device=device, site_dir=site.folder, attempts_before=attempts_before),
        spec=context.spec,
        script=context.cluster.render(context.spec),
        findings=tuple(findings),
        preparation=_plan_preparation(context.cfg, context.partition),
        left_out=dict(context.left_out),
        known=None if original_of(context.run_dir) else find_job_record(context.run_dir),
        from_scratch=from_scratch,
    )


def look_around(loaded: Loaded, site: Site, *, accept: Sequence[str] = ()) -> Context:
    """Fill and plan the run, and collect what the checks judge.

    Args:
        loaded: the configuration.
        site: what the site knows of its devices and of earlier runs.
        accept: names of checks whose refusals are overridden.

    Raises:
        ConfigError: with all mistakes that can be found before the queue.
        RunError: the run is live already.
    """
    cluster = open_cluster(loaded.config.cluster.scheduler, state_dir=state_dir(Path(loaded.config.run.root)))
    cfg, partition = _fill(loaded, cluster, checks=(check_root, check_partition, check_health))
    run_dir = RunDir(Path(cfg.run.root) / cfg.run.name)
    refuse_live(run_dir, accept=accept)
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
        asked=loaded.config.cluster,
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


def _absolute_if_there(name: str) -> str:
    """Leave a name on the Hub as it is."""
    return storage.make_absolute(name) if storage.is_local(name) and storage.exists(name) else name


def _fill(
    loaded: Loaded,
    cluster: Cluster,
    *,
    checks: Sequence[Callable[[RunConfig, PartitionLimits], list[Problem]]],
) -> tuple[RunConfig, PartitionLimits]:
    """Take what is open from the shell and the partition, and raise all mistakes of the configuration at once."""
    cfg, partition, limits = _settle(loaded), None, cluster.limits()
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


def _settle(loaded: Loaded) -> RunConfig:
    """Settle what must not depend on where, and from which shell, the run is submitted next."""
    cfg = _make_absolute(_place_source(loaded))
    return replace(cfg, monitor=fill_monitor(cfg.monitor, os.environ))


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
        work_dir=name_code(run_dir.code_dir),
        log_dir=run_dir.logs_dir,
        nodes=section.nodes,
        tasks_per_node=section.gpus_per_node,
    )
    spec = replace(spec, epilogue=(sys.executable, "-m", "toolkit.launch.after", str(run_dir.root)))
    return ask_for_gpus(spec, section, partition)
