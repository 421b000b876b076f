"""Carry out a request: write the run directory, freeze the code, hand the job in."""

import logging
import os
import shutil
import sys
from dataclasses import replace

from toolkit import storage
from toolkit.cluster.commands import UndecidedError
from toolkit.cluster.marks import new_mark
from toolkit.config.load import dump_config
from toolkit.errors import StorageError, ToolkitError
from toolkit.launch.expected import write_expected
from toolkit.launch.halt import refuse_live
from toolkit.launch.identity import settle
from toolkit.launch.ledger import JobRecord, find_job_record, read_attempts, write_job_record
from toolkit.launch.prepare import submit_jobs
from toolkit.launch.progress import accept_loss, put_aside
from toolkit.launch.rehearsal import claim, hand_in
from toolkit.launch.snapshot import freeze_code
from toolkit.launch.submit import Request
from toolkit.lock import hold
from toolkit.modes import private_files
from toolkit.plan.search import plan_text
from toolkit.rundir import RunDir

log = logging.getLogger(__name__)


def carry_out(request: Request) -> str:
    """Write the run directory, freeze the code, hand the job in; give its id.

    Raises:
        HeldError: another command is submitting the run.
        StorageError: the run directory cannot be written.
        UndecidedError: the scheduler did not answer; the run stays as it is, and finds its job when it was taken.
        ClusterError: the scheduler refused after all; a run directory that is new is taken away again.
    """
    run_dir = request.run_dir
    try:
        with private_files():
            run_dir.root.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_place(run_dir, error) from error
    with hold(run_dir.submit_lock_path, what=f"run {run_dir.name} is being submitted"):
        return _carry_out_alone(request)


def _carry_out_alone(request: Request) -> str:
    run_dir = request.run_dir
    is_new = not os.path.lexists(run_dir.root)
    before = None if request.original else find_job_record(run_dir)
    if before != request.known:
        refuse_live(run_dir)  # somebody was quicker
    attempts_before = 0 if request.from_scratch else len(read_attempts(run_dir))
    is_asked = False
    try:
        request = _write_run_dir(request)
        prepared_by = submit_jobs(request.preparation, request.cluster) if request.preparation else None
        dependency = f"afterok:{prepared_by}" if prepared_by else None
        record = JobRecord(
            scheduler=request.cluster.name,
            job_id="",
            mark=request.spec.mark,
            cluster=request.cluster.identify(),
            attempts_before=attempts_before,
            prepared_in=str(request.preparation.jobs_dir) if request.preparation is not None else None,
            rehearsed_in=str(request.rehearsal.run_dir.root) if request.rehearsal is not None else None,
        )
        write_job_record(run_dir, record)  # first: if the answer is lost, its mark leads to the job
        is_asked = True
        job_id = _hand_in(replace(request, spec=replace(request.spec, dependency=dependency)))
    except BaseException as error:
        # Ctrl-C too. A scheduler that was asked, and did not say no, may have taken the job: then all of it stays.
        has_refused = isinstance(error, ToolkitError) and not isinstance(error, UndecidedError)
        if has_refused or not is_asked:
            _take_back(run_dir, before, is_new=is_new)
        raise
    if (known := find_job_record(run_dir)) is None or not known.job_id:  # it may have started, and have said more
        write_job_record(run_dir, replace(record, job_id=job_id))
    return job_id


def _take_back(run_dir: RunDir, before: JobRecord | None, *, is_new: bool) -> None:
    """Leave a run as it was before a job that was not taken; nothing that this command has not made is deleted."""
    if is_new:
        shutil.rmtree(run_dir.root, ignore_errors=True)
    elif before is not None:
        write_job_record(run_dir, before)
    else:
        run_dir.job_path.unlink(missing_ok=True)


@private_files()
def _hand_in(request: Request) -> str:
    """Hand in the job of the run, behind that of its rehearsal where there is one; give its id."""
    if request.rehearsal is None:
        return request.cluster.submit(request.spec, script_path=request.run_dir.script_path)
    with claim(request.rehearsal):
        code_dir, dependency = request.spec.work_dir, request.spec.dependency
        rehearsed_by = hand_in(request.rehearsal, code_dir=code_dir, dependency=dependency)
    try:
        spec = replace(request.spec, dependency=f"afterok:{rehearsed_by}")
        return request.cluster.submit(spec, script_path=request.run_dir.script_path)
    except UndecidedError:
        raise
    except ToolkitError:
        request.cluster.cancel(rehearsed_by)
        raise


@private_files()
def _write_run_dir(request: Request) -> Request:
    """Write what the job will read; give the request with the identity of the run and the place of its code."""
    run_dir = request.run_dir
    try:
        run_dir.logs_dir.mkdir(parents=True, exist_ok=True)
        run_dir.root.chmod(0o700)  # its code is executed
        code_dir = freeze_code(run_dir.code_dir, source_dir=request.code_dir)
    except OSError as error:
        raise _no_place(run_dir, error) from error
    identity = settle(run_dir)
    if request.from_scratch and (former := put_aside(run_dir)) is not None:
        log.warning("run %s begins again at step 0; its metrics and attempts until now are in %s", run_dir.name, former)
    accept_loss(run_dir, request.plan.cfg)
    run_dir.halt_path.unlink(missing_ok=True)
    storage.write_atomic(str(run_dir.asked_path), dump_config(request.asked).encode())
    storage.write_atomic(str(run_dir.config_path), dump_config(request.plan.cfg).encode())
    storage.write_atomic(str(run_dir.plan_path), plan_text(request.plan).encode())
    storage.write_atomic(str(run_dir.python_path), f"{sys.executable}\n".encode())
    write_expected(run_dir, request.expected)
    return replace(request, spec=replace(request.spec, work_dir=code_dir, mark=new_mark(identity.run_id)))


def _no_place(run_dir: RunDir, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write {run_dir.root}: {error.strerror or error}\n  the run lives there\n  free space, or set run.root"
    )
