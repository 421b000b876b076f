"""A rehearsal of a run: the same job, shrunk, on emulated nodes here or in the real partition before the run.

    ROOT/.rehearsals/NAME/   lock   .cluster/ (jobs of emulated nodes)   NAME/ (a run directory like any other)

It saves where the run will, in a folder of its own. When it has finished it deletes all that; else ROOT/... stays.
"""

import contextlib
import fcntl
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from toolkit import storage
from toolkit.cluster.base import Cluster
from toolkit.cluster.local import LocalCluster
from toolkit.cluster.marks import new_mark
from toolkit.cluster.spec import JobSpec, make_spec
from toolkit.config.load import dump_config
from toolkit.config.schema import RunConfig
from toolkit.errors import Problem, RefusedError, RunError, StorageError, ToolkitError
from toolkit.launch.identity import settle
from toolkit.launch.jobs import job_status, state_dir
from toolkit.launch.ledger import JobRecord, find_job_record, write_job_record
from toolkit.launch.phases import find_gap, find_trouble, list_phases
from toolkit.launch.prepare import stands
from toolkit.launch.shrink import ON_CPU, ON_GPU, shrink
from toolkit.launch.snapshot import freeze_code, name_code
from toolkit.launch.start import ask_whether
from toolkit.modes import private_files
from toolkit.rundir import RunDir

log = logging.getLogger(__name__)

FOLDER = ".rehearsals"
LIMIT_S = 300  # of one start of its job
PATIENCE_S = 600.0  # of somebody who waits for it at the prompt
# measured: 250 to 420 MiB, 1.2 GiB with 128,256 rows of 64
_RANK_BYTES = 400 << 20
_ROW_BYTES = 100  # an element of the embedding: weight, gradient, moments, copies, and logits
_POLL_S = 0.1
_END_S = 30.0  # a job that is cancelled takes no longer
_OWN_ADDRESSES = ("GLOO_SOCKET_IFNAME", "MASTER_ADDR", "MASTER_PORT")  # emulated nodes have theirs on this machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """A rehearsal as it would be; nothing has been written yet."""

    cfg: RunConfig
    """Shrunk."""
    run_dir: RunDir
    cluster: Cluster
    spec: JobSpec
    not_seen: tuple[str, ...]
    """What of the run it does not try."""
    new_dirs: tuple[Path, ...]
    """Directories that it has to make around its folders, inner ones first."""

    @property
    def folder(self) -> Path:
        """All that it writes, but for checkpoints where the run has another place for them."""
        return self.run_dir.root.parent


def plan_here(cfg: RunConfig) -> Rehearsal:
    """Plan a rehearsal on emulated nodes of this machine.

    Args:
        cfg: of the run, with nothing open.

    Raises:
        RunError: its dataset is still to be made.
        RefusedError: this machine is too small for it.
    """
    if cfg.data.source and cfg.data.path and not stands(cfg.data.path):
        raise RunError(
            f"{cfg.data.path} is not made yet\n  a rehearsal here reads the tokens of the run\n"
            "  add --on-cluster: the jobs that make them come first, then the rehearsal, then the run;\n"
            "  or make them with data_prep/tokenize_corpus.py"
        )
    small = _settle(shrink(cfg, ON_CPU))
    _refuse_crowd(small)
    env = {name: value for name, value in cfg.cluster.env.items() if name not in _OWN_ADDRESSES}
    section = replace(
        small.cluster,
        scheduler="local",
        partition=None,
        gpu_type=None,
        exclude=[],
        cpus_per_task=1,
        time_limit=LIMIT_S,
        env={**env, "CUDA_VISIBLE_DEVICES": ""},
    )
    # limits of the site's GPU nodes, and a disk that only they have
    data, health = replace(small.data, cache_dir=None), replace(small.health, limits={})
    small = replace(small, cluster=section, data=data, health=health)
    run_dir = _run_dir(small)
    spec = make_spec(
        section,
        name=f"rehearse-{cfg.run.name}",
        command=(sys.executable, "-m", "toolkit.launch.job", str(run_dir.root)),
        work_dir=name_code(run_dir.code_dir),
        log_dir=run_dir.logs_dir,
        nodes=section.nodes,
        tasks_per_node=section.gpus_per_node or 1,
    )
    spec = replace(spec, epilogue=(sys.executable, "-m", "toolkit.launch.after", str(run_dir.root)))
    cluster = LocalCluster(state_dir(run_dir.root.parent))
    not_seen = ("GPUs and their kernels", "the network between nodes", *_find_unseen(cfg, small))
    made = _find_new_dirs(cfg)
    return Rehearsal(cfg=small, run_dir=run_dir, cluster=cluster, spec=spec, not_seen=not_seen, new_dirs=made)


def _refuse_crowd(small: RunConfig) -> None:
    num_ranks, model = small.world_size, small.model
    need = num_ranks * (_RANK_BYTES + _ROW_BYTES * model.vocab_size * model.hidden_size)
    free = psutil.virtual_memory().available
    if need > free:
        what = f"{num_ranks} ranks take about {need / 2**30:.1f} GiB, {free / 2**30:.1f} are free here"
        must = "a rehearsal here runs every stage of two replicas as processes of this machine"
        raise RefusedError([Problem(what, must, "add --on-cluster, or rehearse on a larger machine")])


def plan_on_cluster(cfg: RunConfig, spec: JobSpec, cluster: Cluster) -> Rehearsal:
    """Plan a rehearsal as a job of a few minutes, asked for like that of the run but for its size.

    Raises:
        RunError: there is no cluster here.
        RefusedError: the scheduler would refuse it.
    """
    if cluster.name == "local":
        raise RunError(
            "--on-cluster, but nodes are emulated on this machine\n  it needs a cluster with Slurm\n"
            "  leave it out: --rehearse alone rehearses here"
        )
    small = _settle(shrink(cfg, ON_GPU if spec.gpus_per_node else ON_CPU))
    limit_s = min(LIMIT_S, spec.time_limit_s or LIMIT_S)
    small = replace(small, cluster=replace(small.cluster, time_limit=limit_s))
    run_dir, num_tasks = _run_dir(small), small.cluster.gpus_per_node or 1
    own = replace(
        spec,
        name=f"rehearse-{cfg.run.name}",
        command=(sys.executable, "-m", "toolkit.launch.job", str(run_dir.root)),
        epilogue=(sys.executable, "-m", "toolkit.launch.rehearsed", str(run_dir.root)),
        work_dir=name_code(run_dir.code_dir),
        log_dir=run_dir.logs_dir,
        nodes=small.cluster.nodes,
        tasks_per_node=num_tasks,
        gpus_per_node=num_tasks if spec.gpus_per_node else 0,
        time_limit_s=limit_s,
        signal_delay_s=small.cluster.signal_delay_s,
    )
    _, refusal = ask_whether(cluster, own, cluster.look())
    if refusal:
        must = "the rehearsal asks for the same as the run, with fewer nodes and less time"
        raise RefusedError([Problem(f"its rehearsal: {refusal}", must, "rehearse here: leave out --on-cluster")])
    unseen = _find_unseen(cfg, small)
    return Rehearsal(cfg=small, run_dir=run_dir, cluster=cluster, spec=own, not_seen=unseen, new_dirs=())


def _settle(small: RunConfig) -> RunConfig:
    """Give it places of its own, beside those of the run."""
    run, checkpoint = small.run, small.checkpoint
    folder = Path(run.root) / FOLDER / run.name
    if checkpoint.dir is not None:
        checkpoint = replace(checkpoint, dir=storage.join(checkpoint.dir, FOLDER, run.name))
    return replace(small, run=replace(run, root=str(folder)), checkpoint=checkpoint)


def _run_dir(small: RunConfig) -> RunDir:
    return RunDir(Path(small.run.root) / small.run.name)


def _find_new_dirs(cfg: RunConfig) -> tuple[Path, ...]:
    places = [Path(cfg.run.root)]
    if cfg.checkpoint.dir is not None and cfg.checkpoint.mirror_url is None:
        places.append(storage.local_path(cfg.checkpoint.dir))
    return tuple(path for place in places for path in (place, *place.parents) if not path.exists())


def _find_unseen(cfg: RunConfig, small: RunConfig) -> tuple[str, ...]:
    pairs = {
        "tokens a sample": (cfg.data.seq_len, small.data.seq_len),
        "blocks": (cfg.model.num_hidden_layers, small.model.num_hidden_layers),
        "replicas": (cfg.replicas, small.replicas),
    }
    fewer = [f"{before} {what} ({now} here)" for what, (before, now) in pairs.items() if now < before]
    online = ["W&B online"] if cfg.monitor.wandb in {"auto", "online"} else []
    return ("memory and speed at full width", *fewer, *online)


@contextlib.contextmanager
def claim(rehearsal: Rehearsal) -> Iterator[None]:
    """Hold the folder of a rehearsal, emptied of what a former one left.

    Raises:
        RunError: the run is being rehearsed already.
        StorageError: the folder cannot be written.
    """
    folder, name = rehearsal.folder, rehearsal.run_dir.name
    with _writes(folder), private_files():
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(name, "somebody waits for it at a prompt", folder) from None
        except OSError as error:
            log.debug("%s cannot be locked: %s", folder, error)
        _refuse_live(rehearsal)
        with _writes(folder):
            _empty(rehearsal, keep="lock")
        yield


@contextlib.contextmanager
def _writes(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {folder}: {error.strerror}\n  the rehearsal lives there\n  free space, or set run.root"
        ) from error


def _refuse_live(rehearsal: Rehearsal) -> None:
    status = job_status(rehearsal.run_dir)
    if status is not None and status.state.is_live:
        raise _in_use(rehearsal.run_dir.name, f"job {status.job_id} is {status.state.value}", rehearsal.folder)


def _in_use(name: str, how: str, folder: Path) -> RunError:
    return RunError(
        f"run {name} is being rehearsed: {how}\n  a run has one rehearsal at a time\n"
        f"  wait, or type: python -m toolkit cancel {name} --root {folder}"
    )


@private_files()
def hand_in(rehearsal: Rehearsal, *, code_dir: Path | None, dependency: str | None) -> str:
    """Write the directory of a claimed rehearsal and hand its job in; give the job's id.

    Args:
        rehearsal: what is handed in.
        code_dir: frozen code of the run; None: the code that is running.
        dependency: what its job waits for.
    """
    run_dir = rehearsal.run_dir
    with _writes(rehearsal.folder):
        run_dir.logs_dir.mkdir(parents=True)
        run_dir.root.chmod(0o700)  # its code is executed
        work_dir = freeze_code(run_dir.code_dir, source_dir=code_dir)
    storage.write_atomic(str(run_dir.config_path), dump_config(rehearsal.cfg).encode())
    cluster, mark = rehearsal.cluster, new_mark(settle(run_dir).run_id)
    record = JobRecord(scheduler=cluster.name, job_id="", mark=mark, cluster=cluster.identify(), attempts_before=0)
    write_job_record(run_dir, record)
    spec = replace(rehearsal.spec, dependency=dependency, work_dir=work_dir, mark=mark)
    job_id = cluster.submit(spec, script_path=run_dir.script_path)
    if (known := find_job_record(run_dir)) is None or not known.job_id:
        write_job_record(run_dir, replace(record, job_id=job_id))
    return job_id


def watch(rehearsal: Rehearsal, *, tell: Callable[[str], None]) -> Problem | None:
    """Wait for the job of a rehearsal here and tell each phase; give what went wrong.

    A wait that is interrupted ends the job.
    """
    run_dir, cluster = rehearsal.run_dir, rehearsal.cluster
    record = find_job_record(run_dir)
    assert record is not None, "the rehearsal was not handed in"
    told, deadline = 0, time.monotonic() + PATIENCE_S
    status = cluster.state(record.job_id)
    try:
        while status.state.is_live and time.monotonic() < deadline:
            phases = list_phases(run_dir, rehearsal.cfg)
            for phase in phases[told:]:
                tell(phase)
            told = len(phases)
            time.sleep(_POLL_S)
            status = cluster.state(record.job_id)
    finally:
        if status.state.is_live:
            cluster.cancel(record.job_id)
            _await_end(cluster, record.job_id)
    phases = list_phases(run_dir, rehearsal.cfg)
    for phase in phases[told:]:
        tell(phase)
    if status.state.is_live:
        reached = phases[-1] if phases else "nothing"
        what = f"the rehearsal did not end in {PATIENCE_S:.0f} s; it reached: {reached}"
        return Problem(what, "this machine is slow or busy, or the run hangs", f"see {run_dir.logs_dir}")
    return find_trouble(run_dir, status) or find_gap(run_dir)


def _await_end(cluster: Cluster, job_id: str) -> None:
    deadline = time.monotonic() + _END_S
    while cluster.state(job_id).state.is_live and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def remove(rehearsal: Rehearsal) -> None:
    """Delete all that a rehearsal here has written; what cannot be is left, and told."""
    try:
        _empty(rehearsal, keep=None)
    except (OSError, ToolkitError) as error:  # the run may have been submitted already
        log.warning("%s is left: %s", rehearsal.folder, error)
    for path in (rehearsal.folder, rehearsal.folder.parent, *rehearsal.new_dirs):
        _remove_empty(path)


def _empty(rehearsal: Rehearsal, *, keep: str | None) -> None:
    remove_checkpoints(rehearsal.cfg, rehearsal.run_dir)
    for entry in rehearsal.folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != keep:
            entry.unlink()


def remove_checkpoints(cfg: RunConfig, run_dir: RunDir) -> None:
    """Delete the checkpoints of a rehearsal, wherever they are."""
    shutil.rmtree(run_dir.checkpoints_dir, ignore_errors=True)
    if cfg.checkpoint.dir is None:
        return
    storage.remove_tree(cfg.checkpoint.dir)
    folder = cfg.checkpoint.dir.rpartition("/")[0]
    if cfg.checkpoint.mirror_url is None:
        _remove_empty(storage.local_path(folder))


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another run is being rehearsed
        folder.rmdir()
